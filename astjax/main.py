"""`python -m astjax.main --config=configs/ast_audioset.py --workdir=runs/a`.

Any value of the config can be set on the command line:
--config.input.batch_size=8. The same command resumes a run, and it is the same
on every machine of a TPU pod or of a scheduler's job.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from astjax import cli
from astjax.errors import Outage, Stopped, UserError


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status, see `cli`."""
  parser = cli.Parser(__doc__, config=True)
  cli.add_run_flags(parser)
  return cli.run(_train, parser, argv)


def _train(args: argparse.Namespace) -> None:
  if not args.workdir:
    raise UserError("no work directory: give one with --workdir=FOLDER")
  # C++ libraries read it when they are loaded. What matters of their lines
  # about devices that are not there is raised in Python, too.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  from astjax.run import processes

  group = processes.find(
    os.environ, args.coordinator, args.num_processes, args.process_id
  )
  if group is not None:
    processes.join(group)
  try:
    from astjax import train

    profile = train.parse_window(args.profile) if args.profile else None
    train.train_and_evaluate(args.config, args.workdir, profile=profile)
  except (Stopped, UserError) as e:
    # All of them stop, or have met the same mistake: whoever left first would
    # be missed by the others, and end them with another exit code.
    if not isinstance(e, Outage):
      processes.leave()
    raise


if __name__ == "__main__":
  status = main()
  if status:
    # At once: threads of a failed save, or of collectives with processes that
    # are gone, would be waited for, and with them this process by the others.
    sys.stdout.flush()
    os._exit(status)
