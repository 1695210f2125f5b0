"""What a source of recordings is, and what is asked of any."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from astjax.errors import LABELS_COME_FROM, UserError


class Source:
  """Numbered recordings, with labels or without; here those with two lists.

  A source of the user's needs the public names, and may be any class.
  """

  # Those of all splits, so that train and test agree; () without labels.
  class_names: tuple[str, ...]
  _names: Sequence[str]
  _labels: Sequence[tuple[int, ...]]

  def __len__(self) -> int:
    return len(self._names)

  def name(self, index: int) -> str:
    """For messages and reports."""
    return self._names[index]

  def labels(self, index: int) -> tuple[int, ...]:
    """Class numbers of an example, without reading it."""
    return self._labels[index]

  def read(self, index: int) -> tuple[np.ndarray, int]:
    """(float32 [S] or [S, channels], rate); raises `UnreadableAudio`."""
    raise NotImplementedError


def fingerprint(source: Source) -> str:
  """A digest of names, labels and classes: which data a run has seen."""
  lines = ["\n".join(source.class_names)]
  lines += [f"{source.name(i)} {source.labels(i)}" for i in range(len(source))]
  # File names need not be UTF-8.
  text = "\n".join(lines).encode("utf-8", errors="surrogateescape")
  return hashlib.sha256(text).hexdigest()[:16]


def check_labelled(source: Source, where: str) -> None:
  """Raises a UserError if a source, or a part of one, has no labels at all."""
  # Sources without labels are no mistake, as pre-training wants none: only here
  # is it known that they are needed.
  for part in getattr(source, "parts", (source,)):
    if not any(part.labels(i) for i in range(len(part))):
      raise UserError(
        f"{where} has no labels ({part.name(0)}, ...), which a classifier "
        f"needs: {LABELS_COME_FROM}"
      )
