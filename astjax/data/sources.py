"""Sources by name, `config.input.source`; and several of them as one.

A source knows its class names, the labels of each example, and how to read one;
it knows nothing of TensorFlow, batches or order.
"""

from __future__ import annotations

import bisect
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from astjax import errors
from astjax.data import recordings, tfds
from astjax.data.source import Source
from astjax.data.synthetic import Synthetic
from astjax.errors import Positive, UserError


class Several:
  """The examples of several sources, one after the other.

  Classes of the same name are the same class.

  Args:
    data_dir: for parts that have none of their own.
    split: likewise.
    folds: likewise.
    sources: {"source": name, "source_kw": {...}, "data_dir": ..., "split": ...}
      each.
    shares: how much of the draws each part gets (with replacement); empty shows
      every example once per epoch.

  Attributes:
    parts: the sources.
    class_names: of all parts, in the order in which they first come.
    shares: ((rows of a part, its share of the draws), ...).
  """

  def __init__(
    self,
    *,
    data_dir: str = "",
    split: str = "",
    folds: tuple[str, ...] = (),
    sources: tuple[Mapping[str, Any], ...],
    shares: tuple[Positive, ...] = (),
  ):
    if not sources:
      raise UserError("source_kw.sources is empty")
    if shares and len(shares) != len(sources):
      raise UserError(
        f"source_kw.shares has {len(shares)} numbers for {len(sources)} sources"
      )
    own = {"data_dir": data_dir, "split": split, "folds": folds}
    self.parts = tuple(
      _part(given, f"source_kw.sources[{i}]", own)
      for i, given in enumerate(sources)
    )
    names = dict.fromkeys(n for part in self.parts for n in part.class_names)
    self.class_names = tuple(names)
    number = {name: i for i, name in enumerate(names)}
    self._numbers = [[number[n] for n in p.class_names] for p in self.parts]
    self._ends = list(itertools.accumulate(map(len, self.parts)))
    starts = [0, *self._ends[:-1]]
    self.shares = tuple(
      (range(a, b), float(s))
      for a, b, s in zip(starts, self._ends, shares, strict=False)
    )

  def _find(self, index: int) -> tuple[int, int]:
    part = bisect.bisect_right(self._ends, index)
    return part, index - (self._ends[part] - len(self.parts[part]))

  def __len__(self) -> int:
    return self._ends[-1]

  def name(self, index: int) -> str:
    """As its part calls it."""
    part, i = self._find(index)
    return self.parts[part].name(i)

  def labels(self, index: int) -> tuple[int, ...]:
    """Numbers among the classes of all parts."""
    part, i = self._find(index)
    numbers = self._numbers[part]
    return tuple(sorted(numbers[k] for k in self.parts[part].labels(i)))

  def read(self, index: int) -> tuple[np.ndarray, int]:
    """As its part reads it."""
    part, i = self._find(index)
    return self.parts[part].read(i)


def _part(given, where, own):
  for key in given:
    errors.lookup(
      dict.fromkeys(("source", "source_kw", *own)), key, f"key of {where}"
    )
  if "source" not in given:
    raise UserError(f"{where} has no 'source'")
  if given["source"] == "several":
    raise UserError(f"{where}: several sources within several; list them all")
  own = {k: given.get(k, v) for k, v in own.items()}
  return build(given["source"], where, given.get("source_kw", {}), **own)


SOURCES: dict[str, Callable[..., Source]] = {
  "filenames": recordings.Filenames,
  "folder": recordings.Folder,
  "csv": recordings.Csv,
  "manifest": recordings.Manifest,
  "tfds": tfds.TfdsRecordings,
  "several": Several,
  "synthetic": Synthetic,
}


def build(
  name: str,
  where: str,
  given: Mapping[str, Any],
  *,
  data_dir: str = "",
  split: str = "",
  folds: tuple[str, ...] = (),
) -> Source:
  """The source of this name.

  Args:
    name: a key of `SOURCES`.
    where: section of the config, for errors.
    given: the user's `source_kw`, checked against the source's signature.
    data_dir: of the section; a source that needs none ignores it.
    split: of the section.
    folds: of the section.
  """
  make = errors.lookup(SOURCES, name, f"{where}.source")
  takes = inspect.signature(make).parameters
  if folds and "folds" not in takes:
    raise UserError(f"{where}: the source {name!r} has no folds: use splits")
  own = {"data_dir": data_dir, "split": split, "folds": folds}
  own = {k: v for k, v in own.items() if k in takes}
  return errors.call(make, f"{where}.source_kw", given, **own)
