"""ASiT's corruption: statistics of the original's rule, and what it touches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astjax.errors import UserError
from astjax.ops import gmml

# Such a draw takes longer than compiling it well does.
full_size = pytest.mark.usefixtures("compiled_as_in_a_run")
SHAPE = (592, 128)
SMALL = (148, 40)
DRAWS = {SHAPE: 100, SMALL: 400, (40, 24): 400}


def original(random, shape, perc, align):
  """The rule of the original, one block after the other.

  Returns (target area, mask, blocks).
  """
  frames, bins = shape
  target = random.uniform(min(0.5, perc), perc) * frames * bins
  mask, blocks = np.zeros(shape, bool), []
  while mask.sum() < target:
    row = align * (random.randint(0, frames - align) // align)
    col = align * (random.randint(0, bins - align) // align)
    height = min(random.randint(align, int(0.3 * frames)), frames - row)
    width = min(random.randint(align, int(0.3 * bins)), bins - col)
    height, width = align * round(height / align), align * round(width / align)
    mask[row : row + height, col : col + width] = True
    blocks.append((row, col, height, width))
  return target, mask, blocks


FIRST = {
  1: [(192, 67, 104, 10), (277, 114, 37, 14), (70, 88, 89, 13)],
  16: [(192, 64, 112, 32), (272, 32, 96, 16), (464, 80, 128, 16)],
}


@pytest.mark.parametrize(
  ("perc", "align", "target", "count", "area"),
  [
    (0.7, 1, 46205.378, 53, 47060),
    (0.7, 16, 46205.378, 38, 47616),
    (0.3, 1, 22732.8, 13, 22939),
    (0.3, 16, 22732.8, 15, 22784),
  ],
)
def test_golden_numbers_of_the_reference(perc, align, target, count, area):
  """The rule above is the original's: it draws the same blocks."""
  random = np.random.RandomState(0)
  found, mask, blocks = original(random, SHAPE, perc, align)
  assert found == pytest.approx(target, abs=1e-3)
  assert (len(blocks), mask.sum()) == (count, area)
  assert blocks[:3] == FIRST[align]
  if (perc, align) == (0.7, 1):
    assert blocks[-1] == (138, 54, 166, 29)


# Drop of both presets, their replacement, aligned and small spectrograms.
CASES = [
  ("r1", 0.7, 1, SHAPE),
  ("r2", 0.5, 1, SMALL),
  ("replace", 0.3, 1, SMALL),
  ("r1_aligned", 0.7, 4, SMALL),
  ("replace_aligned", 0.3, 4, SMALL),
  ("smallest", 0.5, 2, (40, 24)),
]


SELDOM = ("r1_aligned", "replace")


@functools.cache
def drawn(perc, align, shape):
  """(masks [draws, T, F], numbers of blocks [draws])."""

  def draw(key):
    part, blocks = jax.random.split(key)
    least = min(perc, 0.5)
    fraction = least + (perc - least) * jax.random.uniform(part)
    return gmml.block_mask(blocks, fraction, shape=shape, align=align)

  keys = jax.random.split(jax.random.key(0), DRAWS[shape])
  # One at a time: together they leave the caches.
  masks, counts = jax.jit(lambda k: jax.lax.map(draw, k))(keys)
  return np.asarray(masks), np.asarray(counts)


@functools.cache
def referred(perc, align, shape):
  random = np.random.RandomState(1)
  found = [original(random, shape, perc, align) for _ in range(DRAWS[shape])]
  return np.stack([f[1] for f in found]), np.array([len(f[2]) for f in found])


def patch_kinds(masks, size=16):
  """Shares of patches that are fully, not and partly masked."""
  draws, frames, bins = masks.shape
  part = masks[:, : frames // size * size, : bins // size * size]
  part = part.reshape(draws, frames // size, size, bins // size, size)
  rate = part.mean((2, 4))
  full, none = (rate == 1).mean((1, 2)), (rate == 0).mean((1, 2))
  return np.stack([full, none, 1 - full - none], axis=1)  # [draws, 3]


def assert_same_mean(a, b, sigmas=4.5):
  """Two samples [draws, ...] have the same mean."""
  error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
  difference = np.abs(a.mean(0) - b.mean(0))
  assert (difference <= sigmas * error + 1e-9).all()


@full_size
@pytest.mark.slow
@pytest.mark.parametrize(
  ("perc", "align", "shape"),
  [
    pytest.param(*c, id=name, marks=[pytest.mark.rare] * (name in SELDOM))
    for name, *c in CASES
  ],
)
def test_like_the_original(perc, align, shape):
  (masks, counts), (other, other_counts) = (
    drawn(perc, align, shape),
    referred(perc, align, shape),
  )
  areas, other_areas = masks.mean((1, 2)), other.mean((1, 2))
  assert_same_mean(areas, other_areas)
  assert areas.std() == pytest.approx(other_areas.std(), rel=0.25)
  assert areas.min() >= min(perc, 0.5)
  assert_same_mean(counts.astype(float), other_counts.astype(float))
  size = 4 if shape != SHAPE else 16
  assert_same_mean(patch_kinds(masks, size), patch_kinds(other, size))
  for axis in (1, 2):  # every frame, every mel bin
    assert_same_mean(masks.mean(3 - axis), other.mean(3 - axis), 5.0)


TABLE = [  # coverage, its deviation, blocks (mean, min, max), kinds of patches
  (0.7, 1, 0.618, 0.057, (56, 29, 96), (0.32, 0.15, 0.52)),
  (0.5, 1, 0.511, 0.010, (40, 24, 59), (0.23, 0.23, 0.53)),
  (0.3, 1, 0.313, 0.012, (20, 11, 32), (0.12, 0.45, 0.43)),
  (0.7, 16, 0.613, None, (32, 16, 58), (0.61, 0.39, 0.0)),
  (0.3, 16, 0.316, None, (12, 7, 23), (0.32, 0.68, 0.0)),
]


@full_size
@pytest.mark.slow
@pytest.mark.parametrize(
  "row",
  [TABLE[0]] + [pytest.param(r, marks=pytest.mark.rare) for r in TABLE[1:]],
  ids=lambda r: f"{r[0]}_{r[1]}",
)
def test_published_statistics(row):
  perc, align, coverage, deviation, (mean, low, high), kinds = row
  masks, counts = drawn(perc, align, SHAPE)
  areas = masks.mean((1, 2))
  # Of 300 draws there and these here, and of the digits that are given.
  error = areas.std() * (1 / 300 + 1 / len(areas)) ** 0.5
  assert areas.mean() == pytest.approx(coverage, abs=4 * error + 0.0005)
  if deviation:
    assert areas.std() == pytest.approx(deviation, abs=3 * error + 0.0005)
  error = counts.std() * (1 / 300 + 1 / len(counts)) ** 0.5
  assert counts.mean() == pytest.approx(mean, abs=4 * error + 0.5)
  assert low - 12 <= counts.min() and counts.max() <= high + 20
  np.testing.assert_allclose(patch_kinds(masks).mean(0), kinds, atol=0.025)


@pytest.mark.slow
@pytest.mark.parametrize(("drop", "expected"), [(0.7, 0.465), (0.5, 0.412)])
@full_size
@pytest.mark.rare
def test_what_is_corrupted_of_all(drop, expected):
  """Half of the views filled, half from another clip, 592 x 128."""
  x = np.zeros((100, 2, *SHAPE), np.float32)
  _, mask = jax.jit(lambda k, x: gmml.corrupt(k, x, gmml.Gmml(drop)))(
    keys_of(100), x
  )
  parts = np.asarray(mask).mean((2, 3)).ravel()
  error = parts.std() / len(parts) ** 0.5
  assert parts.mean() == pytest.approx(expected, abs=4 * error)


@full_size
@pytest.mark.slow
def test_the_first_frame_and_the_lowest_bin_are_hardly_covered():
  masks, _ = drawn(0.7, 1, SHAPE)
  assert masks[:, 0].mean() < 0.04 and masks[:, :, 0].mean() < 0.1
  assert 0.6 < masks[:, 300].mean() < 0.72
  assert masks[:, -1].mean() > 0.5


def test_aligned_blocks_are_whole_patches():
  masks, _ = drawn(0.7, 4, SMALL)
  np.testing.assert_allclose(patch_kinds(masks, 4)[:, 2], 0, atol=1e-12)


def test_it_draws_on_until_it_is_enough():
  """Far more blocks than are drawn at once, on any shape."""
  draw = jax.jit(lambda key: gmml.block_mask(key, 0.9, shape=(96, 64), align=1))
  mask, count = draw(jax.random.key(0))
  assert mask.mean() >= 0.9 and count > 64


def test_nothing_is_drawn_for_nothing():
  mask, count = gmml.block_mask(jax.random.key(0), 0.0, shape=(20, 16))
  assert not mask.any() and count == 0


corrupt = jax.jit(gmml.corrupt, static_argnums=2)


def keys_of(batch, views=2, seed=0):
  return jax.random.split(jax.random.key(seed), (batch, views))


def batch_of(size, shape=(40, 24)):
  rng = np.random.default_rng(0)
  return rng.standard_normal((size, 2, *shape)).astype(np.float32) + 5.0


def test_either_dropped_or_replaced():
  """One half of the views each, independently, never both."""
  x = batch_of(300)
  how = gmml.Gmml(drop=0.6, replace=0.3)
  out, mask = map(np.asarray, corrupt(keys_of(300), x, how))
  np.testing.assert_array_equal(out[~mask], x[~mask])  # the rest is clean
  zeroed = (np.where(mask, out, 0.0) == 0).all((2, 3))  # [B, V]
  assert abs(zeroed.mean() - 0.5) < 4.5 * 0.5 / np.sqrt(600)
  both = zeroed.all(1).mean()
  assert abs(both - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 / 300)
  areas = mask.mean((2, 3))
  assert (areas[zeroed] >= 0.5).all() and (areas[zeroed] > 0.55).any()
  assert (areas[~zeroed] >= 0.3).all() and areas[~zeroed].mean() < 0.4
  # Where it comes from: one clip, the same view, the same places.
  donors = []
  for i, k in zip(*np.nonzero(~zeroed), strict=True):
    same = (np.where(mask[i, k], x[:, k], out[i, k]) == out[i, k]).all((1, 2))
    assert same.sum() == 1
    donors.append(int(np.argmax(same)) - i)
  donors = np.array(donors)
  assert (donors < 0).any() and (donors > 0).any()
  # Evenly over the batch: differences of two even numbers.
  assert abs(np.abs(donors).mean() - 100) < 4.5 * 71 / np.sqrt(len(donors))


def test_the_only_clip_stays_as_it_is():
  """A clip may be its own donor; its blocks are masked all the same."""
  x = batch_of(1)
  how = gmml.Gmml(drop=0.0, replace=0.3)
  for seed in range(6):
    out, mask = corrupt(keys_of(1, seed=seed), x, how)
    np.testing.assert_array_equal(out, x)
    areas = np.asarray(mask).mean((2, 3))
    assert ((areas == 0) | (areas >= 0.3)).all()


@pytest.mark.parametrize("fill", ["zeros", "time", "freq", "noise"])
def test_fills(fill):
  x = batch_of(6)
  how = gmml.Gmml(drop=0.5, replace=0.0, fill=fill)
  out, mask = map(np.asarray, corrupt(keys_of(6), x, how))
  changed = out != x
  expected = {
    "time": np.broadcast_to(mask.any(3, keepdims=True), mask.shape),
    "freq": np.broadcast_to(mask.any(2, keepdims=True), mask.shape),
  }.get(fill, mask)
  np.testing.assert_array_equal(changed, expected)
  if fill == "noise":
    assert out[mask].mean() == pytest.approx(-4.27, abs=0.2)
    assert out[mask].std() == pytest.approx(4.57, abs=0.2)
  else:
    assert not out[expected].any()


@pytest.mark.slow
def test_each_view_is_a_function_of_its_key():
  """Whatever stands beside it in the batch, but for its donor."""
  x, how = batch_of(4), gmml.Gmml(drop=0.5, replace=0.0)
  keys = keys_of(4)
  out, mask = corrupt(keys, x, how)
  part, part_mask = corrupt(keys[1:3], x[1:3], how)
  np.testing.assert_array_equal(out[1:3], part)
  np.testing.assert_array_equal(mask[1:3], part_mask)
  assert len({m.tobytes() for m in np.asarray(mask).reshape(8, -1)}) == 8


@pytest.mark.parametrize(
  ("shape", "how", "words"),
  [
    ((20, 3), {}, ["0.3 of a side", "3 mel bins are too few"]),
    ((40, 24), {"align": 8}, ["drop_align=8", "24 mel bins are too few"]),
    (
      (64, 64),
      {"drop": 0.7, "align": 16},
      ["cannot cover 0.7", "at most 0.56"],
    ),
    ((40, 24), {"drop": 0.95}, ["cannot cover 0.95", "at most 0.9"]),
  ],
)
def test_what_cannot_be_drawn_is_refused(shape, how, words):
  how = gmml.Gmml(**{"drop": 0.5, "replace": 0.0} | how)
  with pytest.raises(UserError) as error:
    gmml.corrupt(keys_of(1), jnp.zeros((1, 2, *shape)), how)
  assert "\n" not in str(error.value)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize("align", [1, 2, 3, 5, 16])
def test_multiples_round_to_even(align):
  for n in range(1, 120):
    assert gmml._to_multiple(n, align) == align * round(n / align)
