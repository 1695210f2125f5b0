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
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from astjax.data import audio, tables
from astjax.errors import BelowOne, UserError, lookup, nearest


class Row(NamedTuple):
  """One recording as a list names it."""

  path: str
  labels: tuple[str, ...]
  split: str = ""
  fold: str = ""


@dataclasses.dataclass(kw_only=True, eq=False)
class Recordings:
  """A source of files; the fields are the user's `source_kw`.

  Attributes:
    data_dir: the folder that paths are relative to.
    split: keep only this split; empty keeps all.
    folds: keep only these folds; empty keeps all.
    holdout: share of the recordings that become the split "val", the others
      "train", by a digest of their path; 0 is none.
    label_list: below `data_dir` or absolute, see `read_label_list`; empty
      takes the labels that occur in all splits together.
    label_map: label -> class, "*" stands for all other labels; those that it
      does not name stay as they are.
  """

  data_dir: str
  split: str = ""
  folds: tuple[str, ...] = ()
  holdout: BelowOne = 0.0
  label_list: str = ""
  label_map: Mapping[str, str] | None = None

  def __post_init__(self):
    self.root = tables.existing_dir(self.data_dir)
    rows = self.rows()
    if self.label_map:
      rows = rename(rows, self.label_map)
    if self.holdout:
      rows = hold_out(rows, self.holdout)
    self.class_names, number = self._classes(rows)
    wanted = (self.split,) if self.split else ()
    rows = select(rows, "split", wanted)
    among = f" of split {self.split!r}" if self.split else ""
    rows = select(rows, "fold", tuple(map(str, self.folds)), among)
    self._paths = [row.path for row in rows]
    self._labels = [_numbers(row, number) for row in rows]

  def rows(self) -> list[Row]:
    """What the list names, in its order."""
    raise NotImplementedError

  def _classes(self, rows):
    """(names, {any way to write a label: its number})."""
    found = {n for row in rows for n in row.labels}
    if not self.label_list:
      names = sorted(found, key=tables.natural)
      return tuple(names), {n: i for i, n in enumerate(names)}
    if not found:
      raise UserError(
        f"source_kw.label_list={self.label_list!r}, but the recordings have no "
        "labels: a pattern needs a group (?P<label>...), a table a column "
        "'labels'"
      )
    names, number = tables.read_label_list(str(self.root / self.label_list))
    return tuple(names), number

  def __len__(self) -> int:
    return len(self._paths)

  def name(self, index: int) -> str:
    """The path below the folder."""
    return self._paths[index]

  def labels(self, index: int) -> tuple[int, ...]:
    """Class numbers, without reading it."""
    return self._labels[index]

  def read(self, index: int) -> tuple[np.ndarray, int]:
    """(float32 [S] or [S, channels], rate); raises `UnreadableAudio`."""
    return audio.read(self.root / self._paths[index])


@dataclasses.dataclass(kw_only=True, eq=False)
class Filenames(Recordings):
  r"""Labels from file names, or all recordings without labels.

  Attributes:
    pattern: regular expression searched in the path below `data_dir` (with /),
      with the groups `label`, `split` and `fold` as far as there are such, for
      example r"(?P<label>\d)_(?P<fold>[a-z]+)_\d+\.wav$". Without a group
      `label` the recordings have no labels; empty takes all of them.
    splits: split name -> expression searched in the path, the first that fits;
      instead of a group, as are the next two.
    split_lists: split name -> text file below `data_dir` with one path a line,
      such as Speech Commands' validation_list.txt; all others are "train".
    split_table: text file below `data_dir` with a split and a path a line, such
      as VoxCeleb1's iden_split.txt; all others are in no split.
  """

  pattern: str = ""
  splits: Mapping[str, str] | None = None
  split_lists: Mapping[str, str] | None = None
  split_table: str = ""

  def rows(self) -> list[Row]:
    """Of the files that the pattern fits."""
    pattern = tables.compile_pattern(self.pattern, "source_kw.pattern")
    split_of = self._splits("split" in pattern.groupindex)
    paths = list(tables.sound_files(self.root))
    if not paths:
      raise UserError(
        f"no recordings below {self.root}: expected files ending in "
        f"{', '.join(audio.SUFFIXES)}"
      )
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

  def _splits(self, has_group):
    """A function path -> split, by whatever says the splits."""
    given = {
      "a group 'split'": has_group,
      "splits": self.splits,
      "split_lists": self.split_lists,
      "split_table": self.split_table,
    }
    if len(ways := [name for name, value in given.items() if value]) > 1:
      raise UserError(f"source_kw says the splits twice: {' and '.join(ways)}")
    if self.split_lists:
      listed = tables.read_split_lists(self.root, self.split_lists)
      return lambda path: listed.get(path, "train")
    if self.split_table:
      listed = tables.read_split_table(self.root, self.split_table)
      return lambda path: listed.get(path, "")
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
    """Of the files that the pattern fits, each with a label."""
    pattern = tables.compile_pattern(self.pattern, "source_kw.pattern")
    if "label" not in pattern.groupindex:
      raise UserError(
        f"source_kw.pattern {self.pattern!r} has no group (?P<label>...); "
        "recordings without labels are read by the source 'filenames'"
      )
    return super().rows()


@dataclasses.dataclass(kw_only=True, eq=False)
class Csv(Recordings):
  """A table with a header: `path` and optionally `labels`, `split`, `fold`.

  Without a column `labels` (or `label`) the recordings have no labels.

  Attributes:
    csv: the file, below `data_dir` or absolute, as are the paths in it.
    label_separator: between the labels of one recording; empty if each has one.
    columns: other names of these columns, such as {"path": "filename"}.
    below: folder that the paths are relative to, below `data_dir`.
  """

  csv: str
  label_separator: str = ","
  columns: Mapping[str, str] | None = None
  below: str = ""

  def rows(self) -> list[Row]:
    """Of the lines of the table."""
    column = {k: k for k in ("path", "labels", "split", "fold")}
    for key in self.columns or {}:
      lookup(column, key, "key of source_kw.columns")
    column |= self.columns or {}
    table = self.root / self.csv
    rows = []
    for number, line in tables.read_table(table, "source_kw.csv"):
      label = column["labels"]
      if label not in line and "labels" not in (self.columns or {}):
        label = "label" if "label" in line else ""
      for name in (column["path"], label):
        if name and name not in line:
          raise UserError(
            f"{table} has no column {name!r} (columns: {', '.join(line)}); "
            "expected path and optionally labels, split, fold"
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

  Attributes:
    json: the file, below `data_dir` or absolute, as are the paths in it.
    label_list: the original's label CSV (index, mid, display_name); empty
      leaves the labels out, as for pre-training, where they are dummies.
  """

  json: str

  def rows(self) -> list[Row]:
    """Of the entries. A manifest is of one split."""
    if self.split or self.folds:
      raise UserError(
        "a manifest has no splits or folds (given: "
        f"{self.split or self.folds}): give one manifest for each"
      )
    entries = tables.read_manifest(
      self.root / self.json, labelled=bool(self.label_list)
    )
    return [Row(*entry) for entry in entries]


def _numbers(row: Row, number: Mapping[str, int]) -> tuple[int, ...]:
  for name in row.labels:
    if name not in number:
      raise UserError(
        f"label {name!r} of {row.path} is not in the label list."
        f"{nearest(name, number)[:300]}"
      )
  return tuple(sorted({number[name] for name in row.labels}))


def rename(rows: Sequence[Row], label_map: Mapping[str, str]) -> list[Row]:
  """Rows with other classes, see `Recordings.label_map`."""
  found = {label for row in rows for label in row.labels}
  for label, name in label_map.items():
    if label not in ("*", name) and label not in found:
      raise UserError(
        f"source_kw.label_map: no recording has the label {label!r}."
        f"{nearest(label, found)[:300]}"
      )

  def name_of(label):
    return label_map.get(label, label_map.get("*", label))

  return [row._replace(labels=tuple(map(name_of, row.labels))) for row in rows]


def hold_out(rows: Sequence[Row], share: float) -> list[Row]:
  """Rows of the splits "val", a `share` of them, and "train"."""
  if any(row.split for row in rows):
    raise UserError("source_kw: the data has splits; leave out holdout")

  # By a digest of the path: a recording stays where it is when others come.
  def split_of(row):
    digest = zlib.crc32(row.path.encode(errors="surrogateescape"))
    return "val" if digest % 10_000 < share * 10_000 else "train"

  return [row._replace(split=split_of(row)) for row in rows]


def select(
  rows: Sequence[Row], field: str, wanted: Sequence[str], among: str = ""
) -> Sequence[Row]:
  """Rows with one of the `wanted` values of a field; all if none is wanted."""
  if not wanted:
    return rows
  counts = collections.Counter(getattr(row, field) for row in rows)
  for value in wanted:
    if not counts[value]:
      known = ", ".join(f"{k or '(none)'} ({n})" for k, n in counts.items())
      raise UserError(
        f"no recording{among} of {field} {value!r} in the data; {field}s"
        f"{among}: {known}"
      )
  return [row for row in rows if getattr(row, field) in wanted]
