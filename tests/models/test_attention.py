"""Where tokens look: what attention keeps to itself, recomputed."""

import jax
import numpy as np
import pytest

from astjax.models import ast, vit


@pytest.mark.parametrize("prefix", [("cls",), ("cls", "dist")])
def test_maps_are_what_the_last_block_mixes_with(prefix):
  backbone = ast.make_backbone(
    width=16,
    depth=2,
    num_heads=2,
    patch_size=(4, 5),
    stride=(4, 5),
    prefix=prefix,
  )
  rng = np.random.default_rng(0)
  patches = rng.standard_normal((2, 3, 4, 20)).astype(np.float32)
  shapes = jax.eval_shape(backbone.init, jax.random.key(0), patches=patches)
  params = jax.tree.map(
    lambda x: 0.5 * rng.standard_normal(x.shape).astype(np.float32),
    shapes["params"],
  )

  @jax.jit
  def look(params):
    maps = vit.attention_maps(backbone, params, patches)
    weights = {"params": params}
    out = backbone.apply(weights, patches=patches, hidden=True)
    return maps, out["hidden"][0]

  maps, x = look(params)
  count = len(prefix)
  assert maps.shape == (2, 2, count, 3, 4)
  # By hand, from the output of the block before it.
  block = jax.tree.map(np.float64, params["encoder"]["block_1"])
  x = np.asarray(x, np.float64)
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  x = x * block["norm1"]["scale"] + block["norm1"]["bias"]
  qkv = x @ block["attn"]["qkv"]["kernel"] + block["attn"]["qkv"]["bias"]
  q, k, _ = np.moveaxis(qkv.reshape(2, 12 + count, 3, 2, 8), 2, 0)
  weights = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) * 8**-0.5)
  weights /= weights.sum(-1, keepdims=True)
  expected = weights[:, :, :count, count:].reshape(maps.shape)
  np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-6)
