"""One pass over a stream, and what becomes of its numbers in a run."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import scipy.special
from flax import traverse_util
from jax.sharding import Mesh

from astjax.data import pipeline
from astjax.engine import sharding
from astjax.engine.step import TrainState, make_eval_step
from astjax.engine.task import Task
from astjax.errors import UserError, located, warn
from astjax.ops import metrics
from astjax.run import workdir
from astjax.run.checkpoint import Checkpoints
from astjax.run.job import Job
from astjax.run.log import Console, MetricLog
from astjax.run.record import RunRecord
from astjax.run.streams import Stream
from astjax.tasks.probes import Probe
from astjax.weights.info import MODEL, read_info, save_model


def outputs(
  eval_step: Callable,
  state: TrainState,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: Mesh,
  *,
  progress: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
  """Per-example outputs {name: [n, ...]} of some batches, without padding rows.

  The same on every process, though `batches` are this process's rows of each.
  `progress` is called with the number of batches done.
  """
  parts: list[dict[str, np.ndarray]] = []
  for batch in batches:
    rows = sharding.to_global(batch, mesh)
    out = eval_step(state.params, state.task_state, rows, state.step)
    out = {k: np.asarray(v) for k, v in out.items()}
    valid = out.pop("valid")
    parts.append({k: v[valid] for k, v in out.items()})
    progress(len(parts))
  if not any(len(p["id"]) for p in parts):
    raise UserError("none of the recordings of this split can be read")
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def evaluate(
  job: Job,
  state: TrainState,
  stream: Stream,
  *,
  shardings: TrainState | None = None,
  steps: dict[tuple[str, bool], Callable] | None = None,
  console: Console | None = None,
) -> dict[str, np.ndarray]:
  """Runs a stream, one of `job.evals`, through the model once.

  A probe learns from one pass over `stream.known` and rates the features of
  another: the outputs have `scores` [n, C] instead of `features`.

  Args:
    job: gives the task and the devices.
    state: what is evaluated.
    stream: the recordings.
    shardings: where the state lives, by default whole on each device.
    steps: keeps what was compiled, since streams may have the same recipe.
    console: says how far a long pass is.

  Returns:
    {name: [n, ...]}, the same on every process.
  """
  console = console or Console(active=False)
  steps, features = {} if steps is None else steps, stream.probe is not None

  def run(part):
    kind = (part.config.on_device, features)
    if kind not in steps:
      make = partial(make_eval_step, features=features, shardings=shardings)
      steps[kind] = make(job.task, part.device_ops, job.mesh)
    count = pipeline.num_eval_batches(part.reader, part.config.batch_size)
    progress = console.ticker(part.name, count)
    with contextlib.closing(part.batches()) as batches:
      return outputs(steps[kind], state, batches, job.mesh, progress=progress)

  with located(f"evaluation {stream.name}"):
    if stream.probe is None:
      return run(stream)
    known, out = run(stream.known), run(stream)
    for which, x in (("to learn from", known), ("to rate", out)):
      if not np.isfinite(x["features"]).all():
        raise UserError(f"the features {which} are not finite")
    rated = out.pop("features")
    scores = stream.probe.scores(known["features"], known["label"], rated)
    # Each process has computed them, but a solver's last bits may differ
    # between machines.
    scores = sharding.from_process_0(scores.astype(np.float32))
    return out | {"scores": scores}


def reduce(
  task: Task | Probe, out: Mapping[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, Any]]:
  """(metrics with `num_examples`, per-class columns)."""
  summary, per_class = task.summarise(out)
  return summary | {"num_examples": len(out["id"])}, per_class


def scores(out: Mapping[str, np.ndarray]) -> np.ndarray:
  """What ensembles average: the sigmoid of the logits [n, C], in float64."""
  # Also for a model trained with softmax, as in the original, whose numbers are
  # to be compared: a softmax would weigh clips by how sure a model is.
  return scipy.special.expit(out["logits"].astype(np.float64))


@dataclasses.dataclass
class Evaluations:
  """All that the training loop, or its end, wants to have rated.

  `results` are the newest figures, by their full names such as "val/mAP".
  """

  job: Job
  shardings: TrainState
  record: RunRecord
  checkpoints: Checkpoints
  log: MetricLog
  console: Console
  folder: pathlib.Path
  results: dict[str, float] = dataclasses.field(default_factory=dict)
  _steps: dict[tuple[str, bool], Callable] = dataclasses.field(
    default_factory=dict
  )

  def run(self, state: TrainState, streams: Mapping[str, Stream]) -> bool:
    """Runs these evaluations, logs them; whether there is a new best."""
    step = int(state.step)
    results = self._rate(streams, state, f"step {step}")
    self._write(step, results)
    best, scale = self.record.best, self.record.lr_scale
    self.record.update(step, results)
    if self.record.lr_scale != scale:
      config = self.job.config.plateau
      self.console.say(
        f"no better {config.metric} in the last {config.patience + 1} "
        f"evaluation(s): learning rate times {self.record.lr_scale:g}"
      )
    return self.record.best != best

  def _outputs(self, stream, state):
    return evaluate(
      self.job,
      state,
      stream,
      shardings=self.shardings,
      steps=self._steps,
      console=self.console,
    )

  def _ensemble(self, stream, out):
    """The metrics of the mean of the scores so far, with this evaluation."""
    data = stream.data()["fingerprint"]
    ensemble = self.record.ensemble(stream.name, data, out["id"])
    rows, mean = ensemble.add(out["id"], scores(out))
    found, _ = metrics.classification(mean, out["label"][rows])
    # Beside the evaluation's own, as `val/ensemble_mAP`: no other evaluation
    # can have that name, and TensorBoard shows the two side by side.
    return {f"ensemble_{k}": v for k, v in found.items()}

  def run_average(
    self, state: TrainState, streams: Mapping[str, Stream]
  ) -> None:
    """Rates the averaged weights, if there are any; writes `average/`."""
    if (average := self.record.average) is None:
      return
    mean = {k: v.astype(np.float32) for k, v in average.mean.value().items()}
    params = traverse_util.unflatten_dict(mean, sep="/")
    step = int(state.step)
    params_there = jax.device_put(params, self.shardings.params)
    state = TrainState(**vars(state) | {"params": params_there})
    results: dict[str, float] = {}
    for name, stream in streams.items():
      if stream.of_best:  # it is looked at once
        continue
      task = stream.probe or self.job.task
      found, _ = task.summarise(self._outputs(stream, state))
      results |= {f"{name}/average_{k}": v for k, v in found.items()}
    self._write(step, results)
    if jax.process_index() == 0:
      info, first = read_info(self.folder / MODEL), average.config.first_epoch
      origin = f"{info.origin}, averaged over the epochs {first} to "
      origin += f"{average.config.last_epoch}"
      info = dataclasses.replace(info, origin=origin)
      folder = self.folder / workdir.AVERAGE
      shutil.rmtree(folder, ignore_errors=True)
      save_model(folder, info, params)

  def run_best(self, state: TrainState, streams: Mapping[str, Stream]) -> None:
    """The evaluations that look at the best checkpoint alone, at the end."""
    streams = {k: v for k, v in streams.items() if v.of_best}
    step, best = int(state.step), self.record.best_step
    if streams and best is not None and best != step:
      try:
        state, _ = self.checkpoints.restore_step(state, best)
      except UserError as e:
        warn(f"{e}: {', '.join(streams)} is of the last one instead")
        best = step
    self._write(step, self._rate(streams, state, f"step {best}, the best"))

  def _rate(self, streams, state, which):
    """Metrics by their full names; shown, and the tables of classes written."""
    results = {}
    for name, stream in streams.items():
      out = self._outputs(stream, state)
      found, per_class = reduce(stream.probe or self.job.task, out)
      if per_class and jax.process_index() == 0:
        workdir.write_per_class(
          self.folder, name, stream.class_names, per_class
        )
      if self.record.wants_ensembles and not (stream.probe or stream.of_best):
        found |= self._ensemble(stream, out)
      shown = [f"{k} {v:.4f}" for k, v in found.items() if isinstance(v, float)]
      self.console.say(f"{which}  {name}: {'  '.join(shown)}")
      results |= {f"{name}/{k}": v for k, v in found.items()}
    return results

  def _write(self, step, results):
    """To the log, unless a run that was killed here has done so."""
    self.results |= results
    if results and not any(
      line["step"] == step and results.keys() <= line.keys()
      for line in self.log.history
    ):
      self.log.write(step, results)

  def complete(self, state: TrainState) -> None:
    """Makes up for the evaluations that a run of full length lacks."""
    # A signal, or a kill after the last save, may have cut them off. Without
    # this, what the log has in the end would depend on when a machine was taken
    # away.
    step = int(state.step)
    logged: dict[str, float] = {}
    evals = self.job.evals
    for line in self.log.history:
      if line["step"] == step:
        logged |= {k: v for k, v in line.items() if k.split("/")[0] in evals}
    self.results |= sharding.from_process_0(logged)
    # Averages and ensembles of the same name do not write num_examples.
    rated = [k for k in self.results if k.endswith("/num_examples")]
    names = [k.split("/")[0] for k in rated]
    missing = {k: v for k, v in evals.items() if k not in names}
    of_last = {k: v for k, v in missing.items() if not v.of_best}
    if of_last:
      self.run(state, of_last)
    self.run_best(state, missing)
    names = [k.split("/average_")[0] for k in self.results]
    missing = {
      k: v for k, v in evals.items() if k not in names and not v.of_best
    }
    is_there = (self.folder / workdir.AVERAGE).exists()
    if missing or not sharding.from_process_0(is_there):
      self.run_average(state, missing)
    self.say_results(step)

  def say_results(self, step: int) -> None:
    """The newest figures, in a table."""
    if self.results:
      rows = self.results.items()
      self.console.table(f"results at step {step}", ["metric", "value"], rows)
    if self.record.best is not None:
      self.console.say(
        f"best {self.record.metric} {self.record.best:.4f} at step "
        f"{self.record.best_step}"
      )
