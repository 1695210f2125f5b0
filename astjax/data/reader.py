"""Reads a source's recordings, and deals with the broken ones.

A recording that cannot be read is never dropped silently: it is remembered with
the reason, and in training the next readable one takes its place.
"""

from __future__ import annotations

import threading

import numpy as np

from astjax.data.audio import UnreadableAudio
from astjax.data.source import Source
from astjax.errors import UserError


class Reader:
  """Reading with replacement; `unreadable` is filled as recordings are met."""

  def __init__(self, source: Source):
    self.source = source
    self.unreadable: dict[int, str] = {}  # index -> reason
    self._lock = threading.Lock()

  # Recordings are not checked before a run: of two million files that takes
  # hours. They are met as they are read.
  def read(self, index: int) -> tuple[np.ndarray, int] | None:
    """(audio, rate), or None (and remembered) if it cannot be read."""
    if index in self.unreadable:
      return None
    try:
      return self.source.read(index)
    except UnreadableAudio as e:
      with self._lock:
        self.unreadable[index] = str(e)
      return None

  def read_or_next(self, index: int) -> tuple[np.ndarray, int, int]:
    """(audio, rate, index) of this recording or the next readable one.

    The replacement depends on the data alone, so a stream stays a function of
    (seed, position).
    """
    for offset in range(len(self.source)):
      candidate = (index + offset) % len(self.source)
      if (found := self.read(candidate)) is not None:
        return *found, candidate
    raise self.none_readable()

  def none_readable(self) -> UserError:
    """The error for a source without a single readable recording."""
    first = min(self.unreadable)
    return UserError(
      f"none of the {len(self.source)} recordings can be read; the first, "
      f"{self.source.name(first)}: {self.unreadable[first]}"
    )

  def report(self) -> list[tuple[str, str]]:
    """(name, reason) of all unreadable recordings met so far."""
    with self._lock:
      items = sorted(self.unreadable.items())
    return [(self.source.name(i), reason) for i, reason in items]
