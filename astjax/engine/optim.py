"""Optimisers and schedules, all of them optax.

A parameter is addressed by its name, such as "backbone/encoder/block_3/mlp/fc1/
kernel". Of a list of (regular expression, value) pairs the first one counts
whose expression is found in the name.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from astjax import errors
from astjax.types import Params

Schedule = Callable[[Any], Any]
# The names of `flatten_dict`, also of trees whose leaves optax has replaced.
_name_of = functools.partial(jax.tree_util.keystr, simple=True, separator="/")


def by_name(params: Params, pairs: Sequence, default: Any) -> Params:
  """A tree of values: of the first pair whose expression is in the name."""

  def value(path, leaf):
    name = _name_of(path)
    return next((v for p, v in pairs if re.search(p, name)), default)

  return jax.tree_util.tree_map_with_path(value, params)


def _check_expressions(params: Params, expressions: Sequence[str]) -> None:
  names = list(flatten_dict(params, sep="/"))
  for expression in expressions:
    try:
      fits = any(re.search(expression, name) for name in names)
    except re.error as e:
      raise errors.UserError(
        f"config.optim: {expression!r} is not a regular expression: {e}"
      ) from None
    if not fits:
      some = ", ".join(names[:: max(len(names) // 4, 1)])
      raise errors.UserError(
        f"config.optim: {expression!r} fits no parameter, such as {some}"
      )


def first_step(epoch: float, steps_per_epoch: float) -> int:
  """The first step (from 0) after so many epochs."""
  # Less a hair: 42 epochs of 2724 / 7 steps end at 16344, not a step later.
  return math.ceil(epoch * steps_per_epoch - 1e-6)


def cosine(start: float, end: float, steps: int) -> Schedule:
  """Half a cosine from `start` at step 0 to `end` at `steps` and after."""

  def schedule(step):
    angle = jnp.pi * jnp.minimum(step, float(steps)) / max(steps, 1)
    return (start - end) * (0.5 * (1.0 + jnp.cos(angle))) + end

  return schedule


def multistep(
  steps_per_epoch: float, milestones: Sequence[int], factor: float
) -> Schedule:
  """The original's MultiStepLR; milestones are epochs.

  Epoch n (from 1) has factor^k, k the number of milestones <= n - 1.
  """
  boundaries = np.array(
    [first_step(m, steps_per_epoch) for m in milestones], np.int32
  )

  def schedule(step):
    passed = jnp.searchsorted(boundaries, jnp.asarray(step), side="right")
    return jnp.float32(factor) ** passed

  return schedule


def stepped_warmup(steps: int, hold: int = 50) -> Schedule:
  """AST's: 0, then up by hold / steps every `hold` steps, 1 from `steps` on.

  The first `hold` steps have a rate of zero, while Adam's moments gather.
  """

  def schedule(step):
    return jnp.where(step >= steps, 1.0, jnp.floor(step / hold) * hold / steps)

  return schedule


def linspace_warmup(steps: int) -> Schedule:
  """ASiT's: from 0 to 1 in so many steps, both included."""

  def schedule(step):
    return jnp.where(step < steps, step / max(steps - 1, 1), 1.0)

  return schedule


WARMUPS = {
  "stepped": stepped_warmup,
  "linear": lambda steps: optax.linear_schedule(0.0, 1.0, steps),
  "linspace": linspace_warmup,
}


def make_schedule(
  *,
  lr: errors.Positive,
  steps_per_epoch: float,
  total_steps: int,
  decay: Literal["constant", "multistep", "cosine"] = "constant",
  warmup: Literal["none", "stepped", "linear", "linspace"] = "none",
  warmup_steps: errors.CountOrZero = 1000,
  warmup_epochs: errors.NotNegative = 0.0,
  decay_start: errors.CountOrZero = 2,
  decay_every: errors.Count = 1,
  decay_factor: errors.Positive = 0.5,
  decay_stop: int = 1000,
  final_lr: errors.NotNegative = 0.0,
  batch_size: int = 1,
  lr_batch_size: errors.CountOrZero = 0,
) -> Schedule:
  """Learning rate as a function of the step, from 0.

  Args:
    lr: the peak.
    decay: "multistep" multiplies by `decay_factor` after epochs `decay_start`,
      + `decay_every`, ... below `decay_stop`; "cosine" falls from the end of
      the warm-up to `final_lr`.
    warmup: "stepped" is AST's, in plateaus of 50 steps from zero; "linear"
      reaches the peak at step `warmup_steps`, "linspace", which is ASiT's, a
      step before.
    warmup_epochs: above 0 it is the length, whatever `warmup_steps` is.
    lr_batch_size: the batch size that `lr` is for: the peak is `lr` times
      `batch_size` / `lr_batch_size`; 0 takes `lr` as it is.
  """
  lr = lr * batch_size / lr_batch_size if lr_batch_size else lr
  if not final_lr <= lr:
    raise errors.UserError(
      f"config.schedule: final_lr={final_lr} must be at most lr, {lr:g}"
    )
  if warmup_epochs:
    warmup_steps = first_step(warmup_epochs, steps_per_epoch)
  warmup_steps = 0 if warmup == "none" else warmup_steps
  if decay == "multistep":
    milestones = range(decay_start, decay_stop, decay_every)
    fall = multistep(steps_per_epoch, milestones, decay_factor)
  elif decay == "cosine":
    down = cosine(1.0, final_lr / lr, max(total_steps - warmup_steps, 1))
    fall = lambda step: down(jnp.maximum(step - warmup_steps, 0))  # noqa: E731
  else:
    fall = optax.constant_schedule(1.0)
  if not warmup_steps:
    return lambda step: lr * fall(step)
  rise = WARMUPS[warmup](warmup_steps)
  return lambda step: lr * rise(step) * fall(step)


def make_optimizer(
  params: Params,
  schedule: Schedule,
  *,
  name: Literal["adam", "adamw"] = "adam",
  b1: errors.BelowOne = 0.95,
  b2: errors.BelowOne = 0.999,
  eps: errors.NotNegative = 1e-8,
  weight_decay: errors.NotNegative = 5e-7,
  final_weight_decay: errors.NotNegative | None = None,
  no_decay: tuple[str, ...] = (),
  clip_norm: errors.NotNegative = 0.0,
  clip_each: errors.NotNegative = 0.0,
  lr_multipliers: tuple[tuple[str, float], ...] = (),
  freeze: tuple[str, ...] = (),
  freeze_first: tuple[str, ...] = (),
  freeze_epochs: errors.NotNegative = 1.0,
  steps_per_epoch: float = 1.0,
  total_steps: int = 1,
) -> optax.GradientTransformation:
  """One optax chain for the tree `params` (arrays or shapes).

  Args:
    name: "adam" is the original's: the decay is added to the gradient before
      the moments (coupled L2). "adamw" decays the weights apart from them.
    final_weight_decay: where a cosine takes the strength to by the end of the
      run; None leaves it.
    no_decay: expressions of parameters that are not decayed; all others are.
    clip_norm: global norm to which gradients are clipped; 0 is off.
    clip_each: norm to which the gradient of each tensor is clipped, as ASiT
      does it; 0 is off.
    lr_multipliers: ((expression, factor), ...).
    freeze: expressions of parameters that do not move (no decay, no moments).
    freeze_first: expressions of those that do not move in the first
      `freeze_epochs`; their Adam starts to count at the end of them.
  """
  multiplied = [expression for expression, _ in lr_multipliers]
  _check_expressions(params, [*no_decay, *freeze, *freeze_first, *multiplied])
  strength: float | Schedule = weight_decay
  if final_weight_decay is not None:
    strength = cosine(weight_decay, final_weight_decay, total_steps)
  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
  waits = [(p, "waits") for p in freeze_first]
  spared = [(p, "spared") for p in no_decay]

  def decay(strength, group):
    # A function of the tree that it meets, since `partition` cuts leaves out.
    def mask(tree):
      groups = by_name(tree, spared + waits, "learns")
      return jax.tree.map(lambda found: found == group, groups)

    return optax.add_decayed_weights(strength, mask=mask)

  decays = [decay(strength, "learns")]
  if waits:
    thaw = first_step(freeze_epochs, steps_per_epoch)
    at = strength if callable(strength) else lambda step: weight_decay
    late = lambda step: jnp.where(step < thaw, 0.0, at(step))  # noqa: E731
    decays.append(decay(late, "waits"))
    # Their moments, and the count of their steps, begin when they thaw.
    later = optax.conditionally_mask(adam, lambda step: step >= thaw)
    adam = optax.partition(
      {"learns": adam, "waits": later},
      lambda tree: by_name(tree, waits, "learns"),
    )
  chain = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  chain += [_clip_each(clip_each)] if clip_each else []
  chain += [*decays, adam] if name == "adam" else [adam, *decays]
  chain += [_scale_by_name(lr_multipliers)] if lr_multipliers else []
  tx = optax.chain(*chain, optax.scale_by_learning_rate(schedule))
  if not freeze:
    return tx
  frozen = [(p, "frozen") for p in freeze]
  return optax.partition(
    {"learns": tx, "frozen": optax.set_to_zero()},
    lambda tree: by_name(tree, frozen, "learns"),
  )


def _scale_by_name(pairs: Sequence) -> optax.GradientTransformation:
  def scale(updates, params):
    factors = by_name(updates, pairs, 1.0)
    return jax.tree.map(jnp.multiply, updates, factors)

  return optax.stateless(scale)


def _clip_each(limit: float) -> optax.GradientTransformation:
  """Scales the gradient of each of the original's tensors to a norm."""

  def tensor(path):  # positions of prefix and patches are one there
    return re.sub("(pos_embed/).*", r"\1", _name_of(path))

  def clip(updates, params):
    leaves, treedef = jax.tree_util.tree_flatten_with_path(updates)
    squares = {}
    for path, leaf in leaves:
      square = jnp.sum(jnp.square(leaf))
      squares[tensor(path)] = squares.get(tensor(path), 0.0) + square
    factors = {
      name: jnp.minimum(limit / (jnp.sqrt(square) + 1e-6), 1.0)
      for name, square in squares.items()
    }
    clipped = [leaf * factors[tensor(path)] for path, leaf in leaves]
    return jax.tree.unflatten(treedef, clipped)

  return optax.stateless(clip)
