"""Where a run's numbers go: JSON lines, TensorBoard and the console.

Only process 0 writes. The console shows a progress bar on a terminal and plain
lines elsewhere.
"""

from __future__ import annotations

import collections
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import rich.console
import rich.progress
import rich.table

from astjax.weights import files


def duration(seconds: float) -> str:
  """3725 -> "1:02:05"."""
  if not math.isfinite(seconds):
    return "?"
  minutes, seconds = divmod(max(0, round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}"


def progress_line(step: int, total: int, values: Mapping[str, float]) -> str:
  """The console's line about a training, from what was logged at this step."""
  parts = [
    f"step {step}/{total} ({100 * step / total:.0f}%)",
    f"loss {values['train/loss']:.4f}",
    f"lr {values['train/lr']:.3g}",
    f"{values['perf/step_ms']:.0f} ms/step",
    f"{values['perf/examples_per_s']:.1f} examples/s",
    f"data wait {100 * values['perf/data_wait']:.0f}%",
  ]
  if "perf/mfu" in values:
    parts.append(f"MFU {100 * values['perf/mfu']:.0f}%")
  if "perf/memory_gib" in values:
    parts.append(f"{values['perf/memory_gib']:.1f} GiB")
  left = (total - step) * values["perf/step_ms"] / 1e3
  return "  ".join([*parts, f"ETA {duration(left)}"])


class Console:
  """Messages and progress of one long job; only an `active` one prints."""

  def __init__(self, active: bool = True, *, stderr: bool = False):
    self._active = active
    self._rich = rich.console.Console(
      highlight=False, soft_wrap=True, stderr=stderr
    )
    self._bar: rich.progress.Progress | None = None

  def say(self, text: str) -> None:
    """Prints a line."""
    if self._active:
      self._rich.print(text, markup=False)

  def block(self, title: str, rows: Mapping[str, Any]) -> None:
    """Prints a titled list of facts."""
    self.say(title)
    for name, value in rows.items():
      self.say(f"  {name:<{max(map(len, rows))}}  {value}")

  def table(self, title: str, columns: list[str], rows: Iterable) -> None:
    """Prints rows below their columns."""
    table = rich.table.Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
      table.add_column(column, justify="right" if i else "left")
    for row in rows:
      cells = (f"{v:.4f}" if isinstance(v, float) else str(v) for v in row)
      table.add_row(*cells)
    if self._active:
      self._rich.print(table)

  def start_bar(self, total: int, done: int, what: str = "training") -> None:
    """A bar, if this is a terminal."""
    if self._active and self._rich.is_terminal:
      self._bar = rich.progress.Progress(console=self._rich)
      self._bar.start()
      self._bar.add_task(what, total=total, completed=done)

  def advance(self, step: float) -> None:
    """Moves the bar, if there is one."""
    if self._bar is not None:
      self._bar.update(self._bar.task_ids[0], completed=step)

  def ticker(
    self, name: str, total: int, what: str = "batches"
  ) -> Callable[[float], None]:
    """A function of the number done: says every 20 s where a pass stands."""
    started = last = time.monotonic()

    def progress(done: float) -> None:
      nonlocal last
      now = time.monotonic()
      if now - last >= 20 and 0 < done < total:
        last = now
        left = (now - started) * (total - done) / done
        self.say(f"{name}: {int(done)}/{total} {what}  ETA {duration(left)}")

    return progress

  def stop_bar(self) -> None:
    """Removes the bar."""
    if self._bar is not None:
      self._bar.stop()
      self._bar = None


class MetricLog:
  """`metrics.jsonl` and TensorBoard events of a run that goes on from `step`.

  Only an `active` one, that of process 0, writes.
  """

  def __init__(
    self, workdir: pathlib.Path, step: int, active: bool, tensorboard: bool
  ):
    self._active = active
    self._events = None
    path = workdir / "metrics.jsonl"
    # Later steps are those of a run that was killed. They come again.
    lines = read(path) if path.exists() else []
    self.history = [line for line in lines if line["step"] <= step]
    if not active:
      return
    text = "".join(json.dumps(line) + "\n" for line in self.history)
    with files.written_whole(path) as temporary:
      temporary.write_text(text, encoding="utf-8")
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    if tensorboard:
      # Not the writers of Flax or CLU, which import TensorFlow.
      import tensorboardX

      self._events = tensorboardX.SummaryWriter(
        str(workdir / "tensorboard"), purge_step=step + 1 if step else 0
      )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """One JSON object on a line: {"step": ..., "time": ..., key: value}."""
    line = {"step": step, "time": round(time.time(), 3)}
    line |= files.jsonable(values)
    self.history.append(line)
    if not self._active:
      return
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()  # a kill may come at any time
    if self._events is not None:
      for name, value in values.items():
        self._events.add_scalar(name, value, step)
      self._events.flush()

  def close(self) -> None:
    """Lets go of the files."""
    if self._active:
      self._file.close()
      if self._events is not None:
        self._events.close()


class Window:
  """Sums over the steps between two log lines."""

  def __init__(self, first: int):
    self.first = first  # the step it begins with
    self.started = time.perf_counter()
    self.waited = 0.0  # seconds spent waiting for data
    self.paused = 0.0  # seconds of evaluations and saves, which do not count
    # (step, ids, metrics) of steps that may still be running
    self.pending: collections.deque = collections.deque()
    self._sums: dict[str, float] = collections.defaultdict(float)
    self._count = 0

  def add(self, metrics: dict[str, float]) -> None:
    """One step's metrics."""
    self._count += 1
    for name, value in metrics.items():
      self._sums[name] += value

  def means(self) -> dict[str, float]:
    """Over the steps so far."""
    return {k: v / self._count for k, v in self._sums.items()}

  def speed(self, step: int, batch_size: int) -> dict[str, float]:
    """Examples per second, milliseconds per step, share of waiting for data."""
    steps = step - self.first
    seconds = time.perf_counter() - self.started - self.paused
    return {
      "perf/examples_per_s": steps * batch_size / seconds,
      "perf/step_ms": 1e3 * seconds / steps,
      "perf/data_wait": self.waited / seconds,
    }


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of a `metrics.jsonl`; a torn last line is left out."""
  lines = []
  for text in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
    try:
      line = json.loads(text)
    except json.JSONDecodeError:
      continue
    if isinstance(line, dict) and "step" in line:
      lines.append(line)
  return lines
