"""What is known of accelerators by their name, per device of JAX.

TPUs from Google's pages on TPU versions (cloud.google.com/tpu/docs/v2 ... v6e,
tpu7x). Those give memory, bfloat16 peak and interconnect per chip. A chip of
v2, v3 and v7 shows as two devices, each with half of its memory and peak; one
of v4 and v5p as a single device with both of its cores. GPUs from NVIDIA's data
sheets (nvidia.com/en-us/data-center): dense bfloat16 products on tensor cores,
half of what is printed "with sparsity"; float16 for V100 and T4, which have no
bfloat16.
"""

from __future__ import annotations

import re
from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
  """One device.

  Attributes:
    name: as in a topology, such as "v5e:4x4".
    memory: bytes; 0 where it is sold with several sizes.
    flops: peak FLOP/s in bfloat16.
    link: bytes/s in and out together to all neighbouring chips; 0 is unknown.
  """

  name: str
  memory: int
  flops: float
  link: float = 0.0


# By the beginning of `jax.Device.device_kind`.
CHIPS = {
  "TPU v2": Chip("v2", 8 * GIB, 22.5e12),
  "TPU v3": Chip("v3", 16 * GIB, 61.5e12),
  "TPU v4": Chip("v4", 32 * GIB, 275e12),
  "TPU v5 lite": Chip("v5e", 16 * GIB, 197e12, 400e9),
  "TPU v5": Chip("v5p", 95 * GIB, 459e12, 1200e9),
  "TPU v6 lite": Chip("v6e", 32 * GIB, 918e12, 800e9),
  "TPU7x": Chip("tpu7x", 96 * GIB, 1153.5e12),
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
