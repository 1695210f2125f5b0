"""Where values live on the devices: one place, two axes.

The devices are a grid, `data` x `fsdp`. Rows of a batch are split over all of
them. Parameters, and all that is shaped like them (moments, a teacher), are
whole on each device, or split over the axis `fsdp` if that is longer than 1:
then a device holds a part of each large array between the steps, has all of it
for the length of a step's forward and backward pass, and gets its part of the
gradient.
"""

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

AXES = ("data", "fsdp")
# Smaller arrays (biases, norms, tokens, centers: one part in a thousand of a
# base model) stay whole: to fetch a part of one takes longer than it saves.
MIN_SIZE = 2**14


def make_mesh(devices: list | None = None, *, fsdp: int = 1) -> Mesh:
  """The devices as a grid [data, fsdp], in the order of their processes."""
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  if fsdp < 1 or count % fsdp:
    fits = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
    raise UserError(
      f"config.fsdp={fsdp} does not divide the {count} device(s); it can be "
      f"{fits}"
    )
  # The rows of a process follow each other, or their keys would depend on the
  # machine; so not in the order that `jax.make_mesh` finds for a torus.
  devices = sorted(devices, key=lambda d: (d.process_index, d.id))
  # Explicit axes, the default of newer JAX, refuse to reshape sharded batches.
  return Mesh(
    np.asarray(devices).reshape(-1, fsdp),
    AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
  """The leading axis split over all devices: batches."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def of_state(state: Any, mesh: Mesh) -> Any:
  """Where each array of a training state lives: a tree of NamedSharding.

  An array of at least `MIN_SIZE` values is split over `fsdp` along the longest
  of its axes that divide evenly, the first of several; any other is whole. The
  shape decides alone, so that parameters, moments and a teacher lie alike.
  """
  parts = mesh.shape["fsdp"]

  # Axes that do not divide are passed over rather than padded: the parts of an
  # array then have one size everywhere.
  def place(x):
    axes = [i for i, n in enumerate(x.shape) if n and n % parts == 0]
    if parts == 1 or x.size < MIN_SIZE or not axes:
      return replicated(mesh)
    axis = max(axes, key=lambda i: x.shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

  return jax.tree.map(place, state)


def split(tree: Any, mesh: Mesh) -> Any:
  """Arrays as `of_state` has them (traced)."""
  return jax.lax.with_sharding_constraint(tree, of_state(tree, mesh))


def gathered(tree: Any, mesh: Mesh) -> Any:
  """Split arrays, whole where they are used (traced); gradients in parts.

  Left to itself, XLA may move the rows of a batch instead, if they are smaller.
  """
  if mesh.shape["fsdp"] == 1:
    return tree

  def whole(x):
    return jax.lax.with_sharding_constraint(x, replicated(mesh))

  def scatter(_, gradient):
    # Summed up, then cut: one reduce-scatter where the device has it. Without
    # `whole` the cut would spread into the loops of the backward pass,
    # and there the rows would be gathered.
    return (split(whole(gradient), mesh),)

  gather = jax.custom_vjp(whole)
  gather.defvjp(lambda x: (whole(x), None), scatter)
  return jax.tree.map(gather, tree)


def to_host(tree: Any) -> Any:
  """Whole NumPy arrays, on every process, of arrays that may be split."""

  def whole(x):
    if isinstance(x, jax.Array) and not (
      x.is_fully_addressable or x.is_fully_replicated
    ):
      return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)

  return jax.tree.map(whole, tree)


def check_batch_size(
  batch_size: int, mesh: Mesh, where: str, accumulate: int = 1
) -> None:
  """Raises a UserError if rows cannot be split evenly over the devices."""
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
  rows = NamedSharding(mesh, PartitionSpec(None, AXES))

  def divided(x):
    x = jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)
    return jax.lax.with_sharding_constraint(x, rows)

  return jax.tree.map(divided, batch)


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
  rows = PartitionSpec(AXES)
  return jax.shard_map(fn, mesh=mesh, in_specs=rows, out_specs=rows)


def from_process_0(value: Any) -> Any:
  """What process 0 has, an array or plain JSON, on all of them.

  For what each process computes on its own, whose last bits may differ between
  kinds of machines, or reads of a shared disk, which may answer them
  differently.
  """
  if jax.process_count() == 1:
    return value
  if isinstance(value, np.ndarray):
    return np.asarray(multihost_utils.broadcast_one_to_all(value))
  return _from_all(value)[0]


def union(reports: dict[str, list]) -> dict[str, list]:
  """{name: pairs} of each process -> sorted pairs of all, on all of them."""
  if jax.process_count() == 1:
    return reports
  everyone = _from_all(reports)
  return {
    name: sorted({(a, b) for part in everyone for a, b in part[name]})
    for name in reports
  }


def _from_all(value: Any) -> list[Any]:
  """What each process has, of plain JSON, on all of them."""
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(text.size))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: text.size] = text
  texts = multihost_utils.process_allgather(padded)
  return [
    json.loads(t[:n].tobytes()) for t, n in zip(texts, sizes, strict=True)
  ]
