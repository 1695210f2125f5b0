"""Folders, tables and label lists: what is read from disk to find recordings.

Every mistake in them ends in a UserError that names the file and the line.
"""

from __future__ import annotations

import collections
import csv
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping

from astjax.data import audio
from astjax.errors import UserError


def existing_dir(path: str) -> pathlib.Path:
  """The folder, or a UserError that says what is there instead."""
  if not path:
    raise UserError(
      "no data directory: give one with --config.input.data_dir=FOLDER"
    )
  root = pathlib.Path(path).expanduser()
  if not root.is_dir():
    what = "is not a folder" if root.exists() else "does not exist"
    raise UserError(f"the data directory {str(root)!r} {what}")
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
  file = _existing_file(str(path), what)
  with open(file, newline="", encoding="utf-8-sig") as f:
    try:
      reader = csv.DictReader(f, skipinitialspace=True)
      for row in reader:
        if None in row:
          raise UserError(
            f"{path}, line {reader.line_num}: more columns than the header "
            f"({', '.join(reader.fieldnames)}); put quotes around values with "
            "commas"
          )
        yield reader.line_num, {k: v or "" for k, v in row.items()}
    except (csv.Error, UnicodeDecodeError) as e:
      raise UserError(f"{path} is not a CSV file: {e}") from None


def read_split_lists(
  root: pathlib.Path, lists: Mapping[str, str]
) -> dict[str, str]:
  """{path below `root`: split} of text files with one path a line."""
  out: dict[str, str] = {}
  for split, name in lists.items():
    file = _existing_file(str(root / name), f"source_kw.split_lists.{split}")
    paths = _lines(file)
    _check_there(root, file, paths)
    out |= dict.fromkeys(paths, split)
  return out


def read_split_table(root: pathlib.Path, name: str) -> dict[str, str]:
  """{path below `root`: split} of a text file with "split path" lines."""
  file = _existing_file(str(root / name), "source_kw.split_table")
  out: dict[str, str] = {}
  for line in _lines(file):
    split, *path = line.split(maxsplit=1)
    if not path:
      raise UserError(f"{file}: {line!r} is not a split and a path")
    if out.setdefault(path[0], split) != split:
      raise UserError(
        f"{file}: {path[0]} is in {out[path[0]]!r} and in {split!r}"
      )
  _check_there(root, file, list(out))
  return out


def _lines(file: pathlib.Path) -> list[str]:
  try:
    lines = file.read_text(encoding="utf-8-sig").splitlines()
  except UnicodeDecodeError as e:
    raise UserError(f"{file} is not UTF-8 text: {e.reason}") from None
  return [line.strip() for line in lines if line.strip()]


def _check_there(root, file, paths):
  if not any((root / path).is_file() for path in paths):
    raise UserError(
      f"{file} lists no recording below {root}"
      f"{', but for example ' + repr(paths[0]) if paths else ''}"
    )


def read_manifest(
  path: pathlib.Path, *, labelled: bool
) -> list[tuple[str, tuple[str, ...]]]:
  """(path, labels) of each entry of an AST manifest; () if not `labelled`."""
  file = _existing_file(str(path), "source_kw.json")
  try:
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    entries = content["data"]
  except (ValueError, KeyError, TypeError, RecursionError) as e:
    raise UserError(
      f"{path} is not a manifest: {e}; expected "
      '{"data": [{"wav": path, "labels": "mid1,mid2"}, ...]}'
    ) from None
  if not isinstance(entries, list) or not entries:
    raise UserError(f"{path} lists no recordings")
  rows = []
  for i, entry in enumerate(entries):
    entry = entry if isinstance(entry, dict) else {}
    wav, labels = entry.get("wav"), entry.get("labels") if labelled else ""
    if not isinstance(wav, str) or not isinstance(labels, str):
      raise UserError(f"{path}, entry {i}: expected texts 'wav' and 'labels'")
    names = split(labels, ",")
    if not wav or (labelled and not names):
      raise UserError(f"{path}, entry {i}: no path or no label")
    rows.append((wav, names))
  return rows


def read_label_list(path: str) -> tuple[list[str], dict[str, int]]:
  """A list of classes: (names, {any way to write a label: number}).

  Either a table with the columns `index`, `mid`, `display_name` (AudioSet's
  format; a label may be either), or plain text with one name per line.
  """
  lines = _lines(_existing_file(path, "label_list"))
  if not lines or "display_name" not in lines[0]:
    return _unique(lines, path), {n: i for i, n in enumerate(lines)}
  names, aliases = [], {}
  for number, line in read_table(pathlib.Path(path), "label_list"):
    if line.get("index") != str(len(names)):
      raise UserError(
        f"{path}, line {number}: expected index {len(names)}, found "
        f"{line.get('index')!r}"
      )
    if not line["display_name"]:
      raise UserError(f"{path}, line {number}: no display_name")
    for label in {line.get("mid"), line["display_name"]} - {None, ""}:
      if label in aliases:
        raise UserError(f"{path}, line {number}: {label!r} comes twice")
      aliases[label] = len(names)
    names.append(line["display_name"])
  return _unique(names, path), aliases


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


def natural(name: str):
  """Sorts "10" after "9"."""
  return [
    (0, int(part), "") if part.isdecimal() else (1, 0, part)
    for part in re.split(r"(\d+)", name)
  ]


def _unique(names, path):
  if not names:
    raise UserError(f"{path} lists no classes")
  twice = [n for n, c in collections.Counter(names).items() if c > 1]
  if twice:
    raise UserError(f"{path} lists {twice[0]!r} twice")
  return names


def _existing_file(path: str, what: str) -> pathlib.Path:
  file = pathlib.Path(path).expanduser()
  if not file.is_file():
    state = "is not a file" if file.exists() else "does not exist"
    raise UserError(f"{what} {str(file)!r} {state}")
  return file
