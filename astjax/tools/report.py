"""Draws a run: its learning curve, and what it hears in a few clips.

  python -m astjax.tools.report --workdir=runs/demo

writes learning_curve.png and, for a classifier, predictions.png into the work
directory.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import pathlib
import sys

import jax
import numpy as np
from absl import logging

from astjax.data import pipeline
from astjax.engine import sharding
from astjax.engine.step import TrainState, make_eval_step, train_key
from astjax.errors import UserError, lookup
from astjax.ops.recipe import apply_rows, row_keys
from astjax.run import evaluation, job, log, streams
from astjax.tools import pictures


def main(argv: list[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True, help="of a training run")
  parser.add_argument("--split", default="", help="evaluation to take clips of")
  parser.add_argument("--clips", type=int, default=6, help="how many")
  parser.add_argument("--data_dir", help="if the recordings have moved")
  args = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)  # orbax warns of reading only
  try:
    folder = pathlib.Path(args.workdir)
    loaded, state = job.load_run(folder, data_dir=args.data_dir)
    written = [str(learning_curve(folder))]
    if loaded.task.head is not None:
      written.append(
        str(
          predictions(loaded, state, folder, split=args.split, clips=args.clips)
        )
      )
  except UserError as e:
    print(f"astjax: error: {e}", file=sys.stderr)
    return 1
  print(f"wrote {' and '.join(written)}")
  if loaded.task.saved_objective:
    print(
      "what it makes of hidden patches: python -m astjax.tools.reconstruct "
      f"--model={folder} RECORDING ..."
    )
  return 0


def learning_curve(workdir: pathlib.Path) -> pathlib.Path:
  """learning_curve.png: the training loss, and the evaluations beside it."""
  plt = pictures.pyplot()
  lines = log.read(workdir / "metrics.jsonl")
  keys = {k for line in lines for k in line}
  rated = sorted(k for k in keys if k.endswith(("mAP", "accuracy")))
  names = ["train/loss", *rated]
  figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
  for name in names:
    points = [(x["step"], x[name]) for x in lines if x.get(name) is not None]
    if points:
      axis = axes[0] if name == "train/loss" else axes[1]
      axis.plot(*zip(*points, strict=True), label=name, marker=".")
  for axis, title in zip(axes, ("loss", "evaluation"), strict=True):
    axis.set(title=title, xlabel="step")
    axis.grid(alpha=0.3)
    if axis.lines:
      axis.legend()
  return pictures.save(figure, workdir / "learning_curve.png")


def predictions(
  loaded: job.Job,
  state: TrainState,
  workdir: pathlib.Path,
  *,
  split: str = "",
  clips: int = 6,
) -> pathlib.Path:
  """predictions.png: spectrograms, and the classes the model hears in them.

  Args:
    loaded: from `job.load_run`.
    state: likewise.
    workdir: where the picture goes.
    split: name of an evaluation; the first by default.
    clips: how many clips, from the start of the split.
  """
  if clips < 1:
    raise UserError(f"--clips={clips} must be at least 1")
  if not loaded.own_evals:
    raise UserError("the config of this run has no evaluation to take clips of")
  chosen = lookup(
    loaded.own_evals, split or next(iter(loaded.own_evals)), "evaluation"
  )
  size = chosen.config.batch_size
  batches = pipeline.eval_batches(
    chosen.reader, chosen.host_ops, batch_size=size
  )
  with contextlib.closing(batches):
    head = list(itertools.islice(batches, -(-clips // size)))
  step = make_eval_step(loaded.task, chosen.device_ops, loaded.mesh)
  out = evaluation.outputs(step, state, head, loaded.mesh)
  spectrograms = np.concatenate([_fbank(chosen, loaded, b) for b in head])
  return _draw(chosen, out, spectrograms, clips, workdir / "predictions.png")


def _fbank(split: streams.Stream, loaded: job.Job, batch: dict) -> np.ndarray:
  def run(batch):
    keys = row_keys(train_key(0), len(batch["id"]))
    return apply_rows(split.device_ops, batch, keys)

  out = jax.jit(run)(sharding.to_global(batch, loaded.mesh))
  if "fbank" not in out:
    raise UserError(
      "the evaluation's recipe ends in patches; a picture needs fbank: leave "
      "out patchify"
    )
  return np.asarray(out["fbank"])[batch["valid"]]


def _draw(split, out, spectrograms, clips, path):
  plt = pictures.pyplot()
  num = min(clips, len(out["id"]))
  scores = 1.0 / (1.0 + np.exp(-out["logits"]))
  figure, axes = plt.subplots(
    num,
    2,
    figsize=(11, 2.2 * num),
    width_ratios=(2, 1),
    squeeze=False,
    layout="constrained",
  )
  for row in range(num):
    left, right = axes[row]
    left.imshow(spectrograms[row].T, origin="lower", aspect="auto")
    left.set(
      title=split.reader.source.name(int(out["id"][row])),
      xlabel="frame",
      ylabel="mel bin",
    )
    top = np.argsort(-scores[row])[:6][::-1]
    true = out["label"][row, top] > 0.5
    right.barh(
      [split.class_names[i] for i in top],
      scores[row, top],
      color=np.where(true, "tab:green", "tab:gray"),
    )
    right.set(xlim=(0, 1), title="score (green: labelled)")
  return pictures.save(figure, path)


if __name__ == "__main__":
  sys.exit(main())
