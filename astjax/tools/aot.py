"""Compiles the train step of a config for devices that need not be there.

  python -m astjax.tools.aot --config=configs/ast_audioset.py:full \
    --topology=v5e:4x4 --config.input.batch_size=128

takes the flags of `astjax.main`, so the command line of a run can be pasted. It
tells what the compiler says: does the step fit into the memory, what is sent
between the devices. No data is needed: the shapes of a batch follow from the
recipes. Topologies of TPUs need libtpu (`astjax[tpu]`), and no TPU; without one
it is this machine's devices. --suggest looks for the largest batch that fits.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from astjax import cli
from astjax.data.source import Source
from astjax.engine import sharding
from astjax.engine.devices import CHIPS, Chip, chip_of, count_flops
from astjax.engine.step import train_key
from astjax.errors import UserError, first_line
from astjax.ops import host_ops, platform
from astjax.ops.recipe import calls
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


def read_traffic(text: str) -> dict[str, dict[str, Any]]:
  """What a program sends, from its text as `Compiled.as_text()` gives it.

  Returns:
    {kind: {"count", "nbytes", "in_unknown_loop"}}: how many such operations
    run; what they are about on one device (of an all-reduce the array that is
    added up, of an all-gather the result, of others what goes in); whether one
    stands in a loop of unknown length, and is counted as if that turned once.

  Raises:
    UserError: this is no such text.
  """
  computations, entry, ops = {}, "", {}
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      ops = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
    elif op := _OP.match(line):
      ops[op[1]] = op.groups()[1:]
  if not entry:
    raise UserError("the text of the compiled program has no entry computation")
  sent: dict[object, list] = {}
  for channel, *op in _walk(computations, entry, 1, False):
    # A TPU does one operation in parts beside other work, in the turns of a
    # loop that is busy with that. The parts share its channel, and are one.
    channel = channel or len(sent)
    sent[channel] = min(sent.get(channel, op), op, key=lambda op: op[2])
  found: dict[str, dict[str, Any]] = {}
  for kind, nbytes, times, unknown in sent.values():
    nothing = {"count": 0, "nbytes": 0, "in_unknown_loop": False}
    one = found.setdefault(kind, nothing)
    one["count"] += times
    one["nbytes"] += times * nbytes
    one["in_unknown_loop"] |= unknown
  return found


def _walk(computations, name, times, unknown) -> Iterator[tuple]:
  """(channel, kind, bytes, how often, or at least so often) of what sends."""
  ops = computations.get(name, {})
  for shape, opcode, rest in ops.values():
    if sends := _SENDS.match(opcode):
      kind, starts = sends.groups()
      operands = _NAME.findall(rest.partition(")")[0])
      nbytes = sum(_nbytes(ops[x][0]) for x in operands if x in ops)
      if kind == "all-gather":  # what starts one has (operands, results)
        nbytes = _nbytes(shape) - (nbytes if starts else 0)
      channel = re.search(r"\bchannel_id=(\d+)", rest)
      yield channel and channel[1], kind, nbytes, times, unknown
      continue
    if opcode in ("async-update", "async-done"):
      continue  # they name what async-start has called
    called = _NAME.findall(" ".join(_CALLED.findall(rest)))
    inner, lost = times, unknown
    if opcode == "while":
      turns = _turns(rest, computations[called[0]])  # its condition
      inner, lost = times * (turns or 1), unknown or not turns
    elif opcode == "conditional":
      # In a loop (`tasks.base.in_turn`) its branches take turns.
      inner = -(-times // len(called))
    for one in called:
      yield from _walk(computations, one, inner, lost)


def _turns(loop: str, condition: dict[str, tuple]) -> int:
  """How often a loop turns, 0 if it is not known.

  XLA says so for a CPU. For a TPU it does not, but leaves the end of JAX's
  loops as they are written: they count from 0 up to a constant.
  """
  if stated := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop):
    return int(stated[1])
  _, opcode, rest = [*condition.values()][-1]
  if opcode != "compare" or "direction=LT" not in rest:
    return 0
  compared = [condition.get(x) for x in _NAME.findall(rest.partition(")")[0])]
  ends = [op[2] for op in compared if op and op[1] == "constant"]
  return int(ends[0].partition(")")[0]) if len(ends) == 1 else 0


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
    raise UserError(
      f"--topology={topology} needs libtpu, not a TPU: pip install "
      "'astjax[tpu]'"
    )
  for name, value in _NO_TPU.items():
    os.environ.setdefault(name, value)
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
  except Exception as e:  # libtpu has no type of its own for it
    tpus = [c.name for kind, c in CHIPS.items() if kind.startswith("TPU")]
    raise UserError(
      f"libtpu does not take --topology={topology}; expected local or a TPU's "
      f"version and shape, such as v5e:4x4 (versions: "
      f"{', '.join(dict.fromkeys(tpus))}): {first_line(e)}"
    ) from None
  return list(found.devices)


def build(
  config: Mapping[str, Any], devices: list[jax.Device], num_classes: int = 0
) -> jobs.Job:
  """The job of a config on these devices, without its data.

  A source that makes its own sounds, or has a `data_dir`, is used as it is.
  `num_classes` is that of a classifier; 0 takes that of `multi_hot(...)`.

  Raises:
    UserError: a mistake in the config, or the number of classes is not known.
  """
  run = run_config.parse(config)
  mesh = sharding.make_mesh(devices)
  if run.input.source == "synthetic" or run.input.data_dir:
    return jobs.build(config, mesh=mesh)
  recipes = [run.input.on_host]
  recipes += [e.on_host for e in run.evals.values() if e.on_host]
  count = num_classes or _argument("num_classes", recipes)
  rate = _argument("sample_rate", recipes) or 16_000
  job = jobs.build(config, mesh=mesh, source=_Silence(count or 2, rate))
  if job.task.head and not count:
    raise UserError(
      "how many classes there are is left to the data by this config: give "
      "--num_classes=N, or the data with --config.input.data_dir=FOLDER"
    )
  return job


def _argument(wanted, recipes):
  """The first value that an op of these host recipes gives it; else 0."""
  for recipe in recipes:
    for name, args, kwargs in calls(recipe, "config.input.on_host"):
      with contextlib.suppress(TypeError, KeyError):  # `build` tells
        bind = inspect.signature(host_ops.OPS[name]).bind_partial
        if found := bind(*args, **kwargs).arguments.get(wanted):
          return found
  return 0


def compile_step(job: jobs.Job, batch_size: int = 0) -> dict[str, Any]:
  """Compiles the step that training would run; bytes are of each device.

  Args:
    job: from `build`.
    batch_size: B, over all devices; 0 takes the config's.

  Returns:
    {"batch_size", "seconds" of compiling, "memory": bytes by what they are for,
    "fits", "traffic": see `read_traffic`}. `memory["peak"]` is all of it
    together, as a TPU sets it aside before the step; of a step that does not
    fit it is all that is known. `fits` is None where the memory is unknown.
  """
  batch_size = batch_size or job.config.input.batch_size
  step, args = _step(job, batch_size)
  started = time.perf_counter()
  found = {"batch_size": batch_size, "traffic": {}}
  try:
    program = step.lower(*args).compile()
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    used, fits = _exhausted(str(e)), False
  else:
    found["traffic"] = read_traffic(program.as_text())
    stats = program.memory_analysis()
    used = {
      "arguments": stats.argument_size_in_bytes,
      "outputs": stats.output_size_in_bytes,
      "aliased": stats.alias_size_in_bytes,
      "temporaries": stats.temp_size_in_bytes,
      "program": stats.generated_code_size_in_bytes,
    }
    used["peak"] = sum(used.values()) - 2 * used["aliased"]
    memory = _memory_of(job.mesh)
    fits = used["peak"] <= memory if memory else None
  seconds = time.perf_counter() - started
  return found | {"seconds": seconds, "memory": used, "fits": fits}


def _step(job, batch_size):
  """(the jitted step, its arguments as shapes)."""
  state = jax.eval_shape(lambda: jobs.fresh_state(job)[1])
  batch = {
    name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
    for name, (shape, dtype) in job.train.row_shapes.items()
  }
  key = jax.eval_shape(lambda: train_key(0))
  scale = [np.float32(1)] if job.config.plateau.metric else []
  step = job.train_step(
    job.optimizer(state.params), sharding.of_state(state, job.mesh)
  )
  return step, (state, batch, 0, key, *scale)


def _memory_of(mesh) -> int:
  """Bytes of one device; 0 is unknown."""
  device = mesh.devices.flat[0]
  if device in jax.devices():  # it is there, and knows what is left for us
    return (device.memory_stats() or {}).get("bytes_limit", 0)
  return chip.memory if (chip := chip_of(device)) else 0


def _exhausted(message: str) -> dict[str, int]:
  """What a compiler that ran out of memory says that it needed."""
  number = r"([\d.]+)([KMGT]?)"
  if not (found := re.search(rf"Used {number} of {number} hbm", message)):
    return {}
  return {"peak": int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))}


def largest_batch(
  fits: Callable[[int], bool], unit: int, first: int, most: int = 2**20
) -> int:
  """The largest multiple of `unit`, up to `most`, that fits; 0 if none does.

  From `first` on it is doubled, then bisected; exact up to 16 units, above to a
  sixteenth, since each attempt compiles.
  """
  low, high = 0, most // unit + 1  # in units: fits, does not fit
  size = min(max(first // unit, 1), high - 1)
  while high - low > max(1, low // 16):
    low, high = (size, high) if fits(size * unit) else (low, size)
    size = min(2 * low or high, (low + high) // 2)
  return low * unit


def report(
  job: jobs.Job, *, suggest: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
  """Everything that there is to say, as JSON would have it.

  With `suggest` also the largest batch; `say` is told of those tried.
  """
  device, memory = job.mesh.devices.flat[0], _memory_of(job.mesh)
  if suggest and not memory:
    raise UserError("--suggest needs devices of known memory: give --topology")
  with platform.compiling_for(device.platform):
    step, args = _step(job, job.config.input.batch_size)
    chip, total = chip_of(device), count_flops(step, *args)
    found = compile_step(job)
    size = found["batch_size"]
    found |= {
      "devices": job.mesh.size,
      "device_kind": device.device_kind,
      "device_memory": memory,
      "parameters": sum(x.size for x in jax.tree.leaves(args[0].params)),
      "model_flops": job.flops_per_example() * size,
      "matmul_flops": total,
      "at_best": at_best(chip, job.mesh.size, total, found["traffic"]),
    }

    def fits(tried):
      if tried == size:
        return found["fits"]
      other = compile_step(job, tried)
      what = "fits" if other["fits"] else "does not fit"
      say(f"batch {tried:,} {what} ({other['seconds']:.0f} s)")
      return other["fits"]

    if suggest:
      unit = job.mesh.size * job.config.accumulate
      found["largest_batch"] = largest_batch(fits, unit, size)
  return found


def at_best(
  chip: Chip | None, count: int, matmul_flops: float, traffic: Mapping
) -> dict[str, float]:
  """Seconds of a step with pencil and paper, as far as the chip is known.

  `compute` is all matrix products at the peak; `send` is what a ring of all
  devices puts on the links of each of them: what an all-gather or a
  reduce-scatter is about once, of an all-reduce twice.
  """
  found = {"compute": matmul_flops / count / chip.flops} if chip else {}
  if chip and chip.link:
    nbytes = sum(one["nbytes"] for one in traffic.values())
    nbytes += traffic.get("all-reduce", {"nbytes": 0})["nbytes"]
    found["send"] = nbytes * (count - 1) / count / (chip.link / 2)
  return found


def _show(found: Mapping[str, Any], console: Console) -> None:
  count, size = found["devices"], found["batch_size"]
  kind, memory = found["device_kind"], found["device_memory"]
  facts = {
    "batch": f"{size:,}: {size // count} on each device",
    "parameters": f"{found['parameters']:,}",
    "FLOPs": f"{found['model_flops']:.4g} a step in the model's matrix "
    "products, over all devices",
    "as written": f"{found['matmul_flops']:.4g}, with the front-end and what "
    "remat repeats",
  }
  for name, seconds in found["at_best"].items():
    facts[f"{name} at best"] = f"{1000 * seconds:.3g} ms, by its data sheet"
  facts["compiled in"] = f"{found['seconds']:.1f} s"
  console.block(f"{count} x {kind}", facts)
  nbytes = {k: f"{_readable(v):>10}" for k, v in found["memory"].items()}
  console.block("bytes on each device", nbytes or {"peak": "not known"})
  verdict = {True: "fits into", False: "DOES NOT FIT into"}.get(found["fits"])
  console.say(
    f"{verdict} {_readable(memory)} of {kind}"
    if verdict and memory
    else "whether it fits is not known: neither is the device's memory"
  )
  sent = {}
  for name, one in found["traffic"].items():
    unsure = "at least " if one["in_unknown_loop"] else ""
    nbytes = _readable(one["nbytes"])
    sent[name] = f"{unsure}{one['count']:>5} x, {nbytes} in all"
  if found["fits"] is not False:
    console.block("sent between devices, a step", sent or {"nothing": ""})
  if "largest_batch" in found:
    size = found["largest_batch"]
    each = f"{size // count} on each device"
    console.say(f"largest batch that fits: {size:,}, {each}")


def _readable(nbytes: int) -> str:
  return f"{nbytes / 2**30:.3g} GiB"


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = cli.Parser(__doc__, config=True)
  cli.add_run_flags(parser)  # of a pasted command line; they do nothing here
  add = parser.add_argument
  what = "such as v5e:4x4; local is what this machine has"
  add("--topology", default="local", help=what)
  what = "of a classifier whose config leaves it to the data"
  add("--num_classes", type=int, default=0, help=what)
  add("--suggest", action="store_true", help="find the largest batch that fits")
  add("--json", action="store_true", help="print JSON instead of text")
  return cli.run(_check, parser, argv)


def _check(args: argparse.Namespace) -> None:
  if args.topology != "local":  # nothing is to run on this machine's devices
    jax.config.update("jax_platforms", "cpu")
  devices = find_devices(args.topology)
  console = Console(stderr=args.json)
  with platform.compiling_for(devices[0].platform):
    job = build(args.config, devices, args.num_classes)
  found = report(job, suggest=args.suggest, say=console.say)
  if args.json:
    print(json.dumps({"topology": args.topology} | found))
  else:
    _show(found, console)


if __name__ == "__main__":
  sys.exit(main())
