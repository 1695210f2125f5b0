"""How arrays lie in other frameworks' files, and how they lie here.

Everything behind these has frequency before time, [in, out] and one channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from astjax.errors import UserError


def _is_only_read(*arrays):
  raise UserError("this format is only read, not written")


class Transform(NamedTuple):
  """How arrays change on the way in and, if it is written too, out.

  One array per source <-> one per target; a ValueError if that is impossible.
  """

  forward: Callable[..., tuple[np.ndarray, ...]]
  backward: Callable[..., tuple[np.ndarray, ...]] = _is_only_read


KEEP = Transform(lambda x: (x,), lambda x: (x,))


def _shaped(x, ndim, what):
  if x.ndim != ndim:
    raise ValueError(f"expected {what}")
  return x


def _matrix(x):
  return _shaped(x, 2, "a matrix [out, in]").T


def _from_linear(*kernels):
  return (np.concatenate([_matrix(x) for x in kernels], axis=1),)


def _from_convolution(x):
  x = _shaped(x, 4, "a patch kernel [D, channels, ph, pw]")
  x = np.transpose(x, (2, 3, 1, 0))  # [ph, pw, channels, D]
  return (x[:, :, 0] if x.shape[2] == 1 else x,)


def _from_sequence(x):
  if x.ndim != 3 or x.shape[0] != 1:
    raise ValueError("expected positions [1, P + N, D]")
  return (x[0],)


def _from_heads(*kernels):
  kernels = [_shaped(x, 3, "a projection [D, H, h]") for x in kernels]
  return (np.concatenate([x.reshape(len(x), -1) for x in kernels], axis=1),)


def _from_time_convolution(x):
  x = _shaped(x, 4, "a patch kernel [D, channels, pw, ph]")
  return _from_convolution(x.swapaxes(2, 3))


def _from_transposed_convolution(x):
  if x.ndim != 4 or x.shape[1] != 1:
    raise ValueError("expected a transposed patch kernel [channels, 1, pw, ph]")
  return (x[:, 0].swapaxes(1, 2),)


def _from_weight_g(g):
  return (_shaped(g, 2, "lengths [C, 1]")[:, 0],)


def _from_unit_weights(g, v):
  # A teacher's are running means of ones, which rounding takes a little away.
  if g.shape != (len(v), 1) or not np.all(np.abs(g - 1) < 1e-3):
    raise ValueError("expected a weight_g [C, 1] of ones, which stays as it is")
  return (_matrix(v),)


def _from_scalars(*sizes):
  whole = all(x.size == 1 and x.dtype.kind in "iu" for x in sizes)
  if not whole or min(x.item() for x in sizes) < 1:
    raise ValueError("expected whole numbers above 0")
  return (np.array([x.item() for x in sizes]),)


def _split(x):
  return tuple(np.split(x, 3, axis=-1))


# [out, in] of torch <-> [in, out]; several are joined along `out`.
LINEAR = Transform(_from_linear, lambda x: (x.T,))
QKV_LINEAR = Transform(_from_linear, lambda x: tuple(k.T for k in _split(x)))
# Three biases are joined, also those of Flax, [H, h] each.
QKV_BIAS = Transform(
  lambda *b: (np.concatenate([x.reshape(-1) for x in b]),), _split
)
# [D, channels, ph, pw] <-> [ph, pw, D], or [ph, pw, channels, D] of images.
CONVOLUTION = Transform(
  _from_convolution, lambda x: (np.transpose(x, (2, 0, 1))[:, None],)
)
# [1, 1, D] <-> [D].
TOKEN = Transform(lambda x: (x.reshape(-1),), lambda x: (x[None, None],))
# [1, P + N, D] <-> [P + N, D].
POSITIONS = Transform(_from_sequence, lambda x: (x[None],))
# Two whole numbers [] <-> [2].
SCALARS = Transform(
  _from_scalars, lambda x: tuple(np.array(n, np.int64) for n in x)
)

# ASiT has time before frequency: [D, channels, pw, ph] <-> [ph, pw, D].
TIME_CONVOLUTION = Transform(
  _from_time_convolution, lambda x: (np.transpose(x, (2, 1, 0))[:, None],)
)
# [channels, 1, pw, ph] <-> [channels, ph, pw].
TIME_TRANSPOSED = Transform(
  _from_transposed_convolution, lambda x: (x.swapaxes(1, 2)[:, None],)
)
# Weight normalisation: [C, 1] <-> [C], and directions with lengths of 1.
WEIGHT_G = Transform(_from_weight_g, lambda g: (g[:, None],))
UNIT_WEIGHTS = Transform(
  _from_unit_weights, lambda v: (np.ones((v.shape[1], 1), v.dtype), v.T)
)

# Flax's own layouts, which are only read: [ph, pw, channels, D] and per head.
FLAX_CONVOLUTION = Transform(lambda x: (_shaped(x, 4, "[ph, pw, 3, D]"),))
FLAX_QKV = Transform(_from_heads)
FLAX_OUT = Transform(
  lambda x: (_shaped(x, 3, "[H, h, D]").reshape(-1, x.shape[-1]),)
)
