"""Errors for people: one line saying what was given, expected, and exists."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class UserError(Exception):
  """A mistake in what the user gave; `main` prints it in one line."""


def nearest(name: str, known: Iterable[str]) -> str:
  """' Did you mean 'x'? Known: ...' for an unknown name."""
  known = sorted(str(k) for k in known)
  close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
  hint = f" Did you mean {close[0]!r}?" if close else ""
  return f"{hint} Known: {', '.join(known) or 'none'}."


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
  """`table[name]`, or a UserError naming the nearest entry."""
  if name not in table:
    raise UserError(f"unknown {what} {name!r}.{nearest(name, table)}")
  return table[name]


def call(fn: Callable, where: str, /, *args: Any, **kwargs: Any) -> Any:
  """`fn(*args, **kwargs)` after checking names, number and types.

  The signature is the schema: an unknown, missing or wrongly typed argument
  raises a UserError that says `where` it stood.

  Args:
    fn: any function or class with annotated parameters.
    where: how the user calls this place, e.g. "config.optim".
    *args: positional arguments.
    **kwargs: keyword arguments.
  """
  return fn(*args, **check(fn, where, *args, **kwargs))


def check(
  fn: Callable, where: str, /, *args: Any, **kwargs: Any
) -> dict[str, Any]:
  """The keyword arguments for `fn`, checked as in `call` but not called."""
  signature = inspect.signature(fn)
  known = signature.parameters
  open_ended = any(p.kind == p.VAR_KEYWORD for p in known.values())
  for name in kwargs:
    if name not in known and not open_ended:
      raise UserError(
        f"unknown argument {name!r} in {where}.{nearest(name, known)}"
      )
  try:
    bound = signature.bind(*args, **kwargs)
  except TypeError as e:
    expected = ", ".join(
      n if p.default is p.empty else f"{n}={p.default!r}"
      for n, p in known.items()
    )
    raise UserError(f"{where}: {e}; it takes ({expected})") from None
  hints = typing.get_type_hints(fn.__init__ if inspect.isclass(fn) else fn)
  for name, value in bound.arguments.items():
    kind = known.get(name)
    if kind is None or kind.kind in (kind.VAR_KEYWORD, kind.VAR_POSITIONAL):
      continue
    if name in hints and not _fits(value, hints[name]):
      raise UserError(
        f"{where}: {name}={value!r} is {_typename(value)}, expected "
        f"{_hint_name(hints[name])}"
      )
  return kwargs


def _fits(value: Any, hint: Any) -> bool:
  """Whether a plain config value may stand for a parameter of this type."""
  if hint is Any or hint is inspect.Parameter.empty:
    return True
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return any(_fits(value, a) for a in args)
  if origin is typing.Literal:
    return value in args
  if hint is None or hint is type(None):
    return value is None
  if hint is float:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  if hint is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if hint in (str, bool):
    return isinstance(value, hint)
  if origin in (tuple, list) or hint in (tuple, list):
    if not isinstance(value, (tuple, list)):
      return False
    item = args[0] if args and (len(args) < 2 or args[1] is Ellipsis) else Any
    return all(_fits(v, item) for v in value)
  if origin is not None and isinstance(origin, type):
    return not isinstance(value, (str, int, float, bool)) and (
      isinstance(value, origin)
      or not issubclass(origin, Mapping)
      or isinstance(value, Mapping)
    )
  return True


def _typename(value: Any) -> str:
  return type(value).__name__


def _hint_name(hint: Any) -> str:
  return hint.__name__ if isinstance(hint, type) else str(hint)
