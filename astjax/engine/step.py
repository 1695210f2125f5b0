"""One step of training and of evaluation, for any task, on any mesh."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from astjax.engine import sharding
from astjax.engine.task import Task, keys_of_ids
from astjax.engine.task import train_key as train_key
from astjax.ops import recipe
from astjax.ops.platform import platform
from astjax.types import Array, Batch, Metrics, Params, TaskState

# One key per use: the rows of the batch fold in 0 ... B - 1, these are apart.
_CORRUPT, _MODEL = 2**31 + 1, 2**31 + 2


@flax.struct.dataclass
class TrainState:
  """What one step turns into the next. Holds no random key: `train_key`."""

  step: Array
  params: Params
  opt_state: Any
  task_state: TaskState


def init_state(
  task: Task, params: Params, tx: optax.GradientTransformation
) -> TrainState:
  """The state before the first step (traceable)."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(params),
    task_state=task.init_state(params),
  )


def make_train_step(
  task: Task,
  tx: optax.GradientTransformation,
  ops: tuple[recipe.NamedOp, ...],
  mesh: Mesh,
  *,
  scaled: bool = False,
  accumulate: int = 1,
  shardings: TrainState | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """A jitted `(state, batch, step, key) -> (state, metrics)`.

  With `scaled` it takes a fifth argument, a float32 by which it multiplies the
  learning rate: that of a plateau, which the host decides. With `accumulate`
  the loss and its gradient are the means over so many micro-batches, one after
  the other (`_accumulated`). `shardings` tells where the state lives, from
  `sharding.of_state`; without it all of it is on every device.
  """
  whole, rows = sharding.replicated(mesh), sharding.by_row(mesh)
  home = whole if shardings is None else shardings
  is_split = mesh.shape["fsdp"] > 1
  front_end = sharding.per_device(partial(recipe.apply_rows, ops), mesh)

  def train_step(state, batch, step, key, lr_scale=None):
    key = jax.random.fold_in(key, step)
    keys = recipe.row_keys(key, batch["id"].shape[0])
    batch = front_end(batch, keys)
    batch = task.corrupt(batch, jax.random.fold_in(key, _CORRUPT), step)

    def loss_fn(params, batch, rng):
      params, task_state = sharding.gathered((params, state.task_state), mesh)
      return task.loss(params, task_state, batch, rng, step)

    def grad_fn(params, batch, rng):
      found = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, rng)
      return sharding.split(found, mesh) if is_split else found

    rng = jax.random.fold_in(key, _MODEL)
    # After the front-end and the masks, so that a batch is the same whatever
    # `accumulate` is.
    if accumulate > 1:
      parts = sharding.micro_batches(batch, accumulate, mesh)
      (loss, out), grads = _accumulated(grad_fn, state.params, parts, rng)
    else:
      (loss, out), grads = grad_fn(state.params, batch, rng)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    def update():
      updates, opt_state = tx.update(grads, state.opt_state, state.params)
      if scaled:  # every chain of `optim` ends in a product with the rate
        updates = optax.tree.scale(lr_scale, updates)
      params = optax.apply_updates(state.params, updates)
      return TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        task_state=task.after_update(params, out.task_state, step),
      )

    # A step that is not finite leaves the state as it was, its counter too, and
    # so does every step that does not follow the state: what is left is the
    # last good one, however late the host notices.
    state = _if(finite & (state.step == step), update, state)
    return state, out.metrics | {"grad_norm": grad_norm, "finite": finite}

  return jax.jit(
    train_step,
    in_shardings=(home, rows, whole, whole, *((whole,) if scaled else ())),
    out_shardings=(home, whole),
    donate_argnums=(0,),
  )


def _if(holds, update, state):
  """`update()` if it holds, else the state."""
  # As a branch the update compiles in half the time. On a GPU the host would
  # wait at the branch, and could not prepare the next step meanwhile; sizes on
  # TPUs are known for a choice value by value.
  if platform() == "cpu":
    return jax.lax.cond(holds, update, lambda: state)
  return jax.tree.map(lambda n, o: jnp.where(holds, n, o), update(), state)


def _accumulated(grad_fn, params, parts, rng):
  """The mean of what `grad_fn` gives over micro-batches, `parts` [k, B / k].

  Of every float: losses, metrics, gradients, and the task state that each loss
  returns from the same state before the step, which is exact if that is linear
  in the batch's mean, as a moving average is. What is no float is the last
  micro-batch's. Micro-batch i draws from `rng` folded with i.
  """
  count = jax.tree.leaves(parts)[0].shape[0]

  def add(mean, part_and_number):
    part, i = part_and_number
    new = grad_fn(params, part, jax.random.fold_in(rng, i))

    def update(m, x):  # what does not change stays as it is, bit for bit
      is_float = jnp.issubdtype(x.dtype, jnp.floating)
      return m + (x - m) / (i + 1) if is_float else x

    return jax.tree.map(update, mean, new), None

  shapes = jax.eval_shape(
    grad_fn, params, jax.tree.map(lambda x: x[0], parts), rng
  )
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  mean, _ = jax.lax.scan(add, zeros, (parts, jnp.arange(count)))
  return mean


def make_eval_step(
  task: Task,
  ops: tuple[recipe.NamedOp, ...],
  mesh: Mesh,
  *,
  features: bool = False,
  shardings: TrainState | None = None,
) -> Callable[[Params, TaskState, Batch, Array], dict[str, Array]]:
  """A jitted `(params, task_state, batch, step) -> per-example outputs`.

  These are the task's `evaluate`, or `features` [B, D] for a probe, beside the
  batch's `label`, `valid` and `id`, all of them whole on every device, so that
  every process sees all rows. `shardings` is as in `make_train_step`.
  """
  front_end = sharding.per_device(partial(recipe.apply_rows, ops), mesh)

  def eval_step(params, task_state, batch, step):
    ready = front_end(batch, keys_of_ids(batch))
    params, task_state = sharding.gathered((params, task_state), mesh)
    if features:
      outputs = {"features": task.features(params, task_state, ready)}
    else:
      outputs = task.evaluate(params, task_state, ready, step)
    kept = {k: batch[k] for k in ("label", "valid", "id") if k in batch}
    return outputs | kept

  whole, rows = sharding.replicated(mesh), sharding.by_row(mesh)
  home: tuple[Any, Any] = (whole, whole)
  if shardings is not None:
    home = (shardings.params, shardings.task_state)
  return jax.jit(
    eval_step, in_shardings=(*home, rows, whole), out_shardings=whole
  )
