"""Says what a model hears in recordings.

  python -m astjax.tools.predict --model=runs/sounds dog.wav more/
  python -m astjax.tools.predict --model=M FOLDER --output=scores.jsonl

Folders are searched with all their sub-folders. On a terminal comes a table, to
a pipe come JSON lines, to --output (.jsonl or .csv) either. With .jsonl the
same command goes on where it was interrupted: what the output has is passed
over. A .csv is there once all recordings have been heard, or not at all.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

import soundfile

from astjax import cli
from astjax.data import tables
from astjax.errors import UserError, file_error, warn
from astjax.run import log
from astjax.serving import bundle
from astjax.serving.bundle import Bundle, Prediction
from astjax.weights import files

# A path of a file system may be no UTF-8, and has to come back as it was.
_ENCODING = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = cli.Parser(__doc__)
  add = parser.add_argument
  add("paths", nargs="+", metavar="FILE_OR_FOLDER")
  what = "a file, .jsonl (continued if it is there) or .csv (a new one)"
  add("--output", help=what)
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
  return bundle.load(
    args.model,
    recipe=args.recipe,
    class_names=class_names,
    batch_size=args.batch_size,
    dtype=args.dtype,
  )


def _predict(args: argparse.Namespace) -> int:
  if args.top < 0:
    raise UserError(f"--top={args.top} must be at least 0")
  check_folder("--output", args.output)
  paths = find(args.paths)
  names = ()
  if args.label_list:
    names = tables.read_label_list(args.label_list)[0]
  model = load_model(args, names)
  # What a file holds is of one model and one front-end.
  own = [model.digest, model.info.recipe, args.dtype, *model.class_names]
  digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:16]
  count = len(model.class_names)
  text = Text(digest, min(args.top or count, count), args.windows)
  console = log.Console(stderr=True)
  failed = 0
  try:
    with _output(args.output, text) as (done, write):
      # Those that could not be used are in no file, and are tried again.
      if passed := [p for p in paths if p in done]:
        told = f"{args.output} has {len(passed)} of {len(paths)} recordings"
        console.say(told)
      paths = [p for p in paths if p not in done]
      for path, found in zip(paths, hear(model, paths, console), strict=True):
        if isinstance(found, UserError):
          failed += 1
          console.say(f"astjax: error: {' '.join(str(found).split())}")
        else:
          write(path, found)
  except OSError as e:
    what = args.output or "to standard output"
    raise file_error(e, f"cannot write {what}: {e.strerror or e}") from None
  told = f", {failed} could not be used" if failed else ""
  where = f" in {args.output}" if args.output else ""
  console.say(f"{len(paths) - failed} recordings{where}{told}")
  return 1 if failed else 0


@contextlib.contextmanager
def _output(name: str | None, text: Text) -> Iterator[tuple[set, Callable]]:
  """(recordings that are there already, what writes another one)."""
  path = pathlib.Path(name or "").expanduser()
  if not name and not sys.stdout.isatty():
    yield set(), lambda *one: print(text.line(*one), flush=True)
  elif not name:
    rows = []
    try:
      yield set(), lambda *one: rows.extend(text.table(*one))
    finally:  # an interruption shows what was heard until then
      if rows:
        columns = ["recording", "seconds", "class", "score"]
        log.Console().table("", columns, rows)
  elif path.suffix == ".jsonl":
    done = text.resume(path)
    # Each line is flushed: what a kill can lose is one recording.
    with open(path, "a", **_ENCODING) as f:
      yield done, lambda *one: print(text.line(*one), file=f, flush=True)
  elif path.suffix == ".csv":
    if path.exists():
      raise UserError(f"{name} is there already; give a new name")
    with files.written_whole(path) as whole, open(whole, "w", **_ENCODING) as f:
      rows = csv.writer(f, lineterminator="\n")
      rows.writerow(text.columns)
      yield set(), lambda *one: rows.writerows(text.rows(*one))
  else:
    raise UserError(f"--output={name} must end in .jsonl or .csv")


def check_folder(flag: str, path: str | None) -> None:
  """A UserError before long work, if what comes of it has no place."""
  if path and not pathlib.Path(path).expanduser().absolute().parent.is_dir():
    raise UserError(f"{flag}={path}: there is no such folder")


def find(given: Sequence[str]) -> list[str]:
  """Files as they are, folders as the recordings below them; each once.

  Raises:
    UserError: a folder without recordings.
  """
  paths: dict[str, None] = {}
  for text in given:
    path = pathlib.Path(text).expanduser()
    if not path.is_dir():
      paths[str(path)] = None
      continue
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
  total = len(paths)
  tick = console.ticker("heard", total, what="recordings")
  console.start_bar(total, 0, "heard")
  done = 0.0

  def progress(number: int, seconds: float) -> None:
    # Long recordings move the bar too. Batches may finish out of order.
    nonlocal done
    length = _seconds(paths[number])
    part = min(seconds / length, 1.0) if length else 1.0
    done = max(done, number + part)
    console.advance(done)
    tick(done)

  try:
    yield from model.stream(paths, whole=whole, progress=progress)
  finally:
    console.stop_bar()


def _seconds(path: str) -> float:
  try:
    return soundfile.info(path).duration
  except (OSError, RuntimeError, ValueError, TypeError):
    return 0.0


class Text:
  """Predictions as text: JSON lines, rows of a CSV, a table for people.

  Args:
    model: the beginning of a digest of weights, recipe, type and class names.
    top: how many classes.
    windows: whether each window's classes are written.

  Attributes:
    columns: of a CSV; a recording has a row for each window if those are asked
      for, then one for the whole.
  """

  def __init__(self, model: str, top: int, windows: bool):
    self._model, self._top, self._windows = model, top, windows
    best = [
      f"{what}_{i + 1}" for i in range(top) for what in ("class", "score")
    ]
    self.columns = ["model", "path", "part", "start", "end", *best]

  def _parts(self, found: Prediction) -> list[tuple]:
    """(start, end, best classes) of each window, as far as it is asked for."""
    if not self._windows:
      return []
    return [
      (start, end, found.top(self._top, i))
      for i, (start, end) in enumerate(found.window_times)
    ]

  def table(self, path: str, found: Prediction) -> Iterator[list]:
    """Rows for people."""
    parts = [(path, f"{found.seconds:.2f}", found.top(self._top))]
    for start, end, best in self._parts(found):
      parts.append(("", f"{start:.2f}-{end:.2f}", best))
    for *head, best in parts:
      for name, score in best:
        yield [*head, name, score]
        head = ["", ""]

  def line(self, path: str, found: Prediction) -> str:
    """A JSON object."""
    line = {"model": self._model, "path": path}
    line |= {"seconds": _rounded(found.seconds)} | _best(found.top(self._top))
    if self._windows:
      line["windows"] = [
        {"start": _rounded(start), "end": _rounded(end)} | _best(best)
        for start, end, best in self._parts(found)
      ]
    return json.dumps(line, ensure_ascii=False)

  def rows(self, path: str, found: Prediction) -> Iterator[list]:
    """Of a CSV."""
    parts = [("window", *one) for one in self._parts(found)]
    parts.append(("whole", 0.0, found.seconds, found.top(self._top)))
    for part, start, end, best in parts:
      scored = [x for name, score in best for x in (name, round(score, 6))]
      times = _rounded(start), _rounded(end)
      yield [self._model, path, part, *times, *scored]

  def resume(self, path: pathlib.Path) -> set[str]:
    """The recordings that a file of JSON lines has; cuts off a torn last line.

    Raises:
      UserError: it is of something else.
    """
    if not path.exists():
      return set()
    text = path.read_bytes()
    end = text.rfind(b"\n") + 1
    done = set()
    for number, line in enumerate(text[:end].split(b"\n")[:-1], 1):
      try:
        found = json.loads(line.decode("utf-8", "surrogateescape"))
        same = found["model"] == self._model
        same &= len(found["classes"]) == self._top
        same &= ("windows" in found) == self._windows
        done.add(found["path"])
      except (ValueError, KeyError, TypeError):
        raise UserError(
          f"{path}, line {number} is no prediction; give a new name"
        ) from None
      if not same:
        raise UserError(
          f"{path} was made by another model or with other flags (--top, "
          "--windows); give a new name"
        )
    if end < len(text):  # an interruption left a part of a line
      os.truncate(path, end)
    return done


def _best(best: list[tuple[str, float]]) -> dict[str, list]:
  names, scores = zip(*best, strict=True)
  return {"classes": names, "scores": [round(x, 6) for x in scores]}


def _rounded(seconds: float) -> float:
  return round(float(seconds), 4)


if __name__ == "__main__":
  sys.exit(main())
