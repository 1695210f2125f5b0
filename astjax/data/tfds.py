"""Datasets of tensorflow-datasets, by random access.

Only files of the ArrayRecord format can be read at any place, which a stream
that is a function of (seed, position) needs. TFDS's stock `Audio` feature keeps
samples as int64, three times the bytes of 16-bit samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from astjax.data.audio import UnreadableAudio
from astjax.errors import CountOrZero, UserError, first_line, nearest
from astjax.ops.frontend import INT16_SCALE


class TfdsRecordings:
  """One split of a dataset that has been prepared as ArrayRecord.

  Args:
    name: such as "spoken_digit" or "speech_commands:0.0.3".
    split: such as "train" or "train[:90%]".
    data_dir: of TFDS; empty takes its default ($TFDS_DATA_DIR).
    sample_rate: in Hz, where the dataset does not tell; 0 takes its own.

  Attributes:
    class_names: of its `ClassLabel` feature.

  Raises:
    UserError: TFDS is missing, the dataset is unknown, not prepared or of
      another format, or it has no such split, no audio, no label, no rate.
  """

  def __init__(
    self,
    *,
    name: str,
    split: str = "train",
    data_dir: str = "",
    sample_rate: CountOrZero = 0,
  ):
    try:
      import tensorflow_datasets as tfds
    except ImportError as e:
      raise UserError(
        f"the source 'tfds' needs tensorflow-datasets ({e}): pip install "
        "'astjax[tfds]'"
      ) from None
    split = split or "train"
    builder = _builder(tfds, name, data_dir)
    if split.split("[")[0] not in builder.info.splits:
      splits = list(builder.info.splits)
      raise UserError(
        f"the dataset {name!r} has no split {split!r}.{nearest(split, splits)}"
      )
    features = builder.info.features
    labels = tfds.features.ClassLabel
    self._audio = _only(
      name, "audio", features, lambda f: isinstance(f, tfds.features.Audio)
    )
    label = _only(
      name, "class label", features, lambda f: isinstance(_one(f), labels)
    )
    self._rate = sample_rate or features[self._audio].sample_rate
    if not self._rate:
      raise UserError(
        f"the dataset {name!r} does not tell its sampling rate: give "
        "source_kw.sample_rate"
      )
    self._name = f"{builder.info.name}/{split}"
    self.class_names = tuple(_one(features[label]).names)
    # One pass, without decoding the audio: orders, balancing and checks need
    # all labels.
    skip = {self._audio: tfds.decode.SkipDecoding()}
    try:
      self._data = builder.as_data_source(split=split)
      undecoded = builder.as_data_source(split=split, decoders=skip)
    except (ValueError, NotImplementedError, OSError) as e:
      raise UserError(f"TFDS on {name!r}[{split}]: {first_line(e)}") from None
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


def _builder(tfds: Any, name: str, data_dir: str) -> Any:
  """TFDS's own object for a dataset that can be read at any place."""
  try:
    builder = tfds.builder(name, **({"data_dir": data_dir} if data_dir else {}))
    if not builder.is_prepared():
      problem = f"is not prepared in {builder.data_dir}"
    elif builder.info.file_format.value != "array_record":
      kind = builder.info.file_format.value
      problem = f"is prepared as {kind} in {builder.data_dir}"
    else:
      return builder
  except (ValueError, OSError, AssertionError, ImportError) as e:
    # A DatasetNotFoundError is a ValueError, and names the nearest dataset.
    raise UserError(f"TFDS on {name!r}: {first_line(e)}") from None
  keep = f", data_dir={data_dir!r}" if data_dir else ""
  raise UserError(
    f"the dataset {name!r} {problem}; expected ArrayRecord. Prepare it with: "
    'python -c "import tensorflow_datasets as tfds; tfds.builder('
    f"{name!r}{keep}, file_format='array_record').download_and_prepare()\" "
    "(remove another format's folder first)"
  )


def _one(feature: Any) -> Any:
  """What a sequence of features is made of, else the feature itself."""
  return getattr(feature, "feature", feature)


def _only(
  dataset: str, what: str, features: Any, fits: Callable[[Any], bool]
) -> str:
  """The name of the only feature that fits."""
  found = [k for k in features if fits(features[k])]
  if len(found) != 1:
    raise UserError(
      f"the dataset {dataset!r} has {len(found)} features that are {what}, "
      f"expected one; its features: {', '.join(features)}"
    )
  return found[0]
