"""Trains all three tasks, each in a few steps, as one process of a group.

`python -m tests.together FOLDER SIZE INDEX PORT`; one alone needs no port.
Prints the rows that this process has read, {task: [[id, ...], ...]}.
"""

from __future__ import annotations

import json
import pathlib
import sys

from tests.tiny import tiny_asit, tiny_config, tiny_ssast

STEPS = 5  # two epochs of 20 clips, which meet in one batch
CLIPS = {"num_examples": 20}
TASKS = {"supervised": tiny_config, "ssast": tiny_ssast, "asit": tiny_asit}


def main(folder: str, size: str, index: str, port: str) -> None:
  """Joins the others, then trains one task after the other."""
  from astjax.run import processes

  group = processes.find(
    {},
    coordinator=f"127.0.0.1:{port}" if int(size) > 1 else "",
    num_processes=int(size),
    process_id=int(index) if int(size) > 1 else None,
  )
  if group:
    processes.join(group)
  from astjax import train
  from astjax.engine import sharding

  ids, real = [], sharding.to_global

  def note(batch, mesh):
    ids.append(batch["id"].tolist())
    return real(batch, mesh)

  sharding.to_global = note
  rows = {}
  for name, config in TASKS.items():
    ids.clear()
    train.train_and_evaluate(
      config(steps=STEPS, input={"source_kw": CLIPS}),
      pathlib.Path(folder) / name,
    )
    rows[name] = ids[:STEPS]
  print("ROWS " + json.dumps(rows), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
