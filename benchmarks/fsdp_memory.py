"""What splitting parameters over devices saves: memory of a step on each.

  python benchmarks/fsdp_memory.py [--task=supervised] [--variant=base384]
    [--devices=8] [--batch_per_device=1] [--dtype=float32]

Compiles the training step of an AST, SSAST or ASiT at the input size of its
paper for so many fake devices of this CPU, with all arrays whole on each, with
arrays split over all of them, and with blocks computed again in the backward
pass (`remat`) as well. Prints one JSON line. Nothing runs: the numbers are the
compiler's own, and those of temporaries are of a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

PATCHES = {"patch_size": (16, 16), "stride": (16, 16)}
MODELS = {
  "supervised": {},
  "ssast": PATCHES,
  "asit": PATCHES | {"prefix": ("cls",)},
}
ROWS = {
  "supervised": {"fbank": (1024, 128), "label": (527,)},
  "ssast": {"fbank": (1024, 128)},
  "asit": {"fbank": (2, 592, 128), "fbank_local": (4, 192, 128)},
}


def compiled(args: argparse.Namespace, fsdp: int, remat: bool):
  """The step, compiled; the seconds that took."""
  import jax
  import numpy as np

  from astjax import models, tasks
  from astjax.engine import optim, sharding
  from astjax.engine.step import init_state, make_train_step, train_key

  model = {"variant": args.variant, "dtype": args.dtype, "remat": remat}
  model["scan"] = remat  # or a CPU's compiler undoes it
  task = tasks.build(
    args.task,
    {},
    backbone=models.build(model | MODELS[args.task]),
    num_classes=527,
    steps_per_epoch=1000.0,
    total_steps=100_000,
  )
  rows = args.batch_per_device * args.devices
  batch = {
    name: jax.ShapeDtypeStruct((rows, *shape), np.float32)
    for name, shape in ROWS[args.task].items()
  }
  batch["id"] = jax.ShapeDtypeStruct((rows,), np.int32)
  mesh = sharding.make_mesh(fsdp=fsdp)
  key = train_key(0)
  params = jax.eval_shape(task.init_params, key, batch)
  tx = optim.make_optimizer(
    params, lambda step: 1e-4, name="adam", steps_per_epoch=1000.0
  )
  state = jax.eval_shape(lambda p: init_state(task, p, tx), params)
  step = make_train_step(
    task, tx, (), mesh, shardings=sharding.of_state(state, mesh)
  )
  started = time.perf_counter()
  program = step.lower(state, batch, 0, key).compile()
  return program, time.perf_counter() - started


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--task", choices=MODELS, default="supervised")
  parser.add_argument("--variant", default="base384")
  parser.add_argument("--devices", type=int, default=8)
  parser.add_argument("--batch_per_device", type=int, default=1)
  parser.add_argument("--dtype", default="float32")
  args = parser.parse_args()
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + f" --xla_force_host_platform_device_count={args.devices}"
  )
  from astjax.tools import collectives

  found = {}
  for name, fsdp, remat in (
    ("whole", 1, False),
    ("split", args.devices, False),
    ("split_remat", args.devices, True),
  ):
    program, seconds = compiled(args, fsdp, remat)
    memory = program.memory_analysis()
    moves = collectives.parse(program.as_text())
    found[name] = {
      "arguments": memory.argument_size_in_bytes,
      "temporaries": memory.temp_size_in_bytes,
      "sent": {kind: traffic.nbytes for kind, traffic in moves.items()},
      "compile_s": round(seconds, 1),
    }
  sizes = {k: v["arguments"] for k, v in found.items()}
  print(
    json.dumps(
      {
        "benchmark": "fsdp_memory",
        "bytes_per_device": found,
        "whole_to_split": round(sizes["whole"] / sizes["split"], 3),
      }
      | vars(args)
    )
  )


if __name__ == "__main__":
  main()
