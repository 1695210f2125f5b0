"""Losses against the formulas, also where these overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astjax.ops import losses
from tests.ops.common import noise

BOTH = pytest.mark.parametrize("loss", [losses.bce, losses.softmax_xent])


def bce(logits, labels):
  p = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
  return -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p), axis=-1)


def softmax_xent(logits, labels):
  e = np.exp(logits.astype(np.float64))
  return -np.sum(labels * np.log(e / e.sum(-1, keepdims=True)), axis=-1)


def soft_labels(shape, total=False):
  labels = np.random.default_rng(1).random(shape).astype(np.float32)
  return labels / labels.sum(-1, keepdims=True) if total else labels


def hard_labels(shape):
  return (soft_labels(shape) > 0.5).astype(np.float32)


@pytest.mark.parametrize("labels", [soft_labels, hard_labels])
def test_bce(labels):
  logits, labels = noise((6, 5), scale=3.0), labels((6, 5))
  out = losses.bce(logits, labels)
  assert out.shape == (6,)
  np.testing.assert_allclose(out, bce(logits, labels), rtol=1e-5)


def test_bce_of_nothing_known():
  np.testing.assert_allclose(
    losses.bce(np.zeros((2, 7)), soft_labels((2, 7))), np.log(2.0), rtol=1e-6
  )


@pytest.mark.parametrize("soft", [True, False])
def test_softmax_xent(soft):
  logits = noise((6, 5), scale=3.0)
  one_hot = np.eye(5, dtype=np.float32)[[0, 3, 1, 4, 4, 2]]
  labels = soft_labels((6, 5), total=True) if soft else one_hot
  out = losses.softmax_xent(logits, labels)
  assert out.shape == (6,)
  np.testing.assert_allclose(out, softmax_xent(logits, labels), rtol=1e-5)


def test_softmax_xent_ignores_a_common_offset():
  logits, labels = noise((4, 5)), soft_labels((4, 5), total=True)
  np.testing.assert_allclose(
    losses.softmax_xent(logits + 50.0, labels),
    losses.softmax_xent(logits, labels),
    atol=2e-5,
  )


def test_softmax_xent_is_linear_in_mixed_labels():
  logits = noise((1, 4))
  a, b = np.eye(4, dtype=np.float32)[:, None][[1, 3]]
  mixed = losses.softmax_xent(logits, 0.3 * a + 0.7 * b)
  parts = [losses.softmax_xent(logits, x) for x in (a, b)]
  np.testing.assert_allclose(mixed, 0.3 * parts[0] + 0.7 * parts[1], rtol=1e-5)


def test_gradients():
  logits = noise((3, 5), scale=3.0)
  labels = soft_labels((3, 5), total=True)
  grad = jax.grad(lambda x: jnp.sum(losses.bce(x, labels)))(logits)
  expected = (1.0 / (1.0 + np.exp(-logits)) - labels) / 5
  np.testing.assert_allclose(grad, expected, atol=1e-6)
  grad = jax.grad(lambda x: jnp.sum(losses.softmax_xent(x, labels)))(logits)
  e = np.exp(logits)
  np.testing.assert_allclose(
    grad, e / e.sum(-1, keepdims=True) - labels, atol=1e-6
  )


@BOTH
@pytest.mark.parametrize("size", [100.0, 1e4, 1e30])
def test_extreme_logits(loss, size):
  logits = np.array([[size, -size, 0.0], [-size, size, 0.0]], np.float32)
  labels = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], np.float32)
  value, grad = jax.value_and_grad(lambda x: jnp.sum(loss(x, labels)))(logits)
  assert np.isfinite(value)
  assert np.all(np.isfinite(grad))
  right, wrong = loss(logits, labels)
  if loss is losses.bce:  # 0 + 0 + log 2; size + size + log 2
    np.testing.assert_allclose(right, np.log(2) / 3, rtol=1e-5)
    np.testing.assert_allclose(wrong, (2 * size + np.log(2)) / 3, rtol=1e-5)
  else:
    np.testing.assert_allclose(right, 0.0, atol=1e-6)
    np.testing.assert_allclose(wrong, 2 * size, rtol=1e-6)


@BOTH
def test_rows_are_apart(loss):
  logits, labels = noise((4, 3)), soft_labels((4, 3), total=True)
  rows = [loss(logits[i : i + 1], labels[i : i + 1])[0] for i in range(4)]
  np.testing.assert_allclose(loss(logits, labels), rows, rtol=1e-6)


# Golden values of the original: e = sin(0 ... 23), c = cos(0.7 * (0 ... 23)).
PATCHES = np.sin(np.arange(24.0)).reshape(4, 6).astype(np.float32)
PREDICTED = np.cos(0.7 * np.arange(24.0)).reshape(4, 6).astype(np.float32)


def test_info_nce_as_the_original():
  loss, hits = losses.info_nce(PATCHES, PREDICTED)
  assert loss == pytest.approx(2.2306185, abs=1e-6)
  assert hits.mean() == 0.25


def test_info_nce_as_the_paper():
  loss, hits = losses.info_nce(PATCHES, PREDICTED, over="patches")
  assert loss == pytest.approx(1.6891571, abs=1e-6)
  nearest = (PATCHES @ PREDICTED.T).argmax(0)
  np.testing.assert_array_equal(hits, nearest == np.arange(4))


def test_info_nce_is_of_each_clip():
  """Other clips are no negatives."""
  patches = np.random.default_rng(0).standard_normal((3, 5, 6))
  predicted = np.random.default_rng(1).standard_normal((3, 5, 6))
  for over in ("predictions", "patches"):
    loss, hits = losses.info_nce(patches, predicted, over=over)
    assert loss.shape == (3,) and hits.shape == (3, 5)
    for i in range(3):
      one = losses.info_nce(patches[i], predicted[i], over=over)
      np.testing.assert_allclose(loss[i], one[0], rtol=1e-6)
      np.testing.assert_array_equal(hits[i], one[1])


def test_info_nce_of_a_perfect_prediction():
  patches = 20.0 * np.eye(6, dtype=np.float32)
  for over in ("predictions", "patches"):
    loss, hits = losses.info_nce(patches, patches, over=over)
    assert loss < 1e-6 and hits.all()


def test_masked_mse():
  assert losses.masked_mse(PATCHES, PREDICTED) == pytest.approx(0.9413862)
  stack = np.stack([PREDICTED, PATCHES])
  out = losses.masked_mse(PATCHES, stack)
  np.testing.assert_allclose(out, [0.9413862, 0.0], rtol=1e-6)
