"""Cross-validation: one training per fold, and what they say together.

  python -m astjax.tools.folds --config=configs/ast_esc50.py:audioset \
    --workdir=runs/esc50 --config.input.data_dir=ESC-50-master

trains on all folds but one and evaluates on that one, for each fold, in
WORKDIR/fold_<name>. Every other flag goes to `python -m astjax.main`. Finished
folds are skipped, interrupted ones resumed. The summary is printed and written
to WORKDIR/folds.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from astjax import cli
from astjax.errors import UserError, nearest
from astjax.run import log
from astjax.weights import files


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = cli.Parser(__doc__)
  add = parser.add_argument
  add("--config", required=True, help="as of astjax.main")
  add("--workdir", required=True, help="gets a folder per fold")
  add("--folds", default="1,2,3,4,5", help="names, separated by commas")
  what = "the evaluation on the left-out fold"
  add("--evaluation", default="test", help=what)
  add("--metric", default="accuracy", help="of that evaluation")
  return cli.run(_cross_validate, parser, argv, pass_on=True)


def _cross_validate(args: argparse.Namespace) -> int:
  folds = [f.strip() for f in args.folds.split(",") if f.strip()]
  if len(folds) < 2 or len({*folds}) < len(folds):
    raise UserError(f"--folds={args.folds} must name two folds or more, once")
  file = args.config.split(":")[0]
  if not pathlib.Path(file).is_file():
    raise UserError(f"there is no config file {file!r}")
  workdir = pathlib.Path(args.workdir).expanduser()
  for fold in folds:
    if status := _train(workdir / f"fold_{fold}", fold, folds, args):
      text = f"fold {fold} ended with status {status}; the same command goes on"
      return cli.fail(text, status)
  name = f"{args.evaluation}/{args.metric}"
  curves = {fold: _curve(workdir / f"fold_{fold}", name) for fold in folds}
  result = {"metric": name} | summarise(curves)
  files.write_json(workdir / "folds.json", result)
  _show(result)
  return 0


def _train(folder, fold, folds, args) -> int:
  """One fold in a process of its own; returns its status."""
  # A process of its own: the devices' memory is free again after each, and a
  # fold that crashes leaves the others as they are.
  command = [
    f"--config={args.config}",
    f"--config.input.folds={tuple(f for f in folds if f != fold)!r}",
    f"--config.evals.{args.evaluation}.folds={(fold,)!r}",
    *args.others,
  ]
  # What decides on the training; its data is compared by every run itself.
  digest = files.sha256(args.config.split(":")[0])
  text = json.dumps({"flags": command, "config": digest})
  done = folder / "finished.json"
  if done.is_file() and done.read_text() == text:
    print(f"fold {fold}: finished before")
    return 0
  print(f"fold {fold} of {', '.join(folds)}: {folder}", flush=True)
  status = run(
    [sys.executable, "-m", "astjax.main", *command, f"--workdir={folder}"]
  )
  if status == 0:
    with files.written_whole(done) as whole:
      whole.write_text(text)
  return status


def run(command: Sequence[str]) -> int:
  """Runs it to its end; signals go to it, which saves before it exits."""
  process = subprocess.Popen(command)

  def pass_on(signum, frame):
    with contextlib.suppress(ProcessLookupError):
      process.send_signal(signum)

  signals = (signal.SIGINT, signal.SIGTERM)
  old = {s: signal.signal(s, pass_on) for s in signals}
  try:
    return process.wait()
  finally:
    for signum, handler in old.items():
      signal.signal(signum, handler)


def _curve(folder: pathlib.Path, name: str) -> list[float]:
  """The metric at each evaluation of a run, in order."""
  lines = log.read(folder / "metrics.jsonl")
  values = [x[name] for x in lines if x.get(name) is not None]
  if not values:
    evaluation = name.split("/")[0]
    known = {k for x in lines for k in x if k.split("/")[0] == evaluation}
    raise UserError(f"{folder} has no {name}.{nearest(name, known)}")
  return values


def summarise(curves: dict[str, list[float]]) -> dict:
  """What the folds say together, at two choices of the evaluation.

  The original (AST on ESC-50) takes the evaluation at which the folds' mean is
  highest, which is chosen on the test folds themselves; the last one is chosen
  by nothing.

  Args:
    curves: {fold: the metric at each evaluation}.

  Raises:
    UserError: folds with different numbers of evaluations.
  """
  lengths = {fold: len(values) for fold, values in curves.items()}
  if len({*lengths.values()}) > 1:
    raise UserError(
      f"the folds have different numbers of evaluations: {lengths}"
    )
  values = np.array(list(curves.values()))  # [folds, evaluations]
  best = int(values.mean(axis=0).argmax())

  def at(i):
    column = values[:, i]
    return {
      "evaluation": i % values.shape[1] + 1,
      "folds": dict(zip(curves, map(float, column), strict=True)),
      "mean": float(column.mean()),
      "std": float(column.std(ddof=1)),
    }

  return {
    "evaluations": values.shape[1],
    "last": at(-1),
    "best_mean_on_the_test_folds": at(best),
    "mean_curve": [float(x) for x in values.mean(axis=0)],
  }


def _show(result: dict) -> None:
  titles = {
    "last": "last evaluation",
    "best_mean_on_the_test_folds": "the original's choice (best mean, on the "
    "test folds)",
  }
  print(f"{result['metric']} over {result['evaluations']} evaluations")
  for key, title in titles.items():
    row = result[key]
    folds = "  ".join(f"{k}: {v:.4f}" for k, v in row["folds"].items())
    mean = f"{row['mean']:.4f} +- {row['std']:.4f}"
    print(f"{title}: {mean} (evaluation {row['evaluation']})  {folds}")


if __name__ == "__main__":
  sys.exit(main())
