"""Which example stands at which position of the training stream (NumPy only).

Position p of the stream belongs to epoch p // n, and every epoch is a new
permutation of all n examples; step s holds positions s * B ... (s + 1) * B - 1.
All of it is a function of (seed, position), so that any step can be reached
directly, on any number of processes.
"""

from __future__ import annotations

import functools

import numpy as np

from astjax.errors import UserError
from astjax.ops.backends import NUMPY, random_key


class Order:
  """The stream of a source of `num_examples` examples."""

  def __init__(self, seed: int, num_examples: int, batch_size: int):
    self.seed = seed
    self.num_examples = num_examples
    self.batch_size = batch_size
    # RandomState's stream is frozen across NumPy versions.
    self._epoch = functools.lru_cache(maxsize=2)(
      lambda epoch: np.random.RandomState([seed, epoch]).permutation(
        num_examples
      )
    )

  def index(self, position: int) -> int:
    """The example at this position."""
    epoch, place = divmod(int(position), self.num_examples)
    return int(self._epoch(epoch)[place])

  def key(self, position: int) -> np.ndarray:
    """Random key of this position, uint32 [2]: that of its row of its step."""
    step, row = divmod(int(position), self.batch_size)
    return NUMPY.fold_in(NUMPY.fold_in(random_key(self.seed), step), row)


def process_rows(
  batch_size: int, process_index: int, process_count: int
) -> range:
  """The rows of a global batch that one process provides: disjoint slices."""
  if batch_size % process_count:
    raise UserError(
      f"a batch of {batch_size} does not divide evenly over {process_count} "
      "processes"
    )
  local = batch_size // process_count
  return range(process_index * local, (process_index + 1) * local)
