"""Rates the mean of the scores of several runs on one evaluation.

  python -m astjax.tools.ensemble runs/a runs/b runs/c --split=val \
    --json=ensemble.json

The same setting with several seeds is the AST paper's Ensemble-S, several
settings are its Ensemble-M. Every run is evaluated by its own recipe, at its
best checkpoint; recordings, labels and classes have to be the same.

With --dump each run's predictions are also written into its work directory, as
<split>_predictions.npz. Such a file can stand in place of a run, so runs on
several machines can be put together.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from astjax import cli
from astjax.errors import UserError, located
from astjax.ops import metrics
from astjax.run import evaluation, job
from astjax.run.log import Console
from astjax.run.record import Mean
from astjax.weights import files


@dataclasses.dataclass(frozen=True)
class Predictions:
  """What a run says about n recordings at one step, as it is dumped."""

  split: str
  step: int
  class_names: np.ndarray  # [C]
  names: np.ndarray  # [n]
  labels: np.ndarray  # [n, C]
  scores: np.ndarray  # [n, C] float64, from `evaluation.scores`


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = cli.Parser(__doc__)
  add = parser.add_argument
  add("runs", nargs="+", metavar="RUN", help="a work directory, or a dump")
  add("--split", default="", help="evaluation; default: the first run's first")
  add("--data_dir", help="if the recordings have moved")
  add("--json", help="file for the metrics")
  add("--dump", action="store_true", help="keep each run's predictions")
  return cli.run(_ensemble, parser, argv)


def _ensemble(args: argparse.Namespace) -> None:
  cli.check_folder("--json", args.json)
  result = rate(args.runs, args.split, args.data_dir, args.dump)
  if args.json:
    files.write_json(args.json, result)
  rows = [*result["runs"], {"run": "ensemble", **result["ensemble"]}]
  columns = ["run", *result["ensemble"]]
  title = f"{result['split']}, {result['num_examples']} recordings"
  Console().table(title, columns, [[row[k] for k in columns] for row in rows])


def rate(
  runs: Sequence[str],
  split: str = "",
  data_dir: str | None = None,
  dump: bool = False,
) -> dict[str, Any]:
  """Metrics of each run (a folder, or what `dump` wrote), and of their mean.

  Returns:
    {"split", "num_examples", "runs": [{"run", "step", "mAP", ...}],
    "ensemble": {"mAP", ...}}.

  Raises:
    UserError: a run cannot be loaded, or the runs do not agree on recordings,
      labels or classes.
  """
  paths = [pathlib.Path(run).expanduser() for run in runs]
  if len({path.resolve() for path in paths}) < len(paths):
    raise UserError(f"a run is given twice: {', '.join(map(str, paths))}")

  def load(path):
    return _read(path) if path.is_file() else predict(path, split, data_dir)

  first = load(paths[0])
  split = split or first.split
  mean, rated = Mean(), []
  for path in paths:
    own = first if path == paths[0] else load(path)
    _check_same(paths[0], first, split, path, own)
    if dump and path.is_dir():
      dumped = path / f"{split}_predictions.npz"
      with files.written_whole(dumped) as whole:
        np.savez(whole, **dataclasses.asdict(own))
    mean.add({"scores": own.scores})
    rates, _ = metrics.classification(own.scores, own.labels)
    rated.append({"run": str(path), "step": own.step, **rates})
  return {
    "split": split,
    "num_examples": len(first.names),
    "runs": rated,
    "ensemble": metrics.classification(mean.value()["scores"], first.labels)[0],
  }


def predict(
  folder: pathlib.Path, split: str = "", data_dir: str | None = None
) -> Predictions:
  """Runs one evaluation of a run at its best (else newest) checkpoint."""
  loaded, state = job.load_run(folder, data_dir=data_dir)
  with located(str(folder)):
    if loaded.task.head is None:
      raise UserError(f"the task {loaded.config.task!r} has no classifier")
    chosen = loaded.own_eval(split)
    out = evaluation.evaluate(loaded, state, chosen, console=Console())
  return Predictions(
    split=chosen.name,
    step=int(state.step),
    class_names=np.array(chosen.class_names),
    names=np.array([chosen.reader.source.name(int(i)) for i in out["id"]]),
    labels=out["label"],
    scores=evaluation.scores(out),
  )


def _check_same(path, first, split, other_path, other):
  """Names the first thing that two runs are not both about."""
  if other.split != split:
    raise UserError(
      f"{other_path} is of the evaluation {other.split!r}, not {split!r}"
    )
  for what, a, b in (
    ("classes", first.class_names, other.class_names),
    ("recordings", first.names, other.names),
    ("labels", first.labels, other.labels),
  ):
    if len(a) != len(b):
      raise UserError(
        f"{other_path} has {len(b)} {what} in {split}, {path} {len(a)}"
      )
    if (a != b).any():
      raise UserError(
        f"{other_path} has other {what} in {split} than {path}: the first that "
        f"differs is number {np.argwhere(a != b)[0, 0]}"
      )


def _read(path: pathlib.Path) -> Predictions:
  try:
    with open(path, "rb") as f, np.load(f, allow_pickle=False) as file:
      fields = {k: file[k] for k in file.files}
    fields |= {"split": str(fields["split"]), "step": int(fields["step"])}
    return Predictions(**fields)
  except Exception:  # a damaged archive or header raises almost anything
    raise UserError(
      f"{path} is neither a work directory nor predictions that --dump wrote"
    ) from None


if __name__ == "__main__":
  sys.exit(main())
