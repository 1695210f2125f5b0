"""What the engine asks of a task: one paper's objective as pure functions.

Arrays are global under `jit`, so a mean over the batch already is the mean over
all devices: no task needs a collective. `batch` is always the batch after the
device ops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from astjax.types import Array, Batch, Metrics, Params, TaskState


class LossOut(NamedTuple):
  """What a loss returns beside its value."""

  metrics: Metrics
  task_state: TaskState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """What is learned: a frozen dataclass of hashable fields and pure methods.

  `params` is {"backbone": ..., <heads>: ...}: the backbone subtree is the unit
  that moves between tasks and files. `task_state` is what a task remembers
  without gradients, {} if nothing. An objective writes `init_params`, `loss`,
  `evaluate` and, for probes, `features`; the rest has a default.

  Attributes:
    backbone: the Flax module that moves between tasks and files.
    num_classes: of the data; 0 if it has no labels.
    steps_per_epoch: may be a fraction.
    total_steps: length of the run.
    metric_names: what `summarise` gives.
    head: `models.heads.Head`, the classifier of a saved model, if it has one.
    saved_objective: of a pre-training, what a saved model has beside the
      backbone (`ModelInfo.objective`): {"name": key of `models.OBJECTIVES`,
      **arguments of its `make`, "task_kw": how it was trained}.
    one_label: whether a clip must have exactly one.
    length_matters: whether a schedule of its own spans the whole run, so that
      a run of another length is another training.
  """

  backbone: Any
  num_classes: int = 0
  steps_per_epoch: float = 1.0
  total_steps: int = 1
  metric_names: ClassVar[tuple[str, ...]] = ("loss",)
  head: ClassVar[Any] = None
  saved_objective: ClassVar[Mapping[str, Any]] = {}
  one_label: ClassVar[bool] = False
  length_matters: ClassVar[bool] = False

  def _set(self, **values: Any) -> None:
    """For `__post_init__` alone, where a frozen object is still being made."""
    for name, value in values.items():
      object.__setattr__(self, name, value)

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
