"""What is known of accelerators by their name.

From Google's pages on TPU versions (cloud.google.com/tpu/docs/v3 ... v6e,
tpu7x), which give memory, bfloat16 peak and interconnect per chip; v2 from the
table of JAX itself (jax/_src/pallas/mosaic/tpu_info.py), the cores too.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

GIB = 2**30


class Chip(NamedTuple):
  """A chip, or the share of it that is one device.

  Attributes:
    name: as in a topology, such as "v5e:4x4".
    memory: bytes.
    flops: peak FLOP/s in bfloat16.
    link: bytes/s in and out together, to all neighbouring chips; 0 is unknown.
    cores: how many.
  """

  name: str
  memory: int
  flops: float
  link: float = 0.0
  cores: int = 1


# By `jax.Device.device_kind`.
CHIPS = {
  "TPU v2": Chip("v2", 16 * GIB, 46e12, cores=2),
  "TPU v3": Chip("v3", 32 * GIB, 123e12, cores=2),
  "TPU v4": Chip("v4", 32 * GIB, 275e12, cores=2),
  "TPU v5 lite": Chip("v5e", 16 * GIB, 197e12, 400e9),
  "TPU v5": Chip("v5p", 95 * GIB, 459e12, 1200e9, cores=2),
  "TPU v6 lite": Chip("v6e", 32 * GIB, 918e12, 800e9),
  "TPU7x": Chip("tpu7x", 192 * GIB, 2307e12, cores=2),
}


def of(device: jax.Device) -> Chip | None:
  """What a device has of its chip: some have two cores, as two devices."""
  if (chip := CHIPS.get(device.device_kind)) is None:
    return None
  cores = getattr(device, "num_cores", None) or chip.cores
  return chip._replace(
    memory=chip.memory * cores // chip.cores,
    flops=chip.flops * cores / chip.cores,
    link=chip.link * cores / chip.cores,
    cores=cores,
  )
