"""Waveforms in NumPy, for host ops, serving and tools: rates, lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import soxr

from astjax.ops.frontend import INT16_SCALE


def to_mono(audio: np.ndarray, channel: str) -> np.ndarray:
  """[S] or [S, channels] -> [S]; `channel` is "mean" or "first"."""
  if audio.ndim == 1:
    return audio
  mono = audio[:, 0] if channel == "first" else audio.mean(axis=1)
  return np.ascontiguousarray(mono)


def resample(audio: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
  """[S] at `rate` Hz -> float32 at `new_rate` Hz (soxr, high quality)."""
  # soxr is also librosa's default; importing librosa would pull numba into
  # every run.
  if rate == new_rate:
    return audio
  return soxr.resample(audio, rate, new_rate, quality="HQ").astype(np.float32)


def resample_blocks(
  audio: Iterable[np.ndarray], rate: float, new_rate: int
) -> Iterator[np.ndarray]:
  """Pieces of a waveform, resampled: together the bits of `resample`."""
  if rate == new_rate:
    yield from audio
    return
  stream = soxr.ResampleStream(rate, new_rate, 1, dtype="float32", quality="HQ")
  for piece in audio:
    yield stream.resample_chunk(piece)
  yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def fit(audio: np.ndarray, length: int) -> tuple[np.ndarray, int]:
  """Cuts or zero-pads [S] to [length]: (waveform, number of real samples)."""
  audio = audio[:length]
  return np.pad(audio, (0, length - len(audio))), len(audio)


def quantise(audio: np.ndarray) -> np.ndarray:
  """float32 -> int16, rounded (halves to even) and clipped."""
  audio = np.round(audio * np.float32(INT16_SCALE))
  return np.clip(audio, -INT16_SCALE, INT16_SCALE - 1.0).astype(np.int16)
