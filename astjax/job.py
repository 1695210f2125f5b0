"""A config turned into things that run: data, task, optimiser, devices.

Whatever is wrong with a config shows here, before the first step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from astjax import (
  device_ops,
  optim,
  pp,
  run_config,
  sharding,
  tasks,
  train_step,
)
from astjax.checkpoint import Checkpoints
from astjax.data import host_ops, pipeline, sources
from astjax.data.reader import Reader
from astjax.errors import UserError, call
from astjax.run_config import InputConfig, RunConfig
from astjax.tasks.base import Task
from astjax.train_step import TrainState


@dataclasses.dataclass(frozen=True)
class Split:
  """One stream of data, ready to run."""

  name: str
  config: InputConfig
  reader: Reader
  host_ops: tuple[pp.NamedOp, ...]
  device_ops: tuple[pp.NamedOp, ...]
  every: int = 0

  @property
  def class_names(self) -> tuple[str, ...]:
    """Of the source."""
    return self.reader.source.class_names


@dataclasses.dataclass(frozen=True)
class Job:
  """A config turned into things that run."""

  config: RunConfig
  mesh: Mesh
  task: Task
  train: Split
  evals: Mapping[str, Split]
  steps_per_epoch: float
  total_steps: int

  def fresh_params(self) -> Any:
    """Fresh parameters, a function of the seed (traceable)."""
    return self.task.init_params(
      train_step.train_key(self.config.seed), _one_row(self.train)
    )

  def schedule(self) -> optim.Schedule:
    """Learning rate by step."""
    return call(
      optim.make_schedule,
      "config.schedule",
      self.config.schedule,
      steps_per_epoch=self.steps_per_epoch,
      total_steps=self.total_steps,
    )

  def optimizer(self, params: Any) -> optax.GradientTransformation:
    """The optimiser for a tree of this shape."""
    schedule = self.schedule()
    return call(
      optim.make_optimizer,
      "config.optim",
      self.config.optim,
      params,
      schedule,
    )


def build(config: Mapping[str, Any], *, mesh: Mesh | None = None) -> Job:
  """Everything that can go wrong before the first step goes wrong here.

  Args:
    config: a ConfigDict or dict; see `run_config.RunConfig`.
    mesh: the devices; all of them by default.

  Raises:
    UserError: anything in the config that does not work out.
  """
  run = run_config.parse(config)
  mesh = sharding.make_mesh() if mesh is None else mesh
  train = _split("train", run.input, "config.input", mesh)
  steps_per_epoch = len(train.reader.source) / run.input.batch_size
  total_steps = run.steps or math.ceil(run.epochs * steps_per_epoch)
  evals = {}
  for name, given in run.evals.items():
    where = f"config.evals.{name}"
    split = _split(name, given.input(run.input), where, mesh)
    every = run_config.interval(
      given.every_epochs, given.every_steps, steps_per_epoch
    )
    if split.class_names != train.class_names:
      raise UserError(
        f"{where} has the classes {split.class_names}, the training data "
        f"{train.class_names}; give both the same label_list"
      )
    evals[name] = dataclasses.replace(split, every=every)
  task = tasks.build(
    run.task,
    run.task_kw,
    model=run.model,
    num_classes=len(train.class_names),
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
  )
  job = Job(run, mesh, task, train, evals, steps_per_epoch, total_steps)
  params = jax.eval_shape(job.fresh_params)  # shapes fit, before any work
  job.optimizer(params)
  for split in evals.values():
    outputs = lambda p: task.evaluate(p, task.init_state(p), _one_row(split), 0)  # noqa: B023, E731
    jax.eval_shape(outputs, params)
  return job


def _split(name: str, config: InputConfig, where: str, mesh: Mesh) -> Split:
  sharding.check_batch_size(config.batch_size, mesh, f"{where}.batch_size")
  source = sources.build(
    config.source,
    where,
    config.source_kw,
    data_dir=config.data_dir,
    split=config.split,
    folds=tuple(str(f) for f in config.folds),
  )
  reader = Reader(source)
  split = Split(
    name,
    config,
    reader,
    host_ops.parse(config.on_host, reader, f"{where}.on_host"),
    device_ops.parse(config.on_device, f"{where}.on_device"),
  )
  with located(f"{where}.on_host"):
    row_shapes(split)
  with located(f"{where}.on_device"):
    _one_row(split)
  reader.check()
  return split


@contextlib.contextmanager
def located(where: str):
  """Puts `where` before the UserErrors raised inside."""
  try:
    yield
  except UserError as e:
    raise UserError(f"{where}: {e}") from None


def row_shapes(split: Split) -> dict[str, tuple[tuple[int, ...], Any]]:
  """{name: (shape, type)} of one row of the host's batches."""
  return pipeline.row_shapes(split.host_ops)


def _one_row(split: Split) -> dict[str, Any]:
  """Zeros, shaped like a batch of one row after the device ops."""

  def run(batch):
    keys = device_ops.row_keys(train_step.train_key(0), 1)
    return device_ops.apply(split.device_ops, batch, keys)

  batch = {
    name: jax.ShapeDtypeStruct((1, *shape), dtype)
    for name, (shape, dtype) in row_shapes(split).items()
  }
  return jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, batch)
  )


def load_run(
  workdir: str | os.PathLike, *, data_dir: str | None = None
) -> tuple[Job, TrainState]:
  """The job of a work directory and its best (else newest) state.

  Args:
    workdir: a folder that training wrote.
    data_dir: where the recordings are now, if they have moved.

  Raises:
    UserError: not such a folder, or no intact checkpoint.
  """
  path = pathlib.Path(workdir).expanduser() / "config.json"
  if not path.is_file():
    raise UserError(f"{workdir} is not a work directory: it has no config.json")
  config = json.loads(path.read_text(encoding="utf-8"))["config"]
  if data_dir is not None:
    config["input"]["data_dir"] = data_dir
  job = build(config)
  _, state = fresh_state(job)
  checkpoints = Checkpoints(path.parent, keep=job.config.checkpoint.keep)
  try:
    newest = checkpoints.restore(state)
    if newest is None:
      raise UserError(f"{workdir} has no checkpoint yet")
    best = newest[1].get("best_step")
    if best in checkpoints.steps():
      return job, checkpoints.restore(state, step=best)[0]
    return job, newest[0]
  finally:
    checkpoints.close()


def fresh_state(job: Job) -> tuple[optax.GradientTransformation, TrainState]:
  """Optimiser and state before the first step, on the mesh.

  In one jit, so that no buffer is held twice.
  """
  tx = job.optimizer(jax.eval_shape(job.fresh_params))
  init = jax.jit(
    lambda: train_step.init_state(job.task, job.fresh_params(), tx),
    out_shardings=sharding.replicated(job.mesh),
  )
  return tx, init()
