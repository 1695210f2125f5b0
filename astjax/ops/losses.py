"""Losses as functions of arrays; the caller takes the mean over the batch."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from astjax.types import Array


def bce(logits: Array, labels: Array) -> Array:
  """Binary cross-entropy with logits, mean over classes: [B, C] -> [B].

  Labels may be soft and multi-hot (mixed clips).
  """
  log_p = jax.nn.log_sigmoid(logits)
  log_not_p = jax.nn.log_sigmoid(-logits)
  return -jnp.mean(labels * log_p + (1.0 - labels) * log_not_p, axis=-1)


def softmax_xent(logits: Array, labels: Array) -> Array:
  """Cross-entropy with logits: [B, C] -> [B].

  Labels are a distribution over classes: one-hot, or soft after mixing (the
  original truncates mixed labels to class 0, a slip not repeated here).
  """
  return -jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1)


def info_nce(
  targets: Array,
  predictions: Array,
  *,
  over: Literal["predictions", "patches"] = "predictions",
) -> tuple[Array, Array]:
  """Which of M hidden patches is which: [..., M, K] twice -> (loss, hits).

  The scores are the products of all patches with all predictions of one clip,
  without temperature or normalisation (SSAST paper, section 2.3). The softmax
  runs over "predictions", for each patch, as in the original's code, or over
  "patches", for each prediction, as in the paper.

  The loss [...] is the mean over M. A hit [..., M] is a prediction whose patch
  has the highest softmax: the original's accuracy, which over "predictions" is
  normalised along one axis and compared along the other.
  """
  scores = jnp.einsum(
    "...ak,...bk->...ab", targets, predictions, precision="highest"
  )  # patch a, prediction b
  log_p = jax.nn.log_softmax(scores, axis=-1 if over == "predictions" else -2)
  loss = -jnp.mean(jnp.diagonal(log_p, axis1=-2, axis2=-1), axis=-1)
  # The original compares probabilities, not their logarithms: those that
  # underflow to 0 are equal, and the first of them wins.
  hits = jnp.argmax(jnp.exp(log_p), axis=-2) == jnp.arange(targets.shape[-2])
  return loss, hits


def masked_mse(targets: Array, predictions: Array) -> Array:
  """Mean squared error over M patches and their K cells: [...].

  The original's mean; the paper's formula lacks the division by K.
  """
  return jnp.mean((predictions - targets) ** 2, axis=(-2, -1))


def masked_l1(
  targets: Array,
  predictions: Array,
  mask: Array,
  *,
  axis: int | tuple[int, ...] | None = None,
) -> Array:
  """Mean absolute error where `mask` is True; 0 if that is nowhere.

  Of three arrays of one shape, over `axis`; None takes one mean over
  everything, so that examples with many masked cells weigh more.
  """
  error = jnp.abs(predictions - targets).astype(jnp.float32)
  total = jnp.sum(jnp.where(mask, error, 0.0), axis=axis)
  return total / jnp.maximum(jnp.sum(mask, axis=axis), 1)


def _teach(logits: Array, center: Array, temperature: Array | float) -> Array:
  """The teacher's distribution: centered and sharpened, without a gradient."""
  logits = (logits.astype(jnp.float32) - center) / temperature
  return jax.lax.stop_gradient(jax.nn.softmax(logits))


def distill_views(
  student: Array,
  teacher: Array,
  center: Array,
  *,
  student_temp: float,
  teacher_temp: Array | float,
) -> tuple[Array, Array]:
  """Cross-entropy between different views of a clip (DINO, ASiT).

  Of the student's logits [B, V', C], whose first V views are those of the
  teacher's [B, V, C]; `center` [C] is a running mean of the teacher's logits,
  and its temperature is lower, so that the targets are sharper.

  Returns:
    (loss [B], the mean over all pairs of a teacher's view with another view of
    the student's; the teacher's mean distribution [C] over the batch).
  """
  targets = _teach(teacher, center, teacher_temp)
  log_q = jax.nn.log_softmax(student.astype(jnp.float32) / student_temp)
  xent = -jnp.einsum("bvc,bwc->bvw", targets, log_q, precision="highest")
  other = ~jnp.eye(xent.shape[1], xent.shape[2], dtype=bool)
  loss = jnp.sum(jnp.where(other, xent, 0.0), axis=(1, 2)) / jnp.sum(other)
  return loss, jnp.mean(targets, axis=(0, 1))


def outputs(units: Array, kernel: Array) -> Array:
  """Logits [..., C]: unit vectors [..., K] times an output layer [K, C]."""
  # A temperature of 0.04 multiplies rounding errors by 25, too much for the
  # bfloat16 products that are a TPU's default.
  return jnp.matmul(units, kernel, precision="high")


def distill_tokens(
  student: Array,
  teacher: Array,
  student_kernel: Array,
  teacher_kernel: Array,
  center: Array,
  *,
  student_temp: float,
  teacher_temp: Array | float,
  chunk: int,
) -> tuple[Array, Array]:
  """Cross-entropy token by token, a few tokens of every clip at a time.

  `student` and `teacher` are what the output layers, the kernels [K, C], read:
  [B, N, K]. At most `chunk` tokens of a clip are taken at a time, and their
  logits are computed once more on the way back; 0 takes all. Otherwise as
  `distill_views`: loss [B], the mean over the tokens, and the teacher's mean
  distribution [C] over batch and tokens.
  """
  # The logits of all tokens never exist at once: 592 tokens of 80 clips times
  # 8,192 outputs are 1.6 GB for each network. Parts are cut along the tokens,
  # so that no row leaves its device.
  batch, count, width = student.shape
  parts = -(-count // chunk) if chunk else 1
  size = -(-count // parts)
  real = jnp.arange(parts * size) < count
  real = real.astype(jnp.float32).reshape(parts, size)

  def cut(x):
    x = jnp.pad(x, ((0, 0), (0, parts * size - count), (0, 0)))
    return jnp.swapaxes(x.reshape(batch, parts, size, width), 0, 1)

  def part(total, tokens):
    student, teacher, real = tokens  # [B, n, K], [B, n, K], [n]
    targets = _teach(outputs(teacher, teacher_kernel), center, teacher_temp)
    log_q = outputs(student, student_kernel) / student_temp
    log_q = jax.nn.log_softmax(log_q.astype(jnp.float32))
    xent = -jnp.sum(targets * log_q, axis=-1)  # [B, n]
    loss, shown = total
    loss += jnp.sum(xent * real, axis=1)
    shown += jnp.sum(targets * real[:, None], axis=(0, 1))
    return (loss, shown), None

  zeros = (jnp.zeros(batch), jnp.zeros(center.shape))
  if not chunk:
    (loss, shown), _ = part(zeros, (student, teacher, real[0]))
    return loss / count, shown / (batch * count)
  # prevent_cse is for code outside of loops; here it would only cost time.
  part = jax.checkpoint(part, prevent_cse=False)
  (loss, shown), _ = jax.lax.scan(
    part, zeros, (cut(student), cut(teacher), real)
  )
  return loss / count, shown / (batch * count)


def entropy(p: Array) -> Array:
  """Of a distribution [..., C], in nats: from 0 to log C."""
  return -jnp.sum(jax.scipy.special.xlogy(p, p), axis=-1)


def spread(x: Array) -> Array:
  """How far apart unit vectors [..., K] are: 0 if all are the same, at most 1.

  The mean over K of their standard deviations, times sqrt(K): it is 1 for
  vectors spread evenly over the sphere.
  """
  x = x.reshape(-1, x.shape[-1])
  return x.std(axis=0).mean() * x.shape[-1] ** 0.5
