"""Noise and roll: their formulas, statistics, and the same on every backend."""

import numpy as np
import pytest

from astjax.ops import xp
from astjax.ops.recipe import apply, draws
from tests.ops.common import parse, run_ops
from tests.ops.test_frontend import EVERY, random_keys

ZEROS = np.zeros((50, 16), np.float32)


def drawn(recipe, x, count):
  """Outputs [count, T, F] of so many keys, by NumPy."""
  ops = parse(recipe)
  return np.stack(
    [
      apply(ops, {"fbank": x}, key, xp.NUMPY)["fbank"]
      for key in random_keys(count)
    ]
  )


def test_noise_is_uniform_below_a_scale_of_the_clip():
  """U * r / 10: both uniform in [0, 1), r once for a clip."""
  noise = drawn("noise", ZEROS, 1_500)
  assert noise.min() >= 0.0 and noise.max() < 0.1
  scale = noise.max(axis=(1, 2)) * (801 / 800)  # of 800 cells
  expected = (np.arange(1_500) + 0.5) / 1_500 * 0.1
  assert np.abs(np.sort(scale) - expected).max() < 0.005
  cells = (noise / scale[:, None, None]).ravel()
  assert abs(cells.mean() - 0.5) < 0.002
  assert abs(cells.var() - 1 / 12) < 0.002


def test_noise_is_added():
  x = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
  np.testing.assert_allclose(
    drawn("noise(0.5)", x, 3) - x, drawn("noise(0.5)", ZEROS, 3), atol=1e-6
  )
  assert drawn("noise(0.5)", ZEROS, 50).max() > 0.3


def test_rolls_are_uniform_from_minus_ten_to_nine():
  """np.roll by an integer in [-10, 9]; positive goes towards later frames."""
  x = np.arange(50 * 16, dtype=np.float32).reshape(50, 16)
  shifts = [int(r[0, 0]) for r in drawn("roll", x, 4_000) // 16]
  shifts = np.array([-s if s <= 10 else 50 - s for s in shifts])
  for shift, out in zip(shifts[:50], drawn("roll", x, 50), strict=True):
    np.testing.assert_array_equal(out, np.roll(x, shift, axis=0))
  seen = np.bincount(shifts + 10, minlength=20)
  assert len(seen) == 20 and seen.min() > 0
  chi2 = np.sum((seen - 200) ** 2 / 200)
  assert abs(chi2 - 19) < 4 * np.sqrt(2 * 19)


@EVERY
@pytest.mark.parametrize("recipe", ["noise", "roll", "roll(3)|noise(0.2)"])
def test_every_backend_draws_the_same(recipe, name):
  x = np.random.default_rng(1).standard_normal((30, 8)).astype(np.float32)
  for key in random_keys(5):
    np.testing.assert_allclose(
      run_ops(recipe, {"fbank": x}, key, name)["fbank"],
      run_ops(recipe, {"fbank": x}, key)["fbank"],
      atol=1e-6,
    )


@pytest.mark.parametrize("recipe", ["noise", "roll"])
def test_they_draw(recipe):
  assert draws(parse(recipe)[0])
