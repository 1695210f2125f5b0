"""Errors for people: one line saying what was given, expected, and exists."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import inspect
import math
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple


class UserError(Exception):
  """A mistake in what the user gave; `main` prints it in one line."""


class Outage(UserError):
  """Not the user's doing: a disk, memory, another process. It may pass."""


class Stopped(Exception):
  """A signal asked the run to end; it was saved and can be resumed."""

  def __init__(self, signum: int, step: int):
    self.signum = signum
    name = signal.Signals(signum).name
    super().__init__(f"{name}: saved at step {step}; the same command resumes")


# What a disk or a network says of itself, not of what was asked for.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}
_OF_THE_MACHINE |= {errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}

# Where a user who misses labels has to look.
LABELS_COME_FROM = (
  "a pattern needs a group (?P<label>...), a table a column 'labels', a "
  "manifest a label_list"
)


def warn(text: str) -> None:
  """One line on standard error."""
  print(f"warning: {text}", file=sys.stderr, flush=True)


class Within(NamedTuple):
  """The bounds of a parameter, as part of its annotation."""

  holds: Callable[[Any], bool]
  says: str


# What a value has to be beside its type; `call` refuses what is out of bounds.
Positive = Annotated[float, Within(lambda x: 0 < x < math.inf, "positive")]
NotNegative = Annotated[
  float, Within(lambda x: 0 <= x < math.inf, "at least 0")
]
BelowOne = Annotated[float, Within(lambda x: 0 <= x < 1, "in [0, 1)")]
Fraction = Annotated[float, Within(lambda x: 0 <= x <= 1, "in [0, 1]")]
Finite = Annotated[float, Within(math.isfinite, "finite")]
Count = Annotated[int, Within(lambda n: n >= 1, "at least 1")]
CountOrZero = Annotated[int, Within(lambda n: n >= 0, "at least 0")]


def file_error(error: OSError, text: str) -> UserError:
  """The error for a file that cannot be used: an Outage if that may pass."""
  is_outage = error.errno in _OF_THE_MACHINE
  return (Outage if is_outage else UserError)(text)


def first_line(error: BaseException) -> str:
  """What a library's error says, in short; its name if it says nothing."""
  text = str(error).strip().split("\n")[0][:200] or type(error).__name__
  # It may quote from a damaged file.
  return "".join(c if c.isprintable() else "?" for c in text)


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


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
  """Puts `where` before the UserErrors raised inside."""
  try:
    yield
  except UserError as e:
    raise type(e)(f"{where}: {e}") from None


def call(
  fn: Callable,
  where: str,
  given: Mapping[str, Any],
  /,
  *args: Any,
  by_position: Iterable[Any] = (),
  **own: Any,
) -> Any:
  """`fn(*args, *by_position, **given, **own)`, after checking the user's part.

  That is `given` and `by_position`. The signature is the schema: an unknown,
  missing or wrongly typed argument raises a UserError that says `where` it
  stood, such as "config.optim".
  """
  signature = inspect.signature(fn)
  parameters = signature.parameters
  known = [
    name
    for i, (name, p) in enumerate(parameters.items())
    if i >= len(args) and name not in own and p.kind != p.VAR_POSITIONAL
  ]
  for name in given:
    if name not in known:
      raise UserError(
        f"unknown argument {name!r} in {where}.{nearest(name, known)}"
      )
  try:
    bound = signature.bind(*args, *by_position, **given, **own)
  except TypeError as e:
    bare = [
      parameters[k].replace(annotation=inspect.Parameter.empty) for k in known
    ]
    takes = ", ".join(map(str, bare))
    raise UserError(f"{where}: {e}; it takes ({takes})") from None
  # Annotations of a dataclass are resolved in the module of each base class.
  is_plain_class = inspect.isclass(fn) and not dataclasses.is_dataclass(fn)
  hints = typing.get_type_hints(
    fn.__init__ if is_plain_class else fn, include_extras=True
  )
  for name in known:
    if name in bound.arguments and name in hints:
      _check(bound.arguments[name], hints[name], where, f"{name}=")
  for name, parameter in parameters.items():
    if parameter.kind == parameter.VAR_POSITIONAL:
      for value in bound.arguments.get(name, ()):
        _check(value, hints.get(name, Any), where)
  return fn(*bound.args, **bound.kwargs)


def _check(value: Any, hint: Any, where: str, name: str = "") -> None:
  """A UserError for a value of another type, or out of its bounds."""
  if _fits(value, hint):
    return
  problem = f"is {type(value).__name__}, expected {_hint_name(hint)}"
  for kind in typing.get_args(hint) if _is_union(hint) else (hint,):
    is_bounded = typing.get_origin(kind) is Annotated
    if is_bounded and _fits(value, typing.get_args(kind)[0]):
      problem = f"must be {kind.__metadata__[0].says}"
  raise UserError(f"{where}: {name}{value!r} {problem}")


def _is_union(hint: Any) -> bool:
  return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _fits(value: Any, hint: Any) -> bool:
  """Whether a plain config value may stand for a parameter of this type."""
  if hint is Any or hint is inspect.Parameter.empty:
    return True
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    return _fits(value, args[0]) and args[1].holds(value)
  if _is_union(hint):
    return any(_fits(value, a) for a in args)
  if origin is typing.Literal:
    return any(value == a and type(value) is type(a) for a in args)
  if hint is None or hint is type(None):
    return value is None
  if hint in (int, float):  # an int may stand for a float, a bool for neither
    return isinstance(value, (int, hint)) and not isinstance(value, bool)
  if hint in (str, bool):
    return isinstance(value, hint)
  if origin in (tuple, list) or hint in (tuple, list):
    if not isinstance(value, (tuple, list)):
      return False
    if origin is tuple and args and Ellipsis not in args:
      return len(value) == len(args) and all(map(_fits, value, args))
    return all(_fits(v, args[0] if args else Any) for v in value)
  if isinstance(origin, type) and issubclass(origin, Mapping):
    return isinstance(value, Mapping) and all(
      _fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items()
    )
  return True


def _hint_name(hint: Any) -> str:
  """A type as the user reads it: `tuple[int at least 1, ...]`."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    return f"{_hint_name(args[0])} {args[1].says}"
  if _is_union(hint):
    return " | ".join(map(_hint_name, args))
  if origin in (tuple, list):
    return f"{origin.__name__}[{', '.join(map(_hint_name, args))}]"
  if hint in (None, type(None), Ellipsis):
    return "..." if hint is Ellipsis else "None"
  if origin is typing.Literal:
    return "one of " + ", ".join(map(repr, args))
  if isinstance(hint, type) and origin is None:
    return hint.__name__
  return str(hint).replace("typing.", "").replace("collections.abc.", "")
