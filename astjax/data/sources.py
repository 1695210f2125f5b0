"""Sources: what there is to learn from, as numbered examples.

A source knows its class names, the labels of each example, and how to read one;
it knows nothing of TensorFlow, batches or order.
"""

from __future__ import annotations

import collections
import hashlib
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from astjax import errors
from astjax.data import audio, tables
from astjax.data.several import Several
from astjax.data.synthetic import Synthetic
from astjax.data.tfds import load
from astjax.errors import UserError


class Source(Protocol):
  """Numbered recordings, with labels or without (then `class_names` is ())."""

  class_names: tuple[str, ...]

  def __len__(self) -> int:
    """Number of examples."""

  def name(self, index: int) -> str:
    """For messages and reports."""

  def labels(self, index: int) -> tuple[int, ...]:
    """Class numbers of an example, without reading it."""

  def read(self, index: int) -> tuple[np.ndarray, int]:
    """(float32 [S] or [S, channels], rate); raises `UnreadableAudio`."""


class Row(NamedTuple):
  """One recording as a list names it."""

  path: str
  labels: tuple[str, ...]
  split: str = ""
  fold: str = ""


class Recordings:
  """Files below a folder.

  Attributes:
    root: the folder that paths are relative to.
    class_names: of all splits, so that train and test agree; () without labels.
  """

  def __init__(
    self,
    root: pathlib.Path,
    rows: Sequence[Row],
    class_names: Sequence[str],
    aliases: Mapping[str, int],
  ):
    self.root = root
    self.class_names = tuple(class_names)
    self._paths = [row.path for row in rows]
    self._labels = [
      tuple(sorted({_class_of(n, aliases, row.path) for n in row.labels}))
      for row in rows
    ]

  def __len__(self) -> int:
    return len(self._paths)

  def name(self, index: int) -> str:
    return self._paths[index]

  def labels(self, index: int) -> tuple[int, ...]:
    return self._labels[index]

  def read(self, index: int) -> tuple[np.ndarray, int]:
    return audio.read(self.root / self._paths[index])


def _class_of(name, aliases, path):
  if name not in aliases:
    raise UserError(
      f"label {name!r} of {path} is not in the label list."
      f"{errors.nearest(name, aliases)[:300]}"
    )
  return aliases[name]


def fingerprint(source: Source) -> str:
  """A digest of names, labels and classes: which data a run has seen."""
  lines = ["\n".join(source.class_names)]
  lines += [f"{source.name(i)} {source.labels(i)}" for i in range(len(source))]
  # File names need not be UTF-8.
  text = "\n".join(lines).encode("utf-8", errors="surrogateescape")
  digest = hashlib.sha256(text)
  return digest.hexdigest()[:16]


def filenames(
  *,
  data_dir: str,
  split: str = "",
  folds: tuple[str, ...] = (),
  pattern: str = "",
  splits: Mapping[str, str] | None = None,
  split_lists: Mapping[str, str] | None = None,
  split_table: str = "",
  holdout: float = 0.0,
  label_list: str = "",
  label_map: Mapping[str, str] | None = None,
) -> Recordings:
  r"""Labels from file names, or all recordings without labels.

  Args:
    data_dir: searched with all its sub-folders.
    split: keep only this split; empty keeps all.
    folds: keep only these folds; empty keeps all.
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
    holdout: share of the recordings that become the split "val", the others
      "train", by a digest of their path; 0 is none.
    label_list: below `data_dir` or absolute, see `read_label_list`; empty
      takes the labels that occur.
    label_map: label -> class, "*" stands for all other labels; those that it
      does not name stay as they are.
  """
  compiled = tables.compile_pattern(pattern, "source_kw.pattern")
  given = {
    "a group 'split'": "split" in compiled.groupindex,
    "splits": splits,
    "split_lists": split_lists,
    "split_table": split_table,
  }
  if len(ways := [name for name, value in given.items() if value]) > 1:
    raise UserError(f"source_kw says the splits twice: {' and '.join(ways)}")
  rules = {
    name: tables.compile_pattern(rule, f"source_kw.splits.{name}")
    for name, rule in (splits or {}).items()
  }
  root = tables.existing_dir(data_dir)
  listed = tables.read_split_lists(root, split_lists or {})
  others = "train" if listed else ""
  if split_table:
    listed |= tables.read_split_table(root, split_table)
  paths = list(tables.sound_files(root))
  if not paths:
    raise UserError(
      f"no recordings below {root}: expected files ending in "
      f"{', '.join(audio.SUFFIXES)}"
    )
  rows = []
  for path in paths:
    if not (match := compiled.search(path)):
      continue
    groups = match.groupdict()
    if not groups.get("label", True):  # an optional group that took no part
      continue
    found = groups.get("split") or next(
      (name for name, rule in rules.items() if rule.search(path)), ""
    )
    if listed:
      found = listed.get(path, others)
    labels = (groups["label"],) if "label" in groups else ()
    rows.append(Row(path, labels, found, groups.get("fold") or ""))
  if not rows:
    raise UserError(
      f"source_kw.pattern {pattern!r} fits none of the {len(paths)} recordings "
      f"below {root}, such as {paths[0]!r}"
    )
  rows = _hold_out(_renamed(rows, label_map or {}), holdout)
  return _select(root, rows, split, folds, label_list)


def folder(
  *,
  data_dir: str,
  split: str = "",
  folds: tuple[str, ...] = (),
  pattern: str = r"^(?P<label>[^/]+)/",
  splits: Mapping[str, str] | None = None,
  split_lists: Mapping[str, str] | None = None,
  split_table: str = "",
  holdout: float = 0.0,
  label_list: str = "",
  label_map: Mapping[str, str] | None = None,
) -> Recordings:
  """One folder per class; arguments as of `filenames`.

  With a folder per split above the classes, use the pattern
  r"^(?P<split>[^/]+)/(?P<label>[^/]+)/".
  """
  compiled = tables.compile_pattern(pattern, "source_kw.pattern")
  if "label" not in compiled.groupindex:
    raise UserError(
      f"source_kw.pattern {pattern!r} has no group (?P<label>...); recordings "
      "without labels are read by the source 'filenames'"
    )
  return filenames(
    data_dir=data_dir,
    split=split,
    folds=folds,
    pattern=pattern,
    splits=splits,
    split_lists=split_lists,
    split_table=split_table,
    holdout=holdout,
    label_list=label_list,
    label_map=label_map,
  )


def csv(
  *,
  data_dir: str,
  csv: str,
  split: str = "",
  folds: tuple[str, ...] = (),
  holdout: float = 0.0,
  label_list: str = "",
  label_map: Mapping[str, str] | None = None,
  label_separator: str = ",",
  columns: Mapping[str, str] | None = None,
  below: str = "",
) -> Recordings:
  """A table with a header: `path` and optionally `labels`, `split`, `fold`.

  Without a column `labels` (or `label`) the recordings have no labels.

  Args:
    data_dir: paths in the table, and `csv` and `label_list`, are relative to it
      (or absolute).
    csv: the file.
    split: keep only this split; empty keeps all.
    folds: keep only these folds; empty keeps all.
    holdout: as of `filenames`.
    label_list: see `read_label_list`; empty takes the labels that occur.
    label_map: as of `filenames`.
    label_separator: between the labels of one recording; empty if each has one.
    columns: other names of these columns, such as {"path": "filename"}.
    below: folder that the paths are relative to, below `data_dir`.
  """
  of = {k: k for k in ("path", "labels", "split", "fold")}
  for key in columns or {}:
    errors.lookup(of, key, "key of source_kw.columns")
  of |= columns or {}
  root = tables.existing_dir(data_dir)
  path = root / csv
  rows = []
  for number, line in tables.read_table(path, "source_kw.csv"):
    column = of["labels"]
    if column not in line and "labels" not in (columns or {}):
      column = "label" if "label" in line else ""
    for name in (of["path"], column):
      if name and name not in line:
        raise UserError(
          f"{path} has no column {name!r} (columns: {', '.join(line)}); "
          "expected path and optionally labels, split, fold"
        )
    text = line[column] if column else ""
    names = text.split(label_separator) if label_separator else [text]
    names = tuple(n.strip() for n in names if n.strip())
    if not line[of["path"]] or (column and not names):
      raise UserError(f"{path}, line {number}: no path or no label")
    rows.append(
      Row(
        str(pathlib.PurePosixPath(below, line[of["path"]])),
        names,
        line.get(of["split"]) or "",
        line.get(of["fold"]) or "",
      )
    )
  if not rows:
    raise UserError(f"{path} lists no recordings")
  rows = _hold_out(_renamed(rows, label_map or {}), holdout)
  return _select(root, rows, split, folds, label_list)


def manifest(
  *,
  data_dir: str,
  json: str,
  label_list: str = "",
  split: str = "",
  folds: tuple[str, ...] = (),
) -> Recordings:
  """The original's manifest: {"data": [{"wav": path, "labels": "mid1,mid2"}]}.

  Args:
    data_dir: paths in the manifest, and `json` and `label_list`, are relative
      to it (or absolute).
    json: the file.
    label_list: the original's label CSV (index, mid, display_name); empty
      leaves the labels out, as for pre-training, where they are dummies.
    split: a manifest is of one split: leave it empty.
    folds: likewise.
  """
  if split or folds:
    raise UserError(
      f"a manifest has no splits or folds (given: {split or folds}): give one "
      "manifest for each"
    )
  root = tables.existing_dir(data_dir)
  found = tables.read_manifest(root / json, labelled=bool(label_list))
  rows = [Row(*row) for row in found]
  return _select(root, rows, "", (), label_list)


def tfds(
  *,
  data_dir: str = "",
  split: str = "train",
  folds: tuple[str, ...] = (),
  name: str,
  sample_rate: int = 0,
) -> Source:
  """A dataset of tensorflow-datasets, prepared as ArrayRecord.

  Args:
    data_dir: of TFDS; empty takes its default ($TFDS_DATA_DIR).
    split: such as "train" or "train[:90%]".
    folds: not used.
    name: such as "spoken_digit" or "speech_commands:0.0.3".
    sample_rate: in Hz, where the dataset does not tell; 0 takes its own.
  """
  if folds:
    raise UserError("the source 'tfds' has no folds: use splits")
  return load(name, split or "train", data_dir, sample_rate)


def several(
  *,
  data_dir: str = "",
  split: str = "",
  folds: tuple[str, ...] = (),
  sources: tuple[Mapping[str, Any], ...],
  shares: tuple[float, ...] = (),
) -> Several:
  """Several sources as one; classes of the same name are the same class.

  Args:
    data_dir: for parts that have none of their own.
    split: likewise.
    folds: likewise.
    sources: {"source": name, "source_kw": {...}, "data_dir": ..., "split": ...}
      each.
    shares: how much of the draws each part gets (with replacement); empty shows
      every example once per epoch.
  """
  if not sources:
    raise UserError("source_kw.sources is empty")
  own = {"data_dir": data_dir, "split": split, "folds": folds}
  known = ("source", "source_kw", *own)
  parts = []
  for i, given in enumerate(sources):
    where = f"source_kw.sources[{i}]"
    for key in given:
      errors.lookup(dict.fromkeys(known), key, f"key of {where}")
    if "source" not in given:
      raise UserError(f"{where} has no 'source'")
    if given["source"] == "several":
      raise UserError(f"{where}: several sources within several; list them all")
    kw = {k: given.get(k, v) for k, v in own.items()}
    parts.append(
      build(given["source"], where, given.get("source_kw", {}), **kw)
    )
  return Several(parts, shares)


def synthetic(
  *,
  data_dir: str = "",
  split: str = "train",
  folds: tuple[str, ...] = (),
  num_examples: int = 2000,
  seconds: float = 2.0,
  sample_rate: int = 16_000,
  seed: int = 0,
) -> Synthetic:
  """Built-in sound events; `data_dir` and `folds` are not used."""
  del data_dir, folds
  return Synthetic(
    num_examples=num_examples,
    seconds=seconds,
    sample_rate=sample_rate,
    split=split,
    seed=seed,
  )


SOURCES: dict[str, Callable[..., Source]] = {
  "filenames": filenames,
  "folder": folder,
  "csv": csv,
  "manifest": manifest,
  "tfds": tfds,
  "several": several,
  "synthetic": synthetic,
}


def build(
  name: str, where: str, given: Mapping[str, Any], **own: Any
) -> Source:
  """The source of this name.

  Args:
    name: a key of `SOURCES`.
    where: section of the config, for errors.
    given: the user's `source_kw`, checked against the source's signature.
    **own: data_dir, split and folds.
  """
  make = errors.lookup(SOURCES, name, f"{where}.source")
  return errors.call(make, f"{where}.source_kw", given, **own)


def _hold_out(rows, share):
  if not share:
    return rows
  if not 0 < share < 1:
    raise UserError(f"source_kw.holdout must be in [0, 1), got {share}")
  if any(row.split for row in rows):
    raise UserError("source_kw: the data has splits; leave out holdout")

  def split_of(row):
    digest = zlib.crc32(row.path.encode(errors="surrogateescape"))
    return "val" if digest % 10_000 < share * 10_000 else "train"

  return [row._replace(split=split_of(row)) for row in rows]


def check_labelled(source: Source, where: str) -> None:
  """Raises a UserError if a source, or a part of one, has no labels at all."""
  for part in getattr(source, "parts", (source,)):
    if not any(part.labels(i) for i in range(len(part))):
      raise UserError(
        f"{where} has no labels ({part.name(0)}, ...), which a classifier "
        "needs: a pattern needs a group (?P<label>...), a table a column "
        "'labels', a manifest a label_list"
      )


def _renamed(rows, label_map):
  found = {label for row in rows for label in row.labels}
  for label, name in label_map.items():
    if label not in ("*", name) and label not in found:
      raise UserError(
        f"source_kw.label_map: no recording has the label {label!r}."
        f"{errors.nearest(label, found)[:300]}"
      )

  def name_of(label):
    return label_map.get(label, label_map.get("*", label))

  return [row._replace(labels=tuple(map(name_of, row.labels))) for row in rows]


def _select(root, rows, split, folds, label_list):
  if label_list:
    names, aliases = tables.read_label_list(str(root / label_list))
    if not any(row.labels for row in rows):
      raise UserError(
        f"source_kw.label_list={label_list!r}, but the recordings have no "
        "labels: a pattern needs a group (?P<label>...), a table a column "
        "'labels'"
      )
  else:
    names = sorted({n for row in rows for n in row.labels}, key=tables.natural)
    aliases = {n: i for i, n in enumerate(names)}
  kept = _keep(rows, "split", (split,) if split else ())
  kept = _keep(
    kept,
    "fold",
    tuple(str(f) for f in folds),
    f" of split {split!r}" if split else "",
  )
  return Recordings(root, kept, names, aliases)


def _keep(rows, field, wanted, among=""):
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
