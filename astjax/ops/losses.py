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
  without temperature or normalisation (SSAST paper, section 2.3).

  Args:
    targets: the hidden patches.
    predictions: what was predicted in their places.
    over: what a softmax runs over: "predictions", for each patch, as in the
      original's code, or "patches", for each prediction, as in the paper.

  Returns:
    (loss [...], the mean over M; hits [..., M] bool, whether each prediction's
    patch was identified). It is the original's accuracy: the patch with the
    highest softmax; over "predictions" that is normalised along one axis and
    compared along the other.
  """
  scores = jnp.einsum(
    "...ak,...bk->...ab", targets, predictions, precision="highest"
  )  # patch a, prediction b
  log_p = jax.nn.log_softmax(scores, axis=-1 if over == "predictions" else -2)
  loss = -jnp.mean(jnp.diagonal(log_p, axis1=-2, axis2=-1), axis=-1)
  # Of the softmax, not of its logarithm: what underflows ties, as there.
  hits = jnp.argmax(jnp.exp(log_p), axis=-2) == jnp.arange(targets.shape[-2])
  return loss, hits


def masked_mse(targets: Array, predictions: Array) -> Array:
  """Mean squared error over M patches and their K cells: [...].

  The original's mean; the paper's formula lacks the division by K.
  """
  return jnp.mean((predictions - targets) ** 2, axis=(-2, -1))
