"""Recipes in a string: "a|b(1)|c(x=2)" -> ops, and running them.

The string is Python syntax read with `ast`: names or calls with literal
arguments, joined by `|`. Nothing in it is executed.

An op is a function `(example, key, xp) -> example`: of a dict of arrays, a
random key and an array library (`ops/xp.py`). It sees one recording; the device
maps the same ops over the rows of a batch.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from astjax import errors
from astjax.errors import UserError
from astjax.ops.xp import JAX, Xp
from astjax.types import Array, Batch, Example

Op = Callable[[Example, Array, Xp], Example]
# By its name in a recipe, the function that makes an op of its arguments.
Table = Mapping[str, Callable[..., Op]]


@dataclasses.dataclass(frozen=True)
class Random:
  """Marks an op that draws at random; only such ops are given a key."""

  run: Op

  def __call__(self, example: Example, key: Array, xp: Xp) -> Example:
    """As any op; the key is folded for this op alone."""
    return self.run(example, key, xp)


class NamedOp(NamedTuple):
  """An op of a recipe, and what it was made of, defaults included."""

  name: str
  fold: int  # folded into its key: keeps its draws apart from others'
  op: Op
  arguments: Mapping[str, Any]


def parse(
  recipe: str, table: Table, where: str, **context: Any
) -> tuple[NamedOp, ...]:
  """Builds the ops of a recipe, such as "to_float|fbank(num_mel_bins=64)".

  `context` are arguments that a recipe cannot write, such as the reader of the
  recordings: an op with a parameter of that name gets it. Errors call the
  string `where`, e.g. "config.input.on_device".

  Raises:
    UserError: not a recipe, an unknown op, or a wrong argument.
  """
  ops: list[NamedOp] = []
  for name, args, kwargs in calls(recipe, where):
    with errors.located(where):
      make = errors.lookup(table, name, "op")
      own = {k: v for k, v in context.items() if k in make.__annotations__}
      op = errors.call(make, name, kwargs, by_position=args, **own)
    bound = inspect.signature(make).bind(*args, **kwargs, **own)
    bound.apply_defaults()
    # The name and how often it stood before, not the place in the recipe: so
    # an op that moves between host and device draws the same.
    number = 1 + sum(earlier.name == name for earlier in ops)
    fold = zlib.crc32(f"{name}#{number}".encode()) & 0x7FFFFFFF
    ops.append(NamedOp(name, fold, op, bound.arguments))
  return tuple(ops)


def draws(named: NamedOp) -> bool:
  """Whether an op draws at random."""
  return isinstance(named.op, Random)


def apply(
  ops: tuple[NamedOp, ...], example: Example, key: Array, xp: Xp
) -> Example:
  """Runs the ops on one example.

  Raises:
    UserError: an op does not fit what the ops before it give.
  """
  for op in ops:
    # Folding a key is twenty rounds of shifts: too much for ops without draws.
    own = xp.fold_in(key, op.fold) if draws(op) else None
    try:
      example = op.op(example, own, xp)
    except KeyError as e:
      raise UserError(
        f"the op {op.name} needs {e.args[0]!r}, which no op before it has made;"
        f" there are {', '.join(sorted(example))}"
      ) from e
    except (TypeError, ValueError, IndexError) as e:
      raise UserError(
        f"the op {op.name} cannot work on what comes before it: "
        f"{errors.first_line(e)}"
      ) from e
  return example


def apply_rows(ops: tuple[NamedOp, ...], batch: Batch, keys: Array) -> Batch:
  """Runs the ops on the rows of a batch, traced by JAX; `keys` are [B]."""
  return jax.vmap(lambda row, key: apply(ops, row, key, JAX))(batch, keys)


def row_keys(key: Array, count: int) -> Array:
  """[B] keys: the key folded with each row's place in the global batch."""
  rows = jnp.arange(count, dtype=jnp.uint32)
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def calls(
  recipe: str, where: str
) -> Iterator[tuple[str, list, dict[str, Any]]]:
  """(name, positional, keyword arguments) of the ops of a recipe.

  Raises:
    UserError: not a recipe; `where` is how the error calls the string.
  """
  if not recipe.strip():
    return
  try:
    node = ast.parse(recipe.strip(), mode="eval").body
    for part in _split(node):
      call = part if isinstance(part, ast.Call) else ast.Call(part, [], [])
      if not isinstance(call.func, ast.Name):
        raise ValueError(f"{ast.unparse(part)!r} is not an op")
      args = [_literal(arg) for arg in call.args]
      kwargs: dict[str, Any] = {}
      for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in kwargs:
          raise ValueError(f"{ast.unparse(keyword)!r} is unpacked or repeated")
        kwargs[keyword.arg] = _literal(keyword.value)
      yield call.func.id, args, kwargs
  except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
    # A syntax error ends with the place in a file that does not exist.
    reason = errors.first_line(e).split(" (<")[0]
    raise UserError(
      f"{where} is not a recipe like 'a|b(1)|c(x=2)': {reason}: "
      f"{recipe[:300]!r}"
    ) from None


def text(name: str, args: list, kwargs: dict[str, Any]) -> str:
  """An op of a recipe, written out; the inverse of `calls`."""
  given = [repr(a) for a in args] + [f"{k}={v!r}" for k, v in kwargs.items()]
  return f"{name}({', '.join(given)})" if given else name


def _literal(node: ast.expr) -> Any:
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError):
    raise ValueError(f"{ast.unparse(node)!r} is not a plain value") from None


def _split(node: ast.expr) -> list[ast.expr]:
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    return [*_split(node.left), *_split(node.right)]
  return [node]
