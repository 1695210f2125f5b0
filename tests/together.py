"""Trains a task in a few steps, as one process of a group.

`python -m tests.together TASK FOLDER SIZE INDEX PORT` prints the rows that this
process has read, [[id, ...], ...] by step.
"""

from __future__ import annotations

import json
import sys

from tests.tiny import tiny_asit, tiny_config, tiny_ssast

STEPS = 5  # two epochs of 20 clips, which meet in one batch
CLIPS = {"num_examples": 20}
TASKS = {"supervised": tiny_config, "ssast": tiny_ssast, "asit": tiny_asit}


def train(task: str, folder) -> list[list[int]]:
  """Trains; returns the ids of this process's rows, step by step."""
  from astjax import train
  from astjax.engine import sharding

  ids, real = [], sharding.to_global

  def note(batch, mesh):
    ids.append(batch["id"].tolist())
    return real(batch, mesh)

  config = TASKS[task](steps=STEPS, input={"source_kw": CLIPS})
  sharding.to_global = note
  try:
    train.train_and_evaluate(config, folder)
  finally:
    sharding.to_global = real
  return ids[:STEPS]


def main(task: str, folder: str, size: str, index: str, port: str) -> None:
  """Joins the others, then trains."""
  from astjax.run import processes

  address = f"127.0.0.1:{port}"
  group = processes.find(
    {},
    coordinator=address,
    num_processes=int(size),
    process_id=int(index),
  )
  processes.join(group)
  print("ROWS " + json.dumps(train(task, folder)), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
