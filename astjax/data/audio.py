"""Sound files: what libsndfile reads, of any rate and any channels."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import soundfile

SUFFIXES = (
  *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64"),
)

_BLOCK = 1 << 20  # samples


class UnreadableAudio(Exception):
  """A recording that cannot be used; the text is the reason."""


def read(path: str | os.PathLike) -> tuple[np.ndarray, int]:
  """A file as float32 [S] or [S, channels] in [-1, 1], and its rate in Hz.

  Raises:
    UnreadableAudio: missing, empty, corrupt, without samples, or not finite.
  """
  parts = list(blocks(path))
  return np.concatenate([audio for audio, _ in parts]), parts[0][1]


def blocks(path: str | os.PathLike) -> Iterator[tuple[np.ndarray, int]]:
  """As `read`, piece by piece."""
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
  # soundfile asks for the rate of a file without a header by a TypeError.
  except (
    *(OSError, soundfile.SoundFileError),
    *(TypeError, ValueError, MemoryError),
  ) as e:
    # Without the path, which an OSError's own text has.
    said = getattr(e, "strerror", None) or getattr(e, "error_string", None)
    raise UnreadableAudio(said or str(e) or type(e).__name__) from None
