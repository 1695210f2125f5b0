"""Says what a model hears in recordings.

  python -m astjax.tools.predict --model=runs/sounds dog.wav more/
  python -m astjax.tools.predict --model=M FOLDER --output=scores.jsonl

Folders are searched with all their sub-folders. On a terminal comes a table, to
a pipe come JSON lines, to --output (.jsonl or .csv) either. The same command
goes on where it was interrupted: what the output has is passed over.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator, Sequence

import soundfile
from absl import logging

from astjax.data import tables
from astjax.errors import UserError, warn
from astjax.run import log
from astjax.serving import bundle
from astjax.serving.bundle import Bundle, Prediction

_ENCODING = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  args = _parser().parse_args(argv)
  logging.set_verbosity(logging.ERROR)  # orbax warns of reading only
  try:
    return _predict(args)
  except UserError as e:
    print(f"astjax: error: {' '.join(str(e).split())}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("astjax: interrupted; the same command goes on", file=sys.stderr)
    return 130


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("paths", nargs="+", metavar="FILE_OR_FOLDER")
  add("--output", help="a file, .jsonl or .csv; continued if it is there")
  add("--top", type=int, default=5, help="how many classes; 0 for all")
  add("--windows", action="store_true", help="also each window's classes")
  add_model(parser)
  return parser


def add_model(parser: argparse.ArgumentParser, *, labels: bool = True) -> None:
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


def _predict(args) -> int:
  if args.top < 0:
    raise UserError(f"--top={args.top} must be at least 0")
  paths = find(args.paths)
  names = ()
  if args.label_list:
    names = tables.read_label_list(args.label_list)[0]
  model = load_model(args, names)
  count = len(model.class_names)
  own = [model.digest, model.info.recipe, args.dtype, *model.class_names]
  digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:16]
  writer = Writer(digest, min(args.top or count, count), args.windows)
  console = log.Console(stderr=True)
  rows = []
  if args.output:
    done, file = writer.open(args.output)
    if passed := [p for p in paths if p in done]:
      console.say(f"{args.output} has {len(passed)} of {len(paths)} recordings")
    paths = [p for p in paths if p not in done]
  else:
    file = None if sys.stdout.isatty() else sys.stdout
  failed = 0
  try:
    for path, found in zip(paths, hear(model, paths, console), strict=True):
      if isinstance(found, UserError):
        failed += 1
        console.say(f"astjax: error: {' '.join(str(found).split())}")
      elif file is None:
        rows += writer.table(path, found)
      else:
        file.write(writer.text(path, found, args.output))
        file.flush()
  finally:
    if rows:
      columns = ["recording", "seconds", "class", "score"]
      log.Console().table("", columns, rows)
    if args.output:
      file.close()
  told = f", {failed} could not be used" if failed else ""
  where = f" in {args.output}" if args.output else ""
  console.say(f"{len(paths) - failed} recordings{where}{told}")
  return 1 if failed else 0


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
    console.advance(done, "heard")
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


class Writer:
  """Predictions as text, and what of them a file already holds.

  A recording stands in a JSON object on a line, or in lines of a table: its
  windows if asked for, then the whole. It counts as done when it is whole.

  Args:
    model: the beginning of a digest of weights, recipe, type and class names,
      so that a file holds the predictions of one model.
    top: how many classes.
    windows: whether each window's classes are written.
  """

  def __init__(self, model: str, top: int, windows: bool):
    self._model = model
    self._top = top
    self._windows = windows
    best = [
      f"{what}_{i + 1}" for i in range(top) for what in ("class", "score")
    ]
    self._columns = ["model", "path", "part", "start", "end", *best]

  def text(self, path: str, found: Prediction, output: str | None) -> str:
    """All lines of a recording."""
    return (self._rows if _is_csv(output) else self._json)(path, found)

  def table(self, path: str, found: Prediction) -> Iterator[list]:
    """Rows for people."""
    head = [path, f"{found.seconds:.2f}"]
    for name, score in found.top(self._top):
      yield [*head, name, score]
      head = ["", ""]
    for i, (start, end) in enumerate(found.window_times):
      head = ["", f"{start:.2f}-{end:.2f}"]
      for name, score in found.top(self._top, i) if self._windows else ():
        yield [*head, name, score]
        head = ["", ""]

  def _json(self, path, found):
    line = {"model": self._model, "path": path}
    line |= {"seconds": _seconds_text(found.seconds)}
    line |= self._best(found, None)
    if self._windows:
      line["windows"] = [
        {"start": _seconds_text(a), "end": _seconds_text(b)}
        | self._best(found, i)
        for i, (a, b) in enumerate(found.window_times)
      ]
    return json.dumps(line, ensure_ascii=False) + "\n"

  def _best(self, found, window):
    names, scores = zip(*found.top(self._top, window), strict=True)
    return {"classes": names, "scores": [round(x, 6) for x in scores]}

  def _rows(self, path, found):
    parts = []
    if self._windows:
      for i, (a, b) in enumerate(found.window_times):
        parts.append(("window", a, b, i))
    parts.append(("whole", 0.0, found.seconds, None))
    text = io.StringIO()
    for part, a, b, window in parts:
      best = [x for pair in found.top(self._top, window) for x in pair]
      best[1::2] = [round(x, 6) for x in best[1::2]]
      times = _seconds_text(a), _seconds_text(b)
      csv.writer(text, lineterminator="\n").writerow(
        [self._model, path, part, *times, *best]
      )
    return text.getvalue()

  def open(self, output: str) -> tuple[set[str], io.TextIOBase]:
    """(recordings that the file holds, the file to append to).

    What an interruption left of a recording is taken away.

    Raises:
      UserError: it cannot be written, or is of something else.
    """
    path = pathlib.Path(output).expanduser()
    if path.suffix not in (".jsonl", ".csv"):
      raise UserError(f"--output={output} must end in .jsonl or .csv")
    is_csv = _is_csv(output)
    try:
      text = ""
      if path.exists():
        with open(path, **_ENCODING) as file:
          text = file.read()
      kept, done = (self._read_rows if is_csv else self._read_json)(path, text)
      if is_csv and not kept:
        kept = ",".join(self._columns) + "\n"
      if kept != text:
        part = path.with_name(path.name + ".part")
        with open(part, "w", **_ENCODING) as file:
          file.write(kept)
        os.replace(part, path)
      return done, open(path, "a", **_ENCODING)
    except OSError as e:
      raise UserError(f"cannot write {output}: {e.strerror or e}") from None

  def _read_json(self, path, text):
    lines = text.split("\n")[:-1]  # what follows the last newline is torn
    done = set()
    for number, line in enumerate(lines, 1):
      try:
        found = json.loads(line)
        same = found["model"] == self._model
        same &= len(found["classes"]) == self._top
        same &= ("windows" in found) == self._windows
        done.add(found["path"])
      except (ValueError, KeyError, TypeError):
        raise UserError(
          f"{path}, line {number} is no prediction; give a new name"
        ) from None
      self._check(path, same)
    return "".join(line + "\n" for line in lines), done

  def _read_rows(self, path, text):
    if not text:
      return "", set()
    # A torn end: the file stops within a row, or within quotes.
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if not text.endswith("\n") or len(rows[-1]) != len(rows[0]):
      rows.pop()
    if not rows:
      return "", set()
    self._check(path, rows[0] == self._columns)
    done, whole, pending, windows = set(), [rows[0]], [], False
    for row in rows[1:]:
      if len(row) != len(self._columns):
        raise UserError(f"{path} has a row {row[:3]}; give a new name")
      self._check(path, row[0] == self._model)
      pending.append(row)
      windows |= row[2] == "window"
      if row[2] == "whole":
        self._check(path, (len(pending) > 1) == self._windows)
        done.add(row[1])
        whole += pending
        pending = []
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(whole)
    return out.getvalue(), done

  def _check(self, path, same):
    if not same:
      raise UserError(
        f"{path} was made by another model or with other flags (--top, "
        "--windows); give a new name"
      )


def _is_csv(output: str | None) -> bool:
  return bool(output) and output.endswith(".csv")


def _seconds_text(value: float) -> float:
  return round(float(value), 4)


if __name__ == "__main__":
  sys.exit(main())
