"""What is known of accelerators by their name.

TPUs from Google's pages on TPU versions (cloud.google.com/tpu/docs/v3 ... v6e,
tpu7x), which give memory, bfloat16 peak and interconnect per chip; v2 from the
table of JAX itself (jax/_src/pallas/mosaic/tpu_info.py), the cores too. GPUs
from NVIDIA's data sheets (nvidia.com/en-us/data-center): dense bfloat16
products on tensor cores, half of what is printed "with sparsity"; float16 for
V100 and T4, which have no bfloat16.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import jax

GIB = 2**30


class Chip(NamedTuple):
  """A chip, or the share of it that is one device.

  Attributes:
    name: in short; of a TPU as in a topology, such as "v5e:4x4".
    memory: bytes; 0 where it is sold with several sizes.
    flops: peak FLOP/s in bfloat16.
    link: bytes/s in and out together, to all neighbouring chips; 0 is unknown.
    cores: how many.
  """

  name: str
  memory: int
  flops: float
  link: float = 0.0
  cores: int = 1


_V5E = Chip("v5e", 16 * GIB, 197e12, 400e9)
_V5P = Chip("v5p", 95 * GIB, 459e12, 1200e9, cores=2)
_V6E = Chip("v6e", 32 * GIB, 918e12, 800e9)
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


def find(device_kind: str) -> Chip | None:
  """The chip of a `device_kind`, such as "NVIDIA H100 80GB HBM3", if known."""
  fits = [
    kind
    for kind in CHIPS
    if re.match(re.escape(kind) + "(?![0-9A-Za-z])", device_kind)
  ]
  return CHIPS[max(fits, key=len)] if fits else None


def of(device: jax.Device) -> Chip | None:
  """What a device has of its chip: some have two cores, as two devices."""
  if (chip := find(device.device_kind)) is None:
    return None
  cores = getattr(device, "num_cores", None) or chip.cores
  return chip._replace(
    memory=chip.memory * cores // chip.cores,
    flops=chip.flops * cores / chip.cores,
    link=chip.link * cores / chip.cores,
    cores=cores,
  )
