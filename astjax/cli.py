"""The frame of every command: flags, one line for a mistake, exit codes.

Exit codes: 0 done; 2 a mistake, which comes again if the command is repeated; 1
anything else that failed; 128 + n stopped by signal n. So a launcher knows
whether to start again without looking for words in the output.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import runpy
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import logging

from astjax.errors import Outage, Stopped, UserError, nearest


class Parser(argparse.ArgumentParser):
  """The flags of a command; --help shows its docstring.

  With `config` it takes --config=FILE.py[:ARGUMENT] and --config.KEY=VALUE, and
  `run` gives the command a ConfigDict as `args.config`.
  """

  def __init__(self, description: str | None, *, config: bool = False):
    super().__init__(
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,  # --co would be --coordinator, or a key of a config
    )
    self.has_config = config
    if config:
      what = "a config file; --config.KEY=VALUE sets any of its values"
      self.add_argument("--config", metavar="FILE.py[:ARGUMENT]", help=what)

  def error(self, message: str) -> NoReturn:
    """One line, where argparse would print its usage before."""
    raise UserError(message)


def add_run_flags(parser: Parser) -> None:
  """The flags of a training beside its config."""
  add = parser.add_argument
  add("--workdir", default="", help="folder for everything the run writes")
  what = "of process 0, to train on several processes; schedulers tell it"
  add("--coordinator", default="", metavar="HOST:PORT", help=what)
  what = "how many train together; 1 ignores a scheduler"
  add("--num_processes", type=int, metavar="N", help=what)
  add("--process_id", type=int, metavar="I", help="which this one is, from 0")
  what = "write a trace of these steps, such as 10:5, to WORKDIR/profile"
  add("--profile", default="", metavar="START:COUNT", help=what)


def listed(text: str) -> tuple[str, ...]:
  """A flag's "1,2" as its parts."""
  return tuple(x.strip() for x in text.split(",") if x.strip())


def check_folder(flag: str, path: str | None) -> None:
  """A UserError before long work, if what comes of it has no place."""
  if path and not pathlib.Path(path).expanduser().absolute().parent.is_dir():
    raise UserError(f"{flag}={path}: there is no such folder")


def run(
  work: Callable[[argparse.Namespace], int | None],
  parser: Parser,
  argv: Sequence[str] | None = None,
  *,
  pass_on: bool = False,
) -> int:
  """Parses the flags and works; returns the exit code, which may be `work`'s.

  With `pass_on` words that are no flags are no mistake, but `args.others`.
  """
  # What orbax logs as an error, with a traceback, it raises as well.
  logging.set_verbosity(logging.FATAL)
  try:
    return work(_parse(parser, argv, pass_on)) or 0
  except Stopped as e:
    return fail(e, 128 + e.signum)
  except UserError as e:
    return fail(e, 1 if isinstance(e, Outage) else 2)
  except OSError as e:
    return fail(f"{e.strerror or e}{f' ({e.filename})' if e.filename else ''}")
  except KeyboardInterrupt:
    return fail("interrupted", 130)
  except Exception:  # a mistake of the program's
    traceback.print_exc()
    return 1


def fail(error: Exception | str, code: int = 1) -> int:
  """Prints one line; returns the code."""
  print(f"astjax: error: {' '.join(str(error).split())}", file=sys.stderr)
  return code


def _parse(parser, argv, pass_on):
  argv = list(sys.argv[1:] if argv is None else argv)
  if parser.has_config:  # -workdir is --workdir, as absl has it
    argv = [re.sub(r"^-(?=[a-z][\w.]+(=|$))", "--", word) for word in argv]
  args, others = parser.parse_known_args(argv)
  if parser.has_config:
    if not args.config:
      raise UserError("no config: give one, such as --config=configs/demo.py")
    args.config, others = override(load_config(args.config), others)
  if pass_on:
    args.others = others
  elif others and not others[0].startswith("-"):
    raise UserError(f"unexpected argument {others[0]!r}; flags begin with --")
  elif others:
    name = others[0].lstrip("-").split("=")[0]
    known = re.findall(r"--([\w.]+)", parser.format_usage())
    raise UserError(f"unknown flag --{name}.{nearest(name, known)}")
  return args


def load_config(where: str) -> Any:
  """The ConfigDict of FILE.py, or of FILE.py:ARGUMENT."""
  from ml_collections import ConfigDict

  path, colon, argument = where.partition(":")
  if not os.path.isfile(path):
    what = "is a folder" if os.path.isdir(path) else "does not exist"
    raise UserError(f"the config file {path!r} {what}")
  _let_configs_be_imported()
  try:
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
      raise UserError(f"the config file {path!r} has no function get_config")
    config = get_config(*([argument] if colon else []))
  except UserError:
    raise
  except SyntaxError as e:
    place = f"{e.filename or path}, line {e.lineno or 1}"
    raise UserError(f"the config is not Python: {place}: {e.msg}") from None
  except Exception as e:
    raise UserError(f"the config {path}: {type(e).__name__}: {e}") from None
  if not isinstance(config, ConfigDict):
    what = "nothing" if config is None else type(config).__name__
    raise UserError(
      f"get_config() of {path!r} returned {what}, expected a ConfigDict"
    )
  return config


def _let_configs_be_imported() -> None:
  """`from configs import common` works, whatever the current folder is."""
  # Those of this checkout, else those of the current folder.
  root = pathlib.Path(__file__).resolve().parent.parent
  package = types.ModuleType("configs")
  folders = (root / "configs", "configs")
  package.__path__ = [os.path.abspath(folder) for folder in folders]
  sys.modules.setdefault("configs", package)


def override(config: Any, words: Sequence[str]) -> tuple[Any, list[str]]:
  """Sets values by --config.KEY=VALUE; returns (config, the other words)."""
  from absl import flags
  from ml_collections import config_flags

  values, words = flags.FlagValues(), ["", *words]
  try:
    # Keys that a file leaves at their default can be set too; unknown ones are
    # found by `run.config`, which names the nearest.
    free = {"lock_config": False, "accept_new_attributes": True}
    holder = config_flags.DEFINE_config_dict(
      "config", config, flag_values=values, sys_argv=words, **free
    )
    others = values(words, known_only=True)[1:]
  except flags.Error as e:
    raise UserError(str(e)) from None
  except (LookupError, AttributeError, TypeError) as e:  # a key of no section
    raise UserError(f"the config has no key {e.args[0]}") from None
  return holder.value, others
