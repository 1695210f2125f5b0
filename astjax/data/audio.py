"""Sound files: what libsndfile reads, of any rate and any channels."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import soundfile

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
  """Decodes a file piece by piece; arguments and errors as of `read`."""
  # Never as a whole: a broken header may claim any length, and memory for it.
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
