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
  add("--folds", type=cli.listed, default="1,2,3,4,5", help="their names")
  add("--evaluation", default="test", help="that of the left-out fold")
  add("--metric", default="accuracy", help="of that evaluation")
  return cli.run(_cross_validate, parser, argv, pass_on=True)


def _cross_validate(args: argparse.Namespace) -> int:
  if len({*args.folds}) < max(2, len(args.folds)):
    raise UserError(f"--folds={args.folds} must name two folds or more, once")
  workdir = pathlib.Path(args.workdir).expanduser()
  folders = {fold: workdir / f"fold_{fold}" for fold in args.folds}
  for fold, folder in folders.items():
    if status := _train(folder, fold, args):
      text = f"fold {fold} ended with status {status}; the same command goes on"
      return cli.fail(text, status)
  name = f"{args.evaluation}/{args.metric}"
  curves = {fold: _curve(folder, name) for fold, folder in folders.items()}
  result = {"metric": name} | summarise(curves)
  files.write_json(workdir / "folds.json", result)
  _show(result)
  return 0


def _train(folder, fold, args) -> int:
  """One fold; returns the exit code of its process."""
  others = tuple(f for f in args.folds if f != fold)
  command = [
    f"--config={args.config}",
    f"--config.input.folds={others!r}",
    f"--config.evals.{args.evaluation}.folds={(fold,)!r}",
    *args.others,
  ]
  file = args.config.split(":")[0]
  if not pathlib.Path(file).is_file():
    raise UserError(f"there is no config file {file!r}")
  # What decides on the training; its data is compared by every run itself.
  training = {"flags": command, "config": files.sha256(file)}
  done = folder / "finished.json"
  if done.is_file() and files.read_json(done) == training:
    print(f"fold {fold}: finished before")
    return 0
  print(f"fold {fold} of {', '.join(args.folds)}: {folder}", flush=True)
  # A process of its own: the devices' memory is free again after each, and a
  # fold that crashes leaves the others as they are.
  program = [sys.executable, "-m", "astjax.main"]
  status = run([*program, *command, f"--workdir={folder}"])
  if status == 0:
    files.write_json(done, training)
  return status


def run(command: Sequence[str]) -> int:
  """Runs it to its end; signals go to it, which saves before it exits."""
  process = subprocess.Popen(command)
  old = {
    signum: signal.signal(signum, lambda got, _: process.send_signal(got))
    for signum in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    status = process.wait()
    return status if status >= 0 else 128 - status  # as a shell has it
  finally:
    for signum, handler in old.items():
      signal.signal(signum, handler)


def _curve(folder: pathlib.Path, name: str) -> list[float]:
  """The metric at each evaluation of a run, in order."""
  lines = log.read(folder / "metrics.jsonl")
  values = [x[name] for x in lines if x.get(name) is not None]
  if not values:
    known = {k for x in lines for k in x}
    raise UserError(f"{folder} has no {name}.{nearest(name, known)}")
  return values


def summarise(curves: dict[str, list[float]]) -> dict:
  """What the folds say together, at two choices of the evaluation.

  `curves` are {fold: the metric at each evaluation}, of one length (a UserError
  otherwise). The original (AST on ESC-50) takes the evaluation at which the
  folds' mean is highest, which is chosen on the test folds themselves; the last
  one is chosen by nothing.
  """
  counts = {fold: len(values) for fold, values in curves.items()}
  if len({*counts.values()}) > 1:
    raise UserError(f"folds have different numbers of evaluations: {counts}")
  values = np.array(list(curves.values()))  # [folds, evaluations]
  best = int(values.mean(axis=0).argmax())

  def at(i):
    return {
      "evaluation": i % values.shape[1] + 1,
      "folds": dict(zip(curves, values[:, i].tolist(), strict=True)),
      "mean": values[:, i].mean(),
      "std": values[:, i].std(ddof=1),
    }

  return {
    "evaluations": values.shape[1],
    "last": at(-1),
    "best_mean_on_the_test_folds": at(best),
    "mean_curve": values.mean(axis=0).tolist(),
  }


def _show(result: dict) -> None:
  print(f"{result['metric']} over {result['evaluations']} evaluations")
  best = "the original's choice (best mean, on the test folds)"
  titles = {"last": "last evaluation", "best_mean_on_the_test_folds": best}
  for key, title in titles.items():
    row = result[key]
    folds = "  ".join(f"{k}: {v:.4f}" for k, v in row["folds"].items())
    mean = f"{row['mean']:.4f} +- {row['std']:.4f}"
    print(f"{title}: {mean} (evaluation {row['evaluation']})  {folds}")


if __name__ == "__main__":
  sys.exit(main())
