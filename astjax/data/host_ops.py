"""The ops of `config.input.on_host`: one example at a time, inside tf.data.

Audio comes in through `decode`; the ops of `ops/frontend.py` stand here too, so
that the log-mel front-end may run on either side. Randomness comes only from
the example's key, a function of (seed, position).
"""

from __future__ import annotations

import math
import sys
from typing import Literal

import numpy as np
import tensorflow as tf

from astjax.data import audio as audio_
from astjax.data.reader import Reader
from astjax.data.tf_backend import python_call
from astjax.errors import UserError
from astjax.ops import frontend
from astjax.ops import recipe as recipes
from astjax.ops.fbank import FbankSpec
from astjax.ops.frontend import *  # noqa: F403
from astjax.ops.frontend import Op

__all__ = (
  *frontend.__all__,
  "decode",
  "fit",
  "keep",
  "mix",
  "multi_hot",
  "quantise",
  "random_crop",
  "resample",
  "roll_waveform",
  "views",
)


WAVEFORM = tf.TensorSpec([None], tf.float32)


def parse(
  recipe: str, reader: Reader, where: str
) -> tuple[recipes.NamedOp, ...]:
  """The ops of a recipe over the recordings of `reader`."""
  return recipes.parse(recipe, sys.modules[__name__], where, reader=reader)


def decode(channel: Literal["mean", "first"] = "mean", *, reader: Reader) -> Op:
  """Reads the recording `index`: adds audio, sample_rate, num_samples and id.

  Several channels are averaged, or the first is taken (as the original does).
  In training an unreadable recording is replaced by the next readable one; in
  evaluation its row becomes invalid and holds silence.
  """

  def read(index, replace):
    ok = True
    if replace:
      audio, rate, index = reader.read_or_next(int(index))
    elif (found := reader.read(int(index))) is not None:
      audio, rate = found
    else:
      audio, rate, ok = np.zeros(1, np.float32), 0, False
    mono = audio_.to_mono(audio, channel)
    return mono, np.int32(rate), np.int32(index), np.bool_(ok)

  def op(example, key, backend):
    audio, rate, index, ok = python_call(
      read,
      [example["index"], example["replace"]],
      WAVEFORM,
      tf.TensorSpec([], tf.int32),
      tf.TensorSpec([], tf.int32),
      tf.TensorSpec([], tf.bool),
    )
    return example | {
      "audio": audio,
      "sample_rate": rate,
      "num_samples": tf.size(audio),
      "id": index,
      "valid": example["valid"] & ok,
    }

  return op


def resample(sample_rate: int) -> Op:
  """To this rate in Hz, whatever the recording's (soxr, high quality)."""
  if sample_rate < 1:
    raise UserError(f"resample needs a positive rate in Hz, got {sample_rate}")

  def convert(audio, rate):
    # A rate of zero stands for an unreadable recording.
    return audio_.resample(audio, int(rate) or sample_rate, sample_rate)

  def op(example, key, backend):
    _need_float(example, "audio", "resample")
    audio = python_call(
      convert, [example["audio"], example["sample_rate"]], WAVEFORM
    )
    return example | {
      "audio": audio,
      "sample_rate": tf.constant(sample_rate),
      "num_samples": tf.size(audio),
    }

  return op


def _need_float(example, name, op):
  if example[name].dtype != tf.float32:
    raise UserError(
      f"{op} reads a float waveform, {name!r} is {example[name].dtype.name}: "
      "put it before quantise"
    )


def _need_one(example, op):
  if len(example["audio"].shape) != 1:
    raise UserError(
      f"{op} works on one waveform, not on views of it: put it before views "
      "(fit and views exclude each other)"
    )


def random_crop(num_samples: int) -> Op:
  """So many samples from a place drawn evenly; shorter recordings stay whole.

  Before `fit`, which pads.
  """
  if num_samples < 1:
    raise UserError(f"random_crop needs at least one sample, got {num_samples}")

  def op(example, key, backend):
    _need_one(example, "random_crop")
    count = example["num_samples"]
    places = tf.maximum(count - num_samples, 0) + 1
    start = _place(backend.uniform(key, 1)[0], places)
    return example | {
      "audio": example["audio"][start : start + num_samples],
      "num_samples": tf.minimum(count, num_samples),
    }

  op.draws = True
  return op


def _place(u, count):
  """One of 0 ... count - 1, evenly, from float32 u in [0, 1)."""
  # In double precision the product stays below the count.
  return tf.cast(
    tf.floor(tf.cast(u, tf.float64) * tf.cast(count, tf.float64)), tf.int32
  )


def roll_waveform(rate: float = 0.5) -> Op:
  """With probability `rate`, rolls the waveform around by 0 ... S samples.

  How far is drawn evenly. Before whatever pads. (ASiT, first release.)
  """
  if not 0 <= rate <= 1:
    raise UserError(f"roll_waveform needs a rate in [0, 1], got {rate}")

  def op(example, key, backend):
    _need_one(example, "roll_waveform")
    audio = example["audio"]
    u = backend.uniform(key, 2)
    shift = tf.where(u[0] < rate, _place(u[1], tf.size(audio) + 1), 0)
    return example | {"audio": tf.roll(audio, shift, axis=0)}

  op.draws = True
  return op


def views(
  count: int = 2,
  seconds: float = 6.0,
  local_count: int = 0,
  local_seconds: float = 2.0,
  sample_rate: int = 16_000,
  random: bool = True,
) -> Op:
  """Crops of one recording: `audio` [V, S], and maybe `audio_local` [V', S'].

  The waveform is padded with zeros at its end to a global crop, if it is
  shorter; then every crop starts at a place of its own, drawn evenly (ASiT,
  both releases). With random=False, for evaluations, the first one starts at
  the beginning, the last one ends at the end, the others lie evenly between.

  Padding counts as sound: `num_samples` becomes S.

  Args:
    count: V, of global crops.
    seconds: how long these are.
    local_count: V', of local crops; 0 for none.
    local_seconds: how long these are.
    sample_rate: Hz, of the recordings.
    random: whether places are drawn.
  """
  times = (seconds, *((local_seconds,) if local_count else ()))
  if sample_rate < 1 or not all(0 < t < math.inf for t in times):
    raise UserError(
      f"views needs a positive length and rate, got {seconds} s, local "
      f"{local_seconds} s, {sample_rate} Hz"
    )
  if count < 1 or local_count < 0 or times[-1] > seconds:
    raise UserError(
      f"views needs a count of 1 or more and local crops no longer than global "
      f"ones, got {count} of {seconds} s and {local_count} of {local_seconds} s"
    )
  size, *local_size = (max(1, round(t * sample_rate)) for t in times)

  def pad(audio, rate):
    _check_rate("views", sample_rate, rate)
    return np.pad(audio, (0, max(0, size - len(audio))))

  def op(example, key, backend):
    _need_one(example, "views")
    audio, rate = example["audio"], example["sample_rate"]
    audio = python_call(pad, [audio, rate], tf.TensorSpec([None], audio.dtype))
    u = backend.uniform(key, count + local_count) if random else None

    def crops(size, first, count):
      places = tf.size(audio) - size + 1
      if random:
        starts = _place(u[first : first + count], places)
      else:
        starts = (places - 1) * tf.range(count) // max(count - 1, 1)
      return tf.gather(audio, starts[:, None] + tf.range(size))

    example = example | {
      "audio": crops(size, 0, count),
      "num_samples": tf.constant(size),
    }
    if local_count:
      example["audio_local"] = crops(local_size[0], count, local_count)
    return example

  op.draws = random
  op.num_samples = size
  return op


def fit(
  num_frames: int,
  sample_rate: int = 16_000,
  frame_length_ms: float = 25.0,
  frame_shift_ms: float = 10.0,
) -> Op:
  """Cuts or zero-pads the waveform to the samples of `num_frames` frames.

  The first frames are kept, as in the original: 1,024 frames at 16 kHz are
  164,080 samples.
  """
  if num_frames < 1:
    raise UserError(f"fit needs at least one frame, got {num_frames}")
  spec = FbankSpec(
    sample_rate=sample_rate,
    frame_length_ms=frame_length_ms,
    frame_shift_ms=frame_shift_ms,
  )
  length = spec.num_samples(num_frames)

  def cut(audio, rate):
    _check_rate("fit", sample_rate, rate)
    audio, count = audio_.fit(audio, length)
    return audio, np.int32(count)

  def op(example, key, backend):
    _need_one(example, "fit")
    audio, count = python_call(
      cut,
      [example["audio"], example["sample_rate"]],
      tf.TensorSpec([length], example["audio"].dtype),
      tf.TensorSpec([], tf.int32),
    )
    return example | {"audio": audio, "num_samples": count}

  return op


def _check_rate(name, sample_rate, rate):
  # A rate of zero stands for an unreadable recording.
  if rate not in (0, sample_rate):
    raise UserError(
      f"{name}(sample_rate={sample_rate}) met a recording of {rate} Hz: put "
      f"resample({sample_rate}) before it, or give its rate"
    )


def quantise(audio: str = "audio") -> Op:
  """float32 -> int16, rounded and clipped; 16-bit samples come through exactly.

  The last waveform op on the host: whatever side computes the filter banks
  reads these integers.
  """

  def op(example, key, backend):
    _need_float(example, audio, "quantise")
    x = example[audio]
    integers = tf.TensorSpec(x.shape, tf.int16)
    return example | {audio: python_call(audio_.quantise, [x], integers)}

  return op


def mix(
  rate: float = 0.5,
  alpha: float = 10.0,
  channel: Literal["mean", "first"] = "mean",
  *,
  reader: Reader,
) -> Op:
  """Mixes the waveform with another one of the whole training set (mixup).

  With probability `rate`, x = l * x1 + (1 - l) * x2, l ~ Beta(alpha, alpha)
  (AST paper, section 3.1; the original's order and means): each waveform loses
  its own mean first and the mixture its mean afterwards; the partner, uniform
  over the source, is cut or zero-padded to the length of the first. `multi_hot`
  after it mixes the labels alike. `channel` is that of `decode`.
  """
  if not 0 <= rate <= 1 or not 0 < alpha < math.inf:
    raise UserError(
      f"mix needs a rate in [0, 1] and a positive alpha, got {rate}, {alpha}"
    )

  def draw(key, index):
    # RandomState's stream is frozen across NumPy versions.
    random = np.random.RandomState(key)
    if random.random_sample() >= rate:
      return np.int32(index), np.float32(1.0)
    partner = random.randint(len(reader.source))
    return np.int32(partner), np.float32(random.beta(alpha, alpha))

  def blend(audio, count, sample_rate, partner, share):
    if share >= 1.0:
      return audio, partner
    other, other_rate, partner = reader.read_or_next(int(partner))
    other = audio_.to_mono(other, channel)
    other = audio_.resample(other, other_rate, int(sample_rate))
    mixed = share * (audio[:count] - audio[:count].mean())
    other = (other - other.mean())[:count]
    mixed[: len(other)] += (np.float32(1.0) - share) * other
    out = np.zeros_like(audio)
    out[:count] = mixed - mixed.mean()
    return out, np.int32(partner)

  def op(example, key, backend):
    _need_float(example, "audio", "mix")
    _need_one(example, "mix")
    if "label" in example:
      raise UserError("mix changes the labels: put it before multi_hot")
    scalar = tf.TensorSpec([], tf.int32)
    partner, share = python_call(
      draw, [key, example["id"]], scalar, tf.TensorSpec([], tf.float32)
    )
    audio, partner = python_call(
      blend,
      [
        example["audio"],
        example["num_samples"],
        example["sample_rate"],
        partner,
        share,
      ],
      tf.TensorSpec(example["audio"].shape, tf.float32),
      scalar,
    )
    return example | {"audio": audio, "partner": partner, "share": share}

  op.draws = True
  return op


def multi_hot(num_classes: int = 0, *, reader: Reader) -> Op:
  """Adds `label`, float32 [C], of the recording that was read.

  `num_classes` is only a check; 0 takes the number of the source. After `mix`,
  the labels of the two recordings have their shares; a shared one has 1.
  """
  names = reader.source.class_names
  if not names:
    raise UserError(
      "multi_hot needs labels, the source has none: a pattern needs a group "
      "(?P<label>...), a table a column 'labels', a manifest a label_list"
    )
  if num_classes not in (0, len(names)):
    raise UserError(
      f"multi_hot({num_classes}) does not fit the source, which has "
      f"{len(names)} classes"
    )

  def encode(index, partner, share):
    label = np.zeros(len(names), np.float32)
    label[list(reader.source.labels(int(index)))] = share
    if share < 1.0:
      label[list(reader.source.labels(int(partner)))] += np.float32(1.0) - share
    return label

  def op(example, key, backend):
    partner = example.get("partner", example["id"])
    share = example.get("share", tf.constant(1.0))
    label = python_call(
      encode,
      [example["id"], partner, share],
      tf.TensorSpec([len(names)], tf.float32),
    )
    return example | {"label": label}

  return op


def keep(*names: str) -> Op:
  """Drops every entry but these (id and valid always stay)."""

  def op(example, key, backend):
    missing = [n for n in names if n not in example]
    if missing:
      raise UserError(
        f"keep({missing[0]!r}): there is no such entry; there are "
        f"{', '.join(sorted(example))}"
      )
    return {n: example[n] for n in {*names, "id", "valid"}}

  return op
