"""Floating-point operations of a function, counted from what JAX traces.

XLA's own count takes the body of a loop once; this one multiplies. It has the
matrix products and convolutions alone, which are nearly all of a transformer,
and does not depend on what a compiler makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def of(fn: Callable[..., Any], *args: Any) -> int:
  """FLOPs of `fn(*args)` over all devices, a multiplication and addition as 2.

  Args:
    fn: traceable.
    *args: arrays or `jax.ShapeDtypeStruct`s.
  """
  return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr) -> int:
  return sum(_of_equation(eqn) for eqn in jaxpr.eqns)


def _of_equation(eqn) -> int:
  name, params = eqn.primitive.name, eqn.params
  if name == "dot_general":
    contracted = params["dimension_numbers"][0][0]
    shape = eqn.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contracted)
    return 2 * depth * eqn.outvars[0].aval.size
  if name == "conv_general_dilated":
    kernel = eqn.invars[1].aval
    outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    return 2 * eqn.outvars[0].aval.size * kernel.size // outputs
  inner = [_of_jaxpr(jaxpr) for jaxpr in _inside(params)]
  if name == "cond":
    # All as often: a loop over them (`tasks.base.in_turn`) takes turns.
    return sum(inner) // max(len(inner), 1)
  if name == "scan":
    return params["length"] * sum(inner)
  if name == "shard_map":  # shapes inside are those of one device
    return params["mesh"].size * sum(inner)
  return sum(inner)


def _inside(params):
  """The functions among an equation's parameters."""
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, core.Jaxpr):
        yield item
