"""Says what a model hears in recordings.

  python -m astjax.tools.predict --model=runs/sounds dog.wav more/
  python -m astjax.tools.predict --model=M FOLDER --output=scores.jsonl

Folders are searched with all their sub-folders. A terminal gets lines to read,
a pipe JSON lines, --output a .jsonl or .csv file. With .jsonl the same command
goes on where it was interrupted: what the file has is passed over. A .csv is
there once all recordings have been heard, or not at all.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import itertools
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from astjax import cli
from astjax.data import tables
from astjax.errors import UserError, file_error, warn
from astjax.run import log
from astjax.serving import bundle
from astjax.serving.bundle import Bundle, Prediction
from astjax.weights import files


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = cli.Parser(__doc__)
  add = parser.add_argument
  add("paths", nargs="+", metavar="FILE_OR_FOLDER")
  what = "a file, .jsonl (continued if it is there) or .csv (a new one)"
  add("--output", default="", help=what)
  add("--top", type=int, default=5, help="how many classes; 0 for all")
  add("--windows", action="store_true", help="also each window's classes")
  add_model(parser)
  return cli.run(_predict, parser, argv)


def add_model(parser: cli.Parser, *, labels: bool = True) -> None:
  """Flags that say which model, and how it runs; its class names or not."""
  add = parser.add_argument
  what = "a path, a work directory, a published or Hugging Face name"
  add("--model", required=True, help=what)
  add("--recipe", default="", help="front-end, if the model has none")
  what = "class names, if the model has none: one a line, or AudioSet's CSV"
  if labels:
    add("--label_list", default="", help=what)
  add("--batch_size", type=int, default=8, help="clips or windows at once")
  add("--dtype", default="float32", choices=("float32", "bfloat16"))


def load_model(args: argparse.Namespace, class_names: Sequence[str]) -> Bundle:
  """The model that the flags ask for; warnings become plain lines."""
  warnings.showwarning = lambda message, *_, **__: warn(str(message))
  how = {k: getattr(args, k) for k in ("recipe", "batch_size", "dtype")}
  return bundle.load(args.model, class_names=class_names, **how)


def _predict(args: argparse.Namespace) -> int:
  if args.top < 0:
    raise UserError(f"--top={args.top} must be at least 0")
  cli.check_folder("--output", args.output)
  paths = find(args.paths)
  labels = args.label_list
  names = tables.read_label_list(labels)[0] if labels else ()
  model = load_model(args, names)
  # What a file holds is of one model and one front-end.
  own = [model.digest, model.info.recipe, args.dtype, *model.class_names]
  digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:16]
  count = len(model.class_names)
  kind = Kind(digest, min(args.top or count, count), args.windows)
  console = log.Console(stderr=True)
  failed = 0
  try:
    with _output(args.output, kind) as (done, write):
      # Those that could not be used are in no file, and are tried again.
      new = [p for p in paths if p not in done]
      if passed := len(paths) - len(new):
        console.say(f"{args.output} has {passed} of {len(paths)} recordings")
      for path, found in zip(new, hear(model, new, console), strict=True):
        if isinstance(found, UserError):
          failed += 1
          cli.fail(found)
        else:
          write(kind.record(path, found))
  except OSError as e:
    what = args.output or "to standard output"
    raise file_error(e, f"cannot write {what}: {e.strerror or e}") from None
  where = f" in {args.output}" if args.output else ""
  told = f", {failed} could not be used" if failed else ""
  console.say(f"{len(new) - failed} recordings{where}{told}")
  return 1 if failed else 0


@contextlib.contextmanager
def _output(name: str, kind: Kind) -> Iterator[tuple[set[str], Callable]]:
  """(recordings that are there already, what writes a record)."""
  path = pathlib.Path(name).expanduser()
  if not name:
    yield set(), _show if sys.stdout.isatty() else _print_json
  elif path.suffix == ".jsonl":
    done = _resume(path, kind)
    with _open(path, "a") as f:
      yield done, lambda record: _print_json(record, f)
  elif path.suffix == ".csv":
    if path.exists():
      raise UserError(f"{name} is there already; give a new name")
    with files.written_whole(path) as whole, _open(whole, "w") as f:
      out = csv.writer(f, lineterminator="\n")
      best = [(f"class_{i}", f"score_{i}") for i in range(1, kind.top + 1)]
      columns = ["model", "path", "part", "start", "end"]
      out.writerow([*columns, *itertools.chain(*best)])
      yield set(), lambda record: out.writerows(_rows(record))
  else:
    raise UserError(f"--output={name} must end in .jsonl or .csv")


def _open(path: pathlib.Path, mode: str) -> IO[str]:
  # A path of a file system may be no UTF-8, and has to come back as it was.
  return open(
    path, mode, encoding="utf-8", errors="surrogateescape", newline=""
  )


def find(given: Sequence[str]) -> list[str]:
  """Files as they are, folders as the recordings in them (or an error)."""
  paths: dict[str, None] = {}
  for text in given:
    path = pathlib.Path(text).expanduser()
    below = [str(path)]
    if path.is_dir():
      below = [str(path / name) for name in tables.sound_files(path)]
    if not below:
      raise UserError(f"no recordings below {path}")
    paths |= dict.fromkeys(below)
  return list(paths)


def hear(
  model: Bundle,
  paths: Sequence[str],
  console: log.Console,
  *,
  whole: bool = True,
) -> Iterator[Prediction | UserError]:
  """Predictions of files, with progress; a bad file gives its error."""
  tick = console.ticker("heard", len(paths), what="recordings")
  for done, found in enumerate(model.stream(paths, whole=whole), 1):
    tick(done)
    yield found


class Kind(NamedTuple):
  """What has to be the same of all records in a file."""

  model: str  # the beginning of a digest of all that decides on the scores
  top: int  # how many classes
  windows: bool  # whether each window's classes are written

  def record(self, path: str, found: Prediction) -> dict[str, Any]:
    """What is written of a recording, as JSON has it."""
    record: dict[str, Any] = {"model": self.model, "path": path}
    record |= _part(found.top(self.top), seconds=found.seconds)
    if self.windows:
      record["windows"] = [
        _part(found.top(self.top, i), start=start, end=end)
        for i, (start, end) in enumerate(found.window_times)
      ]
    return record


def _part(best: list[tuple[str, float]], **seconds: float) -> dict[str, Any]:
  part: dict[str, Any] = {k: round(float(v), 4) for k, v in seconds.items()}
  part["classes"] = [name for name, _ in best]
  part["scores"] = [round(score, 6) for _, score in best]
  return part


def _print_json(record: dict[str, Any], file: IO[str] | None = None) -> None:
  # Each line is flushed: what a kill can lose is one recording.
  print(json.dumps(record, ensure_ascii=False), file=file, flush=True)


def _show(record: dict[str, Any]) -> None:
  for _, path, _, start, end, *best in _rows(record):
    scored = zip(best[::2], best[1::2], strict=True)
    said = ", ".join(f"{name} {score:.4f}" for name, score in scored)
    print(f"{path}  {start:.2f}-{end:.2f} s  {said}")


def _rows(record: dict[str, Any]) -> Iterator[list]:
  """Of a CSV: one for each window if there are any, then one for the whole."""
  whole = record | {"start": 0.0, "end": record["seconds"]}
  for part in [*record.get("windows", ()), whole]:
    scored = zip(part["classes"], part["scores"], strict=True)
    what = "whole" if part is whole else "window"
    row = [record["model"], record["path"], what, part["start"], part["end"]]
    yield [*row, *itertools.chain(*scored)]


def _resume(path: pathlib.Path, kind: Kind) -> set[str]:
  """The recordings that a file of JSON lines has; cuts off a torn last line."""
  text = path.read_bytes() if path.exists() else b""
  end = text.rfind(b"\n") + 1
  done = set()
  for line in text[:end].split(b"\n")[:-1]:
    try:
      found = json.loads(line.decode("utf-8", "surrogateescape"))
      same = kind == (found["model"], len(found["classes"]), "windows" in found)
      done.add(found["path"])
    except (ValueError, KeyError, TypeError):
      same = False
    if not same:
      raise UserError(
        f"{path} has other lines than predictions of this model with these "
        "flags (--top, --windows); give a new name"
      )
  if end < len(text):  # an interruption left a part of a line
    os.truncate(path, end)
  return done


if __name__ == "__main__":
  sys.exit(main())
