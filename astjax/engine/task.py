"""What the engine asks of a task: one paper's objective as pure functions.

Arrays are global under `jit`, so a mean over the batch already is the mean over
all devices: no task needs a collective. `batch` is always the batch after the
device ops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from astjax.types import Array, Batch, Metrics, Params, TaskState

# Of a whole split, on the host: outputs -> (metrics, per-class columns).
Outputs = Mapping[str, np.ndarray]
Summary = tuple[dict[str, float], dict[str, np.ndarray]]


def train_key(seed: int) -> Array:
  """The run's key; step s uses `fold_in(train_key(seed), s)`."""
  return jax.random.key(seed, impl="threefry2x32")


def keys_of_ids(batch: Batch) -> Array:
  """Keys [B] for an evaluation: what a clip's own id draws is always the same.

  So evaluations can be compared, in whatever order and company clips come.
  """
  return jax.vmap(lambda i: jax.random.fold_in(train_key(0), i))(batch["id"])


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
    num_classes: of the data; 0 if it has no labels.
    steps_per_epoch: may be a fraction.
    head: `models.heads.Head`, the classifier of a saved model, if it has one.
    length_matters: whether a schedule of its own spans the whole run, so that
      a run of another length is another training.
  """

  backbone: Any
  num_classes: int = 0
  steps_per_epoch: float = 1.0
  total_steps: int = 1
  head: Any = dataclasses.field(default=None, init=False)
  length_matters: ClassVar[bool] = False

  @property
  def metric_names(self) -> tuple[str, ...]:
    """What `summarise` gives."""
    return ("loss",)

  @property
  def one_label(self) -> bool:
    """Whether a clip must have exactly one."""
    return False

  @property
  def saved_objective(self) -> Mapping[str, Any]:
    """Of a pre-training, what a saved model has beside the backbone.

    {"name": key of `models.OBJECTIVES`, **arguments of its `make`, "task_kw":
    how it was trained}.
    """
    return {}

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

  def summarise(self, outputs: Outputs) -> Summary:
    """The metrics of a whole split, on the host."""
    return {k: float(np.mean(outputs[k])) for k in self.metric_names}, {}
