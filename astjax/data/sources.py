"""Sources by name, `config.input.source`; and several of them as one.

A source knows its class names, the labels of each example, and how to read one;
it knows nothing of TensorFlow, batches or order.
"""

from __future__ import annotations

import bisect
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from astjax import errors
from astjax.data import recordings, tfds
from astjax.data.source import Source
from astjax.data.synthetic import Synthetic
from astjax.errors import Positive, UserError


class Several(Source):
  """The examples of several sources, one after the other.

  Each of `sources` is {"source": name, "source_kw": {...}, "data_dir": ...,
  "split": ...}; `data_dir`, `split` and `folds` are for those that have none of
  their own. Classes of the same name are the same class, in the order in which
  they first come. `shares` is how much of the draws each part gets (with
  replacement); empty shows every example once per epoch.
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
    parts: list[Source] = []
    for i, given in enumerate(sources):
      where = f"source_kw.sources[{i}]"
      if given.get("source") == "several":
        raise UserError(f"{where}: several within several; list them all")
      parts.append(errors.call(build, where, {**own, **given}, where=where))
    self.parts = tuple(parts)
    names = dict.fromkeys(name for part in parts for name in part.class_names)
    self.class_names = tuple(names)
    number = {name: i for i, name in enumerate(names)}
    self._names, self._labels, self._starts = [], [], []
    for part in parts:
      self._starts.append(len(self._names))
      for i in range(len(part)):
        self._names.append(part.name(i))
        own_names = (part.class_names[k] for k in part.labels(i))
        self._labels.append(tuple(sorted(number[name] for name in own_names)))
    # The rows of a part, and its share of the draws.
    self.shares = tuple(
      (range(start, start + len(part)), float(share))
      for start, part, share in zip(self._starts, parts, shares, strict=False)
    )

  def read(self, index: int) -> tuple[np.ndarray, int]:
    """As its part reads it."""
    part = bisect.bisect_right(self._starts, index) - 1
    return self.parts[part].read(index - self._starts[part])


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
  source: str,
  where: str,
  source_kw: Mapping[str, Any] = MappingProxyType({}),
  *,
  data_dir: str = "",
  split: str = "",
  folds: tuple[str, ...] = (),
) -> Source:
  """The source that the section `where` of a config describes."""
  make = errors.lookup(SOURCES, source, f"{where}.source")
  takes = inspect.signature(make).parameters
  if folds and "folds" not in takes:
    raise UserError(f"{where}: the source {source!r} has no folds: use splits")
  own = {"data_dir": data_dir, "split": split, "folds": folds}
  own = {k: v for k, v in own.items() if k in takes}
  return errors.call(make, f"{where}.source_kw", source_kw, **own)
