"""Position grids [F', T', D] for other grids, as ASiT's pre-training needs.

Torch's bicubic interpolation: coefficient -0.75, half-pixel centres, borders
repeated, no antialiasing. `jax.image.resize` has -0.5 and antialiases.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from astjax.types import Array

_A = -0.75


def bicubic_matrix(have: int, want: int) -> np.ndarray:
  """[want, have] float64: each row makes one of the new values."""
  place = (np.arange(want) + 0.5) * (have / want) - 0.5
  first = np.floor(place)
  matrix = np.zeros((want, have))
  for tap in (-1, 0, 1, 2):
    weight = _cubic(np.abs(place - first - tap))
    index = np.clip(first + tap, 0, have - 1).astype(int)
    np.add.at(matrix, (np.arange(want), index), weight)
  return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
  """The kernel at distances 0 ... 2."""
  near = ((_A + 2) * x - (_A + 3)) * x * x + 1
  far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
  return np.where(x <= 1, near, far)


def resize(grid: Array, shape: tuple[int, int]) -> Array:
  """Positions [F', T', D] for the grid `shape`; linear in `grid`."""
  for axis, want in enumerate(shape):
    have = grid.shape[axis]
    if have != want:
      matrix = jnp.asarray(bicubic_matrix(have, want), grid.dtype)
      # [want, ...], the axis in front.
      grid = jnp.tensordot(matrix, grid, axes=(1, axis), precision="highest")
      grid = jnp.moveaxis(grid, 0, axis)
  return grid
