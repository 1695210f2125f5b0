"""Which example stands at which position of the training stream (NumPy only).

Position p of the stream belongs to epoch p // n. An epoch is a permutation of
all n examples or, with weights, n draws with replacement; step s holds
positions s * B ... (s + 1) * B - 1. All of it is a function of (seed,
position), so that any step can be reached directly, on any number of processes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from astjax.data.source import Source
from astjax.errors import UserError, lookup
from astjax.ops.xp import NUMPY, random_key


@dataclasses.dataclass(eq=False)
class Order:
  """The stream of n = `num_examples` examples in batches of B.

  `weights` [n] say how likely each example is at each position; None goes
  through all of them once per epoch.
  """

  seed: int
  num_examples: int
  batch_size: int
  weights: np.ndarray | None = None

  def __post_init__(self):
    self._cumulative = None if self.weights is None else np.cumsum(self.weights)
    self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

  def _make_epoch(self, epoch: int) -> np.ndarray:
    # RandomState's stream is frozen across NumPy versions.
    random = np.random.RandomState([self.seed, epoch])
    if self._cumulative is None:
      return random.permutation(self.num_examples)
    at = random.random_sample(self.num_examples) * self._cumulative[-1]
    index = np.searchsorted(self._cumulative, at, side="right")
    return np.minimum(index, self.num_examples - 1)

  def index(self, position: int) -> int:
    """The example at this position."""
    # A batch may straddle two epochs: the original ends each with a smaller
    # batch, which would compile a second program.
    epoch, place = divmod(int(position), self.num_examples)
    return int(self._epoch(epoch)[place])

  def key(self, position: int) -> np.ndarray:
    """Random key of this position, uint32 [2]: that of its row of its step."""
    step, row = divmod(int(position), self.batch_size)
    return NUMPY.fold_in(NUMPY.fold_in(random_key(self.seed), step), row)


def shuffled(source: Source) -> None:
  """Every example once per epoch."""


def balanced(source: Source) -> np.ndarray:
  """[n]: rare classes as often as frequent ones, for several labels per clip.

  The original's class-balanced draw (AST paper, section 3.1; PSLA): class k
  with c_k examples has the weight 1000 / (c_k + 0.01), an example the sum of
  the weights of its labels.
  """
  rows = [source.labels(i) for i in range(len(source))]
  flat = np.array([k for row in rows for k in row], np.int64)
  counts = np.bincount(flat, minlength=len(source.class_names))
  of_class = 1000.0 / (counts + 0.01)
  return np.array([sum(of_class[k] for k in row) for row in rows], np.float64)


# `config.input.draw`.
DRAWS = {"shuffle": shuffled, "balanced": balanced}


def draw_weights(source: Source, draw: str, where: str) -> np.ndarray | None:
  """[n] weights of the examples, None for a permutation.

  A source made of several with shares (`Several`) keeps them under any draw:
  its parts' weights are scaled to their shares. Examples that would never be
  drawn are a UserError.
  """
  weights = lookup(DRAWS, draw, f"{where}.draw")(source)
  parts: Sequence[tuple[range, float]] = getattr(source, "shares", ())
  if parts:
    weights = np.ones(len(source)) if weights is None else weights
    for rows, share in parts:
      part = weights[rows.start : rows.stop]
      _check_drawn(
        part, f"{where}: shares with draw={draw!r}: no recording of a part"
      )
      weights[rows.start : rows.stop] = part * (share / part.sum())
  if weights is not None:
    _check_drawn(weights, f"{where}.draw={draw!r}: no recording")
  return weights


def _check_drawn(weights: np.ndarray, what: str) -> None:
  if not weights.sum() > 0:
    raise UserError(f"{what} has a label, so none would be drawn")


def process_rows(
  batch_size: int, process_index: int, process_count: int
) -> range:
  """The rows of a global batch that one process provides: disjoint slices."""
  if batch_size % process_count:
    raise UserError(
      f"a batch of {batch_size} does not divide over {process_count} processes"
    )
  local = batch_size // process_count
  return range(process_index * local, (process_index + 1) * local)
