"""What the engine asks of a task: one paper's objective as pure functions.

Arrays are global under `jit`, so a mean over the batch already is the mean over
all devices: no task needs a collective. `batch` is always the batch after the
device ops.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from astjax.types import Array, Batch, Metrics, Params, TaskState


class LossOut(NamedTuple):
  """What a loss returns beside its value."""

  metrics: Metrics
  task_state: TaskState


class Task:
  """What is learned. All methods are pure; the object is frozen, hashable.

  `params` is {"backbone": ..., <heads>: ...}: the backbone subtree is the unit
  that moves between tasks and files. `task_state` is what a task remembers
  without gradients ({} if nothing). An objective writes `init_params`, `loss`,
  `evaluate` and, for probes, `features`; the rest has a default.

  Attributes:
    metric_names: what `summarise` gives.
    backbone: the Flax module that moves between tasks and files.
    head: `models.heads.Head`, the classifier of a saved model, if it has one.
    objective: what a saved model has beside both, `ModelInfo.objective`.
    one_label: whether a clip must have exactly one.
    length_matters: whether a schedule of its own spans the whole run, so that
      a run of another length is another training.
  """

  metric_names: tuple[str, ...]
  backbone: Any
  head: Any = None
  objective: Mapping[str, Any] = {}
  one_label: bool = False
  length_matters: bool = False

  def init_params(self, rng: Array, batch: Batch) -> Params:
    """Fresh parameters, float32, for batches shaped like this one."""
    raise NotImplementedError

  def init_state(self, params: Params) -> TaskState:
    """Called after any warm start: a teacher is a copy of what it finds."""
    return {}

  def corrupt(self, batch: Batch, rng: Array, step: Array) -> Batch:
    """Masks and other corruption that belong to the objective.

    Apart from the loss, so that a test can hand in the original's masks.
    """
    return batch

  def loss(
    self,
    params: Params,
    task_state: TaskState,
    batch: Batch,
    rng: Array,
    step: Array,
  ) -> tuple[Array, LossOut]:
    """The scalar to minimise; `rng` serves what the model draws."""
    raise NotImplementedError

  def after_update(
    self, params: Params, task_state: TaskState, step: Array
  ) -> TaskState:
    """What follows the optimiser, such as a teacher's moving average."""
    return task_state

  def evaluate(
    self, params: Params, task_state: TaskState, batch: Batch, step: Array
  ) -> dict[str, Array]:
    """Arrays with a leading axis B; randomness only from the ids."""
    raise NotImplementedError

  def features(
    self, params: Params, task_state: TaskState, batch: Batch
  ) -> Array:
    """Clip representations [B, D], for probes."""
    raise NotImplementedError

  def summarise(
    self, outputs: Mapping[str, np.ndarray]
  ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """On the host: all examples' outputs -> (metrics, per-class columns)."""
    return {k: float(np.mean(outputs[k])) for k in self.metric_names}, {}
