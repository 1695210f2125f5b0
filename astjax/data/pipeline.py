"""tf.data pipelines for training and evaluation.

A training batch is a function of (seed, step): the pipeline starts at any step
and each process makes its own disjoint rows. Evaluation passes over a split
once; rows that only fill the last batch, or could not be read, are not `valid`.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from astjax.data import order
from astjax.data.reader import Reader
from astjax.data.tf_backend import TF, python_call
from astjax.errors import UserError
from astjax.ops import recipe
from astjax.ops.xp import NUMPY, random_key

_INDEX_AND_KEY = (tf.TensorSpec([], tf.int32), tf.TensorSpec([2], tf.uint32))

# What the host needs on the way and the device does not.
_HOST_ONLY = ("index", "replace", "sample_rate", "partner", "share")


def hide_accelerators() -> None:
  """Keeps TensorFlow off the devices that JAX will use.

  Without effect once TensorFlow has been used: then the caller has decided.
  """
  with contextlib.suppress(RuntimeError):
    for kind in ("GPU", "TPU"):
      tf.config.set_visible_devices([], kind)


def train_batches(
  reader: Reader,
  ops: tuple[recipe.NamedOp, ...],
  *,
  batch_size: int,
  seed: int,
  first_step: int,
  last_step: int,
  weights: np.ndarray | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Rows of one process, of the steps first_step ... last_step - 1.

  Args:
    reader: the recordings.
    ops: from `host_ops.parse` over the same reader.
    batch_size: B, over all processes.
    seed: of the order and of all draws.
    first_step: where to begin.
    last_step: where to end.
    weights: from `order.draw_weights`.
    process_index: of this process.
    process_count: number of processes.

  Raises:
    UserError: no readable recording, or one that does not suit the recipe.
  """
  stream = order.Order(seed, len(reader.source), batch_size, weights)
  rows = order.process_rows(batch_size, process_index, process_count)

  def look_up(position):
    return np.int32(stream.index(position)), stream.key(position)

  def start(i):
    step, row = i // len(rows), i % len(rows)
    position = step * batch_size + rows.start + row
    index, key = python_call(look_up, [position], *_INDEX_AND_KEY)
    return {"index": index, "valid": tf.constant(True), "replace": True}, key

  span = tf.data.Dataset.range(first_step * len(rows), last_step * len(rows))
  return _iterate(_batched(_examples(span, start, ops), len(rows)))


def eval_batches(
  reader: Reader,
  ops: tuple[recipe.NamedOp, ...],
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Rows of one process, of one pass over the source in its order."""
  rows = order.process_rows(batch_size, process_index, process_count)
  num_examples = len(reader.source)
  key = random_key(0)

  def look_up(position):
    index = min(int(position), num_examples - 1)
    return np.int32(index), NUMPY.fold_in(key, index)

  def start(i):
    position = i // len(rows) * batch_size + rows.start + i % len(rows)
    index, row_key = python_call(look_up, [position], *_INDEX_AND_KEY)
    valid = position < num_examples
    return {"index": index, "valid": valid, "replace": False}, row_key

  span = tf.data.Dataset.range(num_eval_batches(reader, batch_size) * len(rows))
  return _iterate(_batched(_examples(span, start, ops), len(rows)))


def num_eval_batches(reader: Reader, batch_size: int) -> int:
  """Batches in one pass, the last one padded."""
  return math.ceil(len(reader.source) / batch_size)


def row_shapes(
  reader: Reader, ops: tuple[recipe.NamedOp, ...]
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
  """{name: (shape, type)} of one row of the batches that these ops give.

  Runs the ops once, on the first readable recording.

  Raises:
    UserError: ops that do not follow on each other, rows without a fixed
      length, a recording that does not suit the ops, or none readable.
  """

  def start(i):
    index = tf.cast(i, tf.int32)
    example = {"index": index, "valid": tf.constant(True), "replace": True}
    return example, tf.zeros([2], tf.uint32)

  dataset = _examples(tf.data.Dataset.range(1), start, ops)
  spec = dataset.element_spec
  for name, tensor in spec.items():
    if not tensor.shape.is_fully_defined():
      raise UserError(
        f"{name!r} has no fixed length, so it cannot be batched; use "
        "fit(...) or drop it with keep(...)"
      )
  reader.read_or_next(0)
  for _ in _iterate(dataset):
    pass
  return {
    k: (tuple(v.shape), np.dtype(v.dtype.as_numpy_dtype))
    for k, v in spec.items()
  }


def _examples(span, start, ops):
  def example_at(i):
    example, key = start(i)
    example = recipe.apply(ops, example, key, TF)
    return {k: v for k, v in example.items() if k not in _HOST_ONLY}

  return span.map(
    tf.autograph.experimental.do_not_convert(example_at),
    num_parallel_calls=tf.data.AUTOTUNE,
    deterministic=True,
  )


def _batched(dataset, rows):
  return dataset.batch(rows, drop_remainder=True).prefetch(2)


def _iterate(dataset):
  try:
    yield from dataset.as_numpy_iterator()
  except tf.errors.OpError as e:
    # What a NumPy function raised comes back as text: "...UserError: <line>".
    found = re.search(r"UserError: (.*)", str(e.message))
    if found is None:
      raise
    raise UserError(found.group(1)) from None
