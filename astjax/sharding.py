"""Where values live on the devices: one place, one data axis."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from astjax.errors import UserError
from astjax.types import Batch

DATA_AXIS = "data"


def make_mesh(devices: list | None = None) -> Mesh:
  """All devices along one data axis, grouped by process."""
  devices = jax.devices() if devices is None else devices
  # Explicit axes, the default of newer JAX, refuse to reshape sharded batches.
  return jax.make_mesh(
    (len(devices),),
    (DATA_AXIS,),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=devices,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole value on every device: parameters, optimiser state."""
  return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
  """The leading axis split over the devices: batches."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def check_batch_size(
  batch_size: int, mesh: Mesh, where: str, accumulate: int = 1
) -> None:
  """Raises a UserError if rows cannot be split evenly over the devices.

  Args:
    batch_size: B.
    mesh: the devices.
    where: what sets it, for the error.
    accumulate: number of micro-batches, each of which has rows of all devices.
  """
  parts = accumulate * mesh.size
  if batch_size < 1 or batch_size % parts:
    each = f" in {accumulate} micro-batches" if accumulate > 1 else ""
    raise UserError(
      f"{where}={batch_size} does not divide evenly over {mesh.size} devices"
      f"{each}; use a positive multiple of {parts}"
    )


def micro_batches(batch: Batch, count: int, mesh: Mesh) -> Batch:
  """[B, ...] -> [count, B / count, ...], traced; no row leaves its device.

  A device holds a contiguous block of rows; every `count`-th of them goes into
  the same micro-batch.
  """
  rows = NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))

  def split(x):
    x = jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)
    return jax.lax.with_sharding_constraint(x, rows)

  return jax.tree.map(split, batch)


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> Batch:
  """Rows of one process -> arrays of the whole batch over all processes."""
  sharding = by_row(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in batch.items()
  }


def per_device(fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """Runs `fn` on each device's own rows, without any collective.

  Under plain `jit` the Fourier transform of a sharded batch compiles to three
  all-gathers; inside `shard_map` to none.
  """
  rows = PartitionSpec(DATA_AXIS)
  return jax.shard_map(fn, mesh=mesh, in_specs=rows, out_specs=rows)


def of_first(x: np.ndarray) -> np.ndarray:
  """The array of process 0, on all of them.

  For what is computed by each process on its own, and might differ in its last
  bits between machines of different kinds.
  """
  if jax.process_count() == 1:
    return x
  return np.asarray(multihost_utils.broadcast_one_to_all(x))


def union(reports: dict[str, list]) -> dict[str, list]:
  """Each process has met other recordings: the union, on all of them."""
  if jax.process_count() == 1:
    return reports
  text = np.frombuffer(json.dumps(reports).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(text.size))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: text.size] = text
  texts = multihost_utils.process_allgather(padded)
  parts = [
    json.loads(t[:n].tobytes()) for t, n in zip(texts, sizes, strict=True)
  ]
  return {
    name: sorted({(a, b) for part in parts for a, b in part[name]})
    for name in reports
  }
