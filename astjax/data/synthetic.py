"""A built-in data set: labelled, overlapping sound events, made on the fly.

It lets a model be trained and scored on several labels per clip without
downloading anything. Runs resume on these clips: any change of what is drawn,
or of the order of draws, gives other data under the same name.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
import scipy.fft
import scipy.signal

from astjax.data.source import Source
from astjax.errors import Count, CountOrZero, Positive, UserError, Within

Rng = np.random.Generator
# The pitches below need some room under half of it.
Rate = Annotated[int, Within(lambda rate: rate >= 4000, "at least 4000 Hz")]
_TINY = 1e-12


class Event(NamedTuple):
  """A class: how its sound is made, and its range of seconds."""

  make: Callable[[Rng, int, int], np.ndarray]
  shortest: float
  longest: float


@dataclasses.dataclass(kw_only=True, eq=False)
class Synthetic(Source):
  """Clips of one to three overlapping sound events over background noise.

  The events of a clip are of distinct classes, and the labels name them. Level,
  pitch, length and onset are random, and so are the reverberation and the
  background. A clip depends on the seed, split (any name) and index alone, so
  it may be read in any order and from any thread.
  """

  num_examples: Count = 2000
  seconds: Positive = 2.0
  sample_rate: Rate = 16_000
  split: str = "train"
  seed: CountOrZero = 0

  def __post_init__(self):
    self.class_names = tuple(EVENTS)
    self._size = round(self.seconds * self.sample_rate)
    if not self._size:
      raise UserError(
        f"seconds={self.seconds} is no sample at {self.sample_rate} Hz"
      )

  def __len__(self) -> int:
    return self.num_examples

  def name(self, index: int) -> str:
    """The clip's name, e.g. "train/000123"."""
    return f"{self.split}/{index:06d}"

  def labels(self, index: int) -> tuple[int, ...]:
    """The sorted classes in the clip, without synthesising it."""
    return _draw_labels(self._rng(index))

  def read(self, index: int) -> tuple[np.ndarray, int]:
    """The clip, mono float32 [S] within [-1, 1], and its sample rate."""
    rng = self._rng(index)
    events = [EVENTS[self.class_names[k]] for k in _draw_labels(rng)]
    return _mix(rng, events, self._size, self.sample_rate), self.sample_rate

  def _rng(self, index: int) -> Rng:
    """A fresh generator for this clip; its first draws are the labels."""
    key = [self.seed, zlib.crc32(self.split.encode()), index]
    return Rng(np.random.PCG64(np.random.SeedSequence(key)))


def _draw_labels(rng: Rng) -> tuple[int, ...]:
  count = rng.integers(1, 4)
  drawn = rng.choice(len(EVENTS), size=count, replace=False)
  return tuple(sorted(int(label) for label in drawn))


def _mix(rng: Rng, events: list[Event], size: int, rate: int) -> np.ndarray:
  """Events at random onsets, in one room, over one background."""
  dry, wet = np.zeros((2, size), np.float32)
  for event in events:
    sound = _decibels(rng, -15, 0) * make_event(rng, event, size, rate)
    start = rng.integers(size - len(sound) + 1)
    span = slice(start, start + len(sound))
    dry[span] += sound
    if rng.random() < 0.5:
      wet[span] += _decibels(rng, -15, -3) * sound
  if wet.any():
    dry += scipy.signal.fftconvolve(wet, _tail(rng, rate))[:size]
  background = _noise(rng, size, rate, 20, rate / 2, tilt=rng.random())
  noise_to_signal = _decibels(rng, -25, 0) * _rms(dry)
  dry += background * (noise_to_signal / max(_rms(background), _TINY))
  return _unit_peak(dry) * _decibels(rng, -20, -0.5)


def make_event(rng: Rng, event: Event, limit: int, rate: int) -> np.ndarray:
  """One event of peak 1, faded at both ends, of at most `limit` samples."""
  seconds = rng.uniform(event.shortest, event.longest)
  size = min(round(seconds * rate), limit)
  sound = event.make(rng, size, rate).astype(np.float32)
  ramp = min(round(rng.uniform(0.005, 0.05) * rate), size // 4)
  fade = np.linspace(0, 1, ramp, dtype=np.float32)
  sound[:ramp] *= fade
  sound[size - ramp :] *= fade[::-1]
  return _unit_peak(sound)


def _tail(rng: Rng, rate: int) -> np.ndarray:
  """A room's impulse response: decaying noise of unit energy."""
  size = round(rng.uniform(0.08, 0.25) * rate)
  decay = np.exp(-6 * np.arange(size) / size)
  tail = rng.standard_normal(size, np.float32) * decay.astype(np.float32)
  return tail / np.linalg.norm(tail)


def _tone(rng: Rng, size: int, rate: int) -> np.ndarray:
  return _sing(rng, _pitch(rng, 250, 3000, rate), size, rate, 2)


def _chord(rng: Rng, size: int, rate: int) -> np.ndarray:
  root = _pitch(rng, 250, 700, rate)
  steps = ((0, 4, 7), (0, 3, 7), (0, 5, 9), (0, 4, 7, 10))[rng.integers(4)]
  notes = (_sing(rng, root * 2 ** (s / 12), size, rate, 2) for s in steps)
  return sum(notes, start=np.zeros(size, np.float32))


def _rising_sweep(rng: Rng, size: int, rate: int) -> np.ndarray:
  low, high = _pitch(rng, 200, 700, rate), _pitch(rng, 1500, 6000, rate)
  return _sing(rng, np.geomspace(low, high, size), size, rate, 2)


def _falling_sweep(rng: Rng, size: int, rate: int) -> np.ndarray:
  return _rising_sweep(rng, size, rate)[::-1]


def _tremolo(rng: Rng, size: int, rate: int) -> np.ndarray:
  carrier = _sing(rng, _pitch(rng, 250, 2000, rate), size, rate, 3)
  swell = _sing(rng, rng.uniform(3, 7), size, rate, 1)
  return carrier * (1 - rng.uniform(0.85, 1) * (0.5 + 0.5 * swell))


def _vibrato(rng: Rng, size: int, rate: int) -> np.ndarray:
  bend = rng.uniform(0.04, 0.12) * _sing(rng, rng.uniform(3, 8), size, rate, 1)
  return _sing(rng, _pitch(rng, 300, 1600, rate) * (1 + bend), size, rate, 3)


def _noise_burst(rng: Rng, size: int, rate: int) -> np.ndarray:
  decay = np.exp(-rng.uniform(1, 5) * np.arange(size) / size)
  return _noise(rng, size, rate, 150, rate / 2) * decay


def _click_train(rng: Rng, size: int, rate: int) -> np.ndarray:
  """One short click, repeated in a steady rhythm."""
  length = round(rng.uniform(0.002, 0.006) * rate)
  click = rng.standard_normal(length) * np.exp(-5 * np.arange(length) / length)
  period = rate / rng.uniform(6, 18)
  train = np.zeros(size + length)
  for start in np.arange(min(period, size) / 2, size, period).astype(int):
    train[start : start + length] += click
  return train[:size]


def _hiss(rng: Rng, size: int, rate: int) -> np.ndarray:
  low = rng.uniform(0.4, 0.7) * min(rate / 2, 8000)
  return _noise(rng, size, rate, low, rate / 2)


def _rumble(rng: Rng, size: int, rate: int) -> np.ndarray:
  return _noise(rng, size, rate, 30, rng.uniform(120, 250))


def _sing(
  rng: Rng, hertz: float | np.ndarray, size: int, rate: int, partials: int
) -> np.ndarray:
  """A pitch, steady or one per sample, with up to `partials` harmonics."""
  top = int(0.48 * rate / np.max(hertz))
  count = min(int(rng.integers(1, partials, endpoint=True)), top)
  cycles = np.cumsum(np.broadcast_to(hertz / rate, size)) + rng.random()
  phase = (2 * np.pi * (cycles % 1)).astype(np.float32)
  partial = (np.sin(k * phase) / k for k in range(1, count + 1))
  return sum(partial, start=np.zeros(size, np.float32))


def _noise(
  rng: Rng, size: int, rate: int, low: float, high: float, tilt: float = 0.0
) -> np.ndarray:
  """Noise from `low` to `high` Hz of power 1/f**tilt: white 0, pink 1."""
  # Noise is periodic in the length of its transform, so a longer, fast length
  # does no harm, and only the bins in the band need drawing.
  length = scipy.fft.next_fast_len(max(size, 64), real=True)
  first = max(1, math.ceil(low * length / rate))
  last = max(first, min(int(high * length / rate), length // 2))
  spectrum = np.zeros(length // 2 + 1, np.complex64)
  bins = rng.standard_normal(2 * (last - first + 1), np.float32)
  spectrum[first : last + 1] = bins.view(np.complex64)
  spectrum[1:] *= np.arange(1, len(spectrum), dtype=np.float32) ** (-tilt / 2)
  return scipy.fft.irfft(spectrum, length)[:size]


def _pitch(rng: Rng, low: float, high: float, rate: int) -> float:
  """A frequency in Hz, even on the scale of octaves, below Nyquist."""
  return float(np.exp(rng.uniform(*np.log([low, min(high, 0.45 * rate)]))))


def _decibels(rng: Rng, low: float, high: float) -> np.float32:
  """A random gain between two levels."""
  return np.float32(10 ** (rng.uniform(low, high) / 20))


def _rms(x: np.ndarray) -> float:
  return math.sqrt(float(np.dot(x, x)) / len(x))


def _unit_peak(x: np.ndarray) -> np.ndarray:
  return x / max(np.abs(x).max(), _TINY)


EVENTS: dict[str, Event] = {
  "tone": Event(_tone, 0.3, 1.2),
  "chord": Event(_chord, 0.4, 1.2),
  "rising sweep": Event(_rising_sweep, 0.3, 1.0),
  "falling sweep": Event(_falling_sweep, 0.3, 1.0),
  "tremolo": Event(_tremolo, 0.8, 1.6),
  "vibrato": Event(_vibrato, 0.6, 1.6),
  "noise burst": Event(_noise_burst, 0.08, 0.25),
  "click train": Event(_click_train, 0.5, 1.4),
  "hiss": Event(_hiss, 0.4, 1.2),
  "rumble": Event(_rumble, 0.4, 1.2),
}
