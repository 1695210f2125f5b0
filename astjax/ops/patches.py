"""Spectrogram <-> patches, in the original's order.

Frequency is vertical: patch number `f * T' + t`, f = 0 the lowest mel bins, and
inside a patch `df * pw + dt`. AST and SSAST, `PatchEmbed` and `Unfold`.
"""

from __future__ import annotations

import numpy as np

from astjax.errors import UserError
from astjax.ops.xp import NUMPY, Xp


def grid_shape(
  num_frames: int,
  num_mel_bins: int,
  patch_size: tuple[int, int],
  stride: tuple[int, int],
) -> tuple[int, int]:
  """(F', T') for a [T, F] spectrogram; sizes are (frequency, time).

  Raises:
    UserError: a patch does not fit into the spectrogram, or a size is < 1.
  """
  (ph, pw), (sh, sw) = patch_size, stride
  if min(ph, pw, sh, sw) < 1:
    raise UserError(f"sizes must be positive, got {patch_size}, {stride}")
  if num_mel_bins < ph or num_frames < pw:
    raise UserError(
      f"a patch of {ph} mel bins x {pw} frames does not fit into "
      f"{num_mel_bins} mel bins x {num_frames} frames"
    )
  return (num_mel_bins - ph) // sh + 1, (num_frames - pw) // sw + 1


def patchify(
  fbank,
  *,
  patch_size: tuple[int, int],
  stride: tuple[int, int],
  xp: Xp = NUMPY,
):
  """Cuts [..., T, F] into [..., F', T', ph * pw], overlapping or not."""
  # The grid stays: from [N, ph * pw] nobody could tell 12 x 50 from 10 x 60.
  *batch, num_frames, num_mel_bins = fbank.shape
  rows, cols = grid_shape(num_frames, num_mel_bins, patch_size, stride)
  (ph, pw), (sh, sw) = patch_size, stride
  index_f = np.arange(rows)[:, None] * sh + np.arange(ph)  # [F', ph]
  index_t = np.arange(cols)[:, None] * sw + np.arange(pw)  # [T', pw]
  x = xp.swapaxes(fbank, -1, -2)  # [..., F, T]
  x = xp.take(x, index_t, axis=-1, mode="clip")  # [..., F, T', pw]
  x = xp.take(x, index_f, axis=-3, mode="clip")  # [..., F', ph, T', pw]
  x = xp.swapaxes(x, -3, -2)  # [..., F', T', ph, pw]
  return xp.reshape(x, (*batch, rows, cols, ph * pw))


def unpatchify(patches, *, patch_size: tuple[int, int]):
  """Puts non-overlapping [..., F', T', ph * pw] patches back: [..., T, F].

  The inverse of `patchify` with `stride == patch_size` on a spectrogram whose
  sides are multiples of the patch. Works on NumPy and JAX arrays.
  """
  *batch, rows, cols, _ = patches.shape
  ph, pw = patch_size
  x = patches.reshape(*batch, rows, cols, ph, pw)
  x = x.swapaxes(-3, -2)  # [..., F', ph, T', pw]
  return x.reshape(*batch, rows * ph, cols * pw).swapaxes(-1, -2)
