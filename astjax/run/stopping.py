"""Signals that end a run: caught, and agreed on by all processes."""

from __future__ import annotations

import contextlib
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils

from astjax.errors import Stopped as Stopped


class Signals:
  """Inside this context signals are noted, for the loop to ask about.

  With several processes SIGTERM belongs to JAX, which carries it to all of
  them; the others are turned into it.
  """

  def __init__(self):
    self.received: int | None = None
    self._old = {}
    self._several = jax.process_count() > 1

  def __enter__(self) -> Signals:
    catch = [signal.SIGINT, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not by nohup
      catch.append(signal.SIGHUP)
    if not self._several:
      catch.append(signal.SIGTERM)

    def note(signum, frame):
      self.received = signum
      if self._several:
        signal.raise_signal(signal.SIGTERM)

    # Not in the main thread: signals are left to the caller.
    with contextlib.suppress(ValueError):
      self._old = {s: signal.signal(s, note) for s in catch}
    return self

  def __exit__(self, *exception) -> None:
    for signum, handler in self._old.items():
      signal.signal(signum, handler)
    if self._old and self._several:  # nobody looks at a notice any more
      signal.signal(signal.SIGTERM, signal.SIG_DFL)

  def asked(self, step: int) -> bool:
    """Whether any process was signalled; the same answer on all of them.

    Args:
      step: the number of steps done.
    """
    if not self._several:
      return self.received is not None
    # A notice to one process makes all agree on a step that none has begun.
    if not multihost_utils.reached_preemption_sync_point(step):
      return False
    signals = multihost_utils.process_allgather(np.int32(self.received or 0))
    self.received = int(signals.max()) or signal.SIGTERM
    return True
