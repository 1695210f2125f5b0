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
from collections.abc import Sequence

import jax
import numpy as np

from astjax import cli
from astjax.engine import sharding
from astjax.engine.step import TrainState, make_eval_step, train_key
from astjax.errors import UserError
from astjax.ops.recipe import apply_rows, row_keys
from astjax.run import evaluation, job, log, streams
from astjax.tools import reconstruct


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = cli.Parser(__doc__)
  add = parser.add_argument
  add("--workdir", required=True, help="of a training run")
  add("--split", default="", help="evaluation to take clips of")
  add("--clips", type=int, default=6, help="how many")
  add("--data_dir", help="if the recordings have moved")
  return cli.run(_report, parser, argv)


def _report(args: argparse.Namespace) -> None:
  folder = pathlib.Path(args.workdir).expanduser()
  loaded, state = job.load_run(folder, data_dir=args.data_dir)
  print(f"wrote {learning_curve(folder)}")
  if loaded.task.head is not None:
    drawn = predictions(loaded, state, folder, args.split, args.clips)
    print(f"wrote {drawn}")
  if loaded.task.saved_objective:
    more = f"astjax.tools.reconstruct --model={folder} RECORDING ..."
    print(f"what it makes of hidden patches: python -m {more}")


def learning_curve(workdir: pathlib.Path) -> pathlib.Path:
  """learning_curve.png: the training loss, and the evaluations beside it."""
  lines = log.read(workdir / "metrics.jsonl")
  keys = {k for line in lines for k in line}
  rated = sorted(k for k in keys if k.endswith(("mAP", "accuracy")))
  figure, ((left, right),) = reconstruct.subplots(1, 2, figsize=(10, 4))
  for name in ("train/loss", *rated):
    points = [(x["step"], x[name]) for x in lines if x.get(name) is not None]
    if points:
      axis = left if name == "train/loss" else right
      axis.plot(*zip(*points, strict=True), label=name, marker=".")
  for axis, title in ((left, "loss"), (right, "evaluation")):
    axis.set(title=title, xlabel="step")
    axis.grid(alpha=0.3)
    if axis.lines:
      axis.legend()
  reconstruct.save(figure, workdir / "learning_curve.png")
  return workdir / "learning_curve.png"


def predictions(
  loaded: job.Job,
  state: TrainState,
  workdir: pathlib.Path,
  split: str = "",
  clips: int = 6,
) -> pathlib.Path:
  """predictions.png: spectrograms, and the classes the model hears in them.

  Of the first so many clips of an evaluation, by default the first one.
  """
  if clips < 1:
    raise UserError(f"--clips={clips} must be at least 1")
  chosen = loaded.own_eval(split)
  # No more of the evaluation than is drawn.
  count = -(-clips // chosen.config.batch_size)
  with contextlib.closing(chosen.batches()) as batches:
    head = list(itertools.islice(batches, count))
  step = make_eval_step(loaded.task, chosen.device_ops, loaded.mesh)
  out = evaluation.outputs(step, state, head, loaded.mesh)
  spectrograms = np.concatenate([_fbank(chosen, loaded, b) for b in head])
  scores = loaded.task.head.probabilities(out["logits"][:clips])
  figure = _draw(chosen, out, scores, spectrograms)
  reconstruct.save(figure, workdir / "predictions.png")
  return workdir / "predictions.png"


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


def _draw(split, out, scores, spectrograms):
  figure, axes = reconstruct.subplots(
    len(scores), 2, figsize=(11, 2.2 * len(scores)), width_ratios=(2, 1)
  )
  for row, (left, right) in enumerate(axes):
    reconstruct.show(left, spectrograms[row])
    name = split.reader.source.name(int(out["id"][row]))
    left.set(title=name, xlabel="frame", ylabel="mel bin")
    top = np.argsort(-scores[row])[:6][::-1]
    true = out["label"][row, top] > 0.5
    right.barh(
      [split.class_names[i] for i in top],
      scores[row, top],
      color=np.where(true, "tab:green", "tab:gray"),
    )
    right.set(xlim=(0, 1), title="score (green: labelled)")
  return figure


if __name__ == "__main__":
  sys.exit(main())
