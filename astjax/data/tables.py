"""Folders, tables and label lists: what is read from disk to find recordings.

Every mistake in them ends in a UserError that names the file and the line.
"""

from __future__ import annotations

import csv
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping

from astjax.data import audio
from astjax.errors import UserError


def existing_dir(path: str) -> pathlib.Path:
  """The folder, or a UserError if there is none."""
  root = pathlib.Path(path).expanduser()
  if not path or not root.is_dir():
    raise UserError(
      f"no data directory {path!r}: give a folder, --config.input."
      "data_dir=FOLDER"
    )
  return root


def sound_files(root: pathlib.Path) -> Iterable[str]:
  """Paths below `root`, relative, with /, in a fixed order."""
  seen = set()
  for folder_path, folders, files in os.walk(root, followlinks=True):
    real = os.path.realpath(folder_path)
    if real in seen:  # a link to a folder above
      folders.clear()
      continue
    seen.add(real)
    folders[:] = sorted(f for f in folders if f[0] != ".")
    for file in sorted(files):
      if file.lower().endswith(audio.SUFFIXES) and file[0] != ".":
        path = pathlib.Path(folder_path, file)
        yield path.relative_to(root).as_posix()


def read_table(
  path: pathlib.Path, what: str
) -> Iterator[tuple[int, dict[str, str]]]:
  """Yields (line number, row) of a CSV file with a header."""
  file = _existing_file(path, what)
  with open(file, newline="", encoding="utf-8-sig") as f:
    try:
      reader = csv.DictReader(f, skipinitialspace=True)
      for row in reader:
        if None in row:
          raise UserError(
            f"{path}, line {reader.line_num}: more columns than the header "
            f"({', '.join(reader.fieldnames or ())}); put quotes around values "
            "with commas"
          )
        yield reader.line_num, {k: v or "" for k, v in row.items()}
    except (csv.Error, UnicodeDecodeError) as e:
      raise UserError(f"{path} is not a CSV file: {e}") from None


def read_splits(
  root: pathlib.Path, lists: Mapping[str, str] | str
) -> dict[str, str]:
  """{path below `root`: split} of text files.

  `lists` is {split: file with a path a line}, or one file with a split and a
  path a line.
  """
  out: dict[str, str] = {}
  files = {"": lists} if isinstance(lists, str) else lists
  for split, name in files.items():
    file = _existing_file(root / name, f"the list of the split {split!r}")
    own: dict[str, str] = {}
    for line in _lines(file):
      of, path = (split, line) if split else (*line.split(maxsplit=1), "")[:2]
      if not path:
        raise UserError(f"{file}: {line!r} is not a split and a path")
      if own.setdefault(path, of) != of:
        raise UserError(f"{file}: {path} is in {own[path]!r} and in {of!r}")
    if not any((root / path).is_file() for path in own):
      raise UserError(f"{file} lists no recording below {root}: {[*own][:1]}")
    out |= own
  return out


def _lines(file: pathlib.Path) -> list[str]:
  try:
    lines = file.read_text(encoding="utf-8-sig").splitlines()
  except UnicodeDecodeError as e:
    raise UserError(f"{file} is not UTF-8 text: {e.reason}") from None
  return [line.strip() for line in lines if line.strip()]


def read_manifest(
  path: pathlib.Path, *, labelled: bool
) -> list[tuple[str, tuple[str, ...]]]:
  """(path, labels) of each entry of an AST manifest; () if not `labelled`."""
  file = _existing_file(path, "source_kw.json")
  try:
    entries = json.loads(file.read_text(encoding="utf-8-sig"))["data"]
    rows = [
      (entry["wav"], split(entry["labels"], ",") if labelled else ())
      for entry in entries
    ]
  except (LookupError, ValueError, TypeError, AttributeError) as e:
    raise UserError(
      f"{path} is not a manifest: {e!r}; expected "
      '{"data": [{"wav": path, "labels": "mid1,mid2"}, ...]}'
    ) from None
  if not rows:
    raise UserError(f"{path} lists no recordings")
  for i, (wav, labels) in enumerate(rows):
    if not wav or (labelled and not labels):
      raise UserError(f"{path}, entry {i}: no path or no label")
  return rows


def read_label_list(path: str) -> tuple[list[str], dict[str, int]]:
  """A list of classes: (names, {any way to write a label: number}).

  Either a table with the columns `index`, `mid`, `display_name` (AudioSet's
  format; a label may be either), or plain text with one name per line.
  """
  file = _existing_file(pathlib.Path(path), "label_list")
  lines = _lines(file)
  classes = [(name, name) for name in lines]
  if lines and "display_name" in lines[0]:
    classes = []
    for number, line in read_table(file, "label_list"):
      name, index = line["display_name"], line.get("index")
      if index != str(len(classes)) or not name:
        raise UserError(
          f"{path}, line {number}: expected index {len(classes)} and a "
          f"display_name, found {index!r} and {name!r}"
        )
      classes.append((name, line.get("mid") or name))
  if not classes:
    raise UserError(f"{path} lists no classes")
  aliases: dict[str, int] = {}
  for i, names in enumerate(classes):
    for label in set(names):
      if aliases.setdefault(label, i) != i:
        raise UserError(f"{path} lists {label!r} twice")
  return [name for name, _ in classes], aliases


def compile_pattern(pattern: str, where: str) -> re.Pattern:
  """A regular expression, or a UserError that says where it stood."""
  try:
    return re.compile(pattern)
  except re.error as e:
    raise UserError(
      f"{where}={pattern!r} is not a regular expression: {e}"
    ) from None


def split(text: str, separator: str) -> tuple[str, ...]:
  """The parts of a text, without blank ones; all of it without a separator."""
  parts = text.split(separator) if separator else [text]
  return tuple(part.strip() for part in parts if part.strip())


def natural(name: str) -> list[tuple[int, int, str]]:
  """A key that sorts "10" after "9"."""
  return [
    (0, int(part), "") if part.isdecimal() else (1, 0, part)
    for part in re.split(r"(\d+)", name)
  ]


def _existing_file(path: pathlib.Path, what: str) -> pathlib.Path:
  file = path.expanduser()
  if not file.is_file():
    state = "is not a file" if file.exists() else "does not exist"
    raise UserError(f"{what} {str(file)!r} {state}")
  return file
