"""Pickles as values: an interpreter that runs nothing.

A pickle is a small program for a stack machine, which may name any function of
any module and call it. Python's own interpreter of that language does as told.
This one knows only the instructions that build plain values; it imports
nothing, looks nothing up, and calls only what it was given by name. Whatever
else a pickle asks for is refused by its name.
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from astjax.errors import UserError

# More than any checkpoint has; a hostile file may repeat one list a million
# times.
MOST_VALUES = 2_000_000


class Damaged(ValueError):
  """The file does not say anything sensible."""


class Namespace(dict):
  """An `argparse.Namespace` in a file, as the inert dict of its values."""


@dataclasses.dataclass(frozen=True)
class Name:
  """A name in the pickle: nothing but its text."""

  text: str


def plain_dict(pairs) -> dict:
  """With plain keys: a hash of nested tuples may take forever."""
  pairs = list(pairs)
  for key, _ in pairs:
    if not isinstance(key, (str, bytes, int, float, types.NoneType)):
      raise Damaged(f"a {type(key).__name__} as the key of a dict")
  return dict(pairs)


def _pairs(items: list) -> zip:
  return zip(items[::2], items[1::2], strict=True)


class Machine:
  """The stack machine of one pickle.

  Args:
    callables: what may be called, by the names that stand for it in the file.
    names: further names that may be mentioned, not called.
    persistent: what a reference to something beside the pickle becomes.
    bare: types of values whose attributes are left out.
  """

  _MARK = object()

  def __init__(
    self,
    callables: Mapping[str, Callable],
    names: frozenset[str],
    persistent: Callable[[Any], Any],
    bare: tuple[type, ...],
  ):
    self._callables = callables
    self._names = names
    self._persistent = persistent
    self._bare = (OrderedDict, *bare)
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}
    self._copied = 0

  def run(self, stream: io.BytesIO) -> Any:
    """The value of the next pickle in the stream."""
    for op, arg, _ in pickletools.genops(stream):
      if op.name == "STOP":
        return self._stack.pop()
      step = getattr(self, "_op_" + op.name.lower(), None)
      if step is None:
        what = op.name if arg is None else f"{op.name} {arg!r:.200}"
        raise UserError(f"no state dict needs the instruction {what}")
      step(arg)
    raise Damaged("the pickle has no end")

  def _push(self, value):
    self._stack.append(value)

  def _since_mark(self):
    items = []
    while (item := self._stack.pop()) is not self._MARK:
      items.append(item)
    return items[::-1]

  def _ignore(self, arg):
    pass

  _op_proto = _op_frame = _ignore
  _op_int = _op_binint = _op_binint1 = _op_binint2 = _push
  _op_long = _op_long1 = _push
  _op_float = _op_binfloat = _push
  _op_string = _op_binstring = _op_short_binstring = _push
  _op_unicode = _op_binunicode = _op_short_binunicode = _push
  _op_binunicode8 = _op_binbytes = _op_short_binbytes = _op_binbytes8 = _push

  def _op_none(self, arg):
    self._push(None)

  def _op_newtrue(self, arg):
    self._push(True)

  def _op_newfalse(self, arg):
    self._push(False)

  def _op_mark(self, arg):
    self._push(self._MARK)

  def _op_pop(self, arg):
    self._stack.pop()

  def _op_pop_mark(self, arg):
    self._since_mark()

  def _op_dup(self, arg):
    self._push(self._stack[-1])

  def _op_empty_dict(self, arg):
    self._push({})

  def _op_empty_list(self, arg):
    self._push([])

  def _op_empty_tuple(self, arg):
    self._push(())

  def _op_empty_set(self, arg):
    self._push(set())

  def _op_tuple(self, arg):
    self._push(tuple(self._since_mark()))

  def _op_tuple1(self, arg):
    self._push((self._stack.pop(),))

  def _op_tuple2(self, arg):
    self._stack[-2:] = [tuple(self._stack[-2:])]

  def _op_tuple3(self, arg):
    self._stack[-3:] = [tuple(self._stack[-3:])]

  def _op_list(self, arg):
    self._push(self._since_mark())

  def _op_dict(self, arg):
    self._push(plain_dict(_pairs(self._since_mark())))

  def _op_append(self, arg):
    value = self._stack.pop()
    self._top(list).append(value)

  def _op_appends(self, arg):
    items = self._since_mark()
    self._top(list).extend(items)

  def _op_additems(self, arg):
    items = self._since_mark()
    self._top(set).update(plain_dict((item, None) for item in items))

  def _op_setitem(self, arg):
    value, key = self._stack.pop(), self._stack.pop()
    self._top(dict).update(plain_dict([(key, value)]))

  def _op_setitems(self, arg):
    items = self._since_mark()
    self._top(dict).update(plain_dict(_pairs(items)))

  def _top(self, kind):
    if not isinstance(self._stack[-1], kind):
      raise Damaged(f"the pickle fills a {type(self._stack[-1]).__name__}")
    return self._stack[-1]

  def _op_put(self, arg):
    self._memo[arg] = self._stack[-1]

  _op_binput = _op_long_binput = _op_put

  def _op_memoize(self, arg):
    self._memo[len(self._memo)] = self._stack[-1]

  def _op_get(self, arg):
    self._push(self._memo[arg])

  _op_binget = _op_long_binget = _op_get

  def _op_global(self, arg):
    self._name(*arg.split(" ", 1))

  def _op_stack_global(self, arg):
    name, module = self._stack.pop(), self._stack.pop()
    self._name(module, name)

  def _name(self, module, name):
    if not isinstance(module, str) or not isinstance(name, str):
      raise Damaged("the pickle names something by what is no text")
    text = f"{module}.{name}"
    if text not in self._callables and text not in self._names:
      raise UserError(f"it wants to use {text[:200]!r}, as no state dict does")
    self._push(Name(text))

  def _op_reduce(self, arg):
    args, name = self._stack.pop(), self._stack.pop()
    self._call(name, args)

  _op_newobj = _op_reduce

  def _call(self, name, args):
    if not isinstance(name, Name) or name.text not in self._callables:
      raise Damaged("the pickle calls what is not a function")
    if not isinstance(args, tuple):
      raise Damaged("the pickle calls a function without a tuple")
    self._copies(args, *args)
    self._push(self._callables[name.text](*args))

  def _op_build(self, arg):
    """Attributes: only those of a Namespace mean something."""
    state, target = self._stack.pop(), self._stack[-1]
    if isinstance(target, Namespace) and isinstance(state, dict):
      self._copies(state)
      target.update(state)
    elif not isinstance(target, self._bare):
      raise Damaged(f"the pickle sets attributes of {type(target).__name__}")

  def _copies(self, *values):
    """A short pickle may have one long list copied again and again."""
    self._copied += sum(len(v) for v in values if hasattr(v, "__len__"))
    if self._copied > MOST_VALUES:
      raise Damaged("its values are repeated without end")

  def _op_binpersid(self, arg):
    self._push(self._persistent(self._stack.pop()))
