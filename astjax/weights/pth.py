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
import functools
import io
import math
import os
import pathlib
import pickletools
import struct
import types
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

# More than any checkpoint has; a damaged or hostile file may refer to one list
# from itself, or to one storage a million times.
_MOST_VALUES, _MOST_DEPTH, _MOST_EXPANSION = 2_000_000, 20, 8


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

  @property
  def nbytes(self) -> int:
    """What its array will take."""
    return math.prod(self.size) * self.storage.dtype.itemsize

  def array(self) -> np.ndarray:
    """Its numbers, which must lie within the storage."""
    flat = self.storage.read()
    if 0 in self.size:
      return np.zeros(self.size, flat.dtype)
    steps = zip(self.size, self.stride, strict=True)
    last = self.offset + sum((n - 1) * step for n, step in steps)
    if last >= flat.size:
      raise _Damaged(
        f"a tensor of shape {self.size} does not fit its {flat.size} numbers"
      )
    item = flat.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(
      flat[self.offset :], self.size, [s * item for s in self.stride]
    )
    return np.asarray(view, order="C")


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


def _dict(pairs) -> dict:
  """With plain keys: a hash of nested tuples may take forever."""
  pairs = list(pairs)
  for key, _ in pairs:
    if not isinstance(key, (str, bytes, int, float, types.NoneType)):
      raise _Damaged(f"a {type(key).__name__} as the key of a dict")
  return dict(pairs)


def _pairs(items: list) -> zip:
  return zip(items[::2], items[1::2], strict=True)


def _device(*names):
  """`torch.device`, as "cuda:0"."""
  if not all(isinstance(n, (str, int)) for n in names):
    raise _Damaged("a device without a name")
  return ":".join(str(n) for n in names)


# Every name that may be called, and the inert stand-in that is called instead.
_CALLABLES: dict[str, Callable] = {
  "collections.OrderedDict": lambda items=(): OrderedDict(_dict(items)),
  "torch._utils._rebuild_tensor": _tensor,
  "torch._utils._rebuild_tensor_v2": _tensor,
  "torch._utils._rebuild_parameter": _parameter,
  "torch.Size": lambda sizes=(): tuple(sizes),
  "torch.device": _device,
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
    self._copied = 0

  def run(self, stream: io.BytesIO) -> Any:
    """The value of the next pickle in the stream."""
    for op, arg, _ in pickletools.genops(stream):
      if op.name == "STOP":
        return self._stack.pop()
      step = getattr(self, "_op_" + op.name.lower(), None)
      if step is None:
        what = op.name if arg is None else f"{op.name} {arg!r:.200}"
        raise UserError(
          f"the pickle instruction {what} has no place in a state dict"
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
    self._push(_dict(_pairs(self._since_mark())))

  def _op_append(self, arg):
    value = self._stack.pop()
    self._top(list).append(value)

  def _op_appends(self, arg):
    items = self._since_mark()
    self._top(list).extend(items)

  def _op_additems(self, arg):
    items = self._since_mark()
    self._top(set).update(_dict((item, None) for item in items))

  def _op_setitem(self, arg):
    value, key = self._stack.pop(), self._stack.pop()
    self._top(dict).update(_dict([(key, value)]))

  def _op_setitems(self, arg):
    items = self._since_mark()
    self._top(dict).update(_dict(_pairs(items)))

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
    if not isinstance(module, str) or not isinstance(name, str):
      raise _Damaged("the pickle names something by what is no text")
    text = f"{module}.{name}"
    if text not in _CALLABLES and text not in _STORAGES:
      raise UserError(
        f"it wants to use {text[:200]!r}, which is not among what a state dict "
        "needs"
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
    self._copies(args, *args)
    self._push(_CALLABLES[name.text](*args))

  def _op_build(self, arg):
    """Attributes: only those of a Namespace mean something."""
    state, target = self._stack.pop(), self._stack[-1]
    if isinstance(target, Namespace) and isinstance(state, dict):
      self._copies(state)
      target.update(state)
    elif not isinstance(target, (OrderedDict, _Tensor)):
      raise _Damaged(f"the pickle sets attributes of {type(target).__name__}")

  def _copies(self, *values):
    """A short pickle may have one long list copied again and again."""
    self._copied += sum(len(v) for v in values if hasattr(v, "__len__"))
    if self._copied > _MOST_VALUES:
      raise _Damaged("its values are repeated without end")

  def _op_binpersid(self, arg):
    """The last place, always None today, was for views before torch 0.4."""
    match self._stack.pop():
      case ("storage", _Name(text), str(key), _, int(numel), *rest) if (
        text in _STORAGES and numel >= 0 and rest in ([], [None])
      ):
        self._push(self._storage(_STORAGES[text], key, numel))
      case other:
        raise _Damaged(f"a {type(other).__name__} that is no storage")


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
  except LookupError:
    raise UserError(
      f"{path} is not a whole .pth file: its pickle takes what is not there"
    ) from None
  # A damaged pickle may do anything within the machine above, such as adding
  # a number to a dict.
  except Exception as e:
    raise UserError(f"{path} is not a whole .pth file: {one_line(e)}") from None


def one_line(error: Exception) -> str:
  """What a library said of a damaged file, which may quote from it."""
  text = " ".join(str(error).split())[:200]
  return (
    "".join(c if c.isprintable() else "?" for c in text) or type(error).__name__
  )


def _arrays(value: Any, file_size: int) -> Any:
  """With every tensor read."""
  count = size = 0
  most = min(_MOST_VALUES, _MOST_EXPANSION * file_size)

  def visit(value, depth):
    nonlocal count, size
    count += 1
    if depth > _MOST_DEPTH or count > most:
      raise _Damaged("its values are nested without end")
    if isinstance(value, _Tensor):
      size += value.nbytes
      if size > _MOST_EXPANSION * file_size:
        raise _Damaged("its tensors are far larger than the file")
      return value.array()
    if isinstance(value, dict):
      return type(value)((k, visit(v, depth + 1)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
      return type(value)(visit(v, depth + 1) for v in value)
    if not isinstance(value, (str, bytes, int, float, set, types.NoneType)):
      raise _Damaged(f"a bare {type(value).__name__.strip('_')} in it")
    return value

  return visit(value, 0)


def _read_zip(path):
  size = path.stat().st_size
  with zipfile.ZipFile(path) as archive:
    infos = {i.filename: i for i in archive.infolist()}
    if len(infos) != len(archive.infolist()):
      raise _Damaged("the archive has two entries of one name")
    pickles = [n for n in infos if n.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
      raise _Damaged(f"the archive has {len(pickles)} data.pkl, expected one")
    folder = pickles[0].removesuffix("data.pkl")
    for name, info in infos.items():
      if info.compress_type != zipfile.ZIP_STORED:
        raise _Damaged(f"{name!r} is compressed, which torch never does")
    if sum(info.file_size for info in infos.values()) > size:
      raise _Damaged("the archive's entries overlap")
    order = b"little"
    if folder + "byteorder" in infos:
      order = archive.read(folder + "byteorder")
    if order not in (b"little", b"big"):
      raise _Damaged(f"its byte order is {order[:20]!r}")

    def load(key, dtype, numel):
      name = f"{folder}data/{key}"
      if name not in infos:
        raise _Damaged(f"{name!r} is missing")
      data = archive.read(name)
      if len(data) < numel * dtype.itemsize:
        raise _Damaged(f"{name!r} is cut short")
      array = np.frombuffer(data, dtype, numel)
      return array.byteswap() if order == b"big" else array

    storages = _Storages(load)
    value = _Machine(storages.get).run(io.BytesIO(archive.read(pickles[0])))
    return _arrays(value, size)


def _read_stream(path):
  stream = io.BytesIO(path.read_bytes())
  arrays: dict[str, np.ndarray] = {}
  storages = _Storages(lambda key, dtype, numel: arrays[key])

  def plain():
    return _Machine(storages.get).run(stream)

  if plain() != _MAGIC or plain() != _PROTOCOL:
    raise _Damaged("it does not begin like one")
  # What machine wrote it does not matter: the numbers are little-endian anyway.
  plain()
  value = plain()
  keys = plain()
  for key in keys:
    if not isinstance(key, str) or key not in storages.known:
      raise _Damaged("it has numbers that belong to no tensor")
    storage = storages.known[key]
    (count,) = struct.unpack("<q", stream.read(8))
    if count != storage.numel:
      raise _Damaged(
        f"storage {key!r} has {count} elements, expected {storage.numel}"
      )
    data = stream.read(count * storage.dtype.itemsize)
    if len(data) < count * storage.dtype.itemsize:
      raise _Damaged("the file ends within its numbers")
    arrays[key] = np.frombuffer(data, storage.dtype, count)
  return _arrays(value, path.stat().st_size)


class _Storages:
  """The storages by their keys; tensors that share one read it once.

  Args:
    load: (key, type, number of elements) -> its numbers.
  """

  def __init__(self, load: Callable[[str, np.dtype, int], np.ndarray]):
    self._load = load
    self.known: dict[str, _Storage] = {}

  def get(self, kind: str, key: str, numel: int) -> _Storage:
    """The storage `key`, the same each time."""
    dtype = _DTYPES[kind]
    if key not in self.known:
      read = functools.cache(lambda: self._load(key, dtype, numel))
      self.known[key] = _Storage(dtype, numel, read)
    storage = self.known[key]
    if (storage.dtype, storage.numel) != (dtype, numel):
      raise _Damaged(f"storage {key!r} is of two types or sizes")
    return storage
