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

import common

from astjax.data import pipeline
from astjax.engine.step import make_eval_step
from astjax.run import evaluate, job
from configs import asit_digits


class MeanLogMels:
  """Stands in for a task."""

  def features(self, params, task_state, batch):
    """The mean over views and frames, [B, V, T, F] -> [B, F]."""
    return batch["fbank"].mean(axis=(1, 2))


def rate(built: job.Job, task, state) -> float:
  """Accuracy of the evaluation `knn` on some features."""
  split = built.evals["knn"]
  step = make_eval_step(task, split.device_ops, built.mesh, features=True)
  known, out = (
    evaluate.outputs(
      step,
      state,
      pipeline.eval_batches(
        part.reader, part.host_ops, batch_size=part.config.batch_size
      ),
      built.mesh,
    )
    for part in (split.known, split)
  )
  scored = evaluate.probed(split.probe, known, out)
  return evaluate.reduce(split.probe, scored)[0]["accuracy"]


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
