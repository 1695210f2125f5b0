"""A linear model on mean log-mels of the spoken digits: what is easy there.

  python benchmarks/digits_linear.py FOLDER/recordings

The same recordings, split and filter banks as configs/ast_digits.py; each
recording becomes the mean of its log-mels over time. Prints one JSON line.
"""

from __future__ import annotations

import sys
import time

import common
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from astjax.data import sources
from astjax.ops import fbank
from astjax.ops.waveform import resample, to_mono
from configs import ast_digits


def features(data_dir: str, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Mean log-mels [n, F] and class numbers [n]."""
  config = ast_digits.get_config()
  source = sources.build(
    "filenames",
    "config.input",
    config.input.source_kw.to_dict(),
    data_dir=data_dir,
    split=split,
  )
  spec = fbank.FbankSpec(
    sample_rate=ast_digits.RATE, num_mel_bins=ast_digits.MELS
  )
  rows, labels = [], []
  for i in range(len(source)):
    audio, rate = source.read(i)
    audio = to_mono(audio, "mean")
    audio = resample(audio, rate, spec.sample_rate)
    rows.append(fbank.fbank(audio, spec).mean(axis=0))
    labels.append(source.labels(i)[0])
  return np.stack(rows), np.array(labels)


def main(data_dir: str) -> None:
  """Fits on the training split, prints the test accuracy."""
  start = time.perf_counter()
  model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
  model.fit(*features(data_dir, "train"))
  accuracy = model.score(*features(data_dir, "test"))
  common.report(
    "digits_linear",
    **{"test/accuracy": round(float(accuracy), 4)},
    seconds=round(time.perf_counter() - start, 1),
  )


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit("usage: python benchmarks/digits_linear.py FOLDER/recordings")
  main(sys.argv[1])
