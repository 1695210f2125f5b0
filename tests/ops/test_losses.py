"""Losses against the formulas, also where these overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astjax.ops import losses
from tests.ops.common import noise

# Compiled as a whole: op by op each shape costs a compilation of its own.
distill_views = jax.jit(losses.distill_views)
distill_tokens = jax.jit(losses.distill_tokens, static_argnames="chunk")
info_nce = jax.jit(losses.info_nce, static_argnames="over")
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


@pytest.mark.parametrize("soft", [True, False])
def test_softmax_xent(soft):
  logits = noise((6, 5), scale=3.0)
  one_hot = np.eye(5, dtype=np.float32)[[0, 3, 1, 4, 4, 2]]
  labels = soft_labels((6, 5), total=True) if soft else one_hot
  out = losses.softmax_xent(logits, labels)
  assert out.shape == (6,)
  np.testing.assert_allclose(out, softmax_xent(logits, labels), rtol=1e-5)


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
@pytest.mark.parametrize("size", [100.0, 1e30])
def test_extreme_logits(loss, size):
  logits = np.array([[size, -size, 0.0], [-size, size, 0.0]], np.float32)
  labels = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], np.float32)
  total = jax.jit(jax.value_and_grad(lambda x: jnp.sum(loss(x, labels))))
  value, grad = total(logits)
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
  loss, hits = info_nce(PATCHES, PREDICTED)
  assert loss == pytest.approx(2.2306185, abs=1e-6)
  assert hits.mean() == 0.25


def test_info_nce_as_the_paper():
  loss, hits = info_nce(PATCHES, PREDICTED, over="patches")
  assert loss == pytest.approx(1.6891571, abs=1e-6)
  nearest = (PATCHES @ PREDICTED.T).argmax(0)
  np.testing.assert_array_equal(hits, nearest == np.arange(4))


def test_info_nce_is_of_each_clip():
  """Other clips are no negatives."""
  patches = np.random.default_rng(0).standard_normal((3, 5, 6))
  predicted = np.random.default_rng(1).standard_normal((3, 5, 6))
  for over in ("predictions", "patches"):
    loss, hits = info_nce(patches, predicted, over=over)
    assert loss.shape == (3,) and hits.shape == (3, 5)
    for i in range(3):
      one = info_nce(patches[i], predicted[i], over=over)
      np.testing.assert_allclose(loss[i], one[0], rtol=1e-6)
      np.testing.assert_array_equal(hits[i], one[1])


def test_info_nce_of_a_perfect_prediction():
  patches = 20.0 * np.eye(6, dtype=np.float32)
  for over in ("predictions", "patches"):
    loss, hits = info_nce(patches, patches, over=over)
    assert loss < 1e-6 and hits.all()


def test_masked_mse():
  assert losses.masked_mse(PATCHES, PREDICTED) == pytest.approx(0.9413862)
  stack = np.stack([PREDICTED, PATCHES])
  out = losses.masked_mse(PATCHES, stack)
  np.testing.assert_allclose(out, [0.9413862, 0.0], rtol=1e-6)


# ASiT. Golden logits: a * sin(b * i + c), rows view by view.


def waves(shape, a, b, c):
  i = np.arange(np.prod(shape))
  return (a * np.sin(b * i + c)).astype(np.float32).reshape(shape)


def by_clip(x, views):
  """[V * B, ...] -> [B, V, ...]."""
  return np.moveaxis(x.reshape(views, 3, *x.shape[1:]), 0, 1)


def tokens(x):
  """[2 * B * N, C] or [2 * B, N, C] -> [B, 2 * N, C]."""
  x = by_clip(x.reshape(6, 4, x.shape[-1]), 2)
  return x.reshape(3, 8, -1)


T_CLS = waves((6, 6), 0.6, 0.53, 0.2)


@pytest.mark.parametrize(
  ("views", "expected"),
  [(2, (3.665853, 3.964621)), (6, (4.036672, 4.052529))],
)
def test_distill_views(views, expected):
  student = by_clip(waves((3 * views, 6), 0.8, 0.37, 0.1), views)
  teacher = by_clip(T_CLS, 2)
  center = np.zeros(6, np.float32)
  for temp, value in zip((0.04, 0.07), expected, strict=True):
    loss, said = distill_views(
      student, teacher, center, student_temp=0.1, teacher_temp=temp
    )
    assert loss.shape == (3,) and said.shape == (6,)
    assert loss.mean() == pytest.approx(value, abs=2e-6)
    assert said.sum() == pytest.approx(1.0, abs=1e-6)
    center = 0.9 * center + 0.1 * teacher.mean((0, 1))
    if temp == 0.04:
      golden = [-0.001100, -0.000779, -0.000245, 0.000356, 0.000860, 0.001128]
      np.testing.assert_allclose(center, golden, atol=1e-6)


PATCH_CASES = {
  "r1": (
    waves((24, 5), 0.8, 0.29, 0.3),
    waves((24, 5), 0.6, 0.41, 0.4),
    (3.190276, 3.126890),
    [0.001361, 0.001010, 0.000492, -0.000107, -0.000689],
  ),
  "r2": (
    waves((6, 4, 6), 0.8, 0.29, 0.3),
    waves((6, 4, 6), 0.6, 0.41, 0.4),
    (4.141550, 4.113837),
    [0.001015, 0.001847, 0.002374, 0.002507, 0.002224, 0.001573],
  ),
}


@pytest.mark.parametrize("chunk", [0, 3, 100])
@pytest.mark.parametrize("preset", PATCH_CASES)
def test_distill_tokens(preset, chunk):
  student, teacher, expected, golden = PATCH_CASES[preset]
  student, teacher = tokens(student), tokens(teacher)
  identity = np.eye(student.shape[-1], dtype=np.float32)
  center = np.zeros(student.shape[-1], np.float32)
  for temp, value in zip((0.04, 0.07), expected, strict=True):
    loss, said = distill_tokens(
      *(student, teacher, identity, identity, center),
      student_temp=0.1,
      teacher_temp=temp,
      chunk=chunk,
    )
    assert loss.shape == (3,)
    assert loss.mean() == pytest.approx(value, abs=2e-6)
    assert said.sum() == pytest.approx(1.0, abs=1e-6)
    center = 0.9 * center + 0.1 * teacher.mean((0, 1))
    if temp == 0.04:
      np.testing.assert_allclose(center, golden, atol=1e-6)


@pytest.mark.slow
def test_tokens_in_parts_are_as_all_at_once():
  """Losses, the teacher's mean, and the gradients of tokens and kernel."""
  student, teacher = noise((2, 7, 4)), noise((2, 7, 4), 1)
  mine, its, center = noise((4, 9), 2), noise((4, 9), 3), noise((9,), 4, 0.1)
  temps = {"student_temp": 0.1, "teacher_temp": 0.05}

  def whole(student, mine):
    targets = jax.nn.softmax((teacher @ its - center) / 0.05)
    log_q = jax.nn.log_softmax(student @ mine / 0.1)
    return -jnp.sum(targets * log_q, -1).mean(1), targets.mean((0, 1))

  def parts(student, mine, chunk):
    return losses.distill_tokens(
      student, teacher, mine, its, center, chunk=chunk, **temps
    )

  weights = jnp.array([1.0, 3.0])
  grads = lambda f: jax.jit(
    jax.grad(lambda s, m: jnp.sum(f(s, m)[0] * weights), argnums=(0, 1))
  )(student, mine)
  expected, expected_grads = jax.jit(whole)(student, mine), grads(whole)
  for chunk in (0, 2, 50):
    in_parts = lambda s, m, chunk=chunk: parts(s, m, chunk)
    found = jax.jit(in_parts)(student, mine)
    for a, b in zip(found, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads(in_parts), expected_grads, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_all_logits_never_exist_at_once():
  """Forwards and backwards: nothing of the size [B, N, C]."""
  shapes = [(2, 24, 4), (2, 24, 4), (4, 50), (4, 50), (50,)]
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]

  def loss(*args):
    return jnp.sum(
      losses.distill_tokens(
        *args, student_temp=0.1, teacher_temp=0.05, chunk=6
      )[0]
    )

  text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 2)))(*args))
  assert "2,6,50" in text  # a part
  for size in ("2,24,50", "4,2,6,50"):  # all, or all parts stacked
    assert size not in text


def test_the_teacher_has_no_gradient():
  student, teacher, kernel = (
    noise((2, 3, 4)),
    noise((2, 3, 4), 1),
    noise((4, 5)),
  )
  center = np.zeros(5, np.float32)
  temps = {"student_temp": 0.1, "teacher_temp": 0.05}
  of_views = lambda t: losses.distill_views(
    student @ kernel, t @ kernel, center, **temps
  )[0].sum()
  of_tokens = lambda t, k: losses.distill_tokens(
    student, t, kernel, k, center, chunk=2, **temps
  )[0].sum()
  assert not jax.jit(jax.grad(of_views))(teacher).any()
  grads = jax.jit(jax.grad(of_tokens, argnums=(0, 1)))(teacher, kernel)
  for grad in grads:
    assert not grad.any()


def test_distillation_is_in_float32():
  student, teacher = noise((2, 2, 6)), noise((2, 2, 6), 1)
  low = [x.astype(jnp.bfloat16) for x in (student, teacher)]
  loss, said = losses.distill_views(
    *low, np.zeros(6, np.float32), student_temp=0.1, teacher_temp=0.05
  )
  assert loss.dtype == said.dtype == jnp.float32


def test_masked_l1():
  mask = np.arange(24).reshape(4, 6) % 3 == 0
  error = np.abs(PATCHES - PREDICTED)
  assert losses.masked_l1(PATCHES, PREDICTED, mask) == pytest.approx(
    error[mask].mean(), rel=1e-6
  )
  rows = losses.masked_l1(PATCHES, PREDICTED, mask, axis=1)
  expected = [e[m].mean() for e, m in zip(error, mask, strict=True)]
  np.testing.assert_allclose(rows, expected, rtol=1e-6)
  assert losses.masked_l1(PATCHES, PREDICTED, np.zeros_like(mask)) == 0


def test_collapse_measures():
  uniform = np.full(16, 1 / 16, np.float32)
  assert losses.entropy(uniform) == pytest.approx(np.log(16), rel=1e-6)
  assert losses.entropy(np.eye(16, dtype=np.float32)[3]) == 0
  same = np.broadcast_to(noise((1, 8)), (50, 8))
  assert losses.spread(same) == pytest.approx(0.0, abs=1e-6)
  x = noise((4000, 3, 8))
  x /= np.linalg.norm(x, axis=-1, keepdims=True)
  assert losses.spread(x) == pytest.approx(1.0, abs=0.01)
