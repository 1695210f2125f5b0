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
  which.add_argument("--steps", type=_steps, help="such as 100,200; else all")
  which.add_argument("--last", type=int, help="how many of the newest")
  parser.add_argument("out", metavar="OUT", help="a new folder")
  return cli.run(_average, parser, argv)


def _steps(text: str) -> list[int]:
  try:
    return [int(step) for step in text.split(",")]
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r} are no steps like 100,200"
    ) from None


def _average(args: argparse.Namespace) -> None:
  steps = average(
    pathlib.Path(args.workdir).expanduser(),
    pathlib.Path(args.out).expanduser(),
    steps=args.steps,
    last=args.last,
  )
  print(f"wrote {args.out}: the mean of steps {', '.join(map(str, steps))}")


def average(
  folder: pathlib.Path,
  out: pathlib.Path,
  *,
  steps: Sequence[int] | None = None,
  last: int | None = None,
) -> list[int]:
  """Writes the mean of the parameters of some checkpoints as a model.

  Of these `steps`, or of the `last` ones, else of all; returns their steps.

  Raises:
    UserError: no such run or checkpoint, a damaged one, or `out` is there.
  """
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
  console = Console()
  with orbax_params.reader(folder) as checkpoints:
    known = checkpoints.steps()
    if not known:
      raise UserError(f"{folder} has no checkpoint yet")
    if last is not None and not 1 <= last <= len(known):
      raise UserError(
        f"--last={last}, but the run has {len(known)} checkpoint(s), of steps "
        f"{', '.join(map(str, known))}"
      )
    chosen = sorted(set(steps)) if steps else known[-(last or 0) :]
    progress = console.ticker("checkpoints", len(chosen))
    for step in chosen:
      mean.add(checkpoints.params(step))
      progress(mean.count)
  info = dataclasses.replace(
    info,
    origin=f"{info.origin}, averaged over steps {', '.join(map(str, chosen))}",
  )
  params = {k: v.astype(np.float32) for k, v in mean.value().items()}
  save_model(out, info, convert.unflatten(params))
  return chosen


if __name__ == "__main__":
  sys.exit(main())
