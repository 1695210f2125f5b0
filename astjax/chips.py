"""What is known of accelerators by their name, per device of JAX.

From Google's pages on TPU versions (cloud.google.com/tpu/docs/v3 ... v6e,
tpu7x), which give memory, bfloat16 peak and interconnect per chip; v2 from the
table of JAX itself (jax/_src/pallas/mosaic/tpu_info.py). A chip of v2, v3 and
v7 shows as two devices, each with half of its memory and peak; one of v4 and
v5p as a single device with both of its cores.
"""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
  """One device.

  Attributes:
    name: as in a topology, such as "v5e:4x4".
    memory: bytes.
    flops: peak FLOP/s in bfloat16.
    link: bytes/s in and out together to all neighbouring chips; 0 is unknown.
  """

  name: str
  memory: int
  flops: float
  link: float = 0.0


# By `jax.Device.device_kind`.
CHIPS = {
  "TPU v2": Chip("v2", 8 * GIB, 23e12),
  "TPU v3": Chip("v3", 16 * GIB, 61.5e12),
  "TPU v4": Chip("v4", 32 * GIB, 275e12),
  "TPU v5 lite": Chip("v5e", 16 * GIB, 197e12, 400e9),
  "TPU v5": Chip("v5p", 95 * GIB, 459e12, 1200e9),
  "TPU v6 lite": Chip("v6e", 32 * GIB, 918e12, 800e9),
  "TPU7x": Chip("tpu7x", 96 * GIB, 1153.5e12),
}
