"""The one loop for any task: start or resume, step, log, evaluate, save.

Reads top to bottom as the story of a training job. The restore order is: the
newest intact checkpoint of the work directory, if there is one; else fresh
parameters, under the weights of `config.init_from` if it is set, then the
task's state.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from astjax.data import pipeline
from astjax.data.source import fingerprint
from astjax.engine import profiling, sharding
from astjax.engine.devices import of
from astjax.engine.step import TrainState, train_key
from astjax.errors import UserError, warn
from astjax.run import record as run_record
from astjax.run import workdir
from astjax.run.checkpoint import Checkpoints
from astjax.run.config import global_batches, interval
from astjax.run.evaluation import Evaluations
from astjax.run.job import build, fresh_state, warm_params
from astjax.run.log import Console, MetricLog, Window, duration
from astjax.run.record import RunRecord
from astjax.run.stopping import Signals, Stopped
from astjax.run.streams import Split
from astjax.weights import convert


def train_and_evaluate(
  config: Mapping[str, Any],
  workdir_path: str | os.PathLike,
  *,
  mesh: Mesh | None = None,
  stop_at: int | None = None,
  profile: tuple[int, int] | None = None,
) -> list[dict[str, Any]]:
  """Trains, evaluates and saves; the same call resumes.

  Args:
    config: see `RunConfig`.
    workdir_path: everything the run writes goes here.
    mesh: the devices; all of them by default.
    stop_at: save and return at this step, as if asked to by a signal.
    profile: (first step, number of steps) to write a trace of to `profile/` in
      the work directory.

  Returns:
    The history: the objects of `metrics.jsonl`.

  Raises:
    UserError: a mistake in what was given, or a loss that is not finite.
    Stopped: SIGTERM, SIGINT or SIGUSR1, to any process; the state is saved.
  """
  job = build(config, mesh=mesh)
  folder = workdir.prepare(workdir_path)
  plain = global_batches(config, job.mesh.size)
  source = job.train.reader.source
  data = {
    "fingerprint": fingerprint(source),
    "num_examples": len(source),
  }
  notices = workdir.check_config(folder, plain, data)
  if profile and profile[0] >= job.total_steps:
    raise UserError(
      f"--profile begins with step {profile[0]}, and the run ends before step "
      f"{job.total_steps}"
    )
  is_main = jax.process_index() == 0
  console = Console(is_main)
  for notice in notices:
    console.say(f"note: {notice}")

  run = job.config
  # Before anything else is in the folder: a run that is killed right away must
  # still be known. All processes have compared their config by then.
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("config_compared")
    workdir.check_shared(folder)
  if is_main:
    workdir.write_config(folder, plain, data)
  record = run_record.start(run, job.steps_per_epoch)
  checkpoints = Checkpoints(folder, keep=run.checkpoint.keep)
  tx, state = fresh_state(job)
  start, origin = None, []
  restored = checkpoints.restore(state)
  if restored is not None:
    state, saved = restored
    record.restore(int(state.step), saved)
  elif run.init_from:
    del state
    params, start, origin = warm_params(job)
    tx, state = fresh_state(job, params)
  if is_main:
    workdir.write_versions(folder)
    num_params = workdir.write_parameters(folder, state.params)
    if restored is None:
      workdir.write_model(folder, job.model_info(start).to_json())
    if origin:
      workdir.write_init_from(folder, origin)
  first_step = int(state.step)
  log = MetricLog(
    folder,
    first_step=first_step,
    active=is_main,
    tensorboard=run.log.tensorboard,
  )
  if is_main:
    _say_what_runs(console, job, folder, num_params, first_step)
    for line in origin:
      console.say(line)

  loop = _Loop(job, tx, state, record, checkpoints, log, console, folder)
  try:
    loop.run(stop_at, profile if is_main else None)
  finally:
    console.stop_bar()
    checkpoints.close()
    log.close()
  return log.history


def _say_what_runs(console, job, folder, num_params, first_step):
  train, run = job.train, job.config
  devices = job.mesh.devices.flat
  splits = {"train": train, **job.evals}
  console.block(
    f"astjax: {run.task}",
    {
      "devices": f"{job.mesh.size} x {devices[0].device_kind}, "
      f"{jax.process_count()} process(es)",
      "mesh": ", ".join(f"{k}={v}" for k, v in job.mesh.shape.items()),
      "precision": f"{run.model.get('dtype', 'float32')} compute, float32 "
      "parameters",
      "parameters": f"{num_params:,}",
      "data": ", ".join(
        f"{n} {len(s.reader.source):,}" for n, s in splits.items()
      )
      + f" recordings, {len(train.class_names)} classes",
      "steps": f"{job.total_steps:,} of {run.input.batch_size} examples "
      + (f"in {run.accumulate} parts " if run.accumulate > 1 else "")
      + f"({job.total_steps / job.steps_per_epoch:.4g} epochs)",
      "start": f"resumed at step {first_step}"
      if first_step
      else run.init_from or "fresh",
      "workdir": folder,
    },
  )


class _Loop:
  """The steps of one run, and what happens between them."""

  def __init__(self, job, tx, state, record, checkpoints, log, console, folder):
    self.job = job
    self.state: TrainState = state
    self.record: RunRecord = record
    self.checkpoints: Checkpoints = checkpoints
    self.log: MetricLog = log
    self.console: Console = console
    self.folder: pathlib.Path = folder
    self.step = int(state.step)
    self.schedule = job.schedule()
    self.shardings = sharding.of_state(state, job.mesh)
    self.train_step = job.train_step(tx, self.shardings)
    self.evaluations = Evaluations(
      job, self.shardings, record, checkpoints, log, console, folder
    )
    self.signals = Signals()
    self.num_unreadable = 0
    chip = of(job.mesh.devices.flat[0])
    # The share of the peak that one example per second is.
    self.use = (
      job.flops_per_example() / (chip.flops * job.mesh.size) if chip else None
    )

  def run(
    self, stop_at: int | None, profile: tuple[int, int] | None = None
  ) -> None:
    """From the current step to the end."""
    job, run, record = self.job, self.job.config, self.record
    total = job.total_steps
    if self.step >= total:
      self.console.say(f"already at step {self.step}: nothing to train")
      self.evaluations.complete(self.state)
      self._report_unreadable()
      return
    save_every = interval(
      run.checkpoint.every_epochs,
      run.checkpoint.every_steps,
      job.steps_per_epoch,
    )
    batches = pipeline.train_batches(
      job.train.reader,
      job.train.host_ops,
      batch_size=run.input.batch_size,
      seed=run.seed,
      first_step=self.step,
      last_step=total,
      weights=job.train.weights,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    key = train_key(run.seed)
    window = Window(self.step)
    trace = profiling.Trace(self.folder / "profile", profile)
    self.console.start_bar(total, self.step)
    with (
      contextlib.closing(batches),
      contextlib.closing(trace),
      self.signals,
    ):
      self._catch_up()
      while self.step < total:
        window.paused += trace.before(self.step, self.state)
        started = time.perf_counter()
        batch = next(batches)
        window.waited += time.perf_counter() - started
        self.state, metrics = self.train_step(
          self.state,
          sharding.to_global(batch, job.mesh),
          self.step,
          key,
          *([np.float32(record.lr_scale)] if record.plateau else []),
        )
        window.pending.append((self.step, batch["id"], metrics))
        if spent := trace.after(self.step, metrics):
          window.paused += spent
          self.console.say(f"trace of the steps up to {self.step} in profile/")
        self.step += 1
        is_last = self.step == total
        # The check trails by two steps, so that the devices never wait for it.
        self._check(window, leave=2)

        if self.step % run.log.every_steps == 0 or is_last:
          self._check(window)
          self._log(window)
          window = Window(self.step)
        due = {
          name: split
          for name, split in job.evals.items()
          if not split.of_best
          and (is_last or (split.every and self.step % split.every == 0))
        }
        paused = time.perf_counter()
        improved = False
        asked = self.signals.asked(self.step)
        stop = asked or self.step == stop_at
        if record.average and record.average.is_due(self.step):
          self._check(window)
          params = sharding.to_host(self.state.params)
          record.average.add(self.step, convert.flatten(params))
        # Whoever is told to stop has seconds, not the time of an evaluation.
        record.owed = tuple(due) if asked and not is_last else ()
        if due and not record.owed:
          self._check(window)
          improved = self._evaluate(due)
        if is_last and record.average:
          self.evaluations.run_average(self.state, job.evals)
        is_due = save_every and self.step % save_every == 0
        if is_due or improved or is_last or stop:
          self._check(window)
          self._save()
        window.paused += time.perf_counter() - paused
        if stop and not is_last:
          self.checkpoints.wait()
          self.console.say(f"stopped and saved at step {self.step} of {total}")
          if asked:
            raise Stopped(self.signals.received, self.step)
          return
    self.checkpoints.wait()
    self.evaluations.run_best(self.state, job.evals)
    self.evaluations.say_results(self.step)

  def _catch_up(self) -> None:
    """The evaluations that were due when a signal stopped the run."""
    due = {k: v for k, v in self.job.evals.items() if k in self.record.owed}
    self.record.owed = ()
    if due:
      self._evaluate(due)

  def _check(self, window: Window, *, leave: int = 0) -> None:
    """Looks at finished steps; a non-finite one ends the run."""
    while len(window.pending) > leave:
      step, ids, metrics = window.pending.popleft()
      metrics = {k: float(v) for k, v in metrics.items()}
      if not metrics.pop("finite"):
        self._give_up(step, ids, metrics)
      window.add(metrics)
      self.console.advance(step + 1)

  def _give_up(self, step, ids, metrics):
    self._save()
    self.checkpoints.wait()
    source = self.job.train.reader.source
    names = ", ".join(source.name(int(i)) for i in ids[:3])
    raise UserError(
      f"step {step}: loss {metrics['loss']:.4g}, gradient norm "
      f"{metrics['grad_norm']:.4g}: not finite. Batch ids "
      f"{[int(i) for i in ids]} ({names}, ...). The last good state is saved "
      f"as step {int(self.state.step)} in {self.checkpoints.folder}"
    )

  def _log(self, window: Window) -> None:
    self.checkpoints.check()
    run = self.job.config
    values = {f"train/{k}": v for k, v in window.means().items()}
    lr = float(self.schedule(self.step - 1))
    values["train/lr"] = lr * self.record.lr_scale
    values["train/epoch"] = self.step / self.job.steps_per_epoch
    values |= window.speed(self.step, run.input.batch_size)
    used = ""
    if self.use is not None:
      values["perf/mfu"] = self.use * values["perf/examples_per_s"]
      used += f"  MFU {100 * values['perf/mfu']:.0f}%"
    if (memory := profiling.peak_memory()) is not None:
      values["perf/memory_gib"] = memory
      used += f"  {memory:.1f} GiB"
    self.log.write(self.step, values)
    total = self.job.total_steps
    left = (total - self.step) * window.seconds / (self.step - window.first)
    self.console.say(
      f"step {self.step}/{total} ({100 * self.step / total:.0f}%)"
      f"  loss {values['train/loss']:.4f}  lr {values['train/lr']:.3g}"
      f"  {values['perf/step_ms']:.0f} ms/step"
      f"  {values['perf/examples_per_s']:.1f} examples/s"
      f"  data wait {100 * values['perf/data_wait']:.0f}%{used}"
      f"  ETA {duration(left)}"
    )
    self._report_unreadable()

  def _evaluate(self, splits: Mapping[str, Split]) -> bool:
    """Runs these evaluations; whether there is a new best."""
    improved = self.evaluations.run(self.state, splits)
    self._report_unreadable()
    return improved

  def _save(self) -> None:
    self.checkpoints.save(self.state, self.record.to_saved())

  def _report_unreadable(self) -> None:
    splits = {"train": self.job.train, **self.job.evals}
    splits |= {s.known.name: s.known for s in splits.values() if s.known}
    reports = sharding.union({n: s.reader.report() for n, s in splits.items()})
    count = sum(len(rows) for rows in reports.values())
    if count == self.num_unreadable:
      return
    self.num_unreadable = count
    if jax.process_index() != 0:
      return
    workdir.write_unreadable(self.folder, reports)
    self.log.write(
      self.step,
      {f"{name}/unreadable": len(rows) for name, rows in reports.items()},
    )
    name, reason = next(rows[-1] for rows in reports.values() if rows)
    warn(
      f"{count} recording(s) could not be read so far, such as {name}: "
      f"{reason}; replaced in training, left out of evaluations, listed in "
      "unreadable.txt"
    )
