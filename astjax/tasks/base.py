"""What a task is: one paper's objective as pure functions.

Arrays are global under `jit`, so a mean over the batch already is the mean over
all devices: no task needs a collective. `batch` is always the batch after the
device ops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from astjax.errors import UserError
from astjax.models import ast
from astjax.types import Array, Batch, Metrics, Params, TaskState
from astjax.weights.info import Head


class LossOut(NamedTuple):
  """What a loss returns beside its value."""

  metrics: Metrics
  task_state: TaskState


class Task(Protocol):
  """What is learned. All methods are pure; the object is frozen, hashable.

  `params` is {"backbone": ..., <heads>: ...}: the backbone subtree is the unit
  that moves between tasks and files. `task_state` is what a task remembers
  without gradients ({} if nothing).
  """

  metric_names: tuple[str, ...]  # what `summarise` gives
  one_label: bool  # whether a clip must have exactly one
  backbone: ast.Backbone  # the part that moves between tasks and files
  head: Head | None  # the classifier of a saved model, if it has one
  objective: Mapping[str, Any]  # further parts of one, `ModelInfo.objective`

  def init_params(self, rng: Array, batch: Batch) -> Params:
    """Fresh parameters for batches shaped like this one."""

  def init_state(self, params: Params) -> TaskState:
    """Called after any warm start."""

  def corrupt(self, batch: Batch, rng: Array, step: Array) -> Batch:
    """Masks and other corruption that belong to the objective."""

  def loss(
    self,
    params: Params,
    task_state: TaskState,
    batch: Batch,
    rng: Array,
    step: Array,
  ) -> tuple[Array, LossOut]:
    """The scalar to minimise; `rng` serves what the model draws."""

  def after_update(
    self, params: Params, task_state: TaskState, step: Array
  ) -> TaskState:
    """What follows the optimiser, such as a teacher's moving average."""

  def evaluate(
    self, params: Params, task_state: TaskState, batch: Batch, step: Array
  ) -> dict[str, Array]:
    """Arrays with a leading axis B; randomness only from the ids."""

  def features(
    self, params: Params, task_state: TaskState, batch: Batch
  ) -> Array:
    """Clip representations [B, D], for probes."""

  def summarise(
    self, outputs: dict[str, Any]
  ) -> tuple[dict[str, float], dict[str, Any]]:
    """Host side: all examples' outputs -> (metrics, per-class columns)."""


def inputs(batch: Batch) -> dict[str, Array]:
  """{"fbank": [B, T, F]} or {"patches": [B, F', T', ph * pw]}."""
  for name in ("fbank", "patches"):
    if name in batch:
      return {name: batch[name]}
  raise UserError(
    "the batch has neither 'fbank' nor 'patches' after the device ops; it has "
    f"{', '.join(sorted(batch))}: check input.on_host and input.on_device"
  )


def in_turn(
  parts: Sequence[Callable[[Params], tuple[Array, Metrics]]], params: Params
) -> tuple[Array, Metrics]:
  """The sum of several losses, whose gradients are computed one by one.

  So the activations of one part alone are held at a time. A loop is what keeps
  the parts apart: two in a row are interleaved by XLA, optimisation barrier or
  not, at half as much memory again.

  Args:
    parts: each gives (loss, metrics); of metrics with the same name the sum
      counts, and none of them has a gradient.
    params: of all of them.
  """
  if len(parts) == 1:
    return parts[0](params)
  shapes = [jax.eval_shape(part, params)[1] for part in parts]
  zeros = optax.tree.zeros_like(
    {k: v for one in shapes for k, v in one.items()}
  )

  def padded(part):
    def loss(params):
      value, metrics = part(params)
      return value, zeros | metrics

    return loss

  def in_loop(functions):
    """The sum of what they give for `params`, as a function of `params`."""

    def run(params):
      def body(sums, number):
        new = jax.lax.switch(number, functions, params)
        return jax.tree.map(jnp.add, sums, new), None

      start = optax.tree.zeros_like(jax.eval_shape(functions[0], params))
      return jax.lax.scan(body, start, jnp.arange(len(functions)))[0]

    return run

  losses = [padded(part) for part in parts]
  total = jax.custom_vjp(in_loop(losses))
  total.defvjp(
    in_loop([jax.value_and_grad(loss, has_aux=True) for loss in losses]),
    lambda grads, given: (optax.tree.scale(given[0], grads),),
  )
  return total(params)
