"""TensorFlow's primitives for the front-end (see `ops/backends.py`)."""

from __future__ import annotations

import contextlib

import numpy as np
import tensorflow as tf

from astjax.ops import xp


class TfBackend:
  """Runs eagerly and inside tf.data graphs, in float64, on the host's CPU."""

  def precise(self):
    return contextlib.nullcontext()

  def wide(self, x):
    return tf.cast(x, tf.float64)

  def float32(self, x):
    return tf.cast(x, tf.float32)

  def int32(self, x):
    return tf.cast(x, tf.int32)

  def shape(self, x):
    return tuple(x.shape)

  def arange(self, n):
    return tf.range(n, dtype=tf.int32)

  def pad_last(self, x, count):
    return tf.pad(x, [[0, 0]] * (len(x.shape) - 1) + [[0, count]])

  def sum_last(self, x):
    return tf.reduce_sum(x, axis=-1, keepdims=True)

  def shift_right(self, x):
    return tf.concat([x[..., :1], x[..., :-1]], axis=-1)

  def power_spectrum(self, x, n_fft):
    spectrum = tf.signal.rfft(x, [n_fft])
    return tf.math.real(spectrum) ** 2 + tf.math.imag(spectrum) ** 2

  def matmul(self, x, y):
    return tf.tensordot(x, tf.cast(y, x.dtype), 1)

  def log(self, x):
    return tf.math.log(x)

  def maximum(self, x, y):
    return tf.maximum(x, tf.cast(y, x.dtype))

  def round(self, x):
    return tf.round(x)

  def floor(self, x):
    return tf.floor(x)

  def where(self, condition, x, y):
    return tf.where(condition, x, y)

  def take(self, x, index, axis):
    return tf.gather(x, index, axis=axis)

  def reshape(self, x, shape):
    return tf.reshape(x, shape)

  def swap_axes(self, x, a, b):
    axes = list(range(len(x.shape)))
    axes[a], axes[b] = axes[b], axes[a]
    return tf.transpose(x, axes)

  def fold_in(self, key, data):
    words = xp.threefry2x32(
      key[0],
      key[1],
      tf.constant(data, tf.uint32),
      left=tf.bitwise.left_shift,
      right=tf.bitwise.right_shift,
    )
    return tf.stack(words, axis=-1)

  def uniform(self, key, count):
    bits = self.fold_in(key, np.arange(count))[:, 0]
    bits = tf.bitwise.right_shift(bits, np.uint32(8))
    return tf.cast(bits, tf.float32) * np.float32(2**-24)


TF = TfBackend()


def python_call(fn, inputs, *outputs: tf.TensorSpec):
  """Calls a NumPy function from a graph; gives tensors of the known shapes."""
  results = tf.numpy_function(fn, inputs, [o.dtype for o in outputs])
  tensors = [
    tf.ensure_shape(r, o.shape) for r, o in zip(results, outputs, strict=True)
  ]
  return tensors if len(tensors) > 1 else tensors[0]
