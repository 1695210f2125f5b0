"""SSAST's masks: exact counts, and rates against the original's simulation."""

import jax
import numpy as np
import pytest

from astjax.errors import UserError
from astjax.ops import masking

GRID = (8, 64)
DRAWS = 4_000
# Rates by row, lowest mel bins first, of 4,000 draws of the original's code.
ORIGINAL = {
  400: (0.415, 0.669, 0.813, 0.873, 0.888, 0.887, 0.885, 0.820),
  250: (0.197, 0.365, 0.497, 0.568, 0.595, 0.594, 0.591, 0.499),
  100: (0.070, 0.139, 0.202, 0.241, 0.258, 0.255, 0.247, 0.151),
}


def clusters(count, *, grid=GRID, draws=DRAWS, seed=0, quirks=True):
  """[draws, F', T'] bool."""
  mask = lambda key: masking.cluster_mask(
    key, grid=grid, count=count, reference_quirks=quirks
  )
  keys = jax.random.split(jax.random.key(seed), draws)
  index = np.asarray(jax.jit(jax.vmap(mask))(keys))
  assert index.shape == (draws, count)
  assert (np.diff(index, axis=1) > 0).all()  # ascending, so all different
  hidden = np.zeros((draws, grid[0] * grid[1]), bool)
  np.put_along_axis(hidden, index, True, axis=1)
  return hidden.reshape(draws, *grid)


def original(random, count, grid=GRID):
  """The rule of the original's code, one clip at a time."""
  num_patches = grid[0] * grid[1]
  size = random.integers(3) + 3
  found = set()
  while len(found) <= count:
    start = random.integers(num_patches)
    found |= {
      k
      for i in range(size)
      for j in range(size)
      if 0 < (k := start + grid[1] * i + j) < num_patches
    }
  hidden = np.zeros(num_patches, bool)
  hidden[sorted(found)[:count]] = True
  return hidden.reshape(grid)


def standard_error(hidden, axes):
  """Of a mean over draws; the patches of one draw are not independent."""
  rates = hidden.mean(axes) if axes else hidden
  return rates.std(0) / np.sqrt(len(hidden))


@pytest.mark.parametrize("count", ORIGINAL)
def test_rates_by_row(count):
  hidden = clusters(count)
  error = standard_error(hidden, 2)
  # Both sides are means of as many draws; the table has three digits.
  bound = 4 * np.sqrt(2) * error + 5e-4
  assert (np.abs(hidden.mean((0, 2)) - ORIGINAL[count]) < bound).all()


@pytest.mark.parametrize("count", [400, 100])
def test_rates_by_column(count):
  hidden = clusters(count)
  random = np.random.default_rng(0)
  reference = np.stack([original(random, count) for _ in range(DRAWS)])
  error = np.hypot(standard_error(hidden, 1), standard_error(reference, 1))
  difference = hidden.mean((0, 1)) - reference.mean((0, 1))
  assert (np.abs(difference) < 4.5 * error).all()  # 64 columns
  cells = np.hypot(standard_error(hidden, ()), standard_error(reference, ()))
  difference = hidden.mean(0) - reference.mean(0)
  assert (np.abs(difference) <= 5 * cells).all()


def test_the_first_and_the_last_patch_are_never_hidden():
  hidden = clusters(400)
  assert not hidden[:, 0, 0].any() and not hidden[:, -1, -1].any()


@pytest.mark.parametrize("count", [400, 100])
def test_without_quirks_it_is_symmetric(count):
  hidden = clusters(count, quirks=False)
  for axis in (1, 2):  # low against high mel bins, early against late
    rates = hidden.mean(3 - axis)  # [draws, F'] or [draws, T']
    difference = rates - rates[:, ::-1]
    error = difference.std(0) / np.sqrt(DRAWS)
    assert (np.abs(difference.mean(0)) < 4.5 * error).all()
  # Away from the borders every patch has the same chance.
  inner = hidden[:, 3:-3, 5:-5].mean((1, 2))
  middle = hidden[:, 3:-3, 30:34].mean((1, 2))
  difference = inner - middle
  assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(DRAWS)


def test_without_quirks_every_patch_can_be_hidden():
  hidden = clusters(400, quirks=False)
  assert hidden.any(0).all()
  assert hidden[:, 0, 0].mean() > 0.3


@pytest.mark.parametrize("quirks", [True, False])
def test_clusters_are_squares(quirks):
  """A single cluster: hide as few patches as one cluster has at least."""
  hidden = clusters(4, draws=500, quirks=quirks)
  alone = 0
  for clip in hidden:
    rows, cols = np.nonzero(clip)
    alone += np.ptp(rows) < 5 and np.ptp(cols) < 5
  assert alone > (300 if quirks else 450)  # wrapped ones are not together


@pytest.mark.parametrize("grid", [(8, 4), (2, 5), (1, 40), (3, 3), (5, 2)])
@pytest.mark.parametrize("quirks", [True, False])
def test_as_many_as_possible(grid, quirks):
  num_patches = grid[0] * grid[1]
  most = num_patches - 2 if quirks else num_patches - 1
  for count in (1, most):
    hidden = clusters(count, grid=grid, draws=50, quirks=quirks)
    assert (hidden.sum((1, 2)) == count).all()
  for count in (0, most + 1, num_patches, 10_000):
    with pytest.raises(UserError, match=f"between 1 and {most}"):
      clusters(count, grid=grid, draws=1, quirks=quirks)


@pytest.mark.parametrize("grid", [(3, 4), (8, 6)])
def test_small_grids_are_like_the_original(grid):
  """Clusters as wide as the spectrogram wrap more than once."""
  count = grid[0] * grid[1] // 2
  hidden = clusters(count, grid=grid)
  random = np.random.default_rng(1)
  reference = np.stack([original(random, count, grid) for _ in range(DRAWS)])
  cells = np.hypot(standard_error(hidden, ()), standard_error(reference, ()))
  difference = hidden.mean(0) - reference.mean(0)
  assert (np.abs(difference) <= 4.5 * cells).all()


def test_random_masks_are_uniform():
  mask = lambda key: masking.random_mask(key, num_patches=60, count=45)
  keys = jax.random.split(jax.random.key(0), DRAWS)
  index = np.asarray(jax.jit(jax.vmap(mask))(keys))
  assert (np.diff(index, axis=1) > 0).all() and index.min() >= 0
  hidden = np.zeros((DRAWS, 60), bool)
  np.put_along_axis(hidden, index, True, axis=1)
  rates = hidden.mean(0)
  error = np.sqrt(0.75 * 0.25 / DRAWS)
  assert (np.abs(rates - 0.75) < 4.5 * error).all()
  # Neighbours are hidden independently but for the fixed number.
  both = (hidden[:, 1:] & hidden[:, :-1]).mean()
  assert abs(both - 45 * 44 / (60 * 59)) < 4 * 0.5 / np.sqrt(DRAWS * 59)


@pytest.mark.parametrize("count", [0, 60, 61])
def test_random_masks_refuse(count):
  with pytest.raises(UserError, match="between 1 and 59"):
    masking.random_mask(jax.random.key(0), num_patches=60, count=count)


def test_a_mask_is_a_function_of_its_key():
  a, b = clusters(40, draws=3), clusters(40, draws=3)
  np.testing.assert_array_equal(a, b)
  assert (clusters(40, draws=3, seed=1) != a).any()
