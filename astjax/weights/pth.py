"""Reads torch's `.pth` files without torch, and runs nothing that is in them.

A `.pth` file is a pickle: a small program for a stack machine, which may name
any function of any module and call it. Python's own interpreter of that
language does as told. The one below knows only the instructions that build
plain values, and a table of the few names that a state dict needs; it imports
nothing, looks nothing up and calls nothing else. Whatever is not in the table
is refused by its name.

Both containers of torch are read: the zip archive (since 1.6) and the stream of
pickles before it.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from astjax.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_DTYPES = {
  "DoubleStorage": np.dtype("<f8"),
  "FloatStorage": np.dtype("<f4"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("i1"),
  "ByteStorage": np.dtype("u1"),
  "BoolStorage": np.dtype("?"),
}


class Namespace(dict):
  """An `argparse.Namespace` in a file, as the inert dict of its values."""


class _Damaged(ValueError):
  """The file does not say anything sensible."""


@dataclasses.dataclass(frozen=True)
class _Name:
  """A name in the pickle: nothing but its text."""

  text: str


@dataclasses.dataclass(frozen=True)
class _Storage:
  """A flat array in the file, read when a tensor needs it."""

  dtype: np.dtype
  numel: int
  read: Callable[[], np.ndarray]


@dataclasses.dataclass(eq=False)
class _Tensor:
  """A view of a storage; the numbers may follow the pickle that names them."""

  storage: _Storage
  offset: int
  size: tuple[int, ...]
  stride: tuple[int, ...]

  def array(self) -> np.ndarray:
    """Its numbers, which must lie within the storage."""
    flat = self.storage.read()
    last = self.offset
    count = 1
    for n, step in zip(self.size, self.stride, strict=True):
      count *= n
      last += max(n - 1, 0) * step
    if count == 0:
      return np.zeros(self.size, flat.dtype)
    if count > flat.size or last >= flat.size:
      raise _Damaged(
        f"a tensor of shape {self.size} does not fit its {flat.size} numbers"
      )
    item = flat.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(
      flat[self.offset :], self.size, [s * item for s in self.stride]
    )
    return np.ascontiguousarray(view)


def _tensor(storage, offset, size, stride, *rest):
  """`torch._utils._rebuild_tensor_v2`; gradients and hooks are left out."""
  if not isinstance(storage, _Storage):
    raise _Damaged("a tensor without numbers")
  sizes = (*size, *stride, offset)
  whole = all(type(n) is int and 0 <= n < 2**48 for n in sizes)
  if not whole or len(size) != len(stride) or len(size) > 32:
    raise _Damaged("a tensor of impossible shape")
  return _Tensor(storage, offset, tuple(size), tuple(stride))


def _parameter(tensor, *rest):
  """`torch._utils._rebuild_parameter`: the tensor in it."""
  return tensor


# Every name that may be called, and the inert stand-in that is called instead.
_CALLABLES: dict[str, Callable] = {
  "collections.OrderedDict": lambda items=(): OrderedDict(items),
  "torch._utils._rebuild_tensor": _tensor,
  "torch._utils._rebuild_tensor_v2": _tensor,
  "torch._utils._rebuild_parameter": _parameter,
  "torch.Size": lambda sizes=(): tuple(sizes),
  "torch.device": lambda *names: ":".join(str(n) for n in names),
  "argparse.Namespace": lambda **values: Namespace(values),
}
_STORAGES = {f"torch.{name}": name for name in _DTYPES}


class _Machine:
  """The stack machine of one pickle.

  Args:
    storage: (class name, key, number of elements) -> `_Storage`.
  """

  _MARK = object()

  def __init__(self, storage: Callable[[str, str, int], _Storage]):
    self._storage = storage
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}

  def run(self, stream: io.BytesIO) -> Any:
    """The value of the next pickle in the stream."""
    for op, arg, _ in pickletools.genops(stream):
      if op.name == "STOP":
        return self._stack.pop()
      step = getattr(self, "_op_" + op.name.lower(), None)
      if step is None:
        raise UserError(
          f"the pickle instruction {op.name} has no place in a state dict"
        )
      step(arg)
    raise _Damaged("the pickle has no end")

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
  _op_long = _op_long1 = _op_long4 = _push
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
    items = self._since_mark()
    self._push(dict(zip(items[::2], items[1::2], strict=True)))

  def _op_append(self, arg):
    value = self._stack.pop()
    self._top(list).append(value)

  def _op_appends(self, arg):
    items = self._since_mark()
    self._top(list).extend(items)

  def _op_additems(self, arg):
    items = self._since_mark()
    self._top(set).update(items)

  def _op_setitem(self, arg):
    value, key = self._stack.pop(), self._stack.pop()
    self._top(dict)[key] = value

  def _op_setitems(self, arg):
    items = self._since_mark()
    self._top(dict).update(zip(items[::2], items[1::2], strict=True))

  def _top(self, kind):
    if not isinstance(self._stack[-1], kind):
      raise _Damaged(f"the pickle fills a {type(self._stack[-1]).__name__}")
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
    text = f"{module}.{name}"
    if text not in _CALLABLES and text not in _STORAGES:
      raise UserError(
        f"it wants to use {text!r}, which is not among what a state dict needs"
      )
    self._push(_Name(text))

  def _op_reduce(self, arg):
    args, name = self._stack.pop(), self._stack.pop()
    self._call(name, args)

  _op_newobj = _op_reduce

  def _call(self, name, args):
    if not isinstance(name, _Name) or name.text not in _CALLABLES:
      raise _Damaged("the pickle calls what is not a function")
    if not isinstance(args, tuple):
      raise _Damaged("the pickle calls a function without a tuple")
    self._push(_CALLABLES[name.text](*args))

  def _op_build(self, arg):
    """Attributes: only those of a Namespace mean something."""
    state, target = self._stack.pop(), self._stack[-1]
    if isinstance(target, Namespace) and isinstance(state, dict):
      target.update(state)
    elif not isinstance(target, (OrderedDict, _Tensor)):
      raise _Damaged(f"the pickle sets attributes of {type(target).__name__}")

  def _op_binpersid(self, arg):
    match self._stack.pop():
      case ("storage", _Name(text), str(key), _, int(numel), *_) if (
        text in _STORAGES and numel >= 0
      ):
        self._push(self._storage(_STORAGES[text], key, numel))
      case other:
        raise _Damaged(f"{str(other)[:80]} is no storage")


def read(path: str | os.PathLike) -> Any:
  """The object in a `.pth` file: dicts, lists, numbers, strings and arrays.

  Tensors become arrays of their own type (bfloat16 by `ml_dtypes`), an
  `argparse.Namespace` becomes a dict.

  Raises:
    UserError: not a `.pth` file, damaged, or one that asks for more than a
      state dict needs; nothing in it has been executed.
  """
  path = pathlib.Path(path)
  try:
    with open(path, "rb") as f:
      is_zip = f.read(4) == b"PK\x03\x04"
    return _read_zip(path) if is_zip else _read_stream(path)
  except UserError as e:
    raise UserError(f"{path} is refused: {e}; nothing in it was run") from None
  except OSError as e:
    raise UserError(f"cannot read {path}: {e.strerror or e}") from None
  except (MemoryError, RecursionError):
    raise UserError(f"{path} is damaged: it asks for too much") from None
  # A damaged pickle may do anything within the machine above, such as taking
  # from an empty stack.
  except Exception as e:
    reason = str(e).split("\n")[0][:200] or type(e).__name__
    raise UserError(f"{path} is not a whole .pth file: {reason}") from None


# More than any checkpoint has; a damaged or hostile file may refer to one list
# from itself, or to one storage a million times.
_MOST_VALUES, _MOST_DEPTH, _MOST_EXPANSION = 2_000_000, 20, 8


def _arrays(value: Any, file_size: int) -> Any:
  """With every tensor read."""
  count = size = 0

  def visit(value, depth):
    nonlocal count, size
    count += 1
    if depth > _MOST_DEPTH or count > _MOST_VALUES:
      raise _Damaged("its values are nested without end")
    if isinstance(value, _Tensor):
      array = value.array()
      size += array.nbytes
      if size > _MOST_EXPANSION * file_size:
        raise _Damaged("its tensors are far larger than the file")
      return array
    if isinstance(value, dict):
      return type(value)((k, visit(v, depth + 1)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
      return type(value)(visit(v, depth + 1) for v in value)
    return value

  return visit(value, 0)


def _read_zip(path):
  with zipfile.ZipFile(path) as archive:
    infos = {i.filename: i for i in archive.infolist()}
    pickles = [n for n in infos if n.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
      raise _Damaged("the archive has no data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    for info in infos.values():
      if info.compress_type != zipfile.ZIP_STORED:
        raise _Damaged(f"{info.filename} is compressed, which torch never does")
    order = "little"
    if folder + "byteorder" in infos:
      order = archive.read(folder + "byteorder").decode()

    def storage(kind, key, numel):
      def load():
        name = f"{folder}data/{key}"
        if name not in infos:
          raise _Damaged(f"{name} is missing")
        dtype = _DTYPES[kind]
        data = archive.read(name)
        if len(data) < numel * dtype.itemsize:
          raise _Damaged(f"{name} is cut short")
        return _decode(data, dtype, numel, order)

      return _Storage(_DTYPES[kind], numel, _once(load))

    value = _Machine(storage).run(io.BytesIO(archive.read(pickles[0])))
    return _arrays(value, path.stat().st_size)


def _read_stream(path):
  stream = io.BytesIO(path.read_bytes())
  arrays: dict[str, np.ndarray] = {}
  kinds: dict[str, tuple[str, int]] = {}

  def storage(kind, key, numel):
    kinds[key] = (kind, numel)
    return _Storage(_DTYPES[kind], numel, lambda: arrays[key])

  def plain():
    return _Machine(storage).run(stream)

  if plain() != _MAGIC or plain() != _PROTOCOL:
    raise _Damaged("it does not begin like one")
  about = plain()
  order = "little" if about.get("little_endian", True) else "big"
  value = _Machine(storage).run(stream)
  for key in plain():
    kind, numel = kinds[key]
    (count,) = struct.unpack("<q", stream.read(8))
    dtype = _DTYPES[kind]
    if count != numel:
      raise _Damaged(f"storage {key} has {count} elements, expected {numel}")
    data = stream.read(numel * dtype.itemsize)
    if len(data) < numel * dtype.itemsize:
      raise _Damaged("the file ends within its numbers")
    arrays[key] = _decode(data, dtype, numel, order)
  return _arrays(value, path.stat().st_size)


def _decode(data, dtype, numel, order):
  array = np.frombuffer(data, dtype, numel)
  return array.byteswap() if order == "big" else array


def _once(load: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
  """Tensors that share a storage read it once."""
  kept: list[np.ndarray] = []

  def read():
    if not kept:
      kept.append(load())
    return kept[0]

  return read
