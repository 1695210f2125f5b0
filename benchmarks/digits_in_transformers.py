"""A run on the spoken digits, exported and evaluated by transformers.

  python benchmarks/digits_in_transformers.py --workdir=runs/digits16 \
    --data_dir=FOLDER/recordings

needs torch and transformers. Exports the run as a Hugging Face folder, loads it
with transformers alone (AutoFeatureExtractor, AutoModelForAudioClassification),
classifies the test recordings, and prints one JSON line: the accuracy of the
run as it logged it, the accuracy there, and their ratio. docs/weights.md has
the command that trains the run: transformers' extractor is made for 16 kHz.
"""

import argparse
import pathlib
import re
import sys
import tempfile

import common
import numpy as np
import soundfile
import soxr

from astjax.run import log
from astjax.tools import convert_weights

TEST = re.compile(r"(\d)_[a-z]+_[0-4]\.wav$")


def main() -> int:
  """Prints the line; the status is 1 if the export fails."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--data_dir", required=True)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    there = pathlib.Path(folder) / "model"
    if convert_weights.main([args.workdir, str(there), "--format=hf"]):
      return 1
    correct = evaluate(there, pathlib.Path(args.data_dir))
  lines = log.read(pathlib.Path(args.workdir) / "metrics.jsonl")
  here = [x["test/accuracy"] for x in lines if "test/accuracy" in x][-1]
  there = float(np.mean(correct))
  common.report(
    "digits_in_transformers",
    recordings=len(correct),
    accuracy_astjax=here,
    accuracy_transformers=there,
    ratio=there / here,
  )
  return 0


def evaluate(model_folder: pathlib.Path, data: pathlib.Path) -> list[bool]:
  """Whether each test recording is classified right, by transformers."""
  import torch
  import transformers

  extractor = transformers.AutoFeatureExtractor.from_pretrained(model_folder)
  model = transformers.AutoModelForAudioClassification.from_pretrained(
    model_folder
  ).eval()
  correct = []
  for path in sorted(p for p in data.glob("*.wav") if TEST.search(p.name)):
    wave, rate = soundfile.read(path, dtype="float32")
    wave = soxr.resample(wave, rate, extractor.sampling_rate)
    inputs = extractor(
      wave, sampling_rate=extractor.sampling_rate, return_tensors="pt"
    )
    with torch.no_grad():
      best = int(model(**inputs).logits.argmax())
    correct.append(model.config.id2label[best] == TEST.search(path.name)[1])
  return correct


if __name__ == "__main__":
  sys.exit(main())
