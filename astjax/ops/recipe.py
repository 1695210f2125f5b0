"""Recipes in a string: "a|b(1)|c(x=2)" -> ops, looked up in a module.

The string is Python syntax read with `ast`: names or calls with literal
arguments, joined by `|`. Nothing in it is executed.
"""

from __future__ import annotations

import ast
import zlib
from types import ModuleType
from typing import Any, NamedTuple

from astjax import errors


class NamedOp(NamedTuple):
  """An op, and the number that keeps its random draws apart from others'."""

  name: str
  fold: int
  op: Any


def parse(
  recipe: str, module: ModuleType, where: str, **context: Any
) -> tuple[NamedOp, ...]:
  """Builds the ops of a recipe.

  Args:
    recipe: e.g. "to_float|fbank(num_mel_bins=64)"; empty gives no ops.
    module: its `__all__` lists the ops by name.
    where: how errors call this string, e.g. "config.input.on_device".
    **context: values for parameters of the same name that a recipe cannot
      write, such as the data source.

  Returns:
    The ops in order. `fold` depends on the op's name and on how often the name
    stood before, not on its place, so that moving an op from the host to the
    device does not change what it draws.

  Raises:
    UserError: not a recipe, an unknown op, or a wrong argument.
  """
  ops, seen = [], {}
  for name, args, kwargs in calls(recipe, where):
    if name not in module.__all__:
      raise errors.UserError(
        f"unknown op {name!r} in {where}.{errors.nearest(name, module.__all__)}"
      )
    make = getattr(module, name)
    own = {k: v for k, v in context.items() if k in make.__annotations__}
    place = f"{where}: {name}"
    try:
      op = errors.call_positional(make, place, args, kwargs, **own)
    except errors.UserError as e:
      text = str(e) if place in str(e) else f"{place}: {e}"
      raise errors.UserError(text) from None
    seen[name] = seen.get(name, 0) + 1
    fold = zlib.crc32(f"{name}#{seen[name]}".encode()) & 0x7FFFFFFF
    ops.append(NamedOp(name, fold, op))
  return tuple(ops)


def draws(named: NamedOp) -> bool:
  """Whether an op draws at random."""
  return getattr(named.op, "draws", False)


def apply(ops: tuple[NamedOp, ...], example, key, backend):
  """Runs the ops on one example; those that draw get their own key.

  Folding a key traces twenty rounds of shifts: too much for ops without draws.
  """
  for named in ops:
    name, fold, op = named
    own = backend.fold_in(key, fold) if draws(named) else None
    try:
      example = op(example, own, backend)
    except KeyError as e:
      raise errors.UserError(
        f"the op {name} needs {e.args[0]!r}, which no op before it has made; "
        f"there are {', '.join(sorted(example))}"
      ) from None
    except (TypeError, ValueError, IndexError) as e:
      reason = str(e).strip().split("\n")[0][:200]
      shapes = {k: getattr(v, "shape", ()) for k, v in example.items()}
      if unknown := [k for k, shape in shapes.items() if None in (*shape,)]:
        reason = f"{unknown[0]!r} has no fixed length; put fit(...) before it"
      raise errors.UserError(
        f"the op {name} cannot work on what comes before it: {reason}"
      ) from None
  return example


def calls(recipe: str, where: str):
  """Yields (name, positional, keyword arguments) of the ops of a recipe.

  Raises:
    UserError: not a recipe; `where` is how the error calls the string.
  """
  if not recipe.strip():
    return
  try:
    node = ast.parse(recipe.strip(), mode="eval").body
    for part in _split(node):
      call = part if isinstance(part, ast.Call) else None
      name = call.func if call else part
      if not isinstance(name, ast.Name):
        raise ValueError(f"{ast.unparse(part)!r} is not an op")
      args = [_literal(a) for a in call.args] if call else []
      kwargs = {}
      for keyword in call.keywords if call else []:
        if keyword.arg is None or keyword.arg in kwargs:
          raise ValueError(f"{ast.unparse(keyword)!r} is unpacked or repeated")
        kwargs[keyword.arg] = _literal(keyword.value)
      yield name.id, args, kwargs
  except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
    reason = str(e).split("\n")[0].split(" (<")[0]
    raise errors.UserError(
      f"{where} is not a recipe like 'a|b(1)|c(x=2)': {reason}: "
      f"{recipe[:300]!r}"
    ) from None


def text(name: str, args: list, kwargs: dict[str, Any]) -> str:
  """An op of a recipe, written out; the inverse of `calls`."""
  given = [repr(a) for a in args] + [f"{k}={v!r}" for k, v in kwargs.items()]
  return f"{name}({', '.join(given)})" if given else name


def _literal(node):
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError):
    raise ValueError(f"{ast.unparse(node)!r} is not a plain value") from None


def _split(node):
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    return [*_split(node.left), *_split(node.right)]
  return [node]
