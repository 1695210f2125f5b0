"""Reads torch's `.pth` files without torch, and runs nothing that is in them.

A `.pth` file is a pickle, and flat arrays that it refers to. Here stands the
table of the few names that a state dict needs; the interpreter of the pickle
(`pickle_machine`) knows no other. Both containers of torch are read: the zip
archive (since 1.6) and the stream of pickles before it.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import os
import pathlib
import struct
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from astjax.errors import UserError, first_line
from astjax.weights import pickle_machine
from astjax.weights.pickle_machine import Damaged, Machine, Name

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

# A damaged or hostile file may refer to one list from itself, or to one storage
# a million times.
_MOST_DEPTH, _MOST_EXPANSION = 20, 8


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
      raise Damaged(
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
    raise Damaged("a tensor without numbers")
  sizes = (*size, *stride, offset)
  whole = all(type(n) is int and 0 <= n < 2**48 for n in sizes)
  if not whole or len(size) != len(stride) or len(size) > 32:
    raise Damaged("a tensor of impossible shape")
  return _Tensor(storage, offset, tuple(size), tuple(stride))


def _parameter(tensor, *rest):
  """`torch._utils._rebuild_parameter`: the tensor in it."""
  return tensor


def _device(*names):
  """`torch.device`, as "cuda:0"."""
  if not all(isinstance(n, (str, int)) for n in names):
    raise Damaged("a device without a name")
  return ":".join(str(n) for n in names)


# Every name that may be called, and the inert stand-in that is called instead.
_CALLABLES: dict[str, Callable] = {
  "collections.OrderedDict": lambda items=(): OrderedDict(
    pickle_machine.plain_dict(items)
  ),
  "torch._utils._rebuild_tensor": _tensor,
  "torch._utils._rebuild_tensor_v2": _tensor,
  "torch._utils._rebuild_parameter": _parameter,
  "torch.Size": lambda sizes=(): tuple(sizes),
  "torch.device": _device,
  "argparse.Namespace": lambda **values: pickle_machine.Namespace(values),
}
_STORAGES = frozenset(f"torch.{name}" for name in _DTYPES)


def _machine(storages: _Storages) -> Machine:
  def persistent(reference):
    """The last place, always None today, was for views before torch 0.4."""
    match reference:
      case ("storage", Name(text), str(key), _, int(numel), *rest) if (
        text in _STORAGES and numel >= 0 and rest in ([], [None])
      ):
        return storages.get(text.removeprefix("torch."), key, numel)
      case other:
        raise Damaged(f"a {type(other).__name__} that is no storage")

  return Machine(_CALLABLES, _STORAGES, persistent, (_Tensor,))


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
    raise UserError(
      f"{path} is not a whole .pth file: {first_line(e)}"
    ) from None


def _arrays(value: Any, file_size: int) -> Any:
  """With every tensor read."""
  count = size = 0
  most = min(pickle_machine.MOST_VALUES, _MOST_EXPANSION * file_size)

  def visit(value, depth):
    nonlocal count, size
    count += 1
    if depth > _MOST_DEPTH or count > most:
      raise Damaged("its values are nested without end")
    if isinstance(value, _Tensor):
      size += value.nbytes
      if size > _MOST_EXPANSION * file_size:
        raise Damaged("its tensors are far larger than the file")
      return value.array()
    if isinstance(value, dict):
      return type(value)((k, visit(v, depth + 1)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
      return type(value)(visit(v, depth + 1) for v in value)
    if not isinstance(value, (str, bytes, int, float, set, types.NoneType)):
      raise Damaged(f"a bare {type(value).__name__.strip('_')} in it")
    return value

  return visit(value, 0)


def _read_zip(path):
  size = path.stat().st_size
  with zipfile.ZipFile(path) as archive:
    infos = {i.filename: i for i in archive.infolist()}
    if len(infos) != len(archive.infolist()):
      raise Damaged("the archive has two entries of one name")
    pickles = [n for n in infos if n.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
      raise Damaged(f"the archive has {len(pickles)} data.pkl, expected one")
    folder = pickles[0].removesuffix("data.pkl")
    for name, info in infos.items():
      if info.compress_type != zipfile.ZIP_STORED:
        raise Damaged(f"{name!r} is compressed, which torch never does")
    if sum(info.file_size for info in infos.values()) > size:
      raise Damaged("the archive's entries overlap")
    order = b"little"
    if folder + "byteorder" in infos:
      order = archive.read(folder + "byteorder")
    if order not in (b"little", b"big"):
      raise Damaged(f"its byte order is {order[:20]!r}")

    def load(key, dtype, numel):
      name = f"{folder}data/{key}"
      if name not in infos:
        raise Damaged(f"{name!r} is missing")
      data = archive.read(name)
      if len(data) < numel * dtype.itemsize:
        raise Damaged(f"{name!r} is cut short")
      array = np.frombuffer(data, dtype, numel)
      return array.byteswap() if order == b"big" else array

    storages = _Storages(load)
    value = _machine(storages).run(io.BytesIO(archive.read(pickles[0])))
    return _arrays(value, size)


def _read_stream(path):
  stream = io.BytesIO(path.read_bytes())
  arrays: dict[str, np.ndarray] = {}
  storages = _Storages(lambda key, dtype, numel: arrays[key])

  def plain():
    return _machine(storages).run(stream)

  if plain() != _MAGIC or plain() != _PROTOCOL:
    raise Damaged("it does not begin like one")
  # What machine wrote it does not matter: the numbers are little-endian anyway.
  plain()
  value = plain()
  keys = plain()
  for key in keys:
    if not isinstance(key, str) or key not in storages.known:
      raise Damaged("it has numbers that belong to no tensor")
    storage = storages.known[key]
    (count,) = struct.unpack("<q", stream.read(8))
    if count != storage.numel:
      raise Damaged(
        f"storage {key!r} has {count} elements, expected {storage.numel}"
      )
    data = stream.read(count * storage.dtype.itemsize)
    if len(data) < count * storage.dtype.itemsize:
      raise Damaged("the file ends within its numbers")
    arrays[key] = np.frombuffer(data, storage.dtype, count)
  return _arrays(value, path.stat().st_size)


class _Storages:
  """The storages by their keys; tensors that share one `load` it once."""

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
      raise Damaged(f"storage {key!r} is of two types or sizes")
    return storage
