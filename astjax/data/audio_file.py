"""Reading sound files: any format libsndfile knows, any rate, any channels."""

from __future__ import annotations

import os

import numpy as np
import soundfile
import soxr

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
    if os.path.getsize(path) == 0:
      raise UnreadableAudio("the file is empty")
    with soundfile.SoundFile(path) as file:
      # In blocks: a broken header may claim any length, and memory for it.
      blocks = []
      while len(block := file.read(_BLOCK, dtype="float32")):
        blocks.append(block)
      audio = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
      rate = file.samplerate
  except OSError as e:
    raise UnreadableAudio(e.strerror or str(e)) from None
  except soundfile.LibsndfileError as e:
    raise UnreadableAudio(e.error_string) from None
  except (TypeError, ValueError, RuntimeError, MemoryError) as e:
    raise UnreadableAudio(str(e) or type(e).__name__) from None
  if len(audio) == 0:
    raise UnreadableAudio("it holds no samples")
  if not np.isfinite(audio).all():
    raise UnreadableAudio("it holds samples that are not finite")
  return audio, rate


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
