"""What k nearest neighbours make of the digits before any training.

  python benchmarks/digits_knn.py FOLDER/recordings [--seeds=3]

The recordings and views are those of the evaluation `knn` of
configs/asit_digits.py: of each recording, three views side by side. Rated are
the class token of untrained networks (of each seed) and the mean log-mels of
the same views. Prints one JSON line; what the trained network does is in its
metrics.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses

import common

from astjax.run import evaluation, job
from configs import asit_digits


class MeanLogMels:
  """Stands in for a task."""

  def features(self, params, task_state, batch):
    """The mean over views and frames, [B, V, T, F] -> [B, F]."""
    return batch["fbank"].mean(axis=(1, 2))


def rate(built: job.Job, task, state) -> float:
  """Accuracy of the evaluation `knn` on some features."""
  stream = built.evals["knn"]
  built = dataclasses.replace(built, task=task)
  out = evaluation.evaluate(built, state, stream)
  return evaluation.reduce(stream.probe, out)[0]["accuracy"]


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("data_dir")
  parser.add_argument("--seeds", type=int, default=3)
  args = parser.parse_args()
  config = asit_digits.get_config("pretrain")
  config.input.data_dir = args.data_dir
  untrained = []
  for seed in range(args.seeds):
    config.seed = seed
    built = job.build(config)
    _, state = job.fresh_state(built)
    untrained.append(rate(built, built.task, state))
  log_mels = rate(built, MeanLogMels(), state)
  common.report(
    "digits_knn",
    untrained=[round(x, 4) for x in untrained],
    mean_log_mels=round(log_mels, 4),
  )


if __name__ == "__main__":
  main()
