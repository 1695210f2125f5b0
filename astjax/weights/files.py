"""Files of weights and JSON: read strictly, written whole or not at all.

Names of arrays stay as they are in the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from astjax.errors import UserError, file_error, first_line
from astjax.weights import pth

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")

HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# Where the weights lie in a checkpoint that holds more than them.
_KEYS = ("model", "state_dict", "model_state_dict", "module", "net", "params")

# Two networks in one checkpoint: one learns from the other (ASiT).
NETWORKS = ("teacher", "student")


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """All tensors of a file, in their own types.

  Args:
    path: `.safetensors`, `.npz`, or torch's `.pth` (also named .pt or .bin).
      If it holds two `NETWORKS`, names begin with "teacher." and "student.".
  """
  path = pathlib.Path(path)
  try:
    with open(path, "rb") as f:
      if not f.read(1):
        raise UserError(f"{path} is empty, expected a file of weights")
  except OSError as e:
    raise file_error(e, f"cannot read {path}: {e.strerror}") from None
  if path.suffix == ".safetensors":
    tensors = _read_safetensors(path)
  elif path.suffix == ".npz":
    tensors = _read_npz(path)
  elif path.suffix in SUFFIXES:
    tensors = _state_dict(pth.read(path), path)
  else:
    raise UserError(f"{path} is none of the known {', '.join(SUFFIXES)}")
  if not tensors:
    raise UserError(f"{path} has no tensors")
  return tensors


def _read_safetensors(path):
  try:
    with safetensors.safe_open(path, framework="numpy") as f:
      return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
  except (safetensors.SafetensorError, OSError, ValueError) as e:
    raise _damaged(path, "safetensors", e) from None
  except (KeyError, TypeError, AttributeError) as e:
    raise UserError(f"{path} has a type unknown to NumPy: {e}") from None


def _read_npz(path):
  try:
    # NumPy leaves a broken archive open that it opened itself.
    with open(path, "rb") as f:
      file = np.load(f, allow_pickle=False)
      if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it holds a single array")
      with file:
        return {name: _named_type(file[name]) for name in file.files}
  except Exception as e:  # a damaged archive or header raises almost anything
    raise _damaged(path, ".npz", e) from None


def _named_type(array):
  """NumPy writes bfloat16 as two nameless bytes."""
  if not isinstance(array, np.ndarray):
    raise ValueError("it holds more than arrays")
  if array.dtype.kind == "V" and array.dtype.itemsize == 2:
    return array.view(ml_dtypes.bfloat16)
  return array


def _damaged(path, kind, error):
  return UserError(f"{path} is not a whole {kind} file: {first_line(error)}")


def _state_dict(value: Any, path) -> dict[str, np.ndarray]:
  """The weights in what a `.pth` file holds."""
  if not isinstance(value, Mapping):
    what = type(value).__name__
    raise UserError(f"{path} holds a {what}, expected a state dict")
  inner = [k for k, v in value.items() if isinstance(v, Mapping)]
  nested = [k for k in _KEYS if k in inner]
  # safetensors is flat: so these are also the names that are written.
  if networks := [n for n in NETWORKS if n in inner]:
    value = {f"{n}.{k}": v for n in networks for k, v in value[n].items()}
  elif nested:
    value = value[nested[0]]
  if not all(isinstance(v, np.ndarray) for v in value.values()):
    what = ", ".join(f"{k!r}" for k in list(value)[:8])
    raise UserError(
      f"{path} has no state dict: it holds {what}; expected tensors by name, "
      f"or those under one of {', '.join((*_KEYS, *NETWORKS))}"
    )
  names = {str(k): v for k, v in value.items()}
  if len(names) < len(value):  # 0 and "0"
    raise UserError(f"{path} has two tensors of one name")
  return names


def metadata(path: str | os.PathLike) -> dict[str, str]:
  """The texts beside the tensors that were read; {} if not `.safetensors`."""
  if pathlib.Path(path).suffix != ".safetensors":
    return {}
  with safetensors.safe_open(path, framework="numpy") as f:
    return dict(f.metadata() or {})


def read_folder(folder: str | os.PathLike) -> dict[str, np.ndarray]:
  """The tensors of a Hugging Face folder, in one file or in shards."""
  return {
    name: array
    for path in weight_files(folder)
    for name, array in read(path).items()
  }


def weight_files(folder: str | os.PathLike) -> list[pathlib.Path]:
  """The files of weights of a Hugging Face folder."""
  folder = pathlib.Path(folder)
  for name in HF_WEIGHTS:
    if (folder / name).is_file():
      return [folder / name]
    index = folder / (name + ".index.json")
    if index.is_file():
      shards = read_json(index).get("weight_map")
      names = [*shards.values()] if isinstance(shards, dict) else []
      is_whole = all(isinstance(s, str) and s.isprintable() for s in names)
      if not names or not is_whole:
        raise UserError(f"{index} lists no weights")
      # The last part alone: an index points to nothing outside of its folder.
      return [folder / pathlib.Path(s).name for s in sorted({*names})]
  raise UserError(f"{folder} has no weights: no {' or '.join(HF_WEIGHTS)}")


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except OSError as e:
    raise file_error(e, f"cannot read {path}: {e.strerror}") from None
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path} is not whole JSON: {e}") from None
  if not isinstance(value, dict):
    raise UserError(f"{path} holds no JSON object")
  return value


def sha256(path: str | os.PathLike) -> str:
  """Hex digest of a file."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


@contextlib.contextmanager
def written_whole(
  path: str | os.PathLike, *, parents: bool = False
) -> Iterator[pathlib.Path]:
  """A free name beside `path`, renamed to it when the block ends well.

  An error leaves what was there before. For a file, which may replace another
  one, or for a new folder; `parents` makes those above it.

  Raises:
    UserError: it cannot be written; an Outage where that may pass.
  """
  path = pathlib.Path(path).expanduser()
  path = pathlib.Path(os.path.realpath(path))  # a link stays a link
  try:
    if parents:
      path.parent.mkdir(parents=True, exist_ok=True)
    # The same file system, since only there a rename is one step; a name of its
    # own, since several processes may write the same file.
    with tempfile.TemporaryDirectory(
      prefix=f".{path.name}-", dir=path.parent
    ) as folder:
      temporary = pathlib.Path(folder) / path.name
      yield temporary
      os.replace(temporary, path)
  except OSError as e:
    raise file_error(e, f"cannot write {path}: {e.strerror or e}") from None


@contextlib.contextmanager
def new_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """`written_whole` for what must not be there yet, but as an empty folder."""
  path = pathlib.Path(os.path.realpath(pathlib.Path(path).expanduser()))
  check_new(path)
  with written_whole(path, parents=True) as temporary:
    yield temporary


def check_new(path: pathlib.Path) -> None:
  """Raises a UserError for a file, or a folder that is not empty."""
  if path.is_file() or (path.is_dir() and any(path.iterdir())):
    raise UserError(f"{path} is there already; give a new name")


def write_safetensors(
  path: pathlib.Path,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """A `.safetensors` file; an OSError if it cannot be written."""
  # Not ascontiguousarray, which turns a scalar into a list of one.
  arrays = {k: np.asarray(v, order="C") for k, v in tensors.items()}
  try:
    safetensors.numpy.save_file(arrays, path, metadata=dict(metadata or {}))
  except safetensors.SafetensorError as e:
    raise OSError(0, str(e)) from None
  # The library makes it for its owner alone; the umask is to decide.
  mask = os.umask(0)
  os.umask(mask)
  path.chmod(0o666 & ~mask)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Indented JSON, whole or not at all; NaN becomes null."""
  text = json.dumps(jsonable(value), indent=2, allow_nan=False)
  with written_whole(path) as temporary:
    temporary.write_text(text + "\n", encoding="utf-8")


def jsonable(value: Any) -> Any:
  """Plain values that JSON can say: arrays become lists, NaN becomes null."""
  if isinstance(value, Mapping):
    return {k: jsonable(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [jsonable(v) for v in value]
  if hasattr(value, "tolist"):  # of NumPy and of JAX
    return jsonable(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
