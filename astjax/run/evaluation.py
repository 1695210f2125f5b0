"""The evaluations of a run: of which state, and where their figures go."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np

from astjax.data import pipeline
from astjax.data.source import fingerprint
from astjax.engine import sharding
from astjax.engine.step import TrainState, make_eval_step
from astjax.errors import UserError, located, warn
from astjax.run import evaluate, workdir
from astjax.run.checkpoint import Checkpoints
from astjax.run.job import Job
from astjax.run.log import Console, MetricLog
from astjax.run.record import RunRecord
from astjax.run.streams import Split
from astjax.weights import convert, files
from astjax.weights import info as model_info


class Evaluations:
  """All that the training loop, or its end, wants to have rated.

  Args:
    job: from `job.build`.
    shardings: where the state lives, from `sharding.of_state`.
    record: what is remembered of them.
    checkpoints: where the best one is.
    log: gets their metrics.
    console: shows them.
    folder: the work directory, for tables and the averaged model.
  """

  def __init__(
    self,
    job: Job,
    shardings: TrainState,
    record: RunRecord,
    checkpoints: Checkpoints,
    log: MetricLog,
    console: Console,
    folder: pathlib.Path,
  ):
    self.job, self.shardings, self.record = job, shardings, record
    self.checkpoints, self.folder = checkpoints, folder
    self.log, self.console = log, console
    self.results: dict[str, float] = {}
    self._steps: dict[tuple[str, bool], Callable] = {}

  def run(self, state: TrainState, splits: Mapping[str, Split]) -> bool:
    """Runs these evaluations, logs them; whether there is a new best."""
    step, results = int(state.step), {}
    for name, split in splits.items():
      out = self._outputs(split, state)
      metrics = self._rate(split, out)
      if self.record.ensembles is not None and not split.probe:
        metrics |= self._ensemble(split, out)
      results |= self._told(step, name, metrics)
    self._write(step, results)
    best, scale = self.record.best, self.record.lr_scale
    self.record.update(step, results)
    if self.record.lr_scale != scale:
      config = self.record.plateau.config
      self.console.say(
        f"no better {config.metric} in the last {config.patience + 1} "
        f"evaluation(s): learning rate times {self.record.lr_scale:g}"
      )
    return self.record.best != best

  def _outputs(self, split: Split, state: TrainState) -> dict[str, np.ndarray]:
    """Runs one evaluation: {name: [n, ...]}."""
    out = self._pass(split, state, features=split.probe is not None)
    if split.probe is None:
      return out
    known = self._pass(split.known, state, features=True)
    with located(f"evaluation {split.name}"):
      return evaluate.probed(split.probe, known, out)

  def _pass(self, split, state, *, features):
    """Runs a split through the model once."""
    job, size = self.job, split.config.batch_size
    kind = (split.config.on_device, features)
    if kind not in self._steps:
      self._steps[kind] = make_eval_step(
        job.task,
        split.device_ops,
        job.mesh,
        features=features,
        shardings=self.shardings,
      )
    batches = pipeline.eval_batches(
      split.reader,
      split.host_ops,
      batch_size=size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    progress = self.console.ticker(
      split.name, pipeline.num_eval_batches(split.reader, size)
    )
    with contextlib.closing(batches), located(f"evaluation {split.name}"):
      return evaluate.outputs(
        self._steps[kind], state, batches, job.mesh, progress=progress
      )

  def _ensemble(self, split: Split, out) -> dict[str, float]:
    """The metrics of the mean of the scores so far, with this evaluation."""
    data = fingerprint(split.reader.source)
    ensemble = self.record.ensemble(split.name, data, out["id"])
    rows, scores = ensemble.add(out["id"], evaluate.scores(out))
    rated = evaluate.rate(scores, out["label"][rows])
    return {f"ensemble_{k}": v for k, v in rated.items()}

  def run_average(self, state: TrainState, splits: Mapping[str, Split]) -> None:
    """Rates the averaged weights, and saves them as a model in `average/`."""
    flat = self.record.average.mean.value()
    params = convert.unflatten(
      {k: v.astype(np.float32) for k, v in flat.items()}
    )
    step = int(state.step)
    state = state.replace(params=jax.device_put(params, self.shardings.params))
    results = {}
    for name, split in splits.items():
      if split.of_best:  # it is looked at once
        continue
      out = self._outputs(split, state)
      metrics, _ = (split.probe or self.job.task).summarise(out)
      results |= {f"{name}/average_{k}": v for k, v in metrics.items()}
    self._write(step, results)
    if jax.process_index() == 0:
      config = self.job.config.average
      path = self.folder / model_info.MODEL
      info = model_info.parse(files.read_json(path), str(path))
      info = dataclasses.replace(
        info,
        origin=f"{info.origin}, averaged over the epochs {config.first_epoch} "
        f"to {config.last_epoch}",
      )
      workdir.write_average(self.folder, info, params)

  def run_best(self, state: TrainState, splits: Mapping[str, Split]) -> None:
    """The evaluations that look at the best checkpoint alone, at the end."""
    splits = {k: v for k, v in splits.items() if v.of_best}
    step, best = int(state.step), self.record.best_step
    if splits and best is not None and best != step:
      try:
        state, _ = self.checkpoints.restore(state, step=best)
      except UserError as e:
        warn(f"{e}: {', '.join(splits)} is of the last one instead")
        best = step
    results = {}
    for name, split in splits.items():
      metrics = self._rate(split, self._outputs(split, state))
      results |= self._told(f"{best}, the best", name, metrics)
    self._write(step, results)

  def _rate(self, split: Split, out) -> dict[str, float]:
    """The metrics of one evaluation; its table of classes is written."""
    metrics, per_class = evaluate.reduce(split.probe or self.job.task, out)
    if per_class and jax.process_index() == 0:
      workdir.write_per_class(
        self.folder, split.name, split.class_names, per_class
      )
    return metrics

  def _told(self, step: int | str, name: str, metrics) -> dict[str, float]:
    """Shows the metrics; gives them their full names."""
    shown = "  ".join(
      f"{k} {v:.4f}" for k, v in metrics.items() if isinstance(v, float)
    )
    self.console.say(f"step {step}  {name}: {shown}")
    return {f"{name}/{k}": v for k, v in metrics.items()}

  def _write(self, step: int, results: Mapping[str, float]) -> None:
    """To the log, unless a run that was killed here has done so."""
    self.results |= results
    if results and not any(
      line["step"] == step and results.keys() <= line.keys()
      for line in self.log.history
    ):
      self.log.write(step, results)

  def complete(self, state: TrainState) -> None:
    """Of a run that is complete: what its log does not have yet."""
    step = int(state.step)
    logged = {}
    for line in self.log.history:
      if line["step"] == step:
        logged |= {
          k: v for k, v in line.items() if k.split("/")[0] in self.job.evals
        }
    self.results |= sharding.as_first(logged)
    # Not those of which there are averages or ensembles alone.
    known = {
      k.split("/")[0] for k in self.results if k.endswith("/num_examples")
    }
    missing = {k: v for k, v in self.job.evals.items() if k not in known}
    of_last = {k: v for k, v in missing.items() if not v.of_best}
    if of_last:
      self.run(state, of_last)
    self.run_best(state, missing)
    if self.record.average:
      rated = {k.split("/average_")[0] for k in self.results}
      missing = {
        k: v
        for k, v in self.job.evals.items()
        if k not in rated and not v.of_best
      }
      is_there = (self.folder / workdir.AVERAGE).exists()
      if missing or not sharding.as_first(is_there):
        self.run_average(state, missing)
    self.say_results(step)

  def say_results(self, step: int) -> None:
    """The newest figures, in a table."""
    if self.results:
      rows = [(k, v) for k, v in self.results.items()]
      self.console.table(f"results at step {step}", ["metric", "value"], rows)
    if self.record.best is not None:
      self.console.say(
        f"best {self.record.metric} {self.record.best:.4f} at step "
        f"{self.record.best_step}"
      )
