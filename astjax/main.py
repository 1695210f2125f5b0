"""`python -m astjax.main --config=configs/ast_audioset.py --workdir=runs/a`.

Flags in, one call out. Any value of the config can be set on the command line:
--config.input.batch_size=8. The same command resumes a run, and it is the same
on every machine of a TPU pod or of a scheduler's job.

Exit codes: 0 done; 2 a mistake, which comes again if the command is repeated; 1
anything else that failed; 128 + n stopped by signal n, saved. Where several
processes train together, all of them exit with the code of one that failed.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from astjax.errors import Outage, UserError, first_line, nearest

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "A config file, as path.py or path.py:argument.",
  # Keys that a file leaves at their default can be set too; unknown ones are
  # found by `run_config`, which can name the nearest.
  lock_config=False,
  accept_new_attributes=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir", "", "Folder for everything the run writes."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  "",
  "host:port of process 0, to train on several processes. TPU pods, SLURM, "
  "Open MPI and Kubernetes need none of these three flags.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes",
  None,
  "How many processes train together; 1 ignores a scheduler.",
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Which of them this one is, from 0."
)
_PROFILE = flags.DEFINE_string(
  "profile",
  "",
  "START:COUNT, such as 10:5: write a trace of these steps to profile/ in the "
  "work directory.",
)

_FLAGS = (
  "config",
  "workdir",
  "coordinator",
  "num_processes",
  "process_id",
  "profile",
)


def run(
  work: Callable[[], None] | None = None, further: Sequence[str] = ()
) -> None:
  """Entry point: the user's mistakes end in one line and a non-zero exit.

  Args:
    work: what is done, by default the training; a tool that takes the same
      flags has its own.
    further: names of flags of that tool.
  """
  app.run(
    partial(_main, work or _train),
    flags_parser=partial(_parse, (*_FLAGS, *further)),
  )


def config() -> ConfigDict:
  """What --config and --config.x=... say, inside `run`."""
  return _CONFIG.value


def _parse(known: Sequence[str], argv: Sequence[str]) -> list[str]:
  """Parses flags; where absl would answer with a page, one line comes."""
  try:
    rest = flags.FLAGS(list(argv))
    if not _config_path(argv):
      raise UserError(
        "no config: give one with --config=FILE.py, such as configs/demo.py"
      )
    value = _CONFIG.value
    if value is None:
      raise UserError("the config file's get_config() returned nothing")
    if not isinstance(value, ConfigDict):
      # A file that could not be read raises its error only when it is used.
      getattr(value, "lock", None)
      raise UserError(
        f"the config file's get_config() returned {type(value).__name__}, "
        "expected an ml_collections.ConfigDict"
      )
    if rest[1:]:
      raise UserError(f"unexpected argument {rest[1]!r}; flags begin with --")
  except flags.UnrecognizedFlagError as e:
    hint = nearest(e.flagname, known)
    if e.flagname.startswith("config."):
      hint = " It needs --config=FILE.py before it."
    _fail(f"unknown flag --{e.flagname}.{hint}", code=2)
  except SyntaxError as e:
    path, line = e.filename or _config_path(argv), e.lineno or 1
    _fail(f"the config is not Python: {path}, line {line}: {e.msg}", code=2)
  except Exception as e:
    _fail(_explain(e), code=2)
  return rest


def _explain(error: Exception) -> str:
  """The one line that matters of an error met while reading flags."""
  text = str(error).strip()
  if isinstance(error, AttributeError) and "get_config" in text:
    return "the config file has no function get_config"
  path = _config_path(sys.argv).split(":")[0]
  if isinstance(error, OSError) and not os.path.isfile(path):
    what = "is a folder" if os.path.isdir(path) else "does not exist"
    return f"the config file {path!r} {what}; expected a path like configs/x.py"
  # ml_collections wraps a get_config() that raises in its whole traceback.
  if "Error whilst parsing config file" in text:
    return f"the config: {text.splitlines()[-1]}"
  if isinstance(error, (UserError, flags.Error)):
    return text
  if isinstance(error, KeyError):  # its text is a repr of a repr
    text = text.replace("\\n", " ").replace("\\", "").strip("'\"")
    name, _, hint = text.partition("'")
    return f"the config has no key {name!r}{hint}"
  text = text.split("failure to load:")[-1].strip()
  return f"the config: {type(error).__name__}: {text}"


def _config_path(argv: Sequence[str]) -> str:
  """What --config was given, with its argument; empty if it was not."""
  for i, word in enumerate(argv):
    if word in ("--config", "-config"):
      return argv[i + 1] if i + 1 < len(argv) else ""
    if match := re.match(r"--?config=(.*)", word):
      return match.group(1)
  return ""


def _main(work: Callable[[], None], argv: Sequence[str]) -> None:
  del argv
  # What orbax logs as an error, with a traceback, it raises as well.
  logging.set_verbosity(logging.FATAL)
  sys.unraisablehook = partial(_unraisable, sys.unraisablehook)
  try:
    work()
  except UserError as e:
    _fail(e, code=1 if isinstance(e, Outage) else 2)
  except OSError as e:
    where = f" ({e.filename})" if e.filename else ""
    _fail(f"{e.strerror or e}{where}")
  except KeyboardInterrupt:
    _fail("interrupted outside of a step; the last checkpoint stands", code=130)
  except Exception as e:
    _fail_together(e)


def _unraisable(show: Callable, what: sys.UnraisableHookArgs) -> None:
  """Passes on but the echoes of a failed save: its parts end one by one."""
  if str(what.exc_value) != "Event loop is closed":
    show(what)


def _join() -> None:
  """Meets the other processes, if flags or environment tell of any."""
  if not _WORKDIR.value:
    raise UserError("no work directory: give one with --workdir=FOLDER")
  # Of C++ libraries; what matters of it is also raised. Before they are loaded.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  from astjax.run import processes

  group = processes.find(
    os.environ,
    coordinator=_COORDINATOR.value,
    num_processes=_NUM_PROCESSES.value,
    process_id=_PROCESS_ID.value,
  )
  if group is not None:
    processes.join(group)


def _train() -> None:
  _join()
  try:
    from astjax import train
    from astjax.engine import devices
  except ModuleNotFoundError as e:
    if e.name != "tensorflow":
      raise
    raise UserError(
      "training from files needs TensorFlow: pip install 'astjax[data]' (or "
      "'astjax[data-cpu]' on a machine without a GPU)"
    ) from None
  try:
    train.train_and_evaluate(
      _CONFIG.value,
      _WORKDIR.value,
      profile=devices.parse_window(_PROFILE.value) if _PROFILE.value else None,
    )
  except train.Stopped as e:
    from astjax.run import processes

    processes.leave()
    _fail(e, code=128 + e.signum)


def _fail_together(error: Exception) -> NoReturn:
  """Where the others have to know; a lost one of them is no traceback."""
  from astjax.run import processes

  if not processes.is_one_of_several():
    raise error
  processes.wait_for_word()
  text = f"{type(error).__name__}: {first_line(error)}"
  if processes.is_lost(error):
    _fail(f"lost another process of this run ({text[:200]})")
  traceback.print_exception(error)
  _fail(text)


def _fail(error: Exception | str, code: int = 1) -> NoReturn:
  """One line, here and for the other processes, and the end."""
  text = " ".join(str(error).split())
  if processes := sys.modules.get("astjax.run.processes"):
    processes.end(text, code)
  print(f"astjax: error: {text}", file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(code)


if __name__ == "__main__":
  run()
