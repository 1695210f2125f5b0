"""What several tasks need: a batch's input and keys, losses one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from astjax.errors import UserError
from astjax.models import ast
from astjax.ops import patches, xp
from astjax.types import Array, Batch, Metrics, Params


def inputs(batch: Batch) -> dict[str, Array]:
  """{"fbank": [B, T, F]} or {"patches": [B, F', T', ph * pw]}."""
  for name in ("fbank", "patches"):
    if name in batch:
      return {name: batch[name]}
  raise UserError(
    "the batch has neither 'fbank' nor 'patches' after the device ops; it has "
    f"{', '.join(sorted(batch))}: check input.on_host and input.on_device"
  )


def cut(batch: Batch, backbone: ast.Backbone) -> Array:
  """Literal patches [B, F', T', ph * pw]; of views [B, V, F', T', ph * pw]."""
  given = inputs(batch)
  if "patches" in given:
    return given["patches"]
  return patches.patchify(
    given["fbank"],
    patch_size=backbone.patch_size,
    stride=backbone.stride,
    backend=xp.JAX,
  )


def keys_of_ids(batch: Batch) -> Array:
  """Keys [B] for an evaluation: what a clip's own id draws is always the same.

  So evaluations can be compared, in whatever order and company clips come.
  """
  key = jax.random.key(0, impl="threefry2x32")
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["id"])


def in_turn(
  parts: Sequence[Callable[[Params], tuple[Array, Metrics]]], params: Params
) -> tuple[Array, Metrics]:
  """The sum of several losses, whose gradients are computed one by one.

  So the activations of one part alone are held at a time.

  Args:
    parts: each gives (loss, metrics); of metrics with the same name the sum
      counts, and none of them has a gradient.
    params: of all of them.
  """
  if len(parts) == 1:
    return parts[0](params)
  # The parts are turns of a loop: two in a row are interleaved by XLA,
  # optimisation barrier or not (3.8 GB of temporaries for two passes of a base
  # model, instead of 2.5). On several devices the price is one all-reduce of
  # the gradients for each part.
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
