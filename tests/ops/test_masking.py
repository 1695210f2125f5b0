"""SSAST's masks: exact counts, and rates against the original's simulation."""

import functools

import jax
import numpy as np
import pytest

from astjax.errors import UserError
from astjax.ops import masking

GRID = (8, 64)
DRAWS = 1_000
# Rates by row, lowest mel bins first, of 4,000 draws of the original's code.
ORIGINAL = {
  400: (0.415, 0.669, 0.813, 0.873, 0.888, 0.887, 0.885, 0.820),
  250: (0.197, 0.365, 0.497, 0.568, 0.595, 0.594, 0.591, 0.499),
  100: (0.070, 0.139, 0.202, 0.241, 0.258, 0.255, 0.247, 0.151),
}


@functools.cache
def compiled(grid, count, quirks):
  mask = functools.partial(
    masking.cluster_mask, grid=grid, count=count, reference_quirks=quirks
  )
  return jax.jit(jax.vmap(mask))


def clusters(count, *, grid=GRID, draws=DRAWS, seed=0, quirks=True):
  """[draws, F', T'] bool."""
  keys = jax.random.split(jax.random.key(seed), draws)
  index = np.asarray(compiled(grid, count, quirks)(keys))
  assert index.shape == (draws, count)
  assert (np.diff(index, axis=1) > 0).all()  # ascending, so all different
  hidden = np.zeros((draws, grid[0] * grid[1]), bool)
  np.put_along_axis(hidden, index, True, axis=1)
  return hidden.reshape(draws, *grid)


def original(random, count, grid=GRID):
  """The rule of the original's code, one clip at a time."""
  num_patches, size = grid[0] * grid[1], random.integers(3) + 3
  step = (np.arange(size)[:, None] * grid[1] + np.arange(size)).ravel()
  hidden = np.zeros(num_patches, bool)
  while hidden.sum() <= count:
    found = random.integers(num_patches) + step
    hidden[found[(found > 0) & (found < num_patches)]] = True
  hidden[np.nonzero(hidden)[0][count:]] = False
  return hidden.reshape(grid)


def paper(random, count, grid=GRID):
  """Centred squares within the borders; the last one in parts, at random."""
  size = random.integers(3) + 3
  before = [(size - random.integers(2)) // 2 for _ in range(2)]
  hidden = np.zeros(grid, bool)
  while hidden.sum() < count:
    row, col = (
      random.integers(n) - b for n, b in zip(grid, before, strict=True)
    )
    new = np.zeros(grid, bool)
    new[max(row, 0) : row + size, max(col, 0) : col + size] = True
    new &= ~hidden
    surplus = int(hidden.sum() + new.sum()) - count
    if surplus > 0:
      new.flat[random.permutation(np.flatnonzero(new))[:surplus]] = False
    hidden |= new
  return hidden


RULES = {True: original, False: paper}


def standard_error(hidden, axes):
  """Of a mean over draws; the patches of one draw are not independent."""
  rates = hidden.mean(axes) if axes else hidden
  return rates.std(0) / np.sqrt(len(hidden))


@pytest.mark.slow
@pytest.mark.parametrize(
  "count", [400, *(pytest.param(n, marks=pytest.mark.rare) for n in (250, 100))]
)
def test_rates_by_row(count):
  hidden = clusters(count)
  error = standard_error(hidden, 2)
  # The table is a mean of four times as many draws, and has three digits.
  bound = 4 * np.sqrt(1.25) * error + 5e-4
  assert (np.abs(hidden.mean((0, 2)) - ORIGINAL[count]) < bound).all()
  assert not hidden[:, 0, 0].any() and not hidden[:, -1, -1].any()


def neighbours(hidden):
  """[draws]: how often a patch and the next one in time are hidden both."""
  return (hidden[:, :, 1:] & hidden[:, :, :-1]).mean((1, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("count", "quirks"),
  [
    (400, True),
    (250, False),
    pytest.param(100, True, marks=pytest.mark.rare),
    pytest.param(250, True, marks=pytest.mark.rare),
    pytest.param(400, False, marks=pytest.mark.rare),
  ],
)
def test_as_the_rule_clip_by_clip(count, quirks):
  """Rows, columns, single patches and neighbours, each in as many draws."""
  hidden = clusters(count, quirks=quirks)
  random = np.random.default_rng(0)
  reference = np.stack([RULES[quirks](random, count) for _ in range(DRAWS)])

  def differ(values):  # in standard errors
    a, b = values(hidden), values(reference)
    error = np.hypot(a.std(0), b.std(0)) / np.sqrt(DRAWS)
    difference = np.abs(a.mean(0) - b.mean(0))
    return np.max(difference / np.maximum(error, 1e-9))

  assert differ(lambda x: x.mean(2)) < 4  # 8 rows
  assert differ(lambda x: x.mean(1)) < 4.5  # 64 columns
  assert differ(lambda x: x.astype(np.float64)) < 5  # 512 patches
  assert differ(neighbours) < 4


@pytest.mark.slow
def test_without_quirks_it_is_symmetric():
  hidden = clusters(400, quirks=False)
  assert hidden.any(0).all()  # every patch can be hidden
  assert hidden[:, 0, 0].mean() > 0.3
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


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(8, 4), (1, 40)])
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


def test_small_grids_are_like_the_original():
  """Clusters as wide as the spectrogram wrap more than once."""
  grid = (3, 4)
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
