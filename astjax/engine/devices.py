"""What devices can do, what a function asks of them, and what they did.

Numbers of TPUs are from Google's pages on TPU versions (cloud.google.com/tpu/
docs/v3 ... v6e, tpu7x), which give memory, bfloat16 peak and interconnect per
chip; v2 and the cores from the table of JAX itself (jax/_src/pallas/mosaic/
tpu_info.py). GPUs from NVIDIA's data sheets (nvidia.com/en-us/data-center):
dense bfloat16 products on tensor cores, half of what is printed "with
sparsity"; float16 for V100 and T4, which have no bfloat16.
"""

from __future__ import annotations

import math
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core

from astjax.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
  """A chip, or the share of it that is one device.

  Attributes:
    name: of a TPU as in a topology, such as "v5e:4x4".
    memory: bytes; 0 where it is sold with several sizes.
    flops: peak FLOP/s in bfloat16.
  """

  name: str
  memory: int
  flops: float
  cores: int = 1


_V5E = Chip("v5e", 16 * GIB, 197e12)
_V5P = Chip("v5p", 95 * GIB, 459e12, cores=2)
_V6E = Chip("v6e", 32 * GIB, 918e12)
# By the beginning of `jax.Device.device_kind`, of which some have two forms.
CHIPS = {
  "TPU v2": Chip("v2", 16 * GIB, 46e12, cores=2),
  "TPU v3": Chip("v3", 32 * GIB, 123e12, cores=2),
  "TPU v4": Chip("v4", 32 * GIB, 275e12, cores=2),
  "TPU v5 lite": _V5E,
  "TPU v5e": _V5E,
  "TPU v5": _V5P,
  "TPU v5p": _V5P,
  "TPU v6 lite": _V6E,
  "TPU v6e": _V6E,
  "TPU7x": Chip("tpu7x", 192 * GIB, 2307e12, cores=2),
  "Tesla T4": Chip("t4", 16 * GIB, 65e12),
  "Tesla V100-PCIE": Chip("v100-pcie", 0, 112e12),
  "Tesla V100": Chip("v100", 0, 125e12),
  "NVIDIA L4": Chip("l4", 24 * GIB, 121e12),
  "NVIDIA A100": Chip("a100", 0, 312e12),
  "NVIDIA H100 PCIe": Chip("h100-pcie", 80 * GIB, 756e12),
  "NVIDIA H100 NVL": Chip("h100-nvl", 94 * GIB, 835e12),
  "NVIDIA H100": Chip("h100", 0, 989e12),
  "NVIDIA H200": Chip("h200", 141 * GIB, 989e12),
}


def chip_named(device_kind: str) -> Chip | None:
  """The chip of a `device_kind`, such as "NVIDIA H100 80GB HBM3", if known."""
  fits = [
    kind
    for kind in CHIPS
    if re.match(re.escape(kind) + "(?![0-9A-Za-z])", device_kind)
  ]
  return CHIPS[max(fits, key=len)] if fits else None


def chip_of(device: jax.Device) -> Chip | None:
  """What a device has of its chip: one with two cores may be two devices."""
  if (chip := chip_named(device.device_kind)) is None:
    return None
  cores = getattr(device, "num_cores", None) or chip.cores
  return chip._replace(
    memory=chip.memory * cores // chip.cores,
    flops=chip.flops * cores / chip.cores,
    cores=cores,
  )


def count_flops(fn: Callable[..., Any], *args: Any) -> int:
  """FLOPs of `fn(*args)` over all devices, a multiplication and addition as 2.

  Those of matrix products and convolutions, nearly all of a transformer.
  """
  # XLA's own count takes the body of a loop once, however often it turns.
  return _flops_of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _flops_of_jaxpr(jaxpr) -> int:
  return sum(map(_flops_of_equation, jaxpr.eqns))


def _flops_of_equation(eqn) -> int:
  name, params = eqn.primitive.name, eqn.params
  if name == "dot_general":
    contracted = params["dimension_numbers"][0][0]
    shape = eqn.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contracted)
    return 2 * depth * eqn.outvars[0].aval.size
  if name == "conv_general_dilated":
    kernel = eqn.invars[1].aval
    outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    return 2 * eqn.outvars[0].aval.size * kernel.size // outputs
  inner = [
    _flops_of_jaxpr(getattr(value, "jaxpr", value))
    for value in jax.tree.leaves(params)
    if isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
  ]
  if name == "cond":
    # Branches are equally frequent in a loop that takes turns (`base.in_turn`).
    return sum(inner) // max(len(inner), 1)
  if name == "scan":
    return params["length"] * sum(inner)
  if name == "shard_map":  # shapes inside are those of one device
    return params["mesh"].size * sum(inner)
  return sum(inner)


def peak_memory() -> float | None:
  """The most that a local device has held, in GiB; None on a CPU."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  return max(peaks) / GIB if peaks else None


def parse_window(text: str) -> tuple[int, int]:
  """(10, 5) of "10:5": from step 10 on, 5 steps."""
  match = re.fullmatch(r"(\d+):(\d+)", text)
  if not match or not int(match[2]):
    raise UserError(
      f"--profile={text} is not START:COUNT, such as 10:5 for the 5 steps "
      "from step 10 on"
    )
  return int(match[1]), int(match[2])


class Trace:
  """A trace of a few steps, for TensorBoard's profile page or Perfetto."""

  def __init__(self, folder: pathlib.Path, window: tuple[int, int] | None):
    self._folder = folder
    self._steps = range(window[0], sum(window)) if window else range(0)
    self._running = False

  def before(self, step: int, state: Any) -> float:
    """Starts at the window's first step; returns the seconds that took."""
    if step not in self._steps or self._running:
      return 0.0
    jax.block_until_ready(state)  # the steps before are not to be in it
    started = time.perf_counter()
    jax.profiler.start_trace(self._folder)
    self._running = True
    return time.perf_counter() - started

  def after(self, step: int, result: Any) -> float:
    """Stops after the window's last step; returns the seconds that took."""
    if not self._running or step + 1 in self._steps:
      return 0.0
    jax.block_until_ready(result)
    started = time.perf_counter()
    self.close()
    return time.perf_counter() - started

  def close(self) -> None:
    """Writes what there is."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
