"""The one loop for any task: start or resume, step, log, evaluate, save.

Reads top to bottom as the story of a training. It starts from the newest intact
checkpoint of the work directory, if there is one; else from the weights of
`config.init_from`, if that is set; else from fresh parameters.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from astjax.engine import sharding
from astjax.engine.devices import Trace, peak_memory
from astjax.engine.devices import parse_window as parse_window
from astjax.engine.step import train_key
from astjax.errors import Stopped, UserError
from astjax.run import record as run_record
from astjax.run import workdir
from astjax.run.checkpoint import Checkpoints
from astjax.run.config import interval
from astjax.run.evaluation import Evaluations
from astjax.run.job import abstract_state, build, fresh_state, warm_params
from astjax.run.log import Console, MetricLog, Window, progress_line
from astjax.run.processes import Signals
from astjax.run.streams import Stream, unreadable
from astjax.types import Batch


def train_and_evaluate(
  config: Mapping[str, Any],
  workdir_path: str | os.PathLike,
  *,
  mesh: Mesh | None = None,
  stop_at: int | None = None,
  profile: tuple[int, int] | None = None,
) -> list[dict[str, Any]]:
  """Trains, evaluates and saves; returns the objects of `metrics.jsonl`.

  The same call resumes.

  Args:
    config: see `run.config.RunConfig`.
    workdir_path: everything the run writes goes here.
    mesh: the devices; all of them by default.
    stop_at: save and return at this step, as if asked to by a signal.
    profile: (first step, number of steps) to trace, to WORKDIR/profile.

  Raises:
    UserError: a mistake in what was given, or a loss that is not finite.
    Stopped: SIGTERM, SIGINT or SIGUSR1, to any process; the state is saved.
  """
  # --- What is to be done, and where. Mistakes show here, before a step.
  job = build(config, mesh=mesh)
  folder = workdir.prepare(workdir_path)
  if profile and profile[0] >= job.total_steps:
    raise UserError(
      f"--profile begins with step {profile[0]}, and the run has "
      f"{job.total_steps}"
    )
  is_main = jax.process_index() == 0
  console = Console(is_main)
  notices = workdir.claim(folder, job)

  # --- Start or resume.
  record = run_record.start(job.config, job.steps_per_epoch)
  checkpoints = Checkpoints(folder, keep=job.config.checkpoint.keep)
  tx, state, origin = _start_or_resume(job, record, checkpoints, folder)
  step = int(state.step)
  log = MetricLog(folder, step, is_main, job.config.log.tensorboard)
  facts = job.facts(step) | {"workdir": folder}
  console.block(f"astjax: {job.config.task}", facts)
  for line in [*notices, *origin]:
    console.say(line)

  # --- Train.
  loop = _Loop(job, tx, state, record, checkpoints, log, console, folder)
  try:
    loop.run(stop_at, profile if is_main else None)
  finally:
    console.stop_bar()
    checkpoints.close()
    log.close()
  return log.history


def _start_or_resume(job, record, checkpoints, folder):
  """(optimiser, state, lines that say where the weights are from)."""
  tx, shapes = abstract_state(job)
  info, origin, params = None, [], None
  if restored := checkpoints.restore(shapes):
    state, saved = restored
    record.restore(int(state.step), saved)
  else:
    if job.config.init_from:
      params, info, origin = warm_params(job)
    tx, state = fresh_state(job, params)
  if jax.process_index() == 0:
    workdir.write_versions(folder)
    if not restored:
      model = job.model_info(info)
      workdir.write_start(folder, model, state.params, origin)
  return tx, state, origin


class _Loop:
  """The steps of one run, and what happens between them."""

  def __init__(self, job, tx, state, record, checkpoints, log, console, folder):
    self.job, self.state, self.record = job, state, record
    self.checkpoints, self.folder = checkpoints, folder
    self.log, self.console = log, console
    self.step = int(state.step)  # how many have been started
    self.window = Window(self.step)
    self.key = train_key(job.config.seed)
    self.schedule = job.schedule()
    shardings = sharding.of_state(state, job.mesh)
    self.train_step = job.train_step(tx, shardings)
    self.evaluations = Evaluations(
      job, shardings, record, checkpoints, log, console, folder
    )
    self.signals = Signals()
    self.num_unreadable = 0
    self.save_every = interval(job.config.checkpoint, job.steps_per_epoch)
    self.share_of_peak = job.share_of_peak()

  def run(self, stop_at: int | None, profile: tuple[int, int] | None) -> None:
    """From the current step to the end."""
    job, total = self.job, self.job.total_steps
    if self.step >= total:
      self.console.say(f"already at step {self.step}: nothing to train")
      self.evaluations.complete(self.state)
      self._report_unreadable()
      return
    batches = job.train.train_batches(job.config.seed, self.step, total)
    trace = Trace(self.folder / "profile", profile)
    self.console.start_bar(total, self.step)
    with contextlib.closing(batches), contextlib.closing(trace), self.signals:
      # --- First, the evaluations that a signal cut off.
      owed = {k: v for k, v in job.evals.items() if k in self.record.owed}
      self._evaluate(owed)
      self.window = Window(self.step)
      while self.step < total:
        self._train_one_step(batches, trace)
        if _is_due(self.step, job.config.log.every_steps) or self.step == total:
          self._log()
        started = time.perf_counter()
        is_stopped = self._after_step(stop_at)
        self.window.paused += time.perf_counter() - started
        if is_stopped:
          return
    # --- The end. All is saved, so a signal may end the process at once again.
    self.checkpoints.wait()
    self.evaluations.run_best(self.state, job.evals)
    self.evaluations.say_results(self.step)

  def _train_one_step(self, batches: Iterator[Batch], trace: Trace) -> None:
    """Starts one step; the devices may still be busy with those before."""
    window, record = self.window, self.record
    window.paused += trace.before(self.step, self.state)
    # --- Data.
    started = time.perf_counter()
    batch = next(batches)
    window.waited += time.perf_counter() - started
    rows = sharding.to_global(batch, self.job.mesh)
    # --- The step. A plateau's scale is an argument only where there is one, so
    # that without that section it is the same program.
    scale = [np.float32(record.lr_scale)] if record.plateau else []
    self.state, metrics = self.train_step(
      self.state, rows, self.step, self.key, *scale
    )
    window.pending.append((self.step, batch["id"], metrics))
    if spent := trace.after(self.step, metrics):
      window.paused += spent
      self.console.say(f"trace of the steps up to {self.step} in profile/")
    self.step += 1
    # The check trails by two steps, so that the devices never wait for it.
    self._check(leave=2)

  def _after_step(self, stop_at: int | None) -> bool:
    """Averages, evaluates, saves, as far as they are due; True to stop here."""
    record, is_last = self.record, self.step == self.job.total_steps
    is_asked = self.signals.asked(self.step)
    is_stop = (is_asked or self.step == stop_at) and not is_last
    # --- Average the weights.
    if record.average and record.average.is_due(self.step):
      self._check()
      params = sharding.to_host(self.state.params)
      flat = traverse_util.flatten_dict(params, sep="/")
      record.average.add(self.step, flat)
    # --- Evaluate.
    due = {
      name: stream
      for name, stream in self.job.evals.items()
      if not stream.of_best and (is_last or _is_due(self.step, stream.every))
    }
    # Whoever is told to stop has seconds, not the time of an evaluation. The
    # next start makes up for it before its first step: otherwise a plateau or
    # an ensemble would depend on when a machine was taken away.
    is_owed = is_asked and not is_last
    improved = self._evaluate({} if is_owed else due)
    record.owed = tuple(due) if is_owed else ()
    if is_last:
      self.evaluations.run_average(self.state, self.job.evals)
    # --- Save, after the record knows of the evaluation.
    if _is_due(self.step, self.save_every) or improved or is_last or is_stop:
      self._check()
      self._save()
    if is_stop:
      self.checkpoints.wait()
      total = self.job.total_steps
      self.console.say(f"stopped and saved at step {self.step} of {total}")
      if is_asked:
        raise Stopped(self.signals.received, self.step)
    return is_stop

  def _evaluate(self, streams: Mapping[str, Stream]) -> bool:
    """Runs these evaluations; whether there is a new best."""
    self.record.owed = ()
    if not streams:
      return False
    self._check()
    improved = self.evaluations.run(self.state, streams)
    self._report_unreadable()
    return improved

  def _check(self, *, leave: int = 0) -> None:
    """Looks at finished steps; a non-finite one ends the run."""
    window = self.window
    while len(window.pending) > leave:
      step, ids, metrics = window.pending.popleft()
      metrics = {k: float(v) for k, v in metrics.items()}
      if not metrics.pop("finite"):
        self._give_up(step, ids.tolist(), metrics)
      window.add(metrics)
      self.console.advance(step + 1)

  def _give_up(self, step, ids, metrics):
    # No step changes the state any more once one was not finite.
    self._save()
    self.checkpoints.wait()
    names = ", ".join(map(self.job.train.reader.source.name, ids[:3]))
    raise UserError(
      f"step {step}: loss {metrics['loss']:.4g}, gradient norm "
      f"{metrics['grad_norm']:.4g}: not finite. Batch ids {ids} ({names}, "
      f"...). The state before it is saved in {self.checkpoints.folder}"
    )

  def _save(self) -> None:
    self.checkpoints.save(self.state, self.record.to_saved())

  def _log(self) -> None:
    """One line of metrics; the next window begins."""
    self._check()
    self.checkpoints.check()
    values = {f"train/{k}": v for k, v in self.window.means().items()}
    lr = float(self.schedule(self.step - 1))  # of the step just made
    values["train/lr"] = lr * self.record.lr_scale
    values["train/epoch"] = self.step / self.job.steps_per_epoch
    values |= self.window.speed(self.step, self.job.config.input.batch_size)
    if self.share_of_peak:
      values["perf/mfu"] = self.share_of_peak * values["perf/examples_per_s"]
    if (memory := peak_memory()) is not None:
      values["perf/memory_gib"] = memory
    self.log.write(self.step, values)
    self.console.say(progress_line(self.step, self.job.total_steps, values))
    self._report_unreadable()
    self.window = Window(self.step)

  def _report_unreadable(self) -> None:
    """Logs and lists the recordings that could not be read, if any are new."""
    reports = unreadable([self.job.train, *self.job.evals.values()])
    counts = {f"{name}/unreadable": len(rows) for name, rows in reports.items()}
    count = sum(counts.values())
    if count != self.num_unreadable and jax.process_index() == 0:
      self.num_unreadable = count
      self.log.write(self.step, counts)
      workdir.write_unreadable(self.folder, reports)


def _is_due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0
