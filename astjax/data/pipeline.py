"""tf.data pipelines for training and evaluation: the home of TensorFlow.

A training batch is a function of (seed, step): the pipeline starts at any step
and each process makes its own disjoint rows. Evaluation passes over a split
once; rows that only fill the last batch, or could not be read, are not `valid`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator

import numpy as np

from astjax.data import order
from astjax.data.reader import Reader
from astjax.errors import UserError
from astjax.ops import recipe
from astjax.ops.xp import NUMPY, random_key
from astjax.types import Example

try:
  import tensorflow as tf
except ModuleNotFoundError:
  raise UserError(
    "training from files needs TensorFlow: pip install 'astjax[data]' (or "
    "'astjax[data-cpu]' on a machine without a GPU)"
  ) from None

# {name: (shape, type)} of one row.
Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]

Batches = Generator[dict[str, np.ndarray], None, None]  # to be closed

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
) -> Batches:
  """Rows of one process, of the steps first_step ... last_step - 1.

  `ops` are made with the same reader, `batch_size` is that of all processes
  together, `weights` come from `order.draw_weights`.

  Raises:
    UserError: no readable recording, or one that does not suit the recipe.
  """
  stream = order.Order(seed, len(reader.source), batch_size, weights)

  def example(position):
    start = _start(stream.index(position), replace=True)
    return recipe.apply(ops, start, stream.key(position), NUMPY)

  rows = order.process_rows(batch_size, process_index, process_count)
  steps = range(first_step, last_step)
  return _batches(example, steps, batch_size, rows, row_shapes(reader, ops))


def eval_batches(
  reader: Reader,
  ops: tuple[recipe.NamedOp, ...],
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Batches:
  """Rows of one process, of one pass over the source in its order."""
  num_examples = len(reader.source)
  key = random_key(0)

  def example(position):
    index = min(position, num_examples - 1)
    start = _start(index, replace=False, valid=position < num_examples)
    return recipe.apply(ops, start, NUMPY.fold_in(key, index), NUMPY)

  rows = order.process_rows(batch_size, process_index, process_count)
  steps = range(num_eval_batches(reader, batch_size))
  return _batches(example, steps, batch_size, rows, row_shapes(reader, ops))


def num_eval_batches(reader: Reader, batch_size: int) -> int:
  """Batches in one pass, the last one padded."""
  return math.ceil(len(reader.source) / batch_size)


def row_shapes(reader: Reader, ops: tuple[recipe.NamedOp, ...]) -> Shapes:
  """{name: (shape, type)} of one row of the batches that these ops give.

  Raises:
    UserError: ops that do not follow on each other, rows without a fixed
      length, a recording that does not suit the ops, or none readable.
  """
  key = random_key(0)
  read = recipe.apply(ops[:1], _start(0, replace=True), key, NUMPY)
  shapes = _shapes(recipe.apply(ops[1:], read, key, NUMPY))
  # The ops are plain functions, so nothing but running them tells the shapes.
  # What is as long as its recording shows where the recording is cut short.
  if "audio" in read:
    audio = read["audio"][:100]
    read |= {"audio": audio, "num_samples": np.int32(len(audio))}
  try:
    short = _shapes(recipe.apply(ops[1:], read, key, NUMPY))
  except UserError as e:
    raise UserError(
      f"recordings of another length do not suit the ops, use fit(...): {e}"
    ) from None
  for name in shapes:
    if short.get(name) != shapes[name]:
      raise _no_fixed_length(name)
  return shapes


def _start(index: int, *, replace: bool, valid: bool = True) -> Example:
  """What `decode` begins with."""
  return {"index": index, "replace": replace, "valid": valid}


def _shapes(example: Example) -> Shapes:
  arrays = {k: np.asarray(v) for k, v in example.items() if k not in _HOST_ONLY}
  return {k: (v.shape, v.dtype) for k, v in arrays.items()}


def _no_fixed_length(name: str) -> UserError:
  return UserError(
    f"{name!r} has no fixed length: use fit(...), or drop it with keep(...)"
  )


def _batches(
  example: Callable[[int], Example],
  steps: range,
  batch_size: int,
  rows: range,
  shapes: Shapes,
) -> Batches:
  """These rows of each step; `example` is called from any thread."""
  failed: list[Exception] = []

  def call(i):
    try:
      step, place = divmod(int(i), len(rows))
      found = example(step * batch_size + rows[place])
      for name, (shape, _) in shapes.items():
        if np.shape(found[name]) != shape:
          raise _no_fixed_length(name)
      return [np.asarray(found[k], dtype) for k, (_, dtype) in shapes.items()]
    except Exception as e:
      failed.append(e)
      raise

  # One call for a whole recording: each takes Python's lock. The decoder, the
  # resampler and NumPy let go of it while they work, so threads do not wait.
  def example_at(i):
    values = tf.numpy_function(call, [i], [t for _, t in shapes.values()])
    for value, (shape, _) in zip(values, shapes.values(), strict=True):
      value.set_shape(shape)
    return dict(zip(shapes, values, strict=True))

  size = len(rows)
  dataset = tf.data.Dataset.range(steps.start * size, steps.stop * size).map(
    tf.autograph.experimental.do_not_convert(example_at),
    num_parallel_calls=tf.data.AUTOTUNE,
    deterministic=True,
  )
  dataset = dataset.batch(size, drop_remainder=True).prefetch(2)

  def iterate():
    try:
      yield from dataset.as_numpy_iterator()
    except tf.errors.OpError:
      # TensorFlow hands on the text of an exception; here is the exception.
      if failed:
        raise failed[0] from None
      raise

  return iterate()
