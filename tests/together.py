"""Trains all three tasks, each in a few steps, as one process of a group.

`python -m tests.together FOLDER SIZE INDEX PORT`; one alone needs no port.
Prints the rows that this process has read, {task: [[id, ...], ...]}.
"""

from __future__ import annotations

import json
import pathlib
import sys

from ml_collections import ConfigDict

from tests.tiny import FRAMES, MELS, RATE, tiny_config

STEPS = 6  # two epochs of 24 clips
UNLABELLED = f"decode|fit(num_frames={FRAMES}, sample_rate={RATE})|quantise"
VIEWS = f"views(2, 0.215, 4, 0.115, sample_rate={RATE}"
KEPT = "quantise|quantise('audio_local')|keep('audio', 'audio_local')"


def supervised() -> ConfigDict:
  """Binary cross-entropy."""
  return tiny_config(steps=STEPS)


def ssast() -> ConfigDict:
  """Both of its losses."""
  config = tiny_config(
    steps=STEPS,
    task="ssast",
    best="val/accuracy",
    input={"on_host": f"{UNLABELLED}|keep('audio', 'num_samples')"},
  )
  config.task_kw = {"num_mask": 2}
  return config


def asit() -> ConfigDict:
  """Teacher, centers, two global and four local views."""
  device = "|".join(
    f"to_float('audio{s}')|center('audio{s}', num_samples='')"
    f"|fbank(sample_rate={RATE}, num_mel_bins={MELS}, audio='audio{s}', "
    f"out='fbank{s}')|standardize(-3.559, 3.5, 'fbank{s}')"
    for s in ("", "_local")
  )
  config = tiny_config(
    steps=STEPS,
    task="asit",
    model={"prefix": ("cls",)},
    best="val/recon",
    best_is_lowest=True,
    input={"on_host": f"decode|{VIEWS})|{KEPT}", "on_device": device},
    evals={
      "val": {
        "on_host": f"decode|{VIEWS}, random=False)|{KEPT}",
        "on_device": device,
      }
    },
  )
  config.task_kw = {"hidden": 12, "bottleneck": 8, "outputs": (10,)}
  return config


TASKS = {"supervised": supervised, "ssast": ssast, "asit": asit}


def main(folder: str, size: str, index: str, port: str) -> None:
  """Joins the others, then trains one task after the other."""
  from astjax import processes

  group = processes.find(
    {},
    coordinator=f"127.0.0.1:{port}" if int(size) > 1 else "",
    num_processes=int(size),
    process_id=int(index) if int(size) > 1 else None,
  )
  if group:
    processes.join(group)
  from astjax import sharding, train

  ids, real = [], sharding.to_global

  def note(batch, mesh):
    ids.append(batch["id"].tolist())
    return real(batch, mesh)

  sharding.to_global = note
  rows = {}
  for name, config in TASKS.items():
    ids.clear()
    train.train_and_evaluate(config(), pathlib.Path(folder) / name)
    rows[name] = ids[:STEPS]
  print("ROWS " + json.dumps(rows), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
