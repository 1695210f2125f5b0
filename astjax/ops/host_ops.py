"""Ops of the host: NumPy, on one recording at a time.

Audio comes in through `decode`, from the reader that a recipe's ops are made
with. What changes a length or needs the disk stands here; `OPS` has the ops of
`ops/frontend.py` too, so that the log-mels may be made on either side.
Randomness comes only from the example's key, a function of (seed, position).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from astjax import errors
from astjax.errors import UserError
from astjax.ops import frontend, waveform
from astjax.ops.fbank import FbankSpec
from astjax.ops.frontend import float_waveform
from astjax.ops.recipe import Op, Random
from astjax.types import Array, Example

# A `data.reader.Reader`: what there is to read, and its labels.
Reader = Any
Channel = Literal["mean", "first"]


# Channels are averaged, since a stereo recording may hold its event in either;
# the original takes the first one.
def decode(channel: Channel = "mean", *, reader: Reader) -> Op:
  """Reads the recording `index`: adds audio, sample_rate, num_samples and id.

  In training an unreadable recording is replaced by the next readable one; in
  evaluation its row becomes invalid and holds silence.
  """

  def op(example, key, xp):
    index, is_valid = example["index"], example["valid"]
    if example["replace"]:
      audio, rate, index = reader.read_or_next(index)
    elif (found := reader.read(index)) is not None:
      audio, rate = found
    else:  # a rate of zero stands for it
      audio, rate, is_valid = np.zeros(1, np.float32), 0, False
    read = {"id": np.int32(index), "valid": is_valid, "sample_rate": rate}
    return example | read | _waveform(waveform.to_mono(audio, channel))

  return op


def _waveform(audio: np.ndarray) -> Example:
  """What an op that changes the length gives."""
  return {"audio": audio, "num_samples": np.int32(len(audio))}


def resample(sample_rate: errors.Count) -> Op:
  """To this rate in Hz, whatever the recording's (soxr, high quality)."""

  def op(example, key, xp):
    audio = float_waveform(example, "audio", "resample")
    rate = example["sample_rate"] or sample_rate
    audio = waveform.resample(audio, rate, sample_rate)
    return example | {"sample_rate": sample_rate} | _waveform(audio)

  return op


def _one_waveform(example: Example, op: str) -> Array:
  if example["audio"].ndim != 1:
    raise UserError(f"{op} works on one waveform: put it before views")
  return example["audio"]


def _check_rate(example: Example, op: str, sample_rate: int) -> None:
  if (rate := example["sample_rate"]) not in (0, sample_rate):
    raise UserError(
      f"{op} met a recording of {rate} Hz: put resample({sample_rate}) first"
    )


def random_crop(num_samples: errors.Count) -> Op:
  """So many samples from a place drawn evenly, before `fit`, which pads."""

  @Random
  def op(example, key, xp):
    audio = _one_waveform(example, "random_crop")
    count = example["num_samples"]
    start = _place(xp.uniform(key, 1)[0], max(count - num_samples, 0) + 1)
    # A shorter recording stays whole.
    count = np.int32(min(count, num_samples))
    audio = audio[start : start + num_samples]
    return example | {"audio": audio, "num_samples": count}

  return op


def _place(u: Array, count: int) -> np.ndarray:
  """One of 0 ... count - 1, evenly, from float32 u in [0, 1)."""
  # In double precision the product stays below the count.
  return np.floor(np.asarray(u, np.float64) * count).astype(np.int32)


def roll_waveform(rate: errors.Fraction = 0.5) -> Op:
  """With probability `rate`, rolls the waveform around by 0 ... S samples.

  How far is drawn evenly. Before any op that pads. (ASiT, first release.)
  """

  @Random
  def op(example, key, xp):
    audio = _one_waveform(example, "roll_waveform")
    u = xp.uniform(key, 2)
    shift = _place(u[1], len(audio) + 1) if u[0] < rate else 0
    return example | {"audio": np.roll(audio, shift)}

  return op


def views(
  count: errors.Count = 2,
  seconds: errors.Positive = 6.0,
  local_count: errors.CountOrZero = 0,
  local_seconds: errors.Positive = 2.0,
  sample_rate: errors.Count = 16_000,
  random: bool = True,
) -> Op:
  """Crops of one recording: `audio` [V, S], and maybe `audio_local` [V', S'].

  A shorter waveform is padded with zeros at its end to S, which count as sound.
  Then every crop starts at a place of its own, drawn evenly (ASiT, both
  releases). With random=False, for evaluations, the first one starts at the
  beginning, the last one ends at the end, the others lie evenly between.
  """
  if local_count and local_seconds > seconds:
    raise UserError(f"local crops longer than global ones: {local_seconds} s")
  size = max(1, round(seconds * sample_rate))
  local_size = max(1, round(local_seconds * sample_rate))

  def op(example, key, xp):
    audio = _one_waveform(example, "views")
    _check_rate(example, "views", sample_rate)
    audio = np.pad(audio, (0, max(0, size - len(audio))))
    u = xp.uniform(key, count + local_count) if random else None

    def crops(size, first, count):
      places = len(audio) - size + 1
      if random:
        starts = _place(u[first : first + count], places)
      else:
        starts = (places - 1) * np.arange(count) // max(count - 1, 1)
      return audio[starts[:, None] + np.arange(size)]

    out = {"audio": crops(size, 0, count), "num_samples": np.int32(size)}
    if local_count:
      out["audio_local"] = crops(local_size, count, local_count)
    return example | out

  return Random(op) if random else op


def fit(
  num_frames: errors.Count,
  sample_rate: errors.Count = 16_000,
  frame_length_ms: errors.Positive = 25.0,
  frame_shift_ms: errors.Positive = 10.0,
) -> Op:
  """Cuts or zero-pads the waveform to the samples of `num_frames` frames.

  The first frames are kept, as in the original: 1,024 frames at 16 kHz are
  164,080 samples.
  """
  spec = FbankSpec(sample_rate, frame_length_ms, frame_shift_ms)
  length = spec.num_samples(num_frames)

  def op(example, key, xp):
    audio = _one_waveform(example, "fit")
    _check_rate(example, "fit", sample_rate)
    audio, count = waveform.fit(audio, length)
    return example | {"audio": audio, "num_samples": np.int32(count)}

  return op


def quantise(audio: str = "audio") -> Op:
  """float32 -> int16, rounded and clipped; 16-bit samples come through exactly.

  The last waveform op on the host: whatever side computes the filter banks
  reads these integers.
  """

  def op(example, key, xp):
    x = float_waveform(example, audio, "quantise")
    return example | {audio: waveform.quantise(x)}

  return op


def mix(
  rate: errors.Fraction = 0.5,
  alpha: errors.Positive = 10.0,
  channel: Channel = "mean",
  *,
  reader: Reader,
) -> Op:
  """Mixes the waveform with another one of the whole training set (mixup).

  With probability `rate`, x = l * x1 + (1 - l) * x2, l ~ Beta(alpha, alpha)
  (AST paper, section 3.1; the original's order and means): each waveform loses
  its own mean first and the mixture its mean afterwards; the partner, uniform
  over the source, is cut or zero-padded to the length of the first. `multi_hot`
  after it mixes the labels in the same way. `channel` is that of `decode`.
  """

  def blend(example, partner, share):
    audio, count = example["audio"], example["num_samples"]
    other, other_rate, partner = reader.read_or_next(partner)
    other = waveform.to_mono(other, channel)
    other = waveform.resample(other, other_rate, example["sample_rate"])
    mixed = share * (audio[:count] - audio[:count].mean())
    other = (other - other.mean())[:count]
    mixed[: len(other)] += (np.float32(1.0) - share) * other
    out = np.zeros_like(audio)
    out[:count] = mixed - mixed.mean()
    return {"audio": out, "partner": partner, "share": share}

  @Random
  def op(example, key, xp):
    float_waveform(example, "audio", "mix")
    _one_waveform(example, "mix")
    if "label" in example:
      raise UserError("mix changes the labels: put it before multi_hot")
    # RandomState's stream is frozen across NumPy versions.
    random = np.random.RandomState(key)
    if random.random_sample() >= rate:
      return example
    partner = random.randint(len(reader.source))
    share = np.float32(random.beta(alpha, alpha))
    return example | blend(example, partner, share)

  return op


def multi_hot(num_classes: errors.CountOrZero = 0, *, reader: Reader) -> Op:
  """Adds `label`, float32 [C], of the recording that was read.

  `num_classes` is only a check; 0 takes the number of the source. After `mix`,
  the labels of the two recordings have their shares; a shared one has 1.
  """
  source = reader.source
  size = len(source.class_names)
  if not size:
    told = errors.LABELS_COME_FROM
    raise UserError(f"multi_hot needs labels, the source has none: {told}")
  if num_classes not in (0, size):
    raise UserError(f"multi_hot({num_classes}): the source has {size} classes")

  def op(example, key, xp):
    share = example.get("share", np.float32(1.0))
    label = np.zeros(size, np.float32)
    label[list(source.labels(int(example["id"])))] = share
    if share < 1.0:
      label[list(source.labels(example["partner"]))] += np.float32(1.0) - share
    return example | {"label": label}

  return op


def keep(*names: str) -> Op:
  """Drops every entry but these (id and valid always stay)."""

  def op(example, key, xp):
    return {n: example[n] for n in {*names, "id", "valid"}}

  return op


# Names seed draws, as in `frontend.OPS`.
OPS = frontend.OPS | {
  op.__name__: op
  for op in (
    *(decode, fit, keep, mix, multi_hot, quantise, random_crop, resample),
    *(roll_waveform, views),
  )
}
