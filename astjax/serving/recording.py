"""From a recording to the waveforms that a model hears, without TensorFlow.

A recipe's host part cuts every recording to one length. Here a recording may
have any: it is read piece by piece, and comes out as one clip or as windows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from astjax.data import audio as sound_files
from astjax.errors import UserError
from astjax.ops import frontend, host_ops, recipe, waveform
from astjax.ops.fbank import FbankSpec

# Called with the number of a recording and the seconds of it that are done.
Progress = Callable[[int, float], None]

MIN_RATE = 1_000
MAX_RATE = 768_000  # Hz
_MAX_CHANNELS = 64
_BLOCK = 1 << 20  # samples, before and after resampling

# Of integer samples; other types do not say what full scale is.
_SCALES = {"int16": 2.0**15, "int32": 2.0**31}

EXAMPLE = (
  "decode|resample(16_000)|fit(num_frames=1024)|quantise|to_float|center|fbank"
  "|pad_frames|standardize(MEAN, STD)"
)

# What is done here to a recording of any length, in this order.
_HOST = ("decode", "resample", "fit", "quantise")


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A recipe, in two parts: what the host does, and the ops of the device."""

  channel: str  # of several channels, their "mean" or the "first"
  frames: FbankSpec  # sampling rate, length and shift of the frames
  num_frames: int  # T, at which the model was trained
  quantise: bool  # whether the waveform becomes int16
  ops: tuple[recipe.NamedOp, ...]  # of the device


def parse(text: str) -> Recipe:
  """Reads a recipe of a saved model, or of a config.

  Without `resample`, recordings of another rate than the recipe's are resampled
  all the same. `multi_hot` and `keep` are passed over.
  """
  where = "the recipe"
  calls = recipe.calls(text, where)
  parts = [recipe.text(*c) for c in calls if c[0] not in ("multi_hot", "keep")]
  ops = recipe.parse("|".join(parts), host_ops.OPS, where, reader=None)
  if drawn := [op.name for op in ops if recipe.draws(op)]:
    raise UserError(f"{where} draws at random ({drawn[0]}): leave that out")
  names = [op.name for op in ops]
  host = {op.name: op for op in ops if op.name not in frontend.OPS}
  in_order = [name for name in _HOST if name in host]
  if "fit" not in host or names[: len(host)] != in_order:
    raise UserError(
      f"{where} begins with {'|'.join(_HOST)}, each at most once, and needs "
      f"fit(num_frames=...): {text!r}"
    )
  given = {name: op.arguments for name, op in host.items()}
  frames = FbankSpec.of(given["fit"])
  rate = given.get("resample", given["fit"])["sample_rate"]
  if rate != frames.sample_rate:
    raise UserError(
      f"{where} resamples to {rate} Hz and fits at {frames.sample_rate} Hz"
    )
  return Recipe(
    channel=given.get("decode", {}).get("channel", "mean"),
    frames=frames,
    num_frames=given["fit"]["num_frames"],
    quantise="quantise" in host,
    ops=ops[len(host) :],
  )


class Row(NamedTuple):
  """What the model hears at once."""

  start: int  # sample at which it begins, at the recipe's rate
  audio: np.ndarray  # [S] int16 or float32, padded to whole frames
  num_samples: int  # without the padding


@dataclasses.dataclass(frozen=True)
class Cutting:
  """How recordings are cut."""

  recipe: Recipe
  # In frames: the trained length, and longer ones that are heard at once.
  lengths: tuple[int, ...]
  column: int  # frames between two columns of patches
  num_columns: int  # columns of patches in the trained length


class Recording:
  """One recording, read once: a path, or an array [S] or [S, channels]."""

  def __init__(self, source: Any, sample_rate: Any = None, name: str = ""):
    self._source = source
    self._rate = sample_rate  # of an array
    self.name = os.fspath(source) if _is_path(source) else name
    self.seconds = 0.0  # heard so far
    self.peak = 0.0  # highest absolute sample so far

  def rows(self, cutting: Cutting, *, whole: bool = True) -> Iterator[Row]:
    """What the model hears of it, one after the other.

    Without `whole` that is the beginning alone, of the trained length.
    """
    try:
      yield from self._rows(cutting, whole)
    except (sound_files.UnreadableAudio, UserError) as e:
      raise UserError(f"{self.name}: {e}") from None

  def _rows(self, cutting, whole):
    how = cutting.recipe
    frames, trained = how.frames, how.num_frames
    longest = cutting.lengths[-1]
    # Frames between two windows: whole columns of patches, so that embeddings
    # stay evenly spaced.
    pace = cutting.num_columns * cutting.column
    length = frames.num_samples(trained)

    def row(start, audio, num_frames):
      audio, count = waveform.fit(audio, frames.num_samples(num_frames))
      audio = waveform.quantise(audio) if how.quantise else audio
      return Row(start, audio, count)

    start, audio = 0, np.zeros(0, np.float32)  # from `start` on
    for piece in self._waveform(how):
      audio = np.concatenate([audio, piece])
      if not whole and len(audio) >= length:
        break
      if whole and (start or frames.num_frames(len(audio)) > longest):
        while frames.num_frames(len(audio)) >= trained + pace:
          yield row(start, audio, trained)
          start += pace * frames.hop_size
          audio = audio[pace * frames.hop_size :]
    have = frames.num_frames(len(audio))
    if not whole:
      self.seconds = min(self.seconds, length / frames.sample_rate)
      yield row(0, audio, trained)
    elif not start and have <= longest:
      yield row(0, audio, next(n for n in cutting.lengths if n >= have))
    else:
      yield row(start, audio, trained)
      if have > trained:  # a last window, which ends where the recording does
        skip = math.ceil((have - trained) / cutting.column) * cutting.column
        skip *= frames.hop_size
        yield row(start + skip, audio[skip:], trained)

  def _waveform(self, how: Recipe) -> Iterator[np.ndarray]:
    """float32 [S] at the recipe's rate, piece by piece."""
    # soxr gives the same bits in blocks and at once, so a long file need not be
    # held in memory.
    pieces = self._pieces()
    first, rate = next(pieces)
    rate, new_rate = check_rate(rate), how.frames.sample_rate
    step = max(1, min(_BLOCK, int(_BLOCK * rate / new_rate)))

    def mono():
      for block, _ in itertools.chain([(first, rate)], pieces):
        for i in range(0, len(block), step):
          part = block[i : i + step]
          self.peak = max(self.peak, float(np.abs(part).max()))
          self.seconds += len(part) / rate
          yield waveform.to_mono(part, how.channel)

    return waveform.resample_blocks(mono(), rate, new_rate)

  def _pieces(self) -> Iterator[tuple[np.ndarray, float]]:
    if _is_path(self._source):
      yield from sound_files.blocks(self._source)
      return
    audio, scale = check_array(self._source)
    for i in range(0, len(audio), _BLOCK):
      with np.errstate(over="ignore"):
        block = audio[i : i + _BLOCK].astype(np.float32)
      if scale != 1.0:
        block *= np.float32(1 / scale)
      if not np.isfinite(block).all():
        raise UserError("it holds samples that are not finite")
      yield block, self._rate


def beginnings(
  recipe: Recipe, heard: Iterable[Recording]
) -> dict[str, np.ndarray]:
  """A batch of the beginnings of recordings, each of the trained length."""
  cutting = Cutting(
    recipe, lengths=(recipe.num_frames,), column=1, num_columns=1
  )
  rows = [next(one.rows(cutting, whole=False)) for one in heard]
  return {
    "audio": np.stack([row.audio for row in rows]),
    "num_samples": np.array([row.num_samples for row in rows], np.int32),
  }


def check_rate(rate: Any) -> float:
  """A sampling rate in Hz; raises a UserError for what cannot be one."""
  if rate is None:
    raise UserError("an array needs its sampling rate: give sample_rate=, Hz")
  is_number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
  if not is_number or not MIN_RATE <= rate <= MAX_RATE:
    raise UserError(f"a rate of {rate!r} Hz; expected {MIN_RATE} to {MAX_RATE}")
  return int(rate) if rate == int(rate) else float(rate)


def check_array(audio: Any) -> tuple[np.ndarray, float]:
  """([S] or [S, channels], what full scale is); UserErrors for all others."""
  audio = np.asarray(audio)
  kind = str(audio.dtype)
  if kind not in _SCALES and audio.dtype.kind != "f":
    raise UserError(f"samples of type {kind}; expected floats, int16 or int32")
  channels = audio.shape[1] if audio.ndim == 2 else 1
  if audio.ndim not in (1, 2) or audio.size == 0 or channels > _MAX_CHANNELS:
    raise UserError(
      f"an array of shape {audio.shape}; expected a path, [S] or [S, channels] "
      f"of at most {_MAX_CHANNELS} channels, or a list of those"
    )
  return audio, _SCALES.get(kind, 1.0)


def recordings(clips: Any, sample_rate: Any) -> tuple[list[Recording], bool]:
  """(recordings, whether several were given).

  `clips` is a path, an array [S] or [S, channels], or a list of those;
  `sample_rate` is of all arrays or, as a list, of each clip.
  """
  several = isinstance(clips, (list, tuple))
  clips = list(clips) if several else [clips]
  rates = sample_rate
  if not isinstance(rates, (list, tuple)):
    if rates is not None and clips and all(map(_is_path, clips)):
      raise UserError("sample_rate is for arrays; a file knows its own")
    rates = [None if _is_path(clip) else rates for clip in clips]
  if len(rates) != len(clips):
    raise UserError(f"{len(rates)} sample rates for {len(clips)} clips")
  named = "clip {}" if several else "the array"
  return [
    Recording(clip, rate, named.format(i))
    for i, (clip, rate) in enumerate(zip(clips, rates, strict=True))
  ], several


def _is_path(clip: Any) -> bool:
  return isinstance(clip, (str, os.PathLike))
