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

from astjax.errors import UserError, nearest
from astjax.run import log
from astjax.weights import files


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--config", required=True, help="as of astjax.main")
  add("--workdir", required=True, help="gets a folder per fold")
  add("--folds", default="1,2,3,4,5", help="names, separated by commas")
  add(
    "--evaluation", default="test", help="the evaluation on the left-out fold"
  )
  add("--metric", default="accuracy", help="of that evaluation")
  args, others = parser.parse_known_args(argv)
  try:
    folds = [f.strip() for f in args.folds.split(",") if f.strip()]
    if len(folds) < 2 or len({*folds}) < len(folds):
      raise UserError(f"--folds={args.folds} must name two folds or more, once")
    workdir = pathlib.Path(args.workdir).expanduser()
    for fold in folds:
      status = train(workdir, fold, folds, args, others)
      if status:
        print(
          f"astjax: error: fold {fold} ended with status {status}; the same "
          "command goes on",
          file=sys.stderr,
        )
        return status
    curves = {
      fold: curve(workdir / f"fold_{fold}", args.evaluation, args.metric)
      for fold in folds
    }
    result = summarise(curves)
  except UserError as e:
    print(f"astjax: error: {e}", file=sys.stderr)
    return 1
  except OSError as e:
    print(f"astjax: error: {e.strerror} ({e.filename})", file=sys.stderr)
    return 1
  result = {"metric": f"{args.evaluation}/{args.metric}"} | result
  (workdir / "folds.json").write_text(json.dumps(result, indent=2) + "\n")
  print(table(result))
  return 0


def train(
  workdir: pathlib.Path,
  fold: str,
  folds: Sequence[str],
  args: argparse.Namespace,
  others: Sequence[str],
) -> int:
  """One fold in a process of its own; returns its status."""
  folder = workdir / f"fold_{fold}"
  command = [
    f"--config={args.config}",
    f"--config.input.folds={tuple(f for f in folds if f != fold)!r}",
    f"--config.evals.{args.evaluation}.folds={(fold,)!r}",
    *others,
  ]
  file = pathlib.Path(args.config.split(":")[0])
  if not file.is_file():
    raise UserError(f"there is no config file {str(file)!r}")
  # What decides on the training; its data is compared by every run itself.
  text = json.dumps({"flags": command, "config": files.sha256(file)})
  done = folder / "finished.json"
  if done.is_file() and done.read_text() == text:
    print(f"fold {fold}: finished before")
    return 0
  print(f"fold {fold} of {', '.join(folds)}: {folder}", flush=True)
  status = run(
    [sys.executable, "-m", "astjax.main", *command, f"--workdir={folder}"]
  )
  if status == 0:
    part = done.with_suffix(".tmp")
    part.write_text(text)
    part.replace(done)
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


def curve(folder: pathlib.Path, evaluation: str, metric: str) -> list[float]:
  """The metric at each evaluation of a run, in order.

  Raises:
    UserError: the run never logged it.
  """
  lines = log.read(folder / "metrics.jsonl")
  name = f"{evaluation}/{metric}"
  values = [x[name] for x in lines if x.get(name) is not None]
  if not values:
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


def table(result: dict) -> str:
  """For people."""
  lines = [f"{result['metric']} over {result['evaluations']} evaluations"]
  titles = {
    "last": "last evaluation",
    "best_mean_on_the_test_folds": "the original's choice (best mean, on the "
    "test folds)",
  }
  for key, title in titles.items():
    row = result[key]
    folds = "  ".join(f"{k}: {v:.4f}" for k, v in row["folds"].items())
    lines.append(
      f"{title}: {row['mean']:.4f} +- {row['std']:.4f} (evaluation "
      f"{row['evaluation']})  {folds}"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
