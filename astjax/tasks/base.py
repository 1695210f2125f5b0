"""What several tasks need: a batch's input, and losses one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from astjax.errors import UserError
from astjax.models import ast
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
  return ast.cut(backbone, given["fbank"])


def in_turn(
  parts: Sequence[Callable[[Params], tuple[Array, Metrics]]], params: Params
) -> tuple[Array, Metrics]:
  """The sum of several losses, whose gradients are computed one by one.

  So the activations of one part alone are held at a time. Each part gives
  (loss, metrics); metrics of the same name are added up, and have no gradient.
  """
  if len(parts) == 1:
    return parts[0](params)
  # The parts are turns of a loop: two in a row are interleaved by XLA,
  # optimisation barrier or not (3.8 GB of temporaries for two passes of a base
  # model, instead of 2.5). On several devices the price is one all-reduce of
  # the gradients for each part.
  shapes: Metrics = {}
  for part in parts:
    shapes |= jax.eval_shape(part, params)[1]
  zeros = optax.tree.zeros_like(shapes)

  def padded(part):  # branches of a loop give the same metrics
    def loss(params):
      value, metrics = part(params)
      return value, zeros | metrics

    return loss

  def in_loop(functions):

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
