"""The parameters of a training run, read from its orbax checkpoints.

A checkpoint is `<workdir>/checkpoints/<step>` with the items `state` and `meta`
(JSON: the run's record, and shape, type and SHA-256 of every array). Orbax
restores a flipped bit without a word, hence the digests.
"""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from astjax.errors import UserError, first_line, warn


class Reader:
  """Reads checkpoints of a folder, and changes nothing."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder  # `checkpoints/` of a work directory
    # Each process reads alone: orbax would meet the others after a read that
    # has gone well, and who has failed is not there.
    me = jax.process_index()
    self._reader = ocp.Checkpointer(
      ocp.CompositeCheckpointHandler(),
      multiprocessing_options=ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}
      ),
    )

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    if not self.folder.is_dir():
      return []
    return sorted(ocp.utils.checkpoint_steps(self.folder))

  def meta(self, step: int) -> dict[str, Any]:
    """{"record": ..., "leaves": {path: [shape, dtype, SHA-256]}, ...}."""
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    return self.read(step, args)["meta"]

  def read(self, step: int, args: ocp.args.Composite) -> Any:
    """What orbax restores by these arguments."""
    return self._reader.restore(self.folder / str(step), args=args)

  def params(self, step: int, part: str = "params") -> dict[str, np.ndarray]:
    """The parameters alone of one checkpoint, {path: array} on the host.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    if step not in self.steps():
      raise UserError(f"no checkpoint of step {step} among {self.steps()}")
    try:
      return self._params(step, part)
    except MemoryError:
      raise
    except Exception as e:  # orbax has no type of its own for damage
      raise UserError(
        f"checkpoint {step} of {self.folder} is damaged: {first_line(e)}"
      ) from None

  def _params(self, step, part):
    leaves = self.meta(step)["leaves"]
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    item = traverse_util.unflatten_dict(
      {
        path: jax.ShapeDtypeStruct(shape, dtype, sharding=device)
        for path, (shape, dtype, _) in leaves.items()
        if path.startswith(f"{part}/")
      },
      sep="/",
    )
    args = ocp.args.PyTreeRestore(
      item=item,
      restore_args=ocp.checkpoint_utils.construct_restore_args(item),
      partial_restore=True,
    )
    tree = self.read(step, ocp.args.Composite(state=args))["state"]
    flat = traverse_util.flatten_dict(tree, sep="/")
    flat = {path: np.asarray(leaf) for path, leaf in flat.items()}
    for path, array in flat.items():
      if describe(array) != leaves[path]:
        raise ValueError(f"the digest of {path} does not match")
    return {k.removeprefix(f"{part}/"): v for k, v in flat.items()}

  def close(self) -> None:
    """Lets go of orbax's threads."""
    self._reader.close()


def raw(array: np.ndarray) -> memoryview:
  """The bytes of an array."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def describe(array: np.ndarray) -> list:
  """[shape, dtype, SHA-256]: what is remembered of an array."""
  digest = hashlib.sha256(raw(array)).hexdigest()
  return [list(array.shape), str(array.dtype), digest]


@contextlib.contextmanager
def reader(workdir: pathlib.Path) -> Iterator[Reader]:
  """A `Reader` of a work directory, closed at the end."""
  found = Reader(pathlib.Path(workdir).absolute() / "checkpoints")
  try:
    yield found
  finally:
    found.close()


def read_params(
  workdir: pathlib.Path, part: str = "params"
) -> tuple[int, dict[str, np.ndarray]]:
  """The parameters alone of a run's best checkpoint, else of its newest.

  `part` of its state is "params" or another network of that kind, such as
  "task_state/teacher". Gives (step, {path: array}), checked by their digests.
  """
  with reader(workdir) as checkpoints:
    steps = checkpoints.steps()
    if not steps:
      raise UserError(f"{workdir} has no checkpoint yet")
    best = None
    with contextlib.suppress(Exception):  # the newest one's record may be lost
      best = checkpoints.meta(steps[-1])["record"].get("best_step")
    for step in dict.fromkeys([best, *reversed(steps)]):
      if step in steps:
        try:
          return step, checkpoints.params(step, part)
        except UserError as e:
          problem = e
          warn(f"{e}; passed over")
  raise UserError(f"none of the checkpoints of {workdir} is intact: {problem}")
