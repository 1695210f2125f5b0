"""The ops of `config.input.on_device`: whole batches, traced by JAX.

The same ops as on the host (`ops/frontend.py`), mapped over the rows of a batch
with one random key per row.
"""

from __future__ import annotations

import sys

import jax

from astjax.ops import frontend, xp
from astjax.ops import recipe as recipes
from astjax.ops.frontend import *  # noqa: F403
from astjax.types import Array, Batch

__all__ = frontend.__all__


def parse(recipe: str, where: str = "on_device") -> tuple[recipes.NamedOp, ...]:
  """The ops of a recipe; see `recipes.parse`."""
  return recipes.parse(recipe, sys.modules[__name__], where)


def apply(ops: tuple[recipes.NamedOp, ...], batch: Batch, keys: Array) -> Batch:
  """Runs the ops on a batch.

  Args:
    ops: from `parse`.
    batch: arrays with a leading axis B.
    keys: [B] random keys, one per row of the global batch.
  """

  def row(example, key):
    return recipes.apply(ops, example, key, xp.JAX)

  return jax.vmap(row)(batch, keys)


def row_keys(key: Array, count: int) -> Array:
  """[B] keys: the key folded with each row's place in the global batch."""
  rows = jax.numpy.arange(count, dtype=jax.numpy.uint32)
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
