"""How a run uses its devices: memory, and traces to look at."""

from __future__ import annotations

import pathlib
import re
import time
from typing import Any

import jax

from astjax.errors import UserError


def peak_memory() -> float | None:
  """The most that a local device has held, in GiB; None if it does not tell.

  A CPU does not.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  return max(peaks) / 2**30 if peaks else None


def parse_window(text: str) -> tuple[int, int]:
  """(10, 5) of "10:5": from step 10 on, 5 steps.

  Raises:
    UserError: anything else.
  """
  match = re.fullmatch(r"(\d+):(\d+)", text)
  if not match or not int(match[2]):
    raise UserError(
      f"--profile={text} is not START:COUNT, such as 10:5 for the 5 steps "
      "from step 10 on"
    )
  return int(match[1]), int(match[2])


class Trace:
  """A trace of some steps, for TensorBoard's profile page or Perfetto.

  Args:
    folder: to write into.
    window: (first step, number of steps); None traces nothing.
  """

  def __init__(self, folder: pathlib.Path, window: tuple[int, int] | None):
    self._folder = folder
    self._steps = range(window[0], sum(window)) if window else range(0)
    self._running = False

  def before(self, step: int, state: Any) -> float:
    """Begins with this step, if it is of the window; the seconds that took.

    Args:
      step: that comes next.
      state: of the steps before, to be waited for.
    """
    if step not in self._steps or self._running:
      return 0.0
    jax.block_until_ready(state)
    started = time.perf_counter()
    jax.profiler.start_trace(self._folder)
    self._running = True
    return time.perf_counter() - started

  def after(self, step: int, result: Any) -> float:
    """Ends with this step, if it is the last one; the seconds that took.

    Args:
      step: that has been started.
      result: of it, to be waited for.
    """
    if not self._running or step + 1 in self._steps:
      return 0.0
    jax.block_until_ready(result)
    started = time.perf_counter()
    self.close()
    return time.perf_counter() - started

  def close(self) -> None:
    """Writes what there is."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
