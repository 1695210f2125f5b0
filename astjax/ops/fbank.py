"""Kaldi-compatible log-mel filter banks, one algorithm for every backend.

What AST, SSAST and ASiT are trained on: 25 ms symmetric Hann windows every
10 ms, per-frame DC removal, pre-emphasis inside the frame, power spectrum,
triangles linear in mel, natural log with a float32-epsilon floor, on waveforms
in [-1, 1] (not the int16 scale of Kaldi itself). AST paper section 2.1; the
exact recipe is that of `torchaudio.compliance.kaldi.fbank`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from astjax.errors import UserError
from astjax.ops.xp import NUMPY, Xp

LOG_FLOOR = float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class FbankSpec:
  """Settings of the front-end; rates and frequencies in Hz."""

  sample_rate: int = 16_000
  frame_length_ms: float = 25.0
  frame_shift_ms: float = 10.0
  num_mel_bins: int = 128  # F, triangular filters
  low_freq: float = 20.0  # lower edge of the first filter
  high_freq: float = 0.0  # upper edge of the last; <= 0 counts from Nyquist
  preemphasis: float = 0.97  # of the first-order high pass inside a frame

  @classmethod
  def of(cls, arguments: Mapping[str, Any]) -> FbankSpec:
    """The settings among the arguments of an op."""
    names = [f.name for f in dataclasses.fields(cls)]
    return cls(**{k: arguments[k] for k in names if k in arguments})

  def __post_init__(self):
    if self.window_size < 2 or self.hop_size < 1:
      raise UserError(
        f"fbank frames of {self.frame_length_ms} ms every "
        f"{self.frame_shift_ms} ms are too short at {self.sample_rate} Hz"
      )
    if not 0 <= self.low_freq < self.top_freq <= self.sample_rate / 2:
      raise UserError(
        f"fbank needs 0 <= low_freq < high_freq <= {self.sample_rate / 2} Hz "
        f"(Nyquist), got low_freq={self.low_freq}, high_freq={self.top_freq}"
      )

  @property
  def window_size(self) -> int:
    """Samples in a frame; the fraction is dropped (44.1 kHz: 1102)."""
    return int(self.sample_rate * self.frame_length_ms * 0.001)

  @property
  def hop_size(self) -> int:
    """Samples between frames; the fraction is dropped (44.1 kHz: 441)."""
    return int(self.sample_rate * self.frame_shift_ms * 0.001)

  @property
  def n_fft(self) -> int:
    """The next power of two."""
    return 1 << (self.window_size - 1).bit_length()

  @property
  def top_freq(self) -> float:
    """Upper edge of the last filter in Hz."""
    nyquist = 0.5 * self.sample_rate
    return self.high_freq if self.high_freq > 0 else nyquist + self.high_freq

  def num_frames(self, num_samples, *, maximum=max):
    """Frames made of real samples alone.

    Audio shorter than one frame counts as one frame: it is zero-padded to a
    frame (the original refuses it). For an array, give its `maximum`.
    """
    return 1 + maximum(num_samples - self.window_size, 0) // self.hop_size

  def num_samples(self, num_frames: int) -> int:
    """Samples that give exactly `num_frames` frames: 1024 -> 164,080."""
    return (num_frames - 1) * self.hop_size + self.window_size


def _mel(freq):
  return 1127.0 * np.log1p(np.asarray(freq, np.float64) / 700.0)


@functools.cache
def mel_matrix(spec: FbankSpec) -> np.ndarray:
  """Triangular filters [F, n_fft // 2 + 1], linear in mel, not area-normalised.

  The Nyquist bin has weight zero. With 128 bins and a 512-point transform,
  band 3 holds no bin at all and is constant: the original's property.
  """
  num_bins = spec.n_fft // 2
  low, high = _mel(spec.low_freq), _mel(spec.top_freq)
  step = (high - low) / (spec.num_mel_bins + 1)
  left = low + step * np.arange(spec.num_mel_bins)[:, None]
  mel = _mel(np.arange(num_bins) * spec.sample_rate / spec.n_fft)[None]
  rising = (mel - left) / step
  falling = (left + 2 * step - mel) / step
  weights = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
  return np.pad(weights, ((0, 0), (0, 1)))


@functools.cache
def window(spec: FbankSpec) -> np.ndarray:
  """Symmetric Hann window [window_size]."""
  return np.hanning(spec.window_size).astype(np.float32)


def fbank(audio, spec: FbankSpec, xp: Xp = NUMPY):
  """Waveforms [..., S] in [-1, 1] -> float32 log-mels [..., T, F].

  T = 1 + (S - window) // hop; less than one frame is zero-padded to one.
  """
  num_samples = audio.shape[-1]
  num_frames = spec.num_frames(num_samples)
  index = np.arange(num_frames)[:, None] * spec.hop_size
  index = index + np.arange(spec.window_size)  # [T, window]
  with xp.precise():
    x = xp.wide(audio)  # [..., S]
    if (missing := spec.window_size - num_samples) > 0:
      x = xp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    x = xp.take(x, index, axis=-1, mode="clip")  # [..., T, window]
    x = x - xp.sum(x, axis=-1, keepdims=True) / spec.window_size
    # The sample before the first is the first itself, as in Kaldi.
    before = xp.concatenate([x[..., :1], x[..., :-1]], axis=-1)
    x = x - before * spec.preemphasis
    x = x * xp.wide(window(spec))
    spectrum = xp.fft.rfft(x, n=spec.n_fft)  # [..., T, n_fft // 2 + 1]
    power = spectrum.real**2 + spectrum.imag**2
    mel = xp.matmul(power, mel_matrix(spec).T)  # [..., T, F]
    return xp.log(xp.maximum(mel, LOG_FLOOR)).astype(xp.float32)
