"""Which patches are hidden: SSAST's masks, with shapes known in advance.

A mask is the ascending numbers f' * T' + t' of exactly M hidden patches of one
clip. (SSAST paper, section 2.2, and the original's code, which differs.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from astjax.errors import UserError
from astjax.types import Array

# Side of a clip's clusters; the original draws one of these for each clip.
CLUSTER_SIZES = (3, 4, 5)

_DRAWS = 64  # clusters drawn at once: 400 of 512 patches take 50 to 110


def random_mask(key: Array, *, num_patches: int, count: int) -> Array:
  """M of N patches, uniform without replacement: int32 [M], 0 < M < N."""
  _check_count(count, num_patches, most=num_patches - 1)
  return jnp.sort(jax.random.permutation(key, num_patches)[:count])


def cluster_mask(
  key: Array,
  *,
  grid: tuple[int, int],
  count: int,
  reference_quirks: bool = True,
) -> Array:
  """M patches in square clusters, all of one size in a clip: int32 [M].

  Clusters are drawn until there are enough patches. With `reference_quirks`, as
  the original's code does it: they have the drawn patch in their corner (lowest
  mel bins, earliest time) and wrap into the next row at the end of time, patch
  0 is never hidden, and of M + 1 or more the highest numbers are left out; so
  the last patch is never hidden, and the lowest row half as often as others.
  Without, as the paper describes it: they have the drawn patch in their middle,
  end at the borders, and every patch may be hidden; what is too much is left
  out of the last cluster at random.

  Raises:
    UserError: less than one, or as many patches as there are to hide.
  """
  num_patches = grid[0] * grid[1]
  most = num_patches - 2 if reference_quirks else num_patches - 1
  _check_count(count, num_patches, most=most)
  size_key, middle_key, start_key, last_key = jax.random.split(key, 4)
  sizes = jnp.array(CLUSTER_SIZES)
  size = sizes[jax.random.randint(size_key, (), 0, len(CLUSTER_SIZES))]
  # Of an even side, each of the two middles is as likely.
  before = (size - jax.random.randint(middle_key, (2,), 0, 2)) // 2

  def clusters(start):  # [draws] -> [draws, N]
    if reference_quirks:
      return _corner_clusters(start[:, None], size, grid)
    return _centred_clusters(start[:, None], size, before, grid)

  def is_short(state):
    _, hidden, _ = state
    return jnp.sum(hidden) < count + reference_quirks

  def draw(state):
    number, hidden, _ = state
    key = jax.random.fold_in(start_key, number)
    start = jax.random.randint(key, (_DRAWS,), 0, num_patches)
    grown = hidden | (jnp.cumsum(clusters(start), axis=0) > 0)
    enough = jnp.sum(grown, axis=1) >= count + reference_quirks
    last = jnp.where(jnp.any(enough), jnp.argmax(enough), _DRAWS - 1)
    earlier = jnp.concatenate([hidden[None], grown])[last]
    return number + 1, grown[last], earlier

  nothing = jnp.zeros(num_patches, bool)
  start = (jnp.int32(0), nothing, nothing)
  _, hidden, earlier = jax.lax.while_loop(is_short, draw, start)
  # What is hidden first, then the others; in between the last cluster.
  rank = jnp.where(hidden, 0.0, 2.0)
  if not reference_quirks:
    chance = jax.random.uniform(last_key, (num_patches,))
    rank = jnp.where(hidden & ~earlier, chance + 0.5, rank)
  return jnp.sort(jnp.argsort(rank)[:count])


def _corner_clusters(start: Array, size: Array, grid: tuple[int, int]) -> Array:
  """Patches start + i * T' + j of the sequence, i and j below size; not 0."""
  number = jnp.arange(grid[0] * grid[1])
  inside = jnp.zeros((start.shape[0], number.size), bool)
  for row in range(max(CLUSTER_SIZES)):
    step = number - start - row * grid[1]
    inside |= (step >= 0) & (step < size) & (row < size)
  return inside & (number > 0)


def _centred_clusters(start, size, before, grid):
  """Patches around the drawn one, within the spectrogram."""
  number = jnp.arange(grid[0] * grid[1])
  row = number // grid[1] - start // grid[1] + before[0]
  col = number % grid[1] - start % grid[1] + before[1]
  return (row >= 0) & (row < size) & (col >= 0) & (col < size)


def _check_count(count, num_patches, *, most):
  if not 1 <= count <= most:
    raise UserError(
      f"cannot hide {count} of {num_patches} patches: between 1 and {most} can "
      "be hidden: lower num_mask, or give longer clips"
    )
