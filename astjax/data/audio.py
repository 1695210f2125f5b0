"""Sound files and their waveforms: any format, any rate, any channels.

What libsndfile reads. The waveform's way to the front-end, without TensorFlow:
`data/host_ops` runs these functions inside tf.data, `serving` by themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np
import soundfile
import soxr

from astjax.ops.frontend import INT16_SCALE

SUFFIXES = (
  ".wav",
  ".flac",
  ".ogg",
  ".opus",
  ".mp3",
  ".aiff",
  ".aif",
  ".au",
  ".w64",
)

_BLOCK = 1 << 20  # samples


class UnreadableAudio(Exception):
  """A recording that cannot be used; the text is the reason."""


def read(path: str | os.PathLike) -> tuple[np.ndarray, int]:
  """Decodes a file.

  Returns:
    (float32 [S] or [S, channels] in [-1, 1], sampling rate in Hz).

  Raises:
    UnreadableAudio: missing, empty, corrupt, without samples, or not finite.
  """
  try:
    parts = list(blocks(path))
    return np.concatenate([audio for audio, _ in parts]), parts[0][1]
  except MemoryError as e:
    raise UnreadableAudio(str(e) or "MemoryError") from None


def blocks(path: str | os.PathLike) -> Iterator[tuple[np.ndarray, int]]:
  """Decodes a file piece by piece; arguments and errors as of `read`.

  In pieces also because a broken header may claim any length, and memory for
  it.
  """
  try:
    if os.path.getsize(path) == 0:
      raise UnreadableAudio("the file is empty")
    with soundfile.SoundFile(path) as file:
      audio = file.read(_BLOCK, dtype="float32")
      if len(audio) == 0:
        raise UnreadableAudio("it holds no samples")
      while len(audio):
        if not np.isfinite(audio).all():
          raise UnreadableAudio("it holds samples that are not finite")
        yield audio, file.samplerate
        audio = file.read(_BLOCK, dtype="float32")
  except OSError as e:
    raise UnreadableAudio(e.strerror or str(e)) from None
  except soundfile.LibsndfileError as e:
    raise UnreadableAudio(e.error_string) from None
  except (TypeError, ValueError, RuntimeError, MemoryError) as e:
    raise UnreadableAudio(str(e) or type(e).__name__) from None


def to_mono(audio: np.ndarray, channel: str) -> np.ndarray:
  """[S] or [S, channels] -> [S]; `channel` is "mean" or "first"."""
  if audio.ndim == 1:
    return audio
  mono = audio[:, 0] if channel == "first" else audio.mean(axis=1)
  return np.ascontiguousarray(mono)


def resample(audio: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
  """[S] at `rate` Hz -> float32 at `new_rate` Hz (soxr, high quality)."""
  if rate == new_rate:
    return audio
  return soxr.resample(audio, rate, new_rate, quality="HQ").astype(np.float32)


def resample_blocks(
  audio: Iterable[np.ndarray], rate: float, new_rate: int
) -> Iterator[np.ndarray]:
  """Pieces of a waveform, resampled: together what `resample` gives, exactly.

  Args:
    audio: float32 [S], one after the other.
    rate: theirs, in Hz.
    new_rate: Hz.
  """
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
