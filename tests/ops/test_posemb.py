"""Positions of other grids: torch's bicubic interpolation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astjax.ops import posemb

# [F', T', 1], frequency first; the numbers below are of [t, f].
GRID = np.sin(0.05 * np.arange(37 * 8) + 0.2).reshape(37, 8).T[..., None]


@pytest.mark.parametrize(
  ("columns", "values", "mean"),
  [
    (12, (0.583968, 0.904532, 0.925369), 0.121947),
    (62, (0.163395, 0.456139, 0.665416), 0.116999),
    (64, (0.162621, None, None), 0.116972),
  ],
)
def test_golden(columns, values, mean):
  out = np.asarray(posemb.resize(jnp.asarray(GRID, jnp.float32), (8, columns)))
  assert out.shape == (8, columns, 1)
  out = out[..., 0].T
  found = (out[0, 0], out[1, 3], out[-1, -1])
  for value, expected in zip(found, values, strict=True):
    if expected is not None:
      assert value == pytest.approx(expected, abs=2e-6)
  assert out.mean() == pytest.approx(mean, abs=2e-6)


def test_the_same_grid_stays_as_it_is():
  grid = np.random.default_rng(0).standard_normal((3, 5, 2)).astype(np.float32)
  assert posemb.resize(grid, (3, 5)) is grid
  out = posemb.resize(jnp.asarray(grid), (3, 9))
  again = posemb.resize(jnp.asarray(grid[:1]), (1, 9))
  np.testing.assert_allclose(out[:1], again, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("have", "want"), [(37, 12), (8, 8), (1, 5), (2, 7)])
def test_matrices_keep_what_is_constant(have, want):
  matrix = posemb.bicubic_matrix(have, want)
  assert matrix.shape == (want, have)
  np.testing.assert_allclose(matrix.sum(1), 1.0)
  if have == want:
    np.testing.assert_array_equal(matrix, np.eye(have))


def test_the_gradient_reaches_every_position():
  grid = jnp.asarray(GRID, jnp.float32)
  grad = jax.grad(lambda g: jnp.sum(posemb.resize(g, (8, 40)) ** 2))(grid)
  assert (np.abs(grad) > 0).all()


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(8, 12), (12, 62), (3, 5), (16, 80), (1, 1)])
def test_against_torch(shape):
  torch = pytest.importorskip("torch")
  grid = np.random.default_rng(0).standard_normal((8, 37, 5))
  expected = torch.nn.functional.interpolate(
    torch.tensor(grid, dtype=torch.float32).permute(2, 0, 1)[None],
    size=shape,
    mode="bicubic",
    align_corners=False,
  )[0].permute(1, 2, 0)
  out = posemb.resize(jnp.asarray(grid, jnp.float32), shape)
  np.testing.assert_allclose(out, expected, atol=3e-6)
