"""What chunks of the patch loss save: memory of a step of ASiT.

  python benchmarks/asit_step.py [--variant=base224] [--batch=20] [--chunk=64]

Compiles the training step of the second release (6 s and 2 s views, outputs of
8,192) for this machine's first device, once with the logits of `chunk` tokens
of each clip at a time (which are computed again on the way back), once with all
of them at once and kept, and prints one JSON line. Nothing runs: the numbers
are the compiler's own. 20 clips are what each of the original's GPUs had.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

import jax
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from astjax import models, tasks
from astjax.engine import optim, sharding
from astjax.engine.step import init_state, make_train_step, train_key

FRAMES, LOCAL_FRAMES, MELS = 592, 192, 128


def compiled(args: argparse.Namespace, chunk: int):
  """The step of a batch, compiled."""
  model = {
    "variant": args.variant,
    "patch_size": (16, 16),
    "stride": (16, 16),
    "prefix": ("cls",),
    "drop_path": 0.1,
    "dtype": args.dtype,
  }
  task = tasks.build(
    "asit",
    {"chunk": chunk},
    backbone=models.build(model),
    num_classes=0,
    steps_per_epoch=1000.0,
    total_steps=100_000,
  )
  rows = lambda *shape: jax.ShapeDtypeStruct(  # noqa: E731
    (args.batch, *shape), np.float32
  )
  batch = {
    "fbank": rows(2, FRAMES, MELS),
    "fbank_local": rows(4, LOCAL_FRAMES, MELS),
    "id": jax.ShapeDtypeStruct((args.batch,), np.int32),
  }
  mesh = sharding.make_mesh(jax.devices()[:1])
  key = train_key(0)
  params = jax.eval_shape(task.init_params, key, batch)
  tx = optim.make_optimizer(
    params,
    lambda step: 1e-4,
    name="adamw",
    no_decay=("(bias|scale)$",),
    clip_each=3.0,
    freeze_first=("projection/last",),
    steps_per_epoch=1000.0,
  )
  state = jax.eval_shape(lambda p: init_state(task, p, tx), params)
  step = make_train_step(task, tx, (), mesh)
  return step.lower(state, batch, 0, key).compile()


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--variant", default="base224")
  parser.add_argument("--batch", type=int, default=20)
  parser.add_argument("--chunk", type=int, default=64)
  parser.add_argument("--dtype", default="float32")
  args = parser.parse_args()
  sizes = {}
  for name, chunk in (("chunked", args.chunk), ("whole", 0)):
    memory = compiled(args, chunk).memory_analysis()
    sizes[name] = {
      "temporaries": memory.temp_size_in_bytes,
      "arguments": memory.argument_size_in_bytes,
    }
  total = {name: sum(parts.values()) for name, parts in sizes.items()}
  print(
    json.dumps(
      {
        "benchmark": "asit_step",
        "device": jax.devices()[0].device_kind,
        "variant": args.variant,
        "dtype": args.dtype,
        "batch": args.batch,
        "chunk": args.chunk,
        "bytes": sizes,
        "whole_to_chunked": round(total["whole"] / total["chunked"], 3),
      }
    )
  )


if __name__ == "__main__":
  main()
