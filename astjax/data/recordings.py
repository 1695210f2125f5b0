"""Recordings below a folder, named by its files, a table or a manifest.

Each kind of list gives rows; what can be asked of any rows (splits, folds,
hold-outs, other classes) stands once, on `Recordings`. Every mistake in a list
ends in a UserError that names the file and the line.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from astjax import errors
from astjax.data import audio, tables
from astjax.data.source import Source
from astjax.errors import UserError


class Row(NamedTuple):
  """One recording as a list names it."""

  path: str
  labels: tuple[str, ...]
  split: str = ""
  fold: str = ""


@dataclasses.dataclass(kw_only=True, eq=False)
class Recordings(Source):
  """A source of files; the fields are the user's `source_kw`.

  Files that they name are below `data_dir` or absolute.
  """

  data_dir: str
  split: str = ""  # to keep; empty keeps all
  folds: tuple[str, ...] = ()
  holdout: errors.BelowOne = 0.0  # share of "val"; the others are "train"
  label_list: str = ""  # else the labels that occur in all splits together
  label_map: Mapping[str, str] | None = None  # label -> class, "*" the others

  def __post_init__(self):
    self.root = tables.existing_dir(self.data_dir)
    rows = self.rows()
    if self.label_map:
      rows = rename(rows, self.label_map)
    if self.holdout:
      rows = hold_out(rows, self.holdout)
    # Before splits are selected, so that all of them have the same classes.
    found = {label for row in rows for label in row.labels}
    names = sorted(found, key=tables.natural)
    number = {name: i for i, name in enumerate(names)}
    if self.label_list:
      if not found:
        raise UserError(
          f"source_kw.label_list={self.label_list!r}, but the recordings have "
          f"no labels: {errors.LABELS_COME_FROM}"
        )
      names, number = tables.read_label_list(str(self.root / self.label_list))
    self.class_names = tuple(names)
    among = ""
    if self.split:
      rows = select(rows, "split", (self.split,))
      among = f" of split {self.split!r}"
    if self.folds:
      rows = select(rows, "fold", tuple(map(str, self.folds)), among)
    self._names = [row.path for row in rows]
    self._labels = [_numbers(row, number) for row in rows]

  def rows(self) -> list[Row]:
    """What the list names, in its order."""
    raise NotImplementedError

  def read(self, index: int) -> tuple[np.ndarray, int]:
    """Decodes the file."""
    return audio.read(self.root / self._names[index])


@dataclasses.dataclass(kw_only=True, eq=False)
class Filenames(Recordings):
  r"""Labels from file names, or all recordings without labels.

  `pattern` is searched in the path below `data_dir` (with /). It has the groups
  `label`, `split` and `fold` as far as there are such, for example
  r"(?P<label>\d)_(?P<fold>[a-z]+)_\d+\.wav$". The other fields are there
  instead of a group `split`.
  """

  pattern: str = ""
  # Split -> expression searched in the path; the first that fits counts.
  splits: Mapping[str, str] | None = None
  # Split -> text file with a path a line, such as Speech Commands'
  # validation_list.txt; all others are "train".
  split_lists: Mapping[str, str] | None = None
  # Text file with a split and a path a line, such as VoxCeleb1's
  # iden_split.txt; all others are in no split.
  split_table: str = ""

  def rows(self) -> list[Row]:
    """The files that the pattern fits."""
    pattern = tables.compile_pattern(self.pattern, "source_kw.pattern")
    split_of = self._splits("split" in pattern.groupindex)
    paths = list(tables.sound_files(self.root))
    if not paths:
      known = ", ".join(audio.SUFFIXES)
      raise UserError(f"no recordings below {self.root}: no {known}")
    rows = []
    for path in paths:
      groups = match.groupdict() if (match := pattern.search(path)) else {}
      # An optional group that took no part gives no class.
      if match and groups.get("label", True):
        labels = (groups["label"],) if "label" in groups else ()
        split = groups.get("split") or split_of(path)
        rows.append(Row(path, labels, split, groups.get("fold") or ""))
    if not rows:
      raise UserError(
        f"source_kw.pattern {self.pattern!r} fits none of the {len(paths)} "
        f"recordings below {self.root}, such as {paths[0]!r}"
      )
    return rows

  def _splits(self, has_group: bool) -> Callable[[str], str]:
    """A function path -> split, by whatever says the splits."""
    ways = ("splits", "split_lists", "split_table")
    given = [name for name in ways if getattr(self, name)]
    if len(given) + has_group > 1:
      given += ["a group 'split'"] * has_group
      raise UserError(f"source_kw says the splits twice: {' and '.join(given)}")
    if lists := self.split_lists or self.split_table:
      listed = tables.read_splits(self.root, lists)
      return lambda path: listed.get(path, "train" if self.split_lists else "")
    rules = {
      name: tables.compile_pattern(rule, f"source_kw.splits.{name}")
      for name, rule in (self.splits or {}).items()
    }
    return lambda path: next(
      (name for name, rule in rules.items() if rule.search(path)), ""
    )


@dataclasses.dataclass(kw_only=True, eq=False)
class Folder(Filenames):
  """One folder per class.

  With a folder per split above the classes, use the pattern
  r"^(?P<split>[^/]+)/(?P<label>[^/]+)/".
  """

  pattern: str = r"^(?P<label>[^/]+)/"

  def rows(self) -> list[Row]:
    """The files that the pattern fits, each with a label."""
    rows = super().rows()
    if not rows[0].labels:
      raise UserError(
        f"source_kw.pattern {self.pattern!r} has no group (?P<label>...): "
        "without labels, take the source 'filenames'"
      )
    return rows


@dataclasses.dataclass(kw_only=True, eq=False)
class Csv(Recordings):
  """A table with a header: `path` and optionally `labels`, `split`, `fold`."""

  csv: str
  label_separator: str = ","  # empty if each recording has one label
  columns: Mapping[str, str] | None = None  # such as {"path": "filename"}
  below: str = ""  # folder that the paths are relative to, below `data_dir`

  def rows(self) -> list[Row]:
    """The lines of the table."""
    column = {k: k for k in ("path", "labels", "split", "fold")}
    for key in self.columns or {}:
      errors.lookup(column, key, "key of source_kw.columns")
    column |= self.columns or {}
    table = self.root / self.csv
    rows = []
    for number, line in tables.read_table(table, "source_kw.csv"):
      label = column["labels"]
      if label == "labels" and label not in line:
        label = "label" if "label" in line else ""
      for name in (column["path"], label):
        if name and name not in line:
          raise UserError(
            f"{table} has no column {name!r}; columns: {', '.join(line)}"
          )
      path = line[column["path"]]
      labels = tables.split(line.get(label, ""), self.label_separator)
      if not path or (label and not labels):
        raise UserError(f"{table}, line {number}: no path or no label")
      path = str(pathlib.PurePosixPath(self.below, path))
      split, fold = (line.get(column[k]) or "" for k in ("split", "fold"))
      rows.append(Row(path, labels, split, fold))
    if not rows:
      raise UserError(f"{table} lists no recordings")
    return rows


@dataclasses.dataclass(kw_only=True, eq=False)
class Manifest(Recordings):
  """The original's manifest: {"data": [{"wav": path, "labels": "mid1,mid2"}]}.

  Without a `label_list`, the original's label CSV, the labels are left out: for
  pre-training they are dummies.
  """

  json: str

  def rows(self) -> list[Row]:
    """The entries of the manifest."""
    if self.split or self.folds:
      given = self.split or self.folds
      raise UserError(f"no split {given} in a manifest: one manifest for each")
    entries = tables.read_manifest(
      self.root / self.json, labelled=bool(self.label_list)
    )
    return [Row(*entry) for entry in entries]


def _numbers(row: Row, number: Mapping[str, int]) -> tuple[int, ...]:
  for name in row.labels:
    if name not in number:
      raise UserError(
        f"label {name!r} of {row.path} is not in the label list."
        f"{errors.nearest(name, number)[:300]}"
      )
  return tuple(sorted({number[name] for name in row.labels}))


def rename(rows: Sequence[Row], label_map: Mapping[str, str]) -> list[Row]:
  """Rows with other classes, see `Recordings.label_map`."""
  found = {label for row in rows for label in row.labels}
  for label, name in label_map.items():
    if label not in ("*", name, *found):
      raise UserError(
        f"source_kw.label_map: no recording has the label {label!r}."
        f"{errors.nearest(label, found)[:300]}"
      )
  new = {k: label_map.get(k, label_map.get("*", k)) for k in found}
  return [
    row._replace(labels=tuple(new[k] for k in row.labels)) for row in rows
  ]


def hold_out(rows: Sequence[Row], share: float) -> list[Row]:
  """Rows of the splits "val", a `share` of them, and "train"."""
  if any(row.split for row in rows):
    raise UserError("source_kw: the data has splits; leave out holdout")
  out = []
  for row in rows:
    # By a digest of the path: a recording stays where it is when others come.
    digest = zlib.crc32(row.path.encode(errors="surrogateescape"))
    is_held = digest % 10_000 < share * 10_000
    out.append(row._replace(split="val" if is_held else "train"))
  return out


def select(
  rows: Sequence[Row], field: str, wanted: Sequence[str], among: str = ""
) -> list[Row]:
  """Rows with one of the `wanted` values of a field."""
  counts = collections.Counter(getattr(row, field) for row in rows)
  for value in wanted:
    if not counts[value]:
      known = ", ".join(f"{k or '(none)'} ({n})" for k, n in counts.items())
      raise UserError(f"no recording{among} of {field} {value!r}; has {known}")
  return [row for row in rows if getattr(row, field) in wanted]
