"""Compiles the train step of a config for devices that need not be there.

  python -m astjax.tools.aot --config=configs/ast_audioset.py:full \
    --topology=v5e:4x4 --config.input.batch_size=128

takes the flags of `astjax.main`, so the command line of a run can be pasted. It
tells what the compiler says: does the step fit into the memory, what is sent
between the devices. No data is needed: the shapes of a batch follow from the
recipes. Topologies of TPUs need libtpu (`astjax[tpu]`), and no TPU; without one
it is this machine's devices.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import inspect
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from astjax import cli
from astjax.data.source import Source
from astjax.engine import sharding
from astjax.engine.devices import chip_of, count_flops
from astjax.engine.step import train_key
from astjax.errors import UserError, first_line
from astjax.ops import host_ops, platform, recipe
from astjax.run import config as run_config
from astjax.run import job as jobs
from astjax.run.log import Console

# libtpu looks for a TPU even to describe one, asks a cloud's servers which one
# this machine is, and lets one process at a time do so.
_NO_TPU = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
# HLO, the text of a compiled program, and what sends there.
_SENDS = re.compile(
  r"(all-reduce|all-gather|reduce-scatter|(?:ragged-)?all-to-all|"
  r"collective-(?:broadcast|permute))(-start)?$"
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_OP = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_NAME = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|condition|\w+_computations?)=(%[\w.-]+|{[^}]*})"
)


def read_traffic(text: str) -> dict[str, int]:
  """{kind of collective: bytes} of a program, as `Compiled.as_text()` gives it.

  The bytes are those on one device: of an all-reduce the array that is added
  up, of an all-gather the result, of others what goes in. A loop counts as
  often as it turns, or once where the text does not say how often that is.
  """
  # {computation: {name: (shape, opcode, operands and attributes)}}
  computations: dict[str, dict[str, Sequence[str]]] = {}
  entry, ops = "", dict[str, Sequence[str]]()
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      ops = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
    elif op := _OP.match(line):
      ops[op[1]] = op.groups()[1:]
  # A TPU does one operation in parts beside other work, in the turns of a loop
  # that is busy with that. The parts share its channel, and are one.
  sent: dict[object, list] = {}
  for where, *one in _walk(computations, entry, 1):
    sent[where] = min(sent.get(where, one), one, key=lambda one: one[1])
  found: dict[str, int] = {}
  for kind, times, nbytes in sent.values():
    found[kind] = found.get(kind, 0) + times * nbytes
  return found


def _walk(computations, name: str, times: int) -> Iterator[tuple]:
  """(what it is known by, kind, times, bytes) of all that is sent there."""
  ops = computations[name]
  for shape, opcode, rest in ops.values():
    if sends := _SENDS.match(opcode):
      kind, starts = sends.groups()
      operands = _NAME.findall(rest.partition(")")[0])
      nbytes = sum(_nbytes(ops[x][0]) for x in operands if x in ops)
      if kind == "all-gather":  # what starts one has (operands, results)
        nbytes = _nbytes(shape) - (nbytes if starts else 0)
      channel = re.search(r"\bchannel_id=(\d+)", rest)
      yield channel[1] if channel else object(), kind, times, nbytes
    elif opcode not in ("async-update", "async-done"):  # what async-start calls
      called = _NAME.findall(" ".join(_CALLED.findall(rest)))
      turns = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', rest)
      inner = times * int(turns[1]) if turns else times
      if opcode == "conditional":
        # In a loop (`tasks.base.in_turn`) its branches take turns.
        inner = -(-times // len(called))
      for other in called:
        yield from _walk(computations, other, inner)


def _nbytes(shape: str) -> int:
  """Of "f32[2,3]{1,0}", or of a tuple of such."""
  total = 0
  for kind, bits, sizes in re.findall(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]", shape):
    count = math.prod(int(size) for size in sizes.split(",") if size)
    total += count * int(bits or 8 * (kind == "pred")) // 8
  return total


class _Silence(Source):
  """A source for shapes alone: recordings of one sample, one label each."""

  def __init__(self, num_classes: int, sample_rate: int):
    self.class_names = tuple(f"class {i}" for i in range(num_classes))
    self._rate = sample_rate

  def __len__(self):
    return 100_000  # gives an epoch a plausible length

  def name(self, index):
    return f"silence {index}"

  def labels(self, index):
    return (index % len(self.class_names),)

  def read(self, index):
    return np.zeros(1, np.float32), self._rate


def find_devices(topology: str) -> list[jax.Device]:
  """The devices of a topology; those of a TPU can be compiled for alone."""
  if topology == "local":
    return jax.devices()
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(f"{topology} needs libtpu: pip install 'astjax[tpu]'")
  for name, value in _NO_TPU.items():
    os.environ.setdefault(name, value)
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
  except Exception as e:  # libtpu has no type of its own for it
    raise UserError(
      f"--topology={topology} is neither local nor such as v5e:4x4, says "
      f"libtpu: {first_line(e)}"
    ) from None
  return list(found.devices)


def build(
  config: Mapping[str, Any], devices: list[jax.Device], num_classes: int = 0
) -> jobs.Job:
  """The job of a config on these devices, without its data.

  A source that makes its own sounds, or has a `data_dir`, is used as it is.
  `num_classes` is that of a classifier; 0 takes that of `multi_hot(...)`.
  """
  run = run_config.parse(config)
  mesh = sharding.make_mesh(devices)
  if run.input.source == "synthetic" or run.input.data_dir:
    return jobs.build(config, mesh=mesh)
  # The shapes of a job come from running its recipes once, so silence of the
  # rate and the classes that they name stands in for all of its sources.
  named: dict[str, Any] = {}
  texts = [run.input.on_host, *(e.on_host or "" for e in run.evals.values())]
  for text in texts:
    for name, args, kwargs in recipe.calls(text, "config.input.on_host"):
      with contextlib.suppress(TypeError, KeyError):  # `jobs.build` tells
        bind = inspect.signature(host_ops.OPS[name]).bind_partial
        named = bind(*args, **kwargs).arguments | named
  count = num_classes or named.get("num_classes", 0)
  source = _Silence(count or 2, named.get("sample_rate", 16_000))
  job = jobs.build(config, mesh=mesh, source=source)
  if job.task.head and not count:
    raise UserError(
      "how many classes there are is left to the data by this config: give "
      "--num_classes=N, or the data with --config.input.data_dir=FOLDER"
    )
  return job


def report(job: jobs.Job) -> dict[str, Any]:
  """What there is to say of the step that training would run, as JSON has it.

  Bytes are those of each device. `memory["peak"]` is all of it together, as a
  TPU sets it aside before the step. A step that does not fit has no `memory`,
  but the compiler's `refusal`; `fits` is None where the memory is not known.
  """
  size = job.config.input.batch_size
  device = job.mesh.devices.flat[0]
  chip = chip_of(device)
  memory = chip.memory if chip else 0  # 0 is not known
  if device in jax.devices():  # it is there, and knows what is left for us
    memory = (device.memory_stats() or {}).get("bytes_limit", 0)
  with platform.compiling_for(device.platform):
    step, args = _step(job)
    # Before compiling: XLA counts the body of a loop once.
    matmul_flops = count_flops(step, *args)
    model_flops = job.flops_per_example() * size
    found = _compile(step, args, memory)
  return found | {
    "batch_size": size,
    "devices": job.mesh.size,
    "device_kind": device.device_kind,
    "device_memory": memory,
    "parameters": sum(x.size for x in jax.tree.leaves(args[0].params)),
    "model_flops": model_flops,
    "matmul_flops": matmul_flops,
  }


def _compile(step, args, available: int) -> dict[str, Any]:
  started = time.perf_counter()
  found: dict[str, Any] = {"fits": False, "memory": {}, "traffic": {}}
  try:
    program = step.lower(*args).compile()
  except jax.errors.JaxRuntimeError as e:
    # XLA has one type for all of its errors; the code is in the text alone.
    if not str(e).startswith("RESOURCE_EXHAUSTED"):
      raise
    found["refusal"] = first_line(e)
  else:
    stats = program.memory_analysis()
    used = {
      "arguments": stats.argument_size_in_bytes,
      "outputs": stats.output_size_in_bytes,
      "aliased": stats.alias_size_in_bytes,
      "temporaries": stats.temp_size_in_bytes,
      "program": stats.generated_code_size_in_bytes,
    }
    used["peak"] = sum(used.values()) - 2 * used["aliased"]
    found["fits"] = used["peak"] <= available if available else None
    found |= {"memory": used, "traffic": read_traffic(program.as_text())}
  return found | {"seconds": time.perf_counter() - started}


def _step(job: jobs.Job) -> tuple[Any, tuple]:
  """(the jitted step, its arguments as shapes)."""
  state = jax.eval_shape(lambda: jobs.fresh_state(job)[1])
  batch = {
    name: jax.ShapeDtypeStruct((job.config.input.batch_size, *shape), dtype)
    for name, (shape, dtype) in job.train.row_shapes.items()
  }
  key = jax.eval_shape(lambda: train_key(0))
  scale = [np.float32(1)] if job.config.plateau.metric else []
  step = job.train_step(
    job.optimizer(state.params), sharding.of_state(state, job.mesh)
  )
  return step, (state, batch, 0, key, *scale)


def _show(found: Mapping[str, Any]) -> None:
  console = Console()
  count, size = found["devices"], found["batch_size"]
  kind, memory = found["device_kind"], found["device_memory"]
  facts = {
    "batch": f"{size:,}: {size // count} on each device",
    "parameters": f"{found['parameters']:,}",
    "FLOPs": f"{found['model_flops']:.4g} in the model's matrix products",
    "as written": f"{found['matmul_flops']:.4g}, with front-end and remat",
    "compiled in": f"{found['seconds']:.1f} s",
  }
  console.block(f"{count} x {kind}", facts)
  for title, rows in (
    ("on each device", found["memory"]),
    ("sent between devices in a step", found["traffic"]),
  ):
    if rows:
      nbytes = {k: f"{v / 2**30:>10.3g} GiB" for k, v in rows.items()}
      console.block(title, nbytes)
  verdicts = {True: "fits into", False: "DOES NOT FIT into"}
  verdict = verdicts.get(found["fits"], "may or may not fit into")
  size = f"{memory / 2**30:.3g} GiB" if memory else "unknown memory"
  console.say(f"{verdict} the {size} of {kind} {found.get('refusal', '')}")


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = cli.Parser(__doc__, config=True)
  cli.add_run_flags(parser)  # of a pasted command line; they do nothing here
  add = parser.add_argument
  what = "such as v5e:4x4; local is what this machine has"
  add("--topology", default="local", help=what)
  what = "of a classifier whose config leaves it to the data"
  add("--num_classes", type=int, default=0, help=what)
  add("--json", action="store_true", help="print JSON instead of text")
  return cli.run(_check, parser, argv)


def _check(args: argparse.Namespace) -> None:
  if args.topology != "local":  # nothing is to run on this machine's devices
    jax.config.update("jax_platforms", "cpu")
  devices = find_devices(args.topology)
  with platform.compiling_for(devices[0].platform):
    job = build(args.config, devices, args.num_classes)
  found = report(job)
  if args.json:
    print(json.dumps({"topology": args.topology} | found))
  else:
    _show(found)


if __name__ == "__main__":
  sys.exit(main())
