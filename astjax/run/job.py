"""A config turned into things that run: data, task, optimiser, devices.

Whatever is wrong with a config shows here, before the first step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from astjax import tasks
from astjax.data import pipeline
from astjax.data.source import Source
from astjax.engine import optim, sharding, step
from astjax.engine.devices import chip_of, count_flops
from astjax.engine.step import TrainState
from astjax.engine.task import Task
from astjax.errors import Outage, UserError, call, located, lookup, nearest
from astjax.run import config as run_config
from astjax.run import record, streams
from astjax.run.checkpoint import Checkpoints
from astjax.run.config import RunConfig
from astjax.run.streams import Stream
from astjax.types import Metrics, Params
from astjax.weights import files, load
from astjax.weights.front_end import inference_recipe
from astjax.weights.info import ModelInfo


@dataclasses.dataclass(frozen=True)
class Job:
  """A config turned into things that run; an epoch may end within a step."""

  config: RunConfig
  mesh: Mesh
  task: Task
  train: Stream
  evals: Mapping[str, Stream]
  steps_per_epoch: float
  total_steps: int

  @property
  def own_evals(self) -> dict[str, Stream]:
    """Those by the task's own metrics: no probes."""
    return {k: v for k, v in self.evals.items() if not v.probe}

  def own_eval(self, name: str = "") -> Stream:
    """One of these, by default the first."""
    if not (evals := self.own_evals):
      raise UserError("the config of this run has no evaluation of its own")
    return lookup(evals, name or next(iter(evals)), "evaluation")

  def fresh_params(self) -> Any:
    """Fresh parameters, a function of the seed (traceable)."""
    key = step.train_key(self.config.seed)
    return self.task.init_params(key, self.train.one_row())

  @cached_property
  def param_shapes(self) -> Any:
    """The parameters as shapes: a large model takes seconds to trace."""
    return jax.eval_shape(self.fresh_params)

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
    return call(
      optim.make_optimizer,
      "config.optim",
      self.config.optim,
      params,
      self.schedule(),
      steps_per_epoch=self.steps_per_epoch,
      total_steps=self.total_steps,
    )

  def flops_per_example(self) -> int:
    """FLOPs of the matrix products that training on one example needs."""
    # In the loss and its gradient, with all passes and the teacher; without
    # what `remat` computes again, and without the front-end. Counted on the
    # traced program, so that each task is.
    plain = dataclasses.replace(self.task, backbone=self.task.backbone.plain())
    loss = partial(_loss, dataclasses.replace(self, task=plain))
    return count_flops(jax.value_and_grad(loss), self.param_shapes)

  def share_of_peak(self) -> float | None:
    """What one example per second takes of the devices; None if not known."""
    chip = chip_of(self.mesh.devices.flat[0])
    peak = chip.flops * self.mesh.size if chip else None
    return self.flops_per_example() / peak if peak else None

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

  def facts(self, first_step: int) -> dict[str, str]:
    """What runs, in lines for people."""
    run, streams = self.config, {"train": self.train, **self.evals}
    kind, processes = self.mesh.devices.flat[0].device_kind, jax.process_count()
    count = sum(x.size for x in jax.tree.leaves(self.param_shapes))
    data = (f"{n} {len(s.reader.source):,}" for n, s in streams.items())
    parts = f"in {run.accumulate} parts " if run.accumulate > 1 else ""
    start = f"resumed at step {first_step}" if first_step else run.init_from
    epochs = self.total_steps / self.steps_per_epoch
    dtype, classes = run.model.get("dtype"), len(self.train.class_names)
    return {
      "devices": f"{self.mesh.size} x {kind}, {processes} process(es)",
      "mesh": ", ".join(f"{k}={v}" for k, v in self.mesh.shape.items()),
      "precision": f"{dtype or 'float32'} compute, float32 parameters",
      "parameters": f"{count:,}",
      "data": f"{', '.join(data)} recordings, {classes} classes",
      "steps": f"{self.total_steps:,} of {run.input.batch_size} examples "
      f"{parts}({epochs:.4g} epochs)",
      "start": start or "fresh",
    }

  def model_info(self, start: ModelInfo | None = None) -> ModelInfo:
    """What turns its parameters, which began as `start`'s, into a model."""
    stream = next(iter(self.own_evals.values()), self.train)
    return ModelInfo(
      model=self.task.backbone.describe(),
      head=self.task.head,
      objective=self.task.saved_objective,
      class_names=self.train.class_names if self.task.head else (),
      recipe=inference_recipe(
        (*stream.host_ops, *stream.device_ops),
        (stream.config.on_host, stream.config.on_device),
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
    config: a ConfigDict or dict; see `run.config.RunConfig`.
    mesh: the devices; all of them by default. Their grid is the config's.
    source: replaces the config's sources, where there is no data.
  """
  pipeline.hide_accelerators()
  devices = jax.devices() if mesh is None else [*mesh.devices.flat]
  run = run_config.parse(config, len(devices))
  mesh = sharding.make_mesh(devices, fsdp=run.fsdp)
  make_stream = partial(streams.build, mesh=mesh, source=source)
  train = make_stream("train", run.input, "config.input")
  where = "config.input.batch_size"
  sharding.check_batch_size(run.input.batch_size, mesh, where, run.accumulate)
  steps_per_epoch = len(train.reader.source) / run.input.batch_size
  total_steps = run.steps or optim.first_step(run.epochs, steps_per_epoch)
  evals = _evals(run, steps_per_epoch, make_stream)
  task = tasks.build(
    run.task,
    run.task_kw,
    model=run.model,
    num_classes=len(train.class_names),
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
  )
  job = Job(run, mesh, task, train, evals, steps_per_epoch, total_steps)
  _check_labels_and_classes(job)
  call(load.Options, "config.init_kw", run.init_kw)
  _check_record(job)
  _check_shapes(job)
  return job


def _evals(run, steps_per_epoch, make_stream):
  if "train" in run.evals:
    raise UserError("config.evals.train: the name is taken by the training")
  evals = {}
  for name, given in run.evals.items():
    where = f"config.evals.{name}"
    every = run_config.interval(given, steps_per_epoch)
    if given.of_best and (every or not run.best):
      raise UserError(
        f"{where}.of_best is evaluated once, on the best checkpoint: it needs "
        "config.best, and no every_epochs or every_steps"
      )
    stream = make_stream(name, given.input(run.input), where)
    if given.probe:
      stream = streams.with_probe(stream, given, where, run.input, make_stream)
    stream = dataclasses.replace(stream, every=every, of_best=given.of_best)
    evals[name] = stream
  return evals


def _check_labels_and_classes(job):
  classes = job.train.class_names
  for name, stream in job.own_evals.items() if job.task.head else ():
    where, names = f"config.evals.{name}", stream.class_names
    streams.check_same_classes(where, names, "the training data", classes)
  for stream in (job.train, *job.own_evals.values()):
    streams.check_labels(stream, job.task)


def _check_shapes(job):
  """Traces one row of everything, to see that data and model fit together."""
  with located("config.input"):
    params = job.param_shapes
    jax.eval_shape(partial(_loss, job), params)
  job.optimizer(params)
  for name, stream in job.evals.items():
    with located(f"config.evals.{name}"):
      jax.eval_shape(partial(_outputs, job, stream), params)


def _loss(job, params):
  rng = step.train_key(0)
  state = job.task.init_state(params)
  batch = job.task.corrupt(job.train.one_row(), rng, 0)
  return job.task.loss(params, state, batch, rng, 0)[0]


def _outputs(job, stream, params):
  state = job.task.init_state(params)
  if not stream.probe:
    return job.task.evaluate(params, state, stream.one_row(), 0)
  if type(job.task).features is Task.features:
    name = job.config.task
    raise UserError(f"a probe needs features, and the task {name!r} has none")
  for part in (stream, stream.known):
    shape = job.task.features(params, state, part.one_row()).shape
    if len(shape) != 2:
      raise UserError(f"features of shape {shape}; a probe needs [B, D]")


def _check_record(job):
  run, plateau = job.config, job.config.plateau.metric
  known = [
    f"{name}/{metric}"
    for name, stream in job.evals.items()
    for metric in (stream.probe or job.task).metric_names
    if not stream.of_best
  ]
  for where, metric in (("best", run.best), ("plateau.metric", plateau)):
    if metric and metric not in known:
      hint = nearest(metric, known)
      raise UserError(f"config.{where}={metric!r} is no metric.{hint}")
  name = plateau.split("/")[0]
  if plateau and not job.evals[name].every:
    raise UserError(
      f"config.plateau.metric={plateau!r} is of an evaluation only at the end: "
      f"set config.evals.{name}.every_epochs or every_steps"
    )
  average = record.start(run, job.steps_per_epoch).average
  teacher = jax.eval_shape(job.task.init_state, job.param_shapes)
  if average and jax.tree.leaves(teacher):
    # It would rate the teacher of the last step under the name of averaged
    # weights, and save the student.
    raise UserError(
      f"config.average: the teacher of the task {run.task!r} is an average "
      "already; leave config.average.last_epoch at 0"
    )
  if average and average.last_step > job.total_steps:
    raise UserError(
      f"config.average.last_epoch={run.average.last_epoch}, but the run ends "
      f"after {job.total_steps / job.steps_per_epoch:.4g} epochs"
    )
  if run.ensemble_predictions and job.task.head is None:
    raise UserError(
      f"config.ensemble_predictions: the task {run.task!r} has no classifier"
    )


def load_run(
  workdir: str | os.PathLike, *, data_dir: str | None = None
) -> tuple[Job, TrainState]:
  """The job of a work directory and its best (else newest) state.

  `data_dir` is where the recordings are now, if they have moved.
  """
  path = pathlib.Path(workdir).expanduser() / "config.json"
  if not path.is_file():
    raise UserError(f"{workdir} is not a work directory: it has no config.json")
  config = files.read_json(path).get("config")
  if not isinstance(config, dict) or "input" not in config:
    raise UserError(f"{path} is not of a training run")
  # The tool may run on another machine, with fewer devices.
  config["fsdp"] = 1
  if data_dir is not None:
    config["input"]["data_dir"] = data_dir
  job = build(config)
  _, state = abstract_state(job)
  with contextlib.closing(Checkpoints(path.parent, read_only=True)) as saved:
    found = saved.restore(state)
    if found is None:
      raise UserError(f"{workdir} has no checkpoint yet")
    best = found[1].get("best_step")
    if best in saved.steps():
      with contextlib.suppress(UserError):  # warned of; the newest is intact
        found = saved.restore_step(state, best)
  return job, found[0]


def abstract_state(job: Job) -> tuple[optax.GradientTransformation, TrainState]:
  """As `fresh_state`, but only shapes, types and places: for restoring."""
  tx = job.optimizer(job.param_shapes)
  init = partial(step.init_state, job.task, tx=tx)
  shapes = jax.eval_shape(init, job.param_shapes)
  return tx, jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    shapes,
    sharding.of_state(shapes, job.mesh),
  )


def fresh_state(
  job: Job, params: Params | None = None
) -> tuple[optax.GradientTransformation, TrainState]:
  """Optimiser and state before the first step, on the mesh."""
  tx, shapes = abstract_state(job)
  return tx, _make_start(job, tx, shapes)(params)


def _make_start(job, tx, shapes):
  init = partial(step.init_state, job.task, tx=tx)
  # In one jit, so that no buffer is held twice.
  return jax.jit(
    lambda params: init(job.fresh_params() if params is None else params),
    out_shardings=jax.tree.map(lambda x: x.sharding, shapes),
  )


def warm_params(job: Job) -> tuple[Params, ModelInfo, list[str]]:
  """(parameters that `config.init_from` asks for, their model, a report)."""
  options = call(load.Options, "config.init_kw", job.config.init_kw)
  with located("config.init_from"):
    loaded = _same_weights(job.config.init_from, options)
    params, report = load.start(
      loaded,
      jax.jit(job.fresh_params)(),
      backbone=job.task.backbone,
      head=job.task.head,
      class_names=job.train.class_names,
      objective=job.task.saved_objective,
      options=options,
    )
  info = loaded.info
  lines = [f"start from {job.config.init_from}: {info.origin}"]
  lines += [f"licence of the weights: {info.licence}"] if info.licence else []
  return params, info, [*lines, f"SHA-256 {loaded.digest}", *report.lines()]


def _same_weights(source, options):
  """Loads on each process; fails on all if one fails or has another file."""
  loaded, failure = None, ""
  try:
    loaded = load.load(source, options)
  except UserError as e:
    failure = f"{type(e).__name__}: {e}"
  outcome = (loaded.digest if loaded else "", failure)
  everyone = sharding.union({"files": [outcome]})["files"]
  for _, text in everyone:
    if text:
      kind, _, text = text.partition(": ")
      raise (Outage if kind == "Outage" else UserError)(text)
  if len(everyone) > 1:
    raise UserError(f"the processes read different files as {source!r}")
  return loaded
