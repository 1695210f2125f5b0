"""Datasets of tensorflow-datasets, by random access.

Only files of the ArrayRecord format can be read at any place, which a stream
that is a function of (seed, position) needs. TFDS's stock `Audio` feature keeps
samples as int64, three times the bytes of 16-bit samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from astjax.data.audio import UnreadableAudio
from astjax.errors import UserError, nearest
from astjax.ops.frontend import INT16_SCALE


class TfdsRecordings:
  """One split of a prepared dataset.

  Attributes:
    class_names: of its `ClassLabel` feature.
  """

  def __init__(
    self, builder: Any, split: str, audio: str, label: str, rate: int
  ):
    import tensorflow_datasets as tfds

    self._name = f"{builder.info.name}/{split}"
    self._audio = audio
    self._rate = rate
    self._data = builder.as_data_source(split=split)
    feature = builder.info.features[label]
    self.class_names = tuple(getattr(feature, "feature", feature).names)
    # One pass, without decoding the audio: orders, balancing and checks need
    # all labels.
    skip = {audio: tfds.decode.SkipDecoding()}
    undecoded = builder.as_data_source(split=split, decoders=skip)
    self._labels = [
      tuple(sorted({int(k) for k in np.ravel(undecoded[i][label])}))
      for i in range(len(undecoded))
    ]

  def __len__(self) -> int:
    return len(self._labels)

  def name(self, index: int) -> str:
    """The dataset, its split and the number of the example."""
    return f"{self._name}[{index}]"

  def labels(self, index: int) -> tuple[int, ...]:
    """Class numbers."""
    return self._labels[index]

  def read(self, index: int) -> tuple[np.ndarray, int]:
    """(float32 [S] or [S, channels], rate); integers are 16-bit samples."""
    audio = np.asarray(self._data[index][self._audio])
    if np.issubdtype(audio.dtype, np.integer):
      audio = audio.astype(np.float32) * np.float32(1.0 / INT16_SCALE)
    audio = audio.astype(np.float32, copy=False)
    if not audio.size:
      raise UnreadableAudio("it holds no samples")
    if not np.isfinite(audio).all():
      raise UnreadableAudio("it holds samples that are not finite")
    return audio, self._rate


def load(
  name: str, split: str, data_dir: str, sample_rate: int
) -> TfdsRecordings:
  """A split of a dataset that has been prepared as ArrayRecord.

  Raises:
    UserError: TFDS is missing, the dataset is unknown, not prepared or of
      another format, or it has no such split, no audio, no label, no rate.
  """
  try:
    import tensorflow_datasets as tfds
  except ImportError as e:
    raise UserError(
      f"the source 'tfds' needs tensorflow-datasets ({e}): pip install "
      "'astjax[tfds]'"
    ) from None
  where = {"data_dir": data_dir} if data_dir else {}
  try:
    builder = tfds.builder(name, **where)
  except tfds.core.DatasetNotFoundError:
    raise UserError(
      f"TFDS knows no dataset {name!r}."
      f"{nearest(name, tfds.list_builders())[:300]}"
    ) from None
  except (ValueError, OSError, AssertionError, ImportError) as e:
    reason = str(e).strip().split("\n")[0][:200]
    raise UserError(f"TFDS cannot use the dataset {name!r}: {reason}") from None
  is_ready = builder.is_prepared()
  if not is_ready or builder.info.file_format.value != "array_record":
    what = (
      f"is prepared as {builder.info.file_format.value} in {builder.data_dir}"
      if is_ready
      else f"is not prepared in {builder.data_dir}"
    )
    keep = f", data_dir={data_dir!r}" if data_dir else ""
    raise UserError(
      f"the dataset {name!r} {what}; expected ArrayRecord. Prepare it with: "
      'python -c "import tensorflow_datasets as tfds; tfds.builder('
      f"{name!r}{keep}, file_format='array_record').download_and_prepare()\" "
      "(remove another format's folder first)"
    )
  splits = list(builder.info.splits)
  if split.split("[")[0] not in splits:
    raise UserError(
      f"the dataset {name!r} has no split {split!r}.{nearest(split, splits)}"
    )
  features = builder.info.features
  audio = _only(features, _is_audio, name, "audio")
  label = _only(features, _is_label, name, "class label")
  rate = sample_rate or getattr(features[audio], "sample_rate", None)
  if not rate:
    raise UserError(
      f"the dataset {name!r} does not tell its sampling rate: give "
      "source_kw.sample_rate"
    )
  try:
    return TfdsRecordings(builder, split, audio, label, int(rate))
  except (ValueError, NotImplementedError, OSError) as e:
    reason = str(e).strip().split("\n")[0][:200]
    raise UserError(f"TFDS cannot read {name!r}[{split}]: {reason}") from None


def _is_audio(feature: Any) -> bool:
  import tensorflow_datasets as tfds

  return isinstance(feature, tfds.features.Audio)


def _is_label(feature: Any) -> bool:
  import tensorflow_datasets as tfds

  return isinstance(
    getattr(feature, "feature", feature), tfds.features.ClassLabel
  )


def _only(features: Any, fits: Any, name: str, what: str) -> str:
  found: Iterable[str] = [k for k in features if fits(features[k])]
  if len(found) != 1:
    raise UserError(
      f"the dataset {name!r} has {len(found)} features that are {what}, "
      f"expected one; its features: {', '.join(features)}"
    )
  return found[0]
