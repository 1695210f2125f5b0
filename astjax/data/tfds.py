"""Datasets of tensorflow-datasets, by random access.

Only files of the ArrayRecord format can be read at any place, which a stream
that is a function of (seed, position) needs. TFDS's stock `Audio` feature keeps
samples as int64, three times the bytes of 16-bit samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from astjax.data.audio import UnreadableAudio
from astjax.data.source import Source
from astjax.errors import CountOrZero, UserError, first_line
from astjax.ops.frontend import INT16_SCALE


class TfdsRecordings(Source):
  """One split of a dataset that has been prepared as ArrayRecord.

  `name` is such as "speech_commands:0.0.3", `split` such as "train[:90%]"; an
  empty `data_dir` is TFDS's default ($TFDS_DATA_DIR). `sample_rate` is for a
  dataset that does not tell its own.

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
    features = builder.info.features
    self._audio = _only(name, features, tfds.features.Audio)
    label = _only(name, features, tfds.features.ClassLabel)
    self._rate = sample_rate or features[self._audio].sample_rate
    if not self._rate:
      raise UserError(
        f"the dataset {name!r} does not tell its sampling rate: give "
        "source_kw.sample_rate"
      )
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
    whole = f"{builder.info.name}/{split}"
    self._names = [f"{whole}[{i}]" for i in range(len(undecoded))]

  def read(self, index: int) -> tuple[np.ndarray, int]:
    """As any source; integers are taken for 16-bit samples."""
    stored = np.asarray(self._data[index][self._audio])
    audio = stored.astype(np.float32)
    if np.issubdtype(stored.dtype, np.integer):
      audio *= np.float32(1.0 / INT16_SCALE)
    if not audio.size or not np.isfinite(audio).all():
      raise UnreadableAudio("it holds no samples, or some that are not finite")
    return audio, self._rate


def _builder(tfds: Any, name: str, data_dir: str) -> Any:
  """TFDS's own object for a dataset that can be read at any place."""
  try:
    builder = tfds.builder(name, **({"data_dir": data_dir} if data_dir else {}))
    problem = "is not prepared"
    if builder.is_prepared():
      problem = f"is prepared as {builder.info.file_format.value}"
    if problem.endswith("array_record"):
      return builder
  except (ValueError, OSError, AssertionError, ImportError) as e:
    # A DatasetNotFoundError is a ValueError, and names the nearest dataset.
    raise UserError(f"TFDS on {name!r}: {first_line(e)}") from None
  keep = f", data_dir={data_dir!r}" if data_dir else ""
  raise UserError(
    f"the dataset {name!r} {problem} in {builder.data_dir}; expected "
    "ArrayRecord. Prepare it with: "
    'python -c "import tensorflow_datasets as tfds; tfds.builder('
    f"{name!r}{keep}, file_format='array_record').download_and_prepare()\", "
    "after removing the folder of another format"
  )


def _one(feature: Any) -> Any:
  """What a sequence of features is made of, else the feature itself."""
  return getattr(feature, "feature", feature)


def _only(dataset: str, features: Any, kind: type) -> str:
  """The name of the only feature of this kind."""
  found = [k for k in features if isinstance(_one(features[k]), kind)]
  if len(found) != 1:
    raise UserError(
      f"the dataset {dataset!r} has {len(found)} features of the kind "
      f"{kind.__name__}, expected one; its features: {', '.join(features)}"
    )
  return found[0]
