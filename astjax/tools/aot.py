"""Compiles the train step of a config for devices that need not be there.

  python -m astjax.tools.aot --config=configs/ast_audioset.py:full \
    --topology=v5e:4x4 --config.input.batch_size=128

takes the flags of `astjax.main`, so the command line of a run can be pasted. No
data is needed: the shapes of a batch follow from the recipes. TPU topologies
(v5e:4x4, v4:2x2x2, ...) need libtpu, which comes with `astjax[tpu]`, and no
TPU; without --topology it is this machine's devices. It tells what the compiler
says: does the step fit into the memory, what is sent between the devices.
--suggest also looks for the largest batch that fits, by compiling.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import inspect
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from astjax import cli
from astjax.engine import sharding
from astjax.engine.devices import CHIPS, Chip, chip_of, count_flops
from astjax.errors import UserError
from astjax.ops import host_ops, platform
from astjax.ops.recipe import calls
from astjax.run import config as run_config
from astjax.run import job as jobs
from astjax.run.job import Job
from astjax.run.log import Console
from astjax.tools import collectives

# libtpu looks for a TPU even to describe one, asks a cloud's servers which one
# this machine is, and lets one process at a time do so.
_NO_TPU = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
_EXAMPLES = 100_000  # of the data that is not there: gives an epoch a length
_MEMORY = r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"


class Silence:
  """A source for shapes alone: recordings of one sample, one label each.

  Args:
    num_classes: C; 0 is data without labels.
    sample_rate: Hz.
  """

  def __init__(self, num_classes: int, sample_rate: int):
    self.class_names = tuple(f"class {i}" for i in range(num_classes))
    self._rate = sample_rate

  def __len__(self) -> int:
    """A number that makes a plausible epoch."""
    return _EXAMPLES

  def name(self, index: int) -> str:
    """For messages."""
    return f"silence {index}"

  def labels(self, index: int) -> tuple[int, ...]:
    """The classes in turn."""
    count = len(self.class_names)
    return (index % count,) if count else ()

  def read(self, index: int) -> tuple[np.ndarray, int]:
    """([1] zeros, rate)."""
    return np.zeros(1, np.float32), self._rate


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The train step at one batch size; bytes are of each device.

  Attributes:
    batch_size: B, over all devices.
    seconds: of tracing and compiling.
    memory: bytes by what they are for; `peak` is all of them together, as a TPU
      sets them aside before the step (a CPU may need less). When the step does
      not fit it has `peak` alone, as far as it is known.
    fits: False if the compiler, or the chip's memory, says no; None if the
      memory is not known.
    flops: of one device, by XLA, which counts the body of a loop once.
    traffic: see `collectives.parse`.
  """

  batch_size: int
  seconds: float
  memory: Mapping[str, int]
  fits: bool | None
  flops: float = 0.0
  traffic: Mapping[str, collectives.Traffic] = dataclasses.field(
    default_factory=dict
  )


def find_devices(topology: str) -> list[jax.Device]:
  """The devices of a topology; those of a TPU can be compiled for alone.

  Raises:
    UserError: it is unknown, or libtpu is missing.
  """
  if topology == "local":
    return jax.devices()
  tpus = (c.name for kind, c in CHIPS.items() if kind.startswith("TPU"))
  known = ", ".join(dict.fromkeys(tpus))
  if not re.fullmatch(r"\w+:\d+(x\d+)*", topology):
    raise UserError(
      f"--topology={topology} is none: expected local or a TPU's version and "
      f"shape, such as v5e:4x4; versions: {known}"
    )
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      f"--topology={topology} needs libtpu, not a TPU: pip install "
      "'astjax[tpu]'"
    )
  for name, value in _NO_TPU.items():
    os.environ.setdefault(name, value)
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
  except Exception as e:
    raise UserError(
      f"libtpu does not take --topology={topology} (versions: {known}): "
      f"{str(e).splitlines()[0]}"
    ) from None
  return list(found.devices)


def build(
  config: Mapping[str, Any], devices: list[jax.Device], num_classes: int = 0
) -> Job:
  """The job of a config on these devices, without its data.

  A source that makes its own sounds, or has a `data_dir`, is used as it is.

  Args:
    config: see `run_config.RunConfig`.
    devices: from `find_devices`.
    num_classes: of a classifier; 0 takes that of `multi_hot(...)`.

  Raises:
    UserError: a mistake in the config, or the number of classes is not known.
  """
  run = run_config.parse(config)
  mesh = sharding.make_mesh(devices)
  if run.input.source == "synthetic" or run.input.data_dir:
    return jobs.build(config, mesh=mesh)
  recipes = [run.input.on_host]
  recipes += [e.on_host for e in run.evals.values() if e.on_host]
  arguments = [a for recipe in recipes for a in _arguments(recipe)]
  count = num_classes or _first(arguments, "num_classes")
  rate = _first(arguments, "sample_rate") or 16_000
  job = jobs.build(config, mesh=mesh, source=Silence(count or 2, rate))
  if job.task.head and not count:
    raise UserError(
      "how many classes there are is left to the data by this config: give "
      "--num_classes=N, or the data with --config.input.data_dir=FOLDER"
    )
  return job


def _arguments(recipe):
  """Of the ops of a host recipe, by name; those of unknown ops are left out."""
  for name, args, kwargs in calls(recipe, "config.input.on_host"):
    if name in host_ops.OPS:
      with contextlib.suppress(TypeError):  # a mistake that `build` will tell
        signature = inspect.signature(host_ops.OPS[name])
        yield signature.bind_partial(*args, **kwargs).arguments


def _first(arguments, name):
  return next((a[name] for a in arguments if a.get(name)), 0)


def compile_step(job: Job, batch_size: int = 0) -> Compiled:
  """Compiles the step that training would run.

  Args:
    job: from `build`.
    batch_size: B; 0 takes the config's.
  """
  batch_size = batch_size or job.config.input.batch_size
  step, args = _step(job, batch_size)
  started = time.perf_counter()
  memory = _memory_of(job.mesh)
  try:
    program = step.lower(*args).compile()
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    seconds = time.perf_counter() - started
    return Compiled(batch_size, seconds, _exhausted(str(e)), fits=False)
  seconds = time.perf_counter() - started
  stats = program.memory_analysis()
  used = {
    "arguments": stats.argument_size_in_bytes,
    "outputs": stats.output_size_in_bytes,
    "aliased": stats.alias_size_in_bytes,
    "temporaries": stats.temp_size_in_bytes,
    "program": stats.generated_code_size_in_bytes,
  }
  used["peak"] = sum(used.values()) - 2 * used["aliased"]
  return Compiled(
    batch_size,
    seconds,
    used,
    fits=used["peak"] <= memory if memory else None,
    flops=float(program.cost_analysis().get("flops", 0.0)),
    traffic=collectives.parse(program.as_text()),
  )


def _step(job, batch_size):
  """(the jitted step, its arguments as shapes)."""
  state = jax.eval_shape(lambda: jobs.fresh_state(job)[1])
  batch = {
    name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
    for name, (shape, dtype) in job.train.row_shapes.items()
  }
  key = jax.eval_shape(lambda: jobs.train_step.train_key(0))
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
  chip = chip_of(device)
  return chip.memory if chip else 0


def _exhausted(message: str) -> dict[str, int]:
  """What a compiler that ran out of memory says that it needed."""
  if not (found := re.search(_MEMORY, message)):
    return {}
  power = " KMGT".index(found[2] or " ")
  return {"peak": int(float(found[1]) * 1024**power)}


def largest_batch(
  peak: Callable[[int], float],
  memory: int,
  unit: int,
  first: int,
  fixed: int = 0,
  most: int = 2**20,
) -> int:
  """The largest multiple of `unit` that fits; 0 if none does.

  Exact up to 16 units, above to a sixteenth. It takes few attempts, since
  memory is nearly a line: `fixed` and so much for each row.

  Args:
    peak: of a batch size, in bytes; infinite if all that is known is that it is
      too much.
    memory: bytes that there are.
    unit: what a batch must be a multiple of.
    first: where to begin.
    fixed: bytes that do not depend on the batch.
    most: where to stop.
  """
  low, high = 0, most // unit + 1  # fits, does not fit
  size = min(max(first // unit, 1), high - 1)
  attempts = 0
  while high - low > max(1, low // 16):
    needed = peak(size * unit)
    attempts += 1
    low, high = (size, high) if needed <= memory else (low, size)
    if attempts < 4 and fixed < needed < math.inf:
      guess = int(size * (memory - fixed) / (needed - fixed))
    else:
      guess = min(2 * max(low, 1), (low + high) // 2)
    size = min(max(guess, low + 1), high - 1)
  return low * unit


def report(
  job: Job, *, suggest: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
  """Everything that there is to say, as JSON would have it.

  Args:
    job: from `build`.
    suggest: also look for the largest batch that fits.
    say: for progress.
  """
  device = job.mesh.devices.flat[0]
  if suggest and not _memory_of(job.mesh):
    raise UserError(
      "--suggest needs devices of which the memory is known: give --topology"
    )
  with platform.compiling_for(device.platform):
    step, args = _step(job, job.config.input.batch_size)
    total = count_flops(step, *args)
    compiled = compile_step(job)
    found = {
      "devices": job.mesh.size,
      "device_kind": device.device_kind,
      "device_memory": _memory_of(job.mesh),
      "batch_size": compiled.batch_size,
      "parameters": sum(x.size for x in jax.tree.leaves(args[0].params)),
      "model_flops": job.flops_per_example() * compiled.batch_size,
      "matmul_flops": total,
      **dataclasses.asdict(compiled),
      "at_best": at_best(chip_of(device), job.mesh.size, total, compiled),
    }
    if suggest:
      found["largest_batch"] = _suggest(job, compiled, say)
  return found


def at_best(
  chip: Chip | None, count: int, matmul_flops: float, compiled: Compiled
) -> dict[str, float]:
  """Seconds of a step with pencil and paper, as far as the chip is known.

  `compute` is all matrix products at the peak; `send` is what a ring of all
  devices puts on the links of each of them: what an all-gather or a
  reduce-scatter is about once, of an all-reduce twice.
  """
  found = {}
  if chip:
    found["compute"] = matmul_flops / count / chip.flops
  if chip and chip.link:
    rounds = {"all-reduce": 2}
    nbytes = sum(
      rounds.get(k, 1) * t.nbytes for k, t in compiled.traffic.items()
    )
    found["send"] = nbytes * (count - 1) / count / (chip.link / 2)
  return found


def _suggest(job, compiled, say):
  memory = _memory_of(job.mesh)

  def peak(size):
    tried = compiled
    if size != compiled.batch_size:
      tried = compile_step(job, size)
      verdict = "fits" if tried.fits else "does not fit"
      say(f"batch {size:,} {verdict} ({tried.seconds:.0f} s)")
    return tried.memory["peak"] if tried.fits else math.inf

  return largest_batch(
    peak,
    memory,
    unit=job.mesh.size * job.config.accumulate,
    first=compiled.batch_size,
    fixed=compiled.memory.get("aliased", 0),
  )


def show(found: Mapping[str, Any], say: Callable[[str], None] = print) -> None:
  """The report in lines."""
  count, size = found["devices"], found["batch_size"]
  lines = {
    "devices": f"{count} x {found['device_kind']}",
    "batch": f"{size:,}: {size // count} on each device",
    "parameters": f"{found['parameters']:,}",
    "FLOPs": f"{found['model_flops']:.4g} a step in the model's matrix "
    "products, over all devices",
    "as written": f"{found['matmul_flops']:.4g}, with the front-end and what "
    "remat repeats",
  }
  if found["flops"]:
    lines["by XLA"] = (
      f"{found['flops'] * count:.4g}: all operations, a loop's body once"
    )
  for name, seconds in found["at_best"].items():
    lines[f"{name} at best"] = (
      f"{1000 * seconds:.3g} ms, by the chip's data sheet"
    )
  lines["compiled in"] = f"{found['seconds']:.1f} s"
  say("\n".join(f"{k:<17}{v}" for k, v in lines.items()))
  say("bytes on each device")
  for name, number in found["memory"].items():
    say(f"  {name:<12}{_readable(number):>10}")
  memory = found["device_memory"]
  if memory:
    verdict = "fits into" if found["fits"] else "DOES NOT FIT into"
    say(f"{verdict} {_readable(memory)} of {found['device_kind']}")
  else:
    say("whether it fits is not known: neither is this device's memory")
  if found["fits"] is not False:
    say("sent between devices, a step" if found["traffic"] else "sends nothing")
  for kind, traffic in found["traffic"].items():
    unsure = "at least " if traffic["in_unknown_loop"] else ""
    say(
      f"  {kind:<20}{unsure}{traffic['count']:>5} x, "
      f"{_readable(traffic['nbytes'])} in all"
    )
  if "largest_batch" in found:
    largest = found["largest_batch"]
    say(
      f"largest batch that fits: {largest:,}, {largest // count} on each device"
      if largest
      else "not even one row on each device fits"
    )


def _readable(number: int) -> str:
  """Bytes with a unit: 1.5 GiB."""
  units = ("B", "KiB", "MiB", "GiB", "TiB")
  power = min(int(math.log(max(number, 1), 1024)), len(units) - 1)
  return f"{number / 1024**power:.{2 if power else 0}f} {units[power]}"


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = cli.Parser(__doc__, config=True)
  cli.add_run_flags(parser)  # of a pasted command line; they do nothing here
  add = parser.add_argument
  what = "such as v5e:4x4; local is what this machine has"
  add("--topology", default="local", help=what)
  what = "of a classifier whose config leaves it to the data"
  add("--num_classes", type=int, default=0, help=what)
  what = "look for the largest batch that fits"
  add("--suggest", action="store_true", help=what)
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
    show(found, console.say)


if __name__ == "__main__":
  sys.exit(main())
