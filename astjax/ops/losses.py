"""Losses as functions of arrays; the caller takes the mean over the batch."""

from __future__ import annotations

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
