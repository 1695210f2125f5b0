"""What a source of recordings is, and what is asked of any."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np

from astjax.errors import UserError


class Source(Protocol):
  """Numbered recordings, with labels or without.

  Attributes:
    class_names: of all splits, so that train and test agree; () without labels.
  """

  class_names: tuple[str, ...]

  def __len__(self) -> int: ...

  def name(self, index: int) -> str:
    """For messages and reports."""

  def labels(self, index: int) -> tuple[int, ...]:
    """Class numbers of an example, without reading it."""

  def read(self, index: int) -> tuple[np.ndarray, int]:
    """(float32 [S] or [S, channels], rate); raises `UnreadableAudio`."""


def fingerprint(source: Source) -> str:
  """A digest of names, labels and classes: which data a run has seen."""
  lines = ["\n".join(source.class_names)]
  lines += [f"{source.name(i)} {source.labels(i)}" for i in range(len(source))]
  # File names need not be UTF-8.
  text = "\n".join(lines).encode("utf-8", errors="surrogateescape")
  return hashlib.sha256(text).hexdigest()[:16]


def check_labelled(source: Source, where: str) -> None:
  """Raises a UserError if a source, or a part of one, has no labels at all."""
  for part in getattr(source, "parts", (source,)):
    if not any(part.labels(i) for i in range(len(part))):
      raise UserError(
        f"{where} has no labels ({part.name(0)}, ...), which a classifier "
        "needs: a pattern needs a group (?P<label>...), a table a column "
        "'labels', a manifest a label_list"
      )
