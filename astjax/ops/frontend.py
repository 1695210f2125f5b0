"""From int16 waveforms to standardised log-mels, on the host or the device.

Each function returns an op `(example, key, backend) -> example` on one example
of any backend; `device_ops` maps them over a batch under JAX, `data/host_ops`
runs them inside tf.data. In a config string they read as a recipe:

  to_float|center|fbank|pad_frames|freq_mask(48)|time_mask(192)|standardize(..)

AST paper section 2.1 and 3.1; the order is the original's: padding and masks
are written as 0.0 before standardising.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from astjax.errors import UserError
from astjax.ops import fbank as fbank_ops
from astjax.ops import patches, xp
from astjax.types import Array, Example

Op = Callable[[Example, Array, xp.Backend], Example]

INT16_SCALE = 32_768.0

__all__ = (
  "center",
  "cut_frames",
  "fbank",
  "freq_mask",
  "noise",
  "pad_frames",
  "patchify",
  "roll",
  "standardize",
  "time_mask",
  "to_float",
)


def to_float(audio: str = "audio") -> Op:
  """int16 [..., S] -> float32 in [-1, 1)."""

  def op(example, key, backend):
    if "int16" not in str(example[audio].dtype):
      raise UserError(
        f"to_float reads int16, {audio!r} is not: put quantise before it"
      )
    x = backend.float32(example[audio])
    return example | {audio: x * (1.0 / INT16_SCALE)}

  return op


def _float_waveform(example, audio, name):
  if "int" in str(example[audio].dtype):
    raise UserError(f"{name} reads a float waveform: put to_float before it")
  return example[audio]


def center(audio: str = "audio", num_samples: str = "num_samples") -> Op:
  """Subtracts the mean of the real samples; padding stays zero.

  With num_samples="" all samples are real, as in ASiT, which pads the waveform.
  The mean is rounded to a multiple of 2^-15, so that int16 samples stay exactly
  representable; the filter banks remove the mean of every frame anyway.
  """

  def op(example, key, backend):
    x = _float_waveform(example, audio, "center")  # [..., S]
    length = backend.shape(x)[-1]
    count = example[num_samples] if num_samples else length
    real = backend.arange(length) < count
    total = backend.sum_last(backend.where(real, x, 0.0))
    mean = total / backend.maximum(backend.float32(count), 1.0)
    mean = backend.round(mean * INT16_SCALE) * (1.0 / INT16_SCALE)
    return example | {audio: backend.where(real, x - mean, 0.0)}

  return op


def fbank(
  sample_rate: int = 16_000,
  num_mel_bins: int = 128,
  frame_length_ms: float = 25.0,
  frame_shift_ms: float = 10.0,
  low_freq: float = 20.0,
  high_freq: float = 0.0,
  preemphasis: float = 0.97,
  audio: str = "audio",
  out: str = "fbank",
) -> Op:
  """Waveform [..., S] -> log-mels [..., T, F]; drops the waveform."""
  spec = fbank_ops.FbankSpec(
    sample_rate=sample_rate,
    num_mel_bins=num_mel_bins,
    frame_length_ms=frame_length_ms,
    frame_shift_ms=frame_shift_ms,
    low_freq=low_freq,
    high_freq=high_freq,
    preemphasis=preemphasis,
  )

  def op(example, key, backend):
    rest = {k: v for k, v in example.items() if k != audio}
    x = _float_waveform(example, audio, "fbank")
    return rest | {out: fbank_ops.fbank(x, spec, backend=backend)}

  op.spec = spec
  return op


def pad_frames(
  sample_rate: int = 16_000,
  frame_length_ms: float = 25.0,
  frame_shift_ms: float = 10.0,
  fbank: str = "fbank",
  num_samples: str = "num_samples",
) -> Op:
  """Writes 0.0 into every frame that is not made of real samples alone.

  The original pads the log-mels, not the waveform, and before standardising:
  with AudioSet's statistics a padded cell becomes +0.467.
  """
  spec = fbank_ops.FbankSpec(
    sample_rate=sample_rate,
    frame_length_ms=frame_length_ms,
    frame_shift_ms=frame_shift_ms,
  )

  def op(example, key, backend):
    x = example[fbank]  # [..., T, F]
    frame = backend.arange(backend.shape(x)[-2])
    real = frame < spec.num_frames(
      example[num_samples], maximum=backend.maximum
    )
    return example | {fbank: backend.where(real[:, None], x, 0.0)}

  return op


def cut_frames(num_frames: int, fbank: str = "fbank") -> Op:
  """The first `num_frames` frames; where there are fewer, 0.0 for the others.

  Before standardising. ASiT cuts the 598 frames of six seconds to 592, which
  its patches cover.
  """
  if num_frames < 1:
    raise UserError(f"cut_frames needs at least one frame, got {num_frames}")

  def op(example, key, backend):
    x = example[fbank][..., :num_frames, :]  # [..., T, F]
    if missing := num_frames - backend.shape(x)[-2]:
      x = backend.pad_last(backend.swap_axes(x, -2, -1), missing)
      x = backend.swap_axes(x, -2, -1)
    return example | {fbank: x}

  op.num_frames = num_frames
  return op


def _mask(example, key, backend, *, name, width, axis):
  x = example[name]  # [..., T, F]
  length = backend.shape(x)[axis]
  if width > length:
    raise UserError(
      f"a mask of up to {width} does not fit an axis of {length} cells"
    )
  u = backend.uniform(key, 2)
  span = u[0] * float(width)
  start = backend.floor(u[1] * (float(length) - span))
  cell = backend.float32(backend.arange(length))
  inside = (cell >= start) & (cell < start + backend.floor(span))
  if axis == -2:
    inside = inside[:, None]
  return example | {name: backend.where(inside, 0.0, x)}


def freq_mask(max_width: int, fbank: str = "fbank") -> Op:
  """Zeroes one run of 0 ... max_width - 1 mel bins (SpecAugment)."""
  return _masking(max_width, fbank, -1)


def time_mask(max_width: int, fbank: str = "fbank") -> Op:
  """Zeroes one run of 0 ... max_width - 1 frames (SpecAugment)."""
  return _masking(max_width, fbank, -2)


def _masking(width, name, axis):
  if width < 0:
    raise UserError(f"max_width must be at least 0, got {width}")

  def op(example, key, backend):
    return _mask(example, key, backend, name=name, width=width, axis=axis)

  op.draws = True
  return op


def standardize(mean: float, std: float, fbank: str = "fbank") -> Op:
  """(x - mean) / (2 * std): mean 0 and standard deviation 0.5 on the corpus."""
  if not (0 < std < math.inf and math.isfinite(mean)):
    raise UserError(
      f"standardize needs a finite mean and std > 0, got {mean}, {std}"
    )

  def op(example, key, backend):
    return example | {fbank: (example[fbank] - mean) * (0.5 / std)}

  return op


def noise(max_scale: float = 0.1, fbank: str = "fbank") -> Op:
  """Adds uniform noise in [0, r), r uniform in [0, max_scale) once a clip.

  After standardising (the original's noise augmentation); never negative.
  """
  if not 0 < max_scale < math.inf:
    raise UserError(f"noise needs a positive scale, got {max_scale}")

  def op(example, key, backend):
    x = example[fbank]  # [..., T, F]
    shape = backend.shape(x)
    u = backend.uniform(key, math.prod(shape) + 1)
    scale = u[0] * max_scale
    return example | {fbank: x + backend.reshape(u[1:], shape) * scale}

  op.draws = True
  return op


def roll(max_shift: int = 10, fbank: str = "fbank") -> Op:
  """Rolls the frames by -max_shift ... max_shift - 1, positive towards later.

  Frames that leave at one end come in at the other, padding too, as in the
  original.
  """
  if max_shift < 1:
    raise UserError(f"roll needs at least one frame, got {max_shift}")

  def op(example, key, backend):
    x = example[fbank]  # [..., T, F]
    length = backend.shape(x)[-2]
    u = backend.uniform(key, 1)[0]
    shift = backend.int32(backend.floor(u * (2 * max_shift))) - max_shift
    source = (backend.arange(length) - shift) % length
    return example | {fbank: backend.take(x, source, axis=-2)}

  op.draws = True
  return op


def patchify(
  patch_size: tuple[int, int] = (16, 16),
  stride: tuple[int, int] = (10, 10),
  fbank: str = "fbank",
  out: str = "patches",
) -> Op:
  """Log-mels [..., T, F] -> literal log-mel patches [..., F', T', ph * pw].

  The model reads either; it must be given the same patch size and stride.
  """

  def op(example, key, backend):
    rest = {k: v for k, v in example.items() if k != fbank}
    cut = patches.patchify(
      example[fbank],
      patch_size=tuple(patch_size),
      stride=tuple(stride),
      backend=backend,
    )
    return rest | {out: cut}

  return op
