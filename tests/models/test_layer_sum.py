"""The classifier on a learned mean of all blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from astjax.errors import UserError
from astjax.models import ast, heads
from astjax.models.heads import Head
from astjax.weights import convert
from tests.models.test_ast import SMALL, fill, spectrogram

DEPTH, K, CLASSES = 3, 7, 5


def make(pooling="all", projection=K, **model):
  backbone = ast.make_backbone(**SMALL | {"depth": DEPTH} | model)
  head = Head(num_classes=CLASSES, pooling=pooling, projection=projection)
  return ast.classifier(backbone, head)


def params_of(model):
  x = spectrogram(1)
  return fill(jax.eval_shape(model.init, jax.random.key(0), x)["params"])


def outputs(model, tree, x):
  return jax.jit(lambda p: model.apply({"params": p}, x, method="outputs"))(
    tree
  )


@pytest.mark.parametrize("pooling", heads.POOLINGS)
def test_by_hand_in_the_original_s_order(pooling):
  """Weights over the blocks, a projection of every token, then the mean."""
  model, x = make(pooling), spectrogram()
  tree = params_of(model)
  out = outputs(model, tree, x)
  layers = np.stack([np.asarray(h, np.float64) for h in out["hidden"]])
  used = {
    "prefix": np.s_[:2],
    "tokens": np.s_[2:],
    "all": np.s_[:],
  }[pooling]
  head = jax.tree.map(lambda p: np.asarray(p, np.float64), tree["head"])
  weights = scipy.special.softmax(head["layer_weights"])
  tokens = np.einsum("l,lbnd->bnd", weights, layers)[:, used]
  dense = lambda z, p: z @ p["kernel"] + p["bias"]
  projected = dense(tokens, head["projection"]).mean(1)
  expected = dense(projected, head["linear"])
  np.testing.assert_allclose(out["logits"], expected, atol=1e-4)
  np.testing.assert_allclose(out["features"], tokens.mean(1), atol=1e-5)
  assert out["logits"].dtype == jnp.float32


@pytest.mark.slow
def test_the_start_is_the_plain_mean():
  model, x = make(), spectrogram()
  tree = jax.jit(model.init)(jax.random.key(0), x)["params"]
  assert not tree["head"]["layer_weights"].any()
  out = outputs(model, tree, x)
  expected = np.mean([np.asarray(h).mean(1) for h in out["hidden"]], axis=0)
  np.testing.assert_allclose(out["features"], expected, atol=1e-5)


def test_a_block_without_weight_is_as_good_as_removed():
  """The last one: the model that ends before it gives the same."""
  model, x = make(), spectrogram()
  tree = params_of(model)
  tree["head"]["layer_weights"] = jnp.array([0.3, -0.2, -200.0])
  out = outputs(model, tree, x)
  short = jax.tree.map(lambda p: p, tree)
  del short["backbone"]["encoder"]["block_2"]
  short["head"]["layer_weights"] = jnp.array([0.3, -0.2])
  expected = outputs(make(depth=2), short, x)
  np.testing.assert_allclose(out["logits"], expected["logits"], atol=1e-5)
  tree["head"]["layer_weights"] = jnp.array([0.3, -0.2, 0.0])
  other = outputs(model, tree, x)
  assert np.abs(other["logits"] - out["logits"]).max() > 1e-3


@pytest.mark.parametrize("pooling", ["tokens", "all"])
@pytest.mark.parametrize("projection", [0, K])
def test_all_tokens_are_the_patches_without_a_prefix(pooling, projection):
  x = spectrogram()
  model = make(pooling, projection, prefix=())
  tree = params_of(model)
  out = outputs(model, tree, x)["logits"]
  expected = outputs(make("tokens", projection, prefix=()), tree, x)["logits"]
  np.testing.assert_array_equal(out, expected)


def test_all_is_the_mean_over_prefix_and_patches():
  model, x = make("all", 0), spectrogram()
  out = outputs(model, params_of(model), x)
  tokens = np.concatenate([out["prefix"], out["tokens"]], axis=1)
  np.testing.assert_allclose(out["features"], tokens.mean(1), atol=1e-5)
  with pytest.raises(UserError, match="unknown pooling"):
    outputs(make("first", 0), params_of(model), x)


def test_the_gradient_reaches_all_blocks_and_not_the_final_norm():
  model, x = make(), spectrogram()
  tree = params_of(model)

  def loss(tree):
    return jnp.sum(model.apply({"params": tree}, x) ** 2)

  for path, grad in convert.flatten(jax.jit(jax.grad(loss))(tree)).items():
    if path.startswith("backbone/encoder/norm"):
      assert not grad.any(), path
    else:
      assert np.abs(grad).max() > 0, path
