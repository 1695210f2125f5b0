"""From int16 waveforms to standardised log-mels, on the host or the device.

Each function makes an op (see `ops/recipe.py`) of one example. In a config they
read as a recipe:

  to_float|center|fbank|pad_frames|freq_mask(48)|time_mask(192)|standardize(..)

AST paper section 2.1 and 3.1; the order is the original's: padding and masks
are written as 0.0 before standardising.
"""

from __future__ import annotations

import math

import numpy as np

from astjax import errors
from astjax.errors import UserError
from astjax.ops import fbank as fbank_ops
from astjax.ops import patches
from astjax.ops.recipe import Op, Random
from astjax.types import Array, Example

INT16_SCALE = 32_768.0


def to_float(audio: str = "audio") -> Op:
  """int16 [..., S] -> float32 in [-1, 1)."""

  def op(example, key, xp):
    x = example[audio]
    if x.dtype != np.int16:
      raise UserError(f"to_float reads int16, {audio!r} is {x.dtype}: quantise")
    return example | {audio: xp.asarray(x, xp.float32) * (1.0 / INT16_SCALE)}

  return op


def float_waveform(example: Example, audio: str, op: str) -> Array:
  """The entry `audio`; a UserError of the op if it holds 16-bit samples."""
  if example[audio].dtype != np.float32:
    raise UserError(
      f"{op} reads float32: put to_float before it, or put it before quantise"
    )
  return example[audio]


def center(audio: str = "audio", num_samples: str = "num_samples") -> Op:
  """Subtracts the mean of the real samples; padding stays zero.

  With num_samples="" all samples are real, as in ASiT, which pads the waveform.
  """

  def op(example, key, xp):
    x = float_waveform(example, audio, "center")  # [..., S]
    length = x.shape[-1]
    count = example[num_samples] if num_samples else length
    real = xp.arange(length, dtype=xp.int32) < count
    total = xp.sum(xp.where(real, x, 0.0), axis=-1, keepdims=True)
    mean = total / xp.maximum(xp.asarray(count, xp.float32), 1.0)
    # int16 samples minus a multiple of 2^-15 are exact in float32, so it does
    # not matter which side subtracts it. The filter banks remove the mean of
    # every frame anyway.
    mean = xp.round(mean * INT16_SCALE) * (1.0 / INT16_SCALE)
    return example | {audio: xp.where(real, x - mean, 0.0)}

  return op


def fbank(
  sample_rate: errors.Count = 16_000,
  num_mel_bins: errors.Count = 128,
  frame_length_ms: errors.Positive = 25.0,
  frame_shift_ms: errors.Positive = 10.0,
  low_freq: errors.NotNegative = 20.0,
  high_freq: float = 0.0,
  preemphasis: float = 0.97,
  audio: str = "audio",
  out: str = "fbank",
) -> Op:
  """Waveform [..., S] -> log-mels [..., T, F]; drops the waveform."""
  settings = (
    *(sample_rate, frame_length_ms, frame_shift_ms, num_mel_bins),
    *(low_freq, high_freq, preemphasis),
  )
  spec = fbank_ops.FbankSpec(*settings)

  def op(example, key, xp):
    rest = {k: v for k, v in example.items() if k != audio}
    x = float_waveform(example, audio, "fbank")
    return rest | {out: fbank_ops.fbank(x, spec, xp)}

  return op


def pad_frames(
  sample_rate: errors.Count = 16_000,
  frame_length_ms: errors.Positive = 25.0,
  frame_shift_ms: errors.Positive = 10.0,
  fbank: str = "fbank",
  num_samples: str = "num_samples",
) -> Op:
  """Writes 0.0 into every frame that is not made of real samples alone.

  The original pads the log-mels, not the waveform, and before standardising:
  with AudioSet's statistics a padded cell becomes +0.467.
  """
  spec = fbank_ops.FbankSpec(sample_rate, frame_length_ms, frame_shift_ms)

  def op(example, key, xp):
    x = example[fbank]  # [..., T, F]
    count = spec.num_frames(example[num_samples], maximum=xp.maximum)
    real = xp.arange(x.shape[-2], dtype=xp.int32) < count
    return example | {fbank: xp.where(real[:, None], x, 0.0)}

  return op


def cut_frames(num_frames: errors.Count, fbank: str = "fbank") -> Op:
  """The first `num_frames` frames; where there are fewer, 0.0 for the others.

  ASiT cuts the 598 frames of six seconds to 592, which its patches cover.
  """

  def op(example, key, xp):
    x = example[fbank][..., :num_frames, :]  # [..., T, F]
    if missing := num_frames - x.shape[-2]:
      x = xp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, missing), (0, 0)])
    return example | {fbank: x}

  return op


def freq_mask(max_width: errors.CountOrZero, fbank: str = "fbank") -> Op:
  """Zeroes one run of 0 ... max_width - 1 mel bins (SpecAugment)."""
  return _mask(max_width, fbank, -1)


def time_mask(max_width: errors.CountOrZero, fbank: str = "fbank") -> Op:
  """Zeroes one run of 0 ... max_width - 1 frames (SpecAugment)."""
  return _mask(max_width, fbank, -2)


def _mask(width: int, name: str, axis: int) -> Op:
  @Random
  def op(example, key, xp):
    x = example[name]  # [..., T, F]
    length = x.shape[axis]
    if width > length:
      raise UserError(f"a mask of up to {width} on an axis of {length} cells")
    u = xp.uniform(key, 2)
    span = u[0] * float(width)
    start = xp.floor(u[1] * (float(length) - span))
    cell = xp.arange(length, dtype=xp.float32)
    inside = (cell >= start) & (cell < start + xp.floor(span))
    inside = inside if axis == -1 else inside[:, None]
    return example | {name: xp.where(inside, 0.0, x)}

  return op


def standardize(
  mean: errors.Finite, std: errors.Positive, fbank: str = "fbank"
) -> Op:
  """(x - mean) / (2 * std): mean 0 and standard deviation 0.5 on the corpus."""

  def op(example, key, xp):
    return example | {fbank: (example[fbank] - mean) * (0.5 / std)}

  return op


def noise(max_scale: errors.Positive = 0.1, fbank: str = "fbank") -> Op:
  """Adds uniform noise in [0, r), r uniform in [0, max_scale) once a clip.

  The original's, after standardising; never negative.
  """

  @Random
  def op(example, key, xp):
    x = example[fbank]  # [..., T, F]
    u = xp.uniform(key, math.prod(x.shape) + 1)
    scale = u[0] * max_scale
    return example | {fbank: x + u[1:].reshape(x.shape) * scale}

  return op


def roll(max_shift: errors.Count = 10, fbank: str = "fbank") -> Op:
  """Rolls the frames by -max_shift ... max_shift - 1, positive towards later.

  Frames that leave at one end come in at the other, padding too, as in the
  original.
  """

  @Random
  def op(example, key, xp):
    x = example[fbank]  # [..., T, F]
    length = x.shape[-2]
    u = xp.uniform(key, 1)[0]
    shift = xp.floor(u * (2 * max_shift)).astype(xp.int32) - max_shift
    source = (xp.arange(length, dtype=xp.int32) - shift) % length
    return example | {fbank: xp.take(x, source, axis=-2, mode="clip")}

  return op


def patchify(
  patch_size: tuple[errors.Count, errors.Count] = (16, 16),
  stride: tuple[errors.Count, errors.Count] = (10, 10),
  fbank: str = "fbank",
  out: str = "patches",
) -> Op:
  """Log-mels [..., T, F] -> literal log-mel patches [..., F', T', ph * pw].

  The model reads either; it must be given the same patch size and stride.
  """
  how = {"patch_size": tuple(patch_size), "stride": tuple(stride)}

  def op(example, key, xp):
    rest = {k: v for k, v in example.items() if k != fbank}
    return rest | {out: patches.patchify(example[fbank], **how, xp=xp)}

  return op


# A name seeds its op's draws: another name would change what old runs draw.
OPS = {
  op.__name__: op
  for op in (
    *(center, cut_frames, fbank, freq_mask, noise, pad_frames, patchify),
    *(roll, standardize, time_mask, to_float),
  )
}
