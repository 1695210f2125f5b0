"""NumPy and JAX as one: NumPy's own API, and five things in which they differ.

The ops of a recipe are written once, against `xp.where`, `xp.fft.rfft` and the
like; `NUMPY` runs them on the host, `JAX` under jit. Both draw the same
numbers from the same key, so that an augmentation may stand on either side.

On a CPU the filter banks are computed in double precision: a quiet band beside
a loud one sits at the rounding error of a float32 Fourier transform, and two
correct libraries then differ by up to 1e-2 there. In double precision the host
and the device agree to 1e-6. Accelerators compute in float32.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from astjax.ops import platform
from astjax.types import Array


class Xp:
  """NumPy, on the host. Keys are those of `jax.random`, as two words uint32."""

  def __getattr__(self, name: str) -> Any:
    return getattr(np, name)

  def precise(self) -> contextlib.AbstractContextManager:
    """Inside it, `wide` may give float64."""
    return contextlib.nullcontext()

  def wide(self, x: Array) -> Array:
    """Casts to the widest float that the front-end should compute in."""
    return np.asarray(x, np.float64)

  def matmul(self, x: Array, y: np.ndarray) -> Array:
    """[..., n] x [n, m] at full precision; y is cast to x's type."""
    return x @ y.astype(x.dtype)

  def fold_in(self, key: Array, data: Array) -> Array:
    """A new key from a key and a number (threefry-2x32)."""
    key, data = np.asarray(key, np.uint32), np.asarray(data, np.uint32)
    with np.errstate(over="ignore"):  # the sums are meant to wrap around
      return _threefry2x32(key[..., 0], key[..., 1], data)

  def uniform(self, key: Array, count: int) -> Array:
    """float32 [count] in [0, 1): number i from the key folded with i."""
    bits = self.fold_in(key, np.arange(count))[:, 0]
    return (bits >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


class Jax(Xp):
  """On the device, traceable; `double` None: in float64 on a CPU only."""

  def __init__(self, double: bool | None = None):
    self._double = double

  def __getattr__(self, name):
    return getattr(jnp, name)

  def _is_double(self):
    if self._double is None:
      return platform.platform() == "cpu"
    return self._double

  def precise(self):
    is_double = self._is_double()
    return jax.enable_x64(True) if is_double else contextlib.nullcontext()

  def wide(self, x):
    return jnp.asarray(x, jnp.float64 if self._is_double() else jnp.float32)

  def matmul(self, x, y):
    # TPUs and recent GPUs round float32 products to bfloat16 or TF32 unless
    # told otherwise, which moves log-mels by 1e-2.
    y = jnp.asarray(y, x.dtype)
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)

  def fold_in(self, key, data):
    return jax.random.fold_in(key, data)

  def uniform(self, key, count):
    # Drawn from the folded keys themselves, so that NumPy needs nothing of
    # jax.random but the published threefry-2x32.
    numbers = jnp.arange(count, dtype=jnp.uint32)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
    bits = jax.random.key_data(keys)[:, 0]
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)


NUMPY = Xp()
JAX = Jax()


def random_key(seed: int) -> np.ndarray:
  """The NumPy twin of `jax.random.key_data(jax.random.key(seed))`, [2]."""
  return np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)


def _threefry2x32(k0: Array, k1: Array, data: Array) -> np.ndarray:
  """Threefry-2x32 with 20 rounds, as `jax.random.fold_in` applies it.

  Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). The words
  of the key and the low word of the counter -> uint32 [..., 2].
  """
  schedule = (k0, k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA))
  rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
  x0, x1 = k0, k1 + data
  for block in range(5):
    for r in rotations[block % 2]:
      x0 = x0 + x1
      x1 = (x1 << np.uint32(r)) | (x1 >> np.uint32(32 - r))
      x1 = x1 ^ x0
    x0 = x0 + schedule[(block + 1) % 3]
    x1 = x1 + schedule[(block + 2) % 3] + np.uint32(block + 1)
  return np.stack([x0, x1], axis=-1)
