"""Measures a model on labelled recordings, beside what it is known to reach.

  python -m astjax.tools.evaluate --model=M --manifest=eval.csv --data_dir=DATA
  python -m astjax.tools.evaluate --model=M --data_dir=sounds

With --manifest, a table of paths and labels (the source `csv`), otherwise a
folder per class. The metrics are those of training's evaluation: the beginning
of each recording is heard, of the trained length.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from astjax import cli
from astjax.data.recordings import Csv, Folder, Recordings
from astjax.data.source import check_labelled, fingerprint
from astjax.errors import UserError, nearest
from astjax.ops import metrics
from astjax.run import log
from astjax.serving.bundle import Bundle
from astjax.tools import predict
from astjax.weights import files


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = cli.Parser(__doc__)
  add = parser.add_argument
  add("--data_dir", required=True, help="what paths are relative to")
  add("--manifest", default="", help="table with the columns path, labels")
  add("--split", default="", help="of the data; all by default")
  what = "of the data, such as 1,2; all by default"
  add("--folds", type=cli.listed, default=(), help=what)
  add("--pattern", default="", help="of a folder's paths, see docs/data.md")
  add("--label_separator", default=",", help="between labels in the table")
  add("--output", default="", help="also write the numbers to a .json file")
  predict.add_model(parser)
  return cli.run(_evaluate, parser, argv)


def _evaluate(args: argparse.Namespace) -> int:
  cli.check_folder("--output", args.output)
  data = _source(args)
  names = data.class_names if args.label_list else ()
  model = predict.load_model(args, names)
  numbers = _class_numbers(model, data)
  paths = [str(data.root / data.name(i)) for i in range(len(data))]
  console = log.Console(stderr=True)
  scored: list[tuple] = []
  unreadable: list[str] = []
  # The beginning alone, as in training: the published numbers are of that.
  heard = predict.hear(model, paths, console, whole=False)
  for i, found in enumerate(heard):
    if isinstance(found, UserError):
      unreadable.append(data.name(i))
      cli.fail(found)
    else:
      labels = [numbers[label] for label in data.labels(i)]
      true = np.isin(np.arange(len(model.class_names)), labels)
      scored.append((found.logits, true.astype(np.float32)))
  if not scored:
    raise UserError("none of the recordings can be read")
  logits, targets = map(np.stack, zip(*scored, strict=True))
  measured, _ = metrics.classification(logits, targets)
  result = {
    "model": model.info.origin,
    "weights": model.digest,
    "data": fingerprint(data),
    "num_examples": len(logits),
    "unreadable": unreadable,
    "measured": files.jsonable(measured),
    "expected": dict([model.info.reported] if model.info.reported else []),
    "reported": model.info.expected,
  }
  _show(result)
  if args.output:
    files.write_json(args.output, result)
  return 1 if unreadable else 0


def _source(args) -> Recordings:
  def file(text):  # as the shell means it, if it is there; else in the data
    path = pathlib.Path(text).expanduser().absolute()
    return str(path) if path.is_file() else text

  given = {"data_dir": args.data_dir, "split": args.split, "folds": args.folds}
  given["label_list"] = file(args.label_list)
  if args.manifest:
    how = {"label_separator": args.label_separator}
    return Csv(csv=file(args.manifest), **given, **how)
  return Folder(**given, **({"pattern": args.pattern} if args.pattern else {}))


def _class_numbers(model: Bundle, data: Recordings) -> list[int]:
  """For each class of the data its number in the model, which has all."""
  if model.info.head is None:
    raise UserError("this model has no classifier to evaluate")
  check_labelled(data, "the data")
  known = model.info.class_names
  if not known:
    raise UserError("the model has no class names: give them with --label_list")
  for name in data.class_names:
    if name not in known:
      raise UserError(
        f"the data's class {name!r} is none of the model's {len(known)}."
        f"{nearest(name, known)[:300]}"
      )
  return [known.index(name) for name in data.class_names]


def _show(result) -> None:
  console = log.Console()
  facts = {
    "data": f"fingerprint {result['data']}",
    "recordings": result["num_examples"],
    "unreadable": len(result["unreadable"]),
  }
  title = f"{result['model']}, SHA-256 {result['weights'][:16]}..."
  console.block(title, facts)
  rows = [
    [name, "none" if value is None else value, result["expected"].get(name, "")]
    for name, value in result["measured"].items()
  ]
  console.table("", ["metric", "measured", "expected"], rows)
  if result["reported"]:
    console.say(f"expected: {result['reported']}, as its publishers report")


if __name__ == "__main__":
  sys.exit(main())
