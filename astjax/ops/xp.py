"""The few primitives on which the front-end is written, for NumPy and JAX.

The functions of `ops/fbank.py`, `ops/patches.py` and `ops/frontend.py` use
arithmetic operators plus the methods of one of these objects. TensorFlow's
stands in `data/tf_backend.py`, so that nothing here imports TensorFlow.

On a CPU the filter banks are computed in double precision: a quiet band beside
a loud one sits at the rounding error of a float32 Fourier transform, and two
correct libraries then differ by up to 1e-2 there. In double precision the host
and the device agree to 1e-6. Accelerators compute in float32.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from astjax.ops import platform

Array = Any


class Backend(Protocol):
  """What an array library has to offer to run the front-end.

  `key` is a random key of the library's own kind; all of them draw the same
  numbers from the same key (threefry-2x32, as in `jax.random`).
  """

  def precise(self) -> contextlib.AbstractContextManager:
    """Inside it, `wide` may give float64."""

  def wide(self, x: Array) -> Array:
    """Casts to the widest float that the front-end should compute in."""

  def float32(self, x: Array) -> Array:
    """Casts to float32."""

  def int32(self, x: Array) -> Array:
    """Casts to int32."""

  def shape(self, x: Array) -> tuple[int, ...]:
    """The static shape."""

  def arange(self, n: int) -> Array:
    """int32 numbers 0 ... n - 1."""

  def pad_last(self, x: Array, count: int) -> Array:
    """Appends `count` zeros on the last axis."""

  def sum_last(self, x: Array) -> Array:
    """Sum over the last axis, kept as an axis of size one."""

  def shift_right(self, x: Array) -> Array:
    """x[j] -> x[j - 1] on the last axis, with x[0] repeated."""

  def power_spectrum(self, x: Array, n_fft: int) -> Array:
    """[..., n] -> |rfft|^2 of the zero-padded signal, [..., n_fft // 2 + 1]."""

  def matmul(self, x: Array, y: np.ndarray) -> Array:
    """[..., n] x [n, m] at full precision; y is cast to x's type."""

  def log(self, x: Array) -> Array:
    """Natural logarithm."""

  def maximum(self, x: Array, y: float) -> Array:
    """Elementwise maximum with a constant."""

  def round(self, x: Array) -> Array:
    """To the nearest integer, halves to even."""

  def floor(self, x: Array) -> Array:
    """Largest integer not above."""

  def where(self, condition: Array, x: Array, y: Array) -> Array:
    """Elementwise choice with broadcasting."""

  def take(self, x: Array, index: np.ndarray, axis: int) -> Array:
    """Gathers along one axis (negative, from the end) by an n-d index."""

  def reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
    """Reshape; one entry may be -1."""

  def swap_axes(self, x: Array, a: int, b: int) -> Array:
    """Exchanges two axes (negative, from the end)."""

  def fold_in(self, key: Array, data: int) -> Array:
    """A new key from a key and a number."""

  def uniform(self, key: Array, count: int) -> Array:
    """float32 [count] in [0, 1): number i from the key folded with i."""


class NumpyBackend:
  """Reference: readable, float64, needs nothing but NumPy."""

  def precise(self):
    return contextlib.nullcontext()

  def wide(self, x):
    return np.asarray(x, np.float64)

  def float32(self, x):
    return np.asarray(x, np.float32)

  def int32(self, x):
    return np.asarray(x, np.int32)

  def shape(self, x):
    return np.shape(x)

  def arange(self, n):
    return np.arange(n, dtype=np.int32)

  def pad_last(self, x, count):
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count)])

  def sum_last(self, x):
    return np.sum(x, axis=-1, keepdims=True)

  def shift_right(self, x):
    return np.concatenate([x[..., :1], x[..., :-1]], axis=-1)

  def power_spectrum(self, x, n_fft):
    spectrum = np.fft.rfft(x, n=n_fft)
    return spectrum.real**2 + spectrum.imag**2

  def matmul(self, x, y):
    return x @ y.astype(x.dtype)

  def log(self, x):
    return np.log(x)

  def maximum(self, x, y):
    return np.maximum(x, y)

  def round(self, x):
    return np.round(x)

  def floor(self, x):
    return np.floor(x)

  def where(self, condition, x, y):
    return np.where(condition, x, y)

  def take(self, x, index, axis):
    return np.take(x, index, axis=axis)

  def reshape(self, x, shape):
    return np.reshape(x, shape)

  def swap_axes(self, x, a, b):
    return np.swapaxes(x, a, b)

  def fold_in(self, key, data):
    key, data = np.asarray(key, np.uint32), np.asarray(data, np.uint32)
    with np.errstate(over="ignore"):
      words = threefry2x32(key[..., 0], key[..., 1], data)
    return np.stack(words, axis=-1)

  def uniform(self, key, count):
    bits = self.fold_in(key, np.arange(count))[:, 0]
    return (bits >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


class JaxBackend:
  """The same on an accelerator, traceable.

  Attributes:
    double: whether `wide` is float64; None asks for it on a CPU only.
  """

  def __init__(self, double: bool | None = None):
    self.double = double

  def _is_double(self) -> bool:
    if self.double is None:
      return platform.platform() == "cpu"
    return self.double

  def precise(self):
    if self._is_double():
      return jax.enable_x64(True)
    return contextlib.nullcontext()

  def wide(self, x):
    return jnp.asarray(x, jnp.float64 if self._is_double() else jnp.float32)

  def float32(self, x):
    return jnp.asarray(x, jnp.float32)

  def int32(self, x):
    return jnp.asarray(x, jnp.int32)

  def shape(self, x):
    return jnp.shape(x)

  def arange(self, n):
    return jnp.arange(n, dtype=jnp.int32)

  def pad_last(self, x, count):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count)])

  def sum_last(self, x):
    return jnp.sum(x, axis=-1, keepdims=True)

  def shift_right(self, x):
    return jnp.concatenate([x[..., :1], x[..., :-1]], axis=-1)

  def power_spectrum(self, x, n_fft):
    spectrum = jnp.fft.rfft(x, n=n_fft)
    return spectrum.real**2 + spectrum.imag**2

  def matmul(self, x, y):
    # TPUs and recent GPUs round float32 products to bfloat16 or TF32 unless
    # told otherwise, which moves log-mels by 1e-2.
    y = jnp.asarray(y, x.dtype)
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)

  def log(self, x):
    return jnp.log(x)

  def maximum(self, x, y):
    return jnp.maximum(x, y)

  def round(self, x):
    return jnp.round(x)

  def floor(self, x):
    return jnp.floor(x)

  def where(self, condition, x, y):
    return jnp.where(condition, x, y)

  def take(self, x, index, axis):
    return jnp.take(x, index, axis=axis, mode="clip")

  def reshape(self, x, shape):
    return jnp.reshape(x, shape)

  def swap_axes(self, x, a, b):
    return jnp.swapaxes(x, a, b)

  def fold_in(self, key, data):
    return jax.random.fold_in(key, data)

  def uniform(self, key, count):
    # Drawn from the folded keys themselves, so that the other backends need
    # nothing of jax.random but the published threefry-2x32.
    numbers = jnp.arange(count, dtype=jnp.uint32)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
    bits = jax.random.key_data(keys)[:, 0]
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)


NUMPY = NumpyBackend()
JAX = JaxBackend()


def random_key(seed: int) -> np.ndarray:
  """The NumPy twin of `jax.random.key_data(jax.random.key(seed))`, [2]."""
  return np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)


def threefry2x32(
  k0, k1, data, *, left=np.left_shift, right=np.right_shift
) -> tuple[Array, Array]:
  """Threefry-2x32 with 20 rounds, as `jax.random.fold_in` applies it.

  Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).

  Args:
    k0: first word of the key, uint32 of any library, any shape.
    k1: second word of the key.
    data: uint32, the low word of the counter (the high word is zero).
    left: the library's bit shift to the left.
    right: the same to the right.

  Returns:
    The two words of the result.
  """
  schedule = (k0, k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA))
  rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
  x0, x1 = k0, k1 + data
  for block in range(5):
    for r in rotations[block % 2]:
      x0 = x0 + x1
      x1 = left(x1, np.uint32(r)) | right(x1, np.uint32(32 - r))
      x1 = x1 ^ x0
    x0 = x0 + schedule[(block + 1) % 3]
    x1 = x1 + schedule[(block + 2) % 3] + np.uint32(block + 1)
  return x0, x1
