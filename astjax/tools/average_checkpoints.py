"""Averages the weights of saved checkpoints of one run, without its data.

  python -m astjax.tools.average_checkpoints --workdir=runs/sounds --last=3 OUT

OUT becomes a model's folder (params.safetensors, config.json), which
`config.init_from` and astjax.tools.convert_weights take.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from astjax import cli
from astjax.errors import UserError
from astjax.run.log import Console
from astjax.run.record import Mean
from astjax.weights import convert, orbax_params
from astjax.weights.info import MODEL, read_info, save_model


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = cli.Parser(__doc__)
  parser.add_argument("--workdir", required=True, help="of a training run")
  which = parser.add_mutually_exclusive_group()
  which.add_argument("--steps", type=cli.listed, help="100,200; else all")
  which.add_argument("--last", type=int, help="how many of the newest")
  parser.add_argument("out", metavar="OUT", help="a new folder")
  return cli.run(_average, parser, argv)


def _average(args: argparse.Namespace) -> None:
  folder, out = (pathlib.Path(x).expanduser() for x in (args.workdir, args.out))
  path = folder / MODEL
  if not path.is_file():
    raise UserError(f"{folder} is not a work directory: it has no {MODEL}")
  if out.exists():
    raise UserError(f"{out} is there already; give a new folder")
  info = read_info(path)
  # The mean of students is not what the run is rated by, or goes on with.
  if info.pretraining and info.pretraining.teacher:
    raise UserError(
      f"the run in {folder} keeps a teacher, which is a running average of its "
      "weights already: take the run as it is"
    )
  mean = Mean()
  with orbax_params.reader(folder) as checkpoints:
    steps = _chosen(checkpoints.steps(), args)
    progress = Console().ticker("checkpoints", len(steps))
    for step in steps:
      mean.add(checkpoints.params(step))
      progress(mean.count)
  told = ", ".join(map(str, steps))
  origin = f"{info.origin}, averaged over steps {told}"
  info = dataclasses.replace(info, origin=origin)
  params = {k: v.astype(np.float32) for k, v in mean.value().items()}
  save_model(out, info, convert.unflatten(params))
  print(f"wrote {args.out}: the mean of steps {told}")


def _chosen(known: list[int], args: argparse.Namespace) -> list[int]:
  if not known:
    raise UserError(f"{args.workdir} has no checkpoint yet")
  last = len(known) if args.last is None else args.last
  if not 1 <= last <= len(known):
    raise UserError(
      f"--last={last}, but the run has {len(known)} checkpoint(s), of "
      f"steps {', '.join(map(str, known))}"
    )
  if args.steps is None:
    return known[-last:]
  try:
    return sorted({int(step) for step in args.steps})
  except ValueError:
    raise UserError(f"--steps={args.steps} are no steps like 100,200") from None


if __name__ == "__main__":
  sys.exit(main())
