"""The one loop for any task: start or resume, step, log, evaluate, save.

Reads top to bottom as the story of a training job. The restore order is: the
newest intact checkpoint of the work directory, if there is one; else fresh
parameters, under the weights of `config.init_from` if it is set, then the
task's state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from astjax import (
  chips,
  evaluate,
  metric_log,
  profiling,
  run_config,
  run_record,
  sharding,
  train_step,
  workdir,
)
from astjax.checkpoint import Checkpoints
from astjax.data import pipeline, sources
from astjax.errors import UserError
from astjax.job import Split, build, fresh_state, located, warm_params
from astjax.run_record import RunRecord
from astjax.train_step import TrainState
from astjax.weights import convert, model_info, readers


class Stopped(Exception):
  """A signal asked the run to end; it was saved and can be resumed."""

  def __init__(self, signum: int, step: int):
    self.signum = signum
    name = signal.Signals(signum).name
    super().__init__(f"{name}: saved at step {step}; the same command resumes")


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
    config: see `run_config.RunConfig`.
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
  plain = run_config.global_batches(config, job.mesh.size)
  source = job.train.reader.source
  data = {
    "fingerprint": sources.fingerprint(source),
    "num_examples": len(source),
  }
  notices = workdir.check_config(folder, plain, data)
  if profile and profile[0] >= job.total_steps:
    raise UserError(
      f"--profile begins with step {profile[0]}, and the run ends before step "
      f"{job.total_steps}"
    )
  is_main = jax.process_index() == 0
  console = metric_log.Console(is_main)
  for notice in notices:
    console.say(f"note: {notice}")

  run = job.config
  # Before anything else is in the folder: a run that is killed right away must
  # still be known. All processes have compared their config by then.
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("config_compared")
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
  log = metric_log.MetricLog(
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
    self.log: metric_log.MetricLog = log
    self.console: metric_log.Console = console
    self.folder: pathlib.Path = folder
    self.step = int(state.step)
    self.schedule = job.schedule()
    self.shardings = sharding.of_state(state, job.mesh)
    self.train_step = job.train_step(tx, self.shardings)
    self.eval_steps: dict[tuple[str, bool], Callable] = {}
    self.results: dict[str, float] = {}
    self.num_unreadable = 0
    chip = chips.of(job.mesh.devices.flat[0])
    # The share of the peak that one example per second is.
    self.use = (
      job.flops_per_example() / (chip.flops * job.mesh.size) if chip else None
    )
    self.signal: int | None = None

  def run(
    self, stop_at: int | None, profile: tuple[int, int] | None = None
  ) -> None:
    """From the current step to the end."""
    job, run, record = self.job, self.job.config, self.record
    total = job.total_steps
    if self.step >= total:
      self._finish_again()
      return
    save_every = run_config.interval(
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
    key = train_step.train_key(run.seed)
    window = metric_log.Window(self.step)
    trace = profiling.Trace(self.folder / "profile", profile)
    self.console.start_bar(total, self.step)
    with (
      contextlib.closing(batches),
      contextlib.closing(trace),
      self._signals(),
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
          window = metric_log.Window(self.step)
        due = {
          name: split
          for name, split in job.evals.items()
          if not split.of_best
          and (is_last or (split.every and self.step % split.every == 0))
        }
        paused = time.perf_counter()
        improved = False
        asked = self._asked_to_stop()
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
          self._evaluate_average(job.evals)
        is_due = save_every and self.step % save_every == 0
        if is_due or improved or is_last or stop:
          self._check(window)
          self._save()
        window.paused += time.perf_counter() - paused
        if stop and not is_last:
          self.checkpoints.wait()
          self.console.say(f"stopped and saved at step {self.step} of {total}")
          if asked:
            raise Stopped(self.signal, self.step)
          return
    self.checkpoints.wait()
    self._evaluate_best(job.evals)
    self._say_results()

  def _finish_again(self) -> None:
    """The run is complete: evaluates what its log does not have yet."""
    self.console.say(f"already at step {self.step}: nothing to train")
    for line in self.log.history:
      if line["step"] == self.step:
        self.results |= {
          k: v for k, v in line.items() if k.split("/")[0] in self.job.evals
        }
    # Not those of which there are averages or ensembles alone.
    known = {
      k.split("/")[0] for k in self.results if k.endswith("/num_examples")
    }
    missing = {k: v for k, v in self.job.evals.items() if k not in known}
    of_last = {k: v for k, v in missing.items() if not v.of_best}
    if of_last:
      self._evaluate(of_last)
    self._evaluate_best(missing)
    if self.record.average:
      rated = {k.split("/average_")[0] for k in self.results}
      missing = {
        k: v
        for k, v in self.job.evals.items()
        if k not in rated and not v.of_best
      }
      if missing or not (self.folder / workdir.AVERAGE).exists():
        self._evaluate_average(missing)
    self._say_results()

  def _catch_up(self) -> None:
    """The evaluations that were due when a signal stopped the run."""
    due = {k: v for k, v in self.job.evals.items() if k in self.record.owed}
    self.record.owed = ()
    if due:
      self._evaluate(due)

  def _check(self, window: metric_log.Window, *, leave: int = 0) -> None:
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

  def _log(self, window: metric_log.Window) -> None:
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
      f"  {values['perf/examples_per_s']:.1f} examples/s"
      f"  data wait {100 * values['perf/data_wait']:.0f}%{used}"
      f"  ETA {metric_log.duration(left)}"
    )
    self._report_unreadable()

  def _evaluate(self, splits: Mapping[str, Split]) -> bool:
    """Runs these evaluations, logs them; whether there is a new best."""
    results = {}
    for name, split in splits.items():
      out = self._outputs(split, self.state)
      metrics = self._rate(split, out)
      if self.record.ensembles is not None and not split.probe:
        metrics |= self._ensemble(split, out)
      results |= self._told(self.step, name, metrics)
    self._write(results)
    best, scale = self.record.best, self.record.lr_scale
    self.record.update(self.step, results)
    if self.record.lr_scale != scale:
      config = self.record.plateau.config
      self.console.say(
        f"no better {config.metric} in the last {config.patience + 1} "
        f"evaluation(s): learning rate times {self.record.lr_scale:g}"
      )
    self._report_unreadable()
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
    if kind not in self.eval_steps:
      self.eval_steps[kind] = train_step.make_eval_step(
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
        self.eval_steps[kind], state, batches, job.mesh, progress=progress
      )

  def _ensemble(self, split: Split, out) -> dict[str, float]:
    """The metrics of the mean of the scores so far, with this evaluation."""
    data = sources.fingerprint(split.reader.source)
    ensemble = self.record.ensemble(split.name, data, out["id"])
    rows, scores = ensemble.add(out["id"], evaluate.scores(out))
    rated = evaluate.rate(scores, out["label"][rows])
    return {f"ensemble_{k}": v for k, v in rated.items()}

  def _evaluate_average(self, splits: Mapping[str, Split]) -> None:
    """Rates the averaged weights, and saves them as a model in `average/`."""
    flat = self.record.average.mean.value()
    params = convert.unflatten(
      {k: v.astype(np.float32) for k, v in flat.items()}
    )
    state = self.state.replace(
      params=jax.device_put(params, self.shardings.params)
    )
    results = {}
    for name, split in splits.items():
      if split.of_best:  # it is looked at once
        continue
      out = self._outputs(split, state)
      metrics, _ = (split.probe or self.job.task).summarise(out)
      results |= {f"{name}/average_{k}": v for k, v in metrics.items()}
    self._write(results)
    if jax.process_index() == 0:
      config = self.job.config.average
      path = self.folder / workdir.MODEL
      info = model_info.parse(readers.read_json(path), str(path))
      info = dataclasses.replace(
        info,
        origin=f"{info.origin}, averaged over the epochs {config.first_epoch} "
        f"to {config.last_epoch}",
      )
      workdir.write_average(self.folder, info, params)

  def _evaluate_best(self, splits: Mapping[str, Split]) -> None:
    """The evaluations that look at the best checkpoint alone, at the end."""
    splits = {k: v for k, v in splits.items() if v.of_best}
    best = self.record.best_step
    state = self.state
    if splits and best is not None and best != self.step:
      try:
        state, _ = self.checkpoints.restore(self.state, step=best)
      except UserError as e:
        metric_log.warn(f"{e}: {', '.join(splits)} is of the last one instead")
        best = self.step
    results = {}
    for name, split in splits.items():
      metrics = self._rate(split, self._outputs(split, state))
      results |= self._told(f"{best}, the best", name, metrics)
    self._write(results)

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

  def _write(self, results: Mapping[str, float]) -> None:
    """To the log, unless a run that was killed here has done so."""
    self.results |= results
    if results and not any(
      line["step"] == self.step and results.keys() <= line.keys()
      for line in self.log.history
    ):
      self.log.write(self.step, results)

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
    metric_log.warn(
      f"{count} recording(s) could not be read so far, such as {name}: "
      f"{reason}; replaced in training, left out of evaluations, listed in "
      "unreadable.txt"
    )

  def _say_results(self) -> None:
    if self.results:
      rows = [(k, v) for k, v in self.results.items()]
      self.console.table(
        f"results at step {self.step}", ["metric", "value"], rows
      )
    if self.record.best is not None:
      self.console.say(
        f"best {self.record.metric} {self.record.best:.4f} at step "
        f"{self.record.best_step}"
      )

  @contextlib.contextmanager
  def _signals(self):
    """Signals end the run after the step in flight, saved.

    With several processes SIGTERM belongs to JAX, which carries it to all of
    them; the others are turned into it.
    """
    several = jax.process_count() > 1
    catch = [signal.SIGINT, signal.SIGUSR1]
    if not several:
      catch.append(signal.SIGTERM)

    def note(signum, frame):
      self.signal = signum
      if several:
        signal.raise_signal(signal.SIGTERM)

    try:
      old = {s: signal.signal(s, note) for s in catch}
    except ValueError:  # not the main thread: leave signals to the caller
      yield
      return
    try:
      yield
    finally:
      for signum, handler in old.items():
        signal.signal(signum, handler)
      if several:  # nobody looks at a notice any more
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

  def _asked_to_stop(self) -> bool:
    """Whether any process was signalled; the same answer on all of them."""
    if jax.process_count() == 1:
      return self.signal is not None
    # A notice to one process makes all agree on a step that none has begun.
    if not multihost_utils.reached_preemption_sync_point(self.step):
      return False
    signals = multihost_utils.process_allgather(np.int32(self.signal or 0))
    self.signal = int(signals.max()) or signal.SIGTERM
    return True
