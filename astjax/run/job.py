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
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from astjax import tasks
from astjax.data import pipeline
from astjax.data.source import Source
from astjax.engine import flops, optim, sharding, step
from astjax.engine.step import TrainState
from astjax.engine.task import Task
from astjax.errors import Outage, UserError, call, located, nearest
from astjax.run import config as run_config
from astjax.run import record, streams
from astjax.run.checkpoint import Checkpoints
from astjax.run.config import RunConfig
from astjax.run.streams import Split
from astjax.types import Metrics, Params
from astjax.weights import load, saved_model
from astjax.weights.info import ModelInfo


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

  @property
  def own_evals(self) -> dict[str, Split]:
    """Those by the task's own metrics: no probes."""
    return {k: v for k, v in self.evals.items() if not v.probe}

  def fresh_params(self) -> Any:
    """Fresh parameters, a function of the seed (traceable)."""
    return self.task.init_params(
      step.train_key(self.config.seed), self.train.one_row()
    )

  def schedule(self) -> optim.Schedule:
    """Learning rate by step."""
    return call(
      optim.make_schedule,
      "config.schedule",
      self.config.schedule,
      steps_per_epoch=self.steps_per_epoch,
      total_steps=self.total_steps,
      batch_size=self.config.input.batch_size,
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
      steps_per_epoch=self.steps_per_epoch,
      total_steps=self.total_steps,
    )

  def flops_per_example(self) -> int:
    """FLOPs of the matrix products that training on one example needs.

    In the loss and its gradient, with all passes and the teacher; without what
    `remat` computes again, and without the front-end.
    """
    plain = _task(
      self.config,
      len(self.train.class_names),
      self.steps_per_epoch,
      self.total_steps,
      # What hides nothing from the count, and repeats nothing.
      model=self.config.model | {"remat": False, "attention": "xla"},
    )
    loss = partial(_loss, dataclasses.replace(self, task=plain))
    return flops.of(jax.value_and_grad(loss), jax.eval_shape(self.fresh_params))

  def train_step(
    self, tx: optax.GradientTransformation, shardings: TrainState
  ) -> Callable[..., tuple[TrainState, Metrics]]:
    """The compiled step that training runs, see `make_train_step`."""
    return step.make_train_step(
      self.task,
      tx,
      self.train.device_ops,
      self.mesh,
      scaled=bool(self.config.plateau.metric),
      accumulate=self.config.accumulate,
      shardings=shardings,
    )

  def model_info(self, start: ModelInfo | None = None) -> ModelInfo:
    """What turns this job's parameters into a model, without its data.

    Args:
      start: of the weights that the training began from.
    """
    split = next(iter(self.own_evals.values()), self.train)
    return ModelInfo(
      model=saved_model.describe(self.task.backbone),
      head=self.task.head,
      objective=self.task.objective,
      class_names=self.train.class_names if self.task.head else (),
      recipe=saved_model.inference_recipe(
        (*split.host_ops, *split.device_ops),
        (split.config.on_host, split.config.on_device),
      ),
      origin="trained by astjax" + (f" from {start.origin}" if start else ""),
      licence=start.licence if start else "",
    )


def build(
  config: Mapping[str, Any],
  *,
  mesh: Mesh | None = None,
  source: Source | None = None,
) -> Job:
  """Everything that can go wrong before the first step goes wrong here.

  Args:
    config: a ConfigDict or dict; see `run_config.RunConfig`.
    mesh: the devices; all of them by default. Their grid is the config's.
    source: takes the place of all the config's sources, where there is no data.

  Raises:
    UserError: anything in the config that does not work out.
  """
  pipeline.hide_accelerators()
  run = run_config.parse(config)
  devices = None if mesh is None else [*mesh.devices.flat]
  mesh = sharding.make_mesh(devices, fsdp=run.fsdp)
  run = run_config.parse(run_config.global_batches(config, mesh.size))
  make_split = partial(streams.build, mesh=mesh, source=source)
  train = make_split("train", run.input, "config.input")
  sharding.check_batch_size(
    run.input.batch_size, mesh, "config.input.batch_size", run.accumulate
  )
  steps_per_epoch = len(train.reader.source) / run.input.batch_size
  if "train" in run.evals:
    raise UserError("config.evals.train: the name is taken by the training")
  # Less a hair: 25 epochs of 22 / 10 steps are 55, not 56.
  total_steps = run.steps or math.ceil(run.epochs * steps_per_epoch - 1e-6)
  evals = {}
  for name, given in run.evals.items():
    where = f"config.evals.{name}"
    split = make_split(name, given.input(run.input), where)
    every = run_config.interval(
      given.every_epochs, given.every_steps, steps_per_epoch
    )
    if given.of_best and (every or not run.best):
      raise UserError(
        f"{where}.of_best is evaluated once, on the best checkpoint: it needs "
        "config.best, and no every_epochs or every_steps"
      )
    split = dataclasses.replace(split, every=every, of_best=given.of_best)
    if given.probe:
      split = streams.probed(split, given, where, run.input, make_split)
    evals[name] = split
  num_classes = len(train.class_names)
  task = _task(run, num_classes, steps_per_epoch, total_steps)
  for name, split in evals.items() if task.head else ():
    where = f"config.evals.{name}"
    if not split.probe:
      streams.check_same_classes(
        where, split.class_names, "the training data", train.class_names
      )
  call(load.Options, "config.init_kw", run.init_kw)
  job = Job(run, mesh, task, train, evals, steps_per_epoch, total_steps)
  _check_metric("config.best", run.best, evals, task)
  _check_record(job)
  for split in (train, *job.own_evals.values()):
    streams.check_labels(split, task)
  with located("config.input"):
    params = jax.eval_shape(job.fresh_params)
    jax.eval_shape(partial(_loss, job), params)
  job.optimizer(params)
  for name, split in evals.items():
    with located(f"config.evals.{name}"):
      jax.eval_shape(partial(_outputs, job, split), params)
  return job


def _task(run, num_classes, steps_per_epoch, total_steps, *, model=None):
  return tasks.build(
    run.task,
    run.task_kw,
    model=run.model if model is None else model,
    num_classes=num_classes,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
  )


def _remembered(job):
  """Shapes of what the task remembers beside the parameters."""
  return jax.eval_shape(lambda: job.task.init_state(job.fresh_params()))


def _loss(job, params):
  rng = step.train_key(0)
  state = job.task.init_state(params)
  batch = job.task.corrupt(job.train.one_row(), rng, 0)
  return job.task.loss(params, state, batch, rng, 0)[0]


def _outputs(job, split, params):
  state = job.task.init_state(params)
  if not split.probe:
    return job.task.evaluate(params, state, split.one_row(), 0)
  if type(job.task).features is Task.features:
    raise UserError(
      f"a probe needs features, and the task {job.config.task!r} has none"
    )
  found = {}
  for part in (split, split.known):
    x = job.task.features(params, state, part.one_row())
    if x.ndim != 2:
      raise UserError(
        f"{part.name}: the task {job.config.task!r} gives features of shape "
        f"{x.shape}; a probe needs [B, D]"
      )
    found[part.name] = x
  return found


def _check_metric(where, metric, evals, task):
  known = [
    f"{e}/{m}"
    for e, split in evals.items()
    for m in (split.probe or task).metric_names
    if not split.of_best
  ]
  if metric and metric not in known:
    raise UserError(
      f"{where}={metric!r} is no metric of an evaluation."
      f"{nearest(metric, known)}"
    )


def _check_record(job):
  """What the run is to remember has to come up in it."""
  run, metric = job.config, job.config.plateau.metric
  _check_metric("config.plateau.metric", metric, job.evals, job.task)
  if metric and not job.evals[metric.split("/")[0]].every:
    name = metric.split("/")[0]
    raise UserError(
      f"config.plateau.metric={metric!r}, but {name} is evaluated only at the "
      f"end: set config.evals.{name}.every_epochs or every_steps"
    )
  average = record.start(run, job.steps_per_epoch).average
  if average and jax.tree.leaves(_remembered(job)):
    raise UserError(
      f"config.average: the task {run.task!r} keeps a running average of its "
      "own, its teacher; leave config.average.last_epoch at 0"
    )
  if average and average.last_step > job.total_steps:
    raise UserError(
      f"config.average.last_epoch={run.average.last_epoch}, but the run ends "
      f"after {job.total_steps / job.steps_per_epoch:.4g} epochs"
    )
  if run.ensemble_predictions and job.task.head is None:
    raise UserError(
      "config.ensemble_predictions needs a classifier, which the task "
      f"{run.task!r} does not have"
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
  config["fsdp"] = 1  # whatever there is here; nothing is trained
  if data_dir is not None:
    config["input"]["data_dir"] = data_dir
  job = build(config)
  _, state = fresh_state(job)
  checkpoints = Checkpoints(path.parent, read_only=True)
  try:
    newest = checkpoints.restore(state)
    if newest is None:
      raise UserError(f"{workdir} has no checkpoint yet")
    best = newest[1].get("best_step")
    if best in checkpoints.steps():
      with contextlib.suppress(UserError):  # warned of; the newest is intact
        return job, checkpoints.restore(state, step=best)[0]
    return job, newest[0]
  finally:
    checkpoints.close()


def fresh_state(
  job: Job, params: Params | None = None
) -> tuple[optax.GradientTransformation, TrainState]:
  """Optimiser and state before the first step, on the mesh.

  In one jit, so that no buffer is held twice.

  Args:
    job: from `build`.
    params: to start from; fresh ones by default.
  """
  tx = job.optimizer(jax.eval_shape(job.fresh_params))

  def init(params):
    params = job.fresh_params() if params is None else params
    return step.init_state(job.task, params, tx)

  shardings = sharding.of_state(jax.eval_shape(init, params), job.mesh)
  return tx, jax.jit(init, out_shardings=shardings)(params)


def warm_params(job: Job) -> tuple[Params, ModelInfo, list[str]]:
  """The parameters that `config.init_from` asks for.

  Returns:
    (parameters on the host, what they are of, what was taken, in lines).

  Raises:
    UserError: the checkpoint cannot be had, or does not fit the model; the same
      on all processes.
  """
  options = call(load.Options, "config.init_kw", job.config.init_kw)
  source = job.config.init_from
  with located("config.init_from"):
    loaded, failure = None, ""
    try:
      loaded = load.load(source, options)
    except UserError as e:
      failure = f"{type(e).__name__}: {e}"
    mine = (loaded.digest if loaded else "", failure)
    everyone = sharding.union({"files": [mine]})["files"]
    for _, text in everyone:
      if text:
        kind, _, text = text.partition(": ")
        raise (Outage if kind == "Outage" else UserError)(text)
    if len(everyone) > 1:
      raise UserError(
        f"the processes read {len(everyone)} different files as {source!r}"
      )
    params, report = load.start(
      loaded,
      jax.jit(job.fresh_params)(),
      backbone=job.task.backbone,
      head=job.task.head,
      class_names=job.train.class_names,
      options=options,
    )
  info = loaded.info
  lines = [f"start from {source}: {info.origin}"]
  if info.licence:
    lines.append(f"licence of the weights: {info.licence}")
  return params, info, [*lines, f"SHA-256 {loaded.digest}", *report.lines()]
