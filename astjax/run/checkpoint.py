"""Checkpoints of a training run: complete or absent, and checked leaf by leaf.

A checkpoint is `<workdir>/checkpoints/<step>` with the items `state`, `meta`
(JSON: the run record, and for every array its shape, type and SHA-256) and, if
the record has any, `arrays`. Orbax writes beside the final place and renames,
so a killed save leaves no half checkpoint; it restores a flipped bit without a
word, though, hence the digests.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import shutil
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import (
  preservation_policy as policies,
)

from astjax.engine import sharding
from astjax.engine.step import TrainState
from astjax.errors import Outage, UserError, first_line, warn
from astjax.weights.orbax_params import Reader
from astjax.weights.orbax_params import describe as describe_array


class _Damaged(Exception):
  """The files of a checkpoint can be read, but are not what was saved."""


class Checkpoints:
  """The checkpoints of one work directory.

  Args:
    workdir: where the run lives; `checkpoints/` is made below it.
    keep: how many of the newest to keep; the best by metric is kept besides.
    read_only: change nothing, so that a run that is under way may be read.
  """

  def __init__(
    self, workdir: pathlib.Path, *, keep: int = 3, read_only: bool = False
  ):
    self._read_only = read_only
    self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
    self._damaged = self.folder.parent / "damaged_checkpoints"
    self._has_failed = False
    self._kept = policies.AnyPreservationPolicy([policies.LatestN(keep)])
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        # Changed at each save, for the best step so far.
        preservation_policy=None if read_only else self._kept,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=not read_only,
        async_options=ocp.AsyncOptions(barrier_sync_fn=self._meet),
      ),
      item_names=("state", "meta", "arrays"),
    )
    self._reader = Reader(self.folder)

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, record: dict[str, Any]) -> None:
    """Saves; the writing goes on in the background, one save at a time.

    `record` is what the host remembers: plain JSON but for the key `arrays`, a
    flat dict of NumPy arrays, which must not change afterwards.
    """
    step = int(state.step)
    # Orbax's own policy for the best one forgets it on a resume, and a
    # checkpoint that is saved before it is rated has no metric yet.
    best = policies.CustomSteps([record.get("best_step")])
    self._kept.policies = [self._kept.policies[0], best]
    if step in self._manager.all_steps():
      return
    record = dict(record)
    arrays = record.pop("arrays", {})
    digests = {k: describe_array(v) for k, v in arrays.items()}
    meta = {"record": record, "leaves": describe(state), "arrays": digests}
    items = {
      "state": ocp.args.StandardSave(dict(vars(state))),
      "meta": ocp.args.JsonSave(meta),
    }
    if arrays:
      items["arrays"] = ocp.args.StandardSave(arrays)
    with self._saving():
      self._manager.save(step, args=ocp.args.Composite(**items))

  def restore(
    self, template: TrainState
  ) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest intact checkpoint: (state, record as `save` got it).

    A damaged one is set aside, with a warning, and the one before it is tried.
    None if there is no checkpoint. `template` is a state of the right shapes
    and shardings.

    Raises:
      UserError: a checkpoint of another model, or none is intact.
      Outage: one cannot be read now.
    """
    # Process 0's list: a shared disk may show others an older folder.
    steps = sharding.from_process_0(self.steps())
    for step in reversed(steps):
      if found := self._try(template, step):
        return found
    if steps or self._damaged.exists():
      raise UserError(
        f"none of the checkpoints in {self.folder} is intact (steps {steps}); "
        f"damaged ones are in {self._damaged.name}; start again in a new "
        "--workdir"
      )
    return None

  def restore_step(
    self, template: TrainState, step: int
  ) -> tuple[TrainState, dict[str, Any]]:
    """As `restore`, of one step; a UserError if it is damaged."""
    if found := self._try(template, step):
      return found
    raise UserError(f"checkpoint {step} of {self.folder} is not intact")

  def _try(self, template, step):
    try:
      return self._restore(step, template)
    except _Damaged as e:
      if jax.process_index() == 0:
        warn(f"checkpoint {step} is damaged and passed over: {e}")
      if not self._read_only:
        self._set_aside(step)

  def _restore(self, step, template):
    folder = self.folder / str(step)
    meta = _on_all(folder, lambda: self._reader.meta(step))
    _check_same_model(meta["leaves"], template, folder)
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      dict(vars(template)),
    )
    items = {"state": ocp.args.StandardRestore(abstract)}
    if digests := meta.get("arrays", {}):
      shapes = {k: np.empty(s, d) for k, (s, d, _) in digests.items()}
      items["arrays"] = ocp.args.StandardRestore(shapes)
    args = ocp.args.Composite(**items)
    tree = _on_all(folder, lambda: self._reader.read(step, args))
    state = TrainState(**tree["state"])
    arrays = dict(tree["arrays"]) if digests else {}

    def check():
      found = describe(state)
      found |= {k: describe_array(v) for k, v in arrays.items()}
      saved = meta["leaves"] | digests
      if changed := [k for k, v in saved.items() if found.get(k) != v]:
        raise _Damaged(f"the digests of {', '.join(changed[:3])} do not match")

    _on_all(folder, check)
    return state, meta["record"] | {"arrays": arrays}

  def _set_aside(self, step):
    if jax.process_index() == 0:
      self._damaged.mkdir(exist_ok=True)
      target = self._damaged / str(step)
      shutil.rmtree(target, ignore_errors=True)
      with contextlib.suppress(FileNotFoundError):
        shutil.move(self.folder / str(step), target)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f"set_aside_{step}")
    self._manager.reload()

  def wait(self) -> None:
    """Until the last save is complete on disk; an Outage if it failed."""
    with self._saving():
      self._manager.wait_until_finished()

  def check(self) -> None:
    """Does not wait, but raises what `wait` would, if it is known by now."""
    if self._has_failed:
      self.wait()

  def _meet(self, *, key: str, timeout_ms: int) -> None:
    """Meets the other processes within a save."""
    # Orbax does so in a `finally`, too: a process whose save has failed would
    # wait there for those that wait, elsewhere, for its part. With a full disk
    # both stood still for 20 minutes, so what has failed is raised here.
    error = sys.exception()
    if error and threading.current_thread() is not threading.main_thread():
      self._has_failed = True
      raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

  @contextlib.contextmanager
  def _saving(self):
    """A failed save, of now or in the background, in one line."""
    try:
      yield
    except Exception as e:
      free = shutil.disk_usage(self.folder).free / 2**20
      reason = getattr(e, "strerror", None) or first_line(e)
      if free < 1:  # orbax may tell of something else that this has led to
        reason = "No space left on the disk"
      raise Outage(
        f"cannot save a checkpoint in {self.folder}: {reason} ({free:.0f} MiB "
        f"free); the complete ones are of steps {self.steps() or 'none'}"
      ) from None

  def close(self) -> None:
    """Lets go of the threads; `wait` first if the last save matters."""
    if sys.exception() and jax.process_count() > 1:
      return  # a save would wait for the part of a process that may be gone
    with contextlib.suppress(Exception):
      self._manager.close()
      self._reader.close()


_WRONG_FILES = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def _is_damage(error: Exception, folder: pathlib.Path) -> bool:
  """Whether the files can be read: then what they hold is to blame."""
  if isinstance(error, (_Damaged, *_WRONG_FILES)):
    return folder.is_dir()
  # Where memory, or a device's, was short, or where a disk does not answer, the
  # checkpoint may be fine.
  if isinstance(error, MemoryError) or getattr(error, "errno", None):
    return False
  if str(error).startswith("RESOURCE_EXHAUSTED"):  # XLA's status code
    return False
  try:
    for path in filter(pathlib.Path.is_file, folder.rglob("*")):
      with open(path, "rb") as f:
        while f.read(2**24):
          pass
  except OSError:
    return False
  return folder.is_dir()


def _on_all(folder: pathlib.Path, fn: Callable[[], Any]) -> Any:
  """`fn()`; where it fails on one process, it fails on all of them.

  Raises:
    _Damaged: on any process.
    Outage: one of them cannot read it now, damaged or not.
  """
  # Each process reads alone: orbax meets all of them after a read that went
  # well, and one whose part is damaged would be elsewhere by then. Here is the
  # only meeting, so that all go on with the same checkpoint.
  result, reason, how = None, "", 0
  try:
    result = fn()
  except Exception as e:
    how = 1 if _is_damage(e, folder) else 2
    reason = first_line(e)
  if jax.process_count() > 1:
    everyone = int(multihost_utils.process_allgather(np.int32(how)).max())
    if everyone > how:
      how, reason = everyone, "another process could not read it"
  if how == 2:
    raise Outage(f"cannot read checkpoint {folder}: {reason}")
  if how == 1:
    raise _Damaged(reason)
  return result


def _by_path(state: TrainState) -> dict[str, Any]:
  """{path: leaf}; an optimiser's state has more than dicts in it."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(dict(vars(state)))
  keystr = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  return {keystr(path): leaf for path, leaf in leaves}


def describe(state: TrainState) -> dict[str, list]:
  """{path: [shape, dtype, SHA-256]} of every leaf."""
  return {
    path: describe_array(sharding.to_host(leaf))
    for path, leaf in _by_path(state).items()
  }


def _check_same_model(saved: dict[str, list], template, where) -> None:
  here = {
    k: [list(x.shape), str(x.dtype)] for k, x in _by_path(template).items()
  }
  there = {k: x[:2] for k, x in saved.items()}
  changed = [
    f"{k} is {there.get(k, 'absent')} there, {here.get(k, 'absent')} here"
    for k in (here | there)
    if here.get(k) != there.get(k)
  ]
  if changed:
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    raise UserError(
      f"the checkpoint {where} is of another model or optimiser: "
      f"{'; '.join(changed[:3])}{more}"
    )
