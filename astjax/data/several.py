"""Several sources as one."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from astjax.errors import UserError

if TYPE_CHECKING:
  from astjax.data.sources import Source


class Several:
  """The examples of several sources, one after the other.

  Attributes:
    parts: the sources.
    class_names: of all parts, in the order in which they first come.
    shares: ((rows of a part, its share of the draws), ...); empty if every
      example comes once per epoch, whatever part it is of.
  """

  def __init__(self, parts: Sequence[Source], shares: Sequence[float] = ()):
    if shares and len(shares) != len(parts):
      raise UserError(
        f"source_kw.shares has {len(shares)} numbers for {len(parts)} sources"
      )
    if any(not 0 < share < math.inf for share in shares):
      raise UserError(f"source_kw.shares must be positive, got {tuple(shares)}")
    self.parts = tuple(parts)
    names = dict.fromkeys(n for part in parts for n in part.class_names)
    self.class_names = tuple(names)
    number = {name: i for i, name in enumerate(names)}
    self._numbers = [[number[n] for n in p.class_names] for p in parts]
    self._ends = list(itertools.accumulate(len(p) for p in parts))
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
