"""Where tokens look: what attention keeps to itself, recomputed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astjax.models import ast, vit


@pytest.fixture
def backbone():
  return ast.make_backbone(
    width=16, depth=3, num_heads=2, patch_size=(4, 5), stride=(4, 5)
  )


def drawn(*shape):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_the_weights_give_what_attention_gives():
  x = drawn(2, 7, 16)
  layer = vit.Attention(num_heads=2)
  params = layer.init(jax.random.key(0), x)["params"]
  params = jax.tree.map(lambda p: p + 0.1, params)
  weights = vit.attention_weights(params, x, 2)
  assert weights.shape == (2, 2, 7, 7) and weights.dtype == jnp.float32
  np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)
  qkv = x @ params["qkv"]["kernel"] + params["qkv"]["bias"]
  values = qkv.reshape(2, 7, 3, 2, 8)[:, :, 2]
  mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, values).reshape(2, 7, 16)
  out = mixed @ params["proj"]["kernel"] + params["proj"]["bias"]
  expected = layer.apply({"params": params}, x)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [("cls",), ("cls", "dist")])
def test_maps_are_of_the_last_block(backbone, prefix):
  backbone = backbone.clone(prefix=prefix)
  patches = drawn(2, 3, 4, 20)
  params = backbone.init(jax.random.key(0), patches=patches)["params"]
  params = jax.tree.map(
    lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape),
    params,
  )
  maps = jax.jit(lambda p, x: ast.attention_maps(backbone, p, x))(
    params, patches
  )
  count = len(prefix)
  assert maps.shape == (2, 2, count, 3, 4)
  # From the output of the block before it.
  out = backbone.apply({"params": params}, patches=patches, hidden=True)
  block = params["encoder"]["block_2"]
  x = vit.layer_norm(1e-6, jnp.float32, "n").apply(
    {"params": block["norm1"]}, out["hidden"][1]
  )
  weights = vit.attention_weights(block["attn"], x, 2)
  np.testing.assert_allclose(
    maps.reshape(2, 2, count, 12),
    weights[:, :, :count, count:],
    rtol=1e-4,
    atol=1e-6,
  )
