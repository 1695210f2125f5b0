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
import os
import time

import common

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
  from astjax.engine import sharding
  from astjax.tools import aot

  found = {}
  for name, fsdp, remat in (
    ("whole", 1, False),
    ("split", args.devices, False),
    ("split_remat", args.devices, True),
  ):
    model = {"variant": args.variant, "dtype": args.dtype, "remat": remat}
    model["scan"] = remat  # or a CPU's compiler undoes it
    started = time.perf_counter()
    program = common.compile_step(
      args.task,
      {},
      model | MODELS[args.task],
      ROWS[args.task],
      args.batch_per_device * args.devices,
      sharding.make_mesh(fsdp=fsdp),
      name="adam",
    )
    seconds = time.perf_counter() - started
    memory = program.memory_analysis()
    found[name] = {
      "arguments": memory.argument_size_in_bytes,
      "temporaries": memory.temp_size_in_bytes,
      "sent": aot.read_traffic(program.as_text()),
      "compile_s": round(seconds, 1),
    }
  sizes = {k: v["arguments"] for k, v in found.items()}
  common.report(
    "fsdp_memory",
    bytes_per_device=found,
    whole_to_split=round(sizes["whole"] / sizes["split"], 3),
    **vars(args),
  )


if __name__ == "__main__":
  main()
