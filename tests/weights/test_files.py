"""Files of weights: exact arrays, or one line that says what is wrong."""

import io
import json
import pathlib
import pickle
import shutil
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from astjax.errors import UserError
from astjax.weights import files as weight_files
from tests.weights.common import bits, mutations, one_line, refusal

PTH = pathlib.Path(__file__).parent.parent / "fixtures" / "pth"
TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def tensors(dtype=np.float32):
  rng = np.random.default_rng(0)
  shapes = {"a.weight": (3, 4), "a.bias": (4,), "scalar": (), "empty": (0, 2)}
  return {
    k: np.asarray(rng.standard_normal(s), dtype) for k, s in shapes.items()
  }


def assert_same(got, expected):
  assert sorted(got) == sorted(expected)
  for name, array in got.items():
    want = expected[name]
    assert isinstance(array, np.ndarray)
    assert (array.dtype, array.shape) == (want.dtype, want.shape), name
    assert array.tobytes() == want.tobytes(), name


def as_safetensors(arrays):
  return safetensors.numpy.save(arrays)


def as_npz(arrays, save=np.savez):
  file = io.BytesIO()
  save(file, **arrays)
  return file.getvalue()


def as_pth(_):
  return (PTH / "f32_zip.pth").read_bytes()


def as_old_pth(_):
  return (PTH / "f32_stream.pth").read_bytes()


WRITERS = {
  ".safetensors": as_safetensors,
  ".npz": as_npz,
  ".pth": as_pth,
  ".pt": as_old_pth,
  ".bin": as_pth,
}


def stored(name):
  with np.load(PTH / name) as file:
    return dict(file)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: np.dtype(t).name)
def test_safetensors(dtype, tmp_path):
  path = tmp_path / "w.safetensors"
  path.write_bytes(as_safetensors(tensors(dtype)))
  assert_same(weight_files.read(path), tensors(dtype))
  assert_same(weight_files.read(str(path)), tensors(dtype))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: np.dtype(t).name)
def test_npz(dtype, save, tmp_path):
  path = tmp_path / "w.npz"
  path.write_bytes(as_npz(tensors(dtype), save))
  assert_same(weight_files.read(path), tensors(dtype))


def test_npz_of_bfloat16_holds_two_nameless_bytes(tmp_path):
  path = tmp_path / "w.npz"
  path.write_bytes(as_npz(tensors(ml_dtypes.bfloat16)))
  with np.load(path) as file:
    assert file["a.bias"].dtype == np.dtype("V2")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("container", ["zip", "stream"])
@pytest.mark.parametrize("name", ["f32", "f16_parallel", "bf16"])
def test_pth(suffix, container, name, tmp_path):
  path = tmp_path / ("w" + suffix)
  shutil.copy(PTH / f"{name}_{container}.pth", path)
  got = {k: bits(v) for k, v in weight_files.read(path).items()}
  assert_same(got, stored(f"{name}.npz"))


def test_weights_within_a_checkpoint(tmp_path):
  expected = {
    k.removeprefix("model/"): v
    for k, v in stored("wrapped.npz").items()
    if k.startswith("model/")
  }
  assert_same(weight_files.read(PTH / "wrapped_zip.pth"), expected)


# Folders of Hugging Face.


@pytest.fixture
def folder(tmp_path):
  return tmp_path


def split(folder, name="model.safetensors"):
  """Two shards and their index."""
  one, two = (name.replace(".", f"-0000{i}-of-00002.") for i in (1, 2))
  arrays = tensors()
  parts = {one: [*arrays][:2], two: [*arrays][2:]}
  for file, names in parts.items():
    (folder / file).write_bytes(as_safetensors({k: arrays[k] for k in names}))
  index = {"weight_map": {k: f for f, names in parts.items() for k in names}}
  (folder / (name + ".index.json")).write_text(json.dumps(index))
  return folder / one, folder / two, folder / (name + ".index.json")


def test_folder_with_one_file(folder):
  (folder / "model.safetensors").write_bytes(as_safetensors(tensors()))
  assert_same(weight_files.read_folder(folder), tensors())
  assert weight_files.weight_files(str(folder)) == [
    folder / "model.safetensors"
  ]


def test_folder_with_shards(folder):
  one, two, _ = split(folder)
  assert_same(weight_files.read_folder(folder), tensors())
  assert weight_files.weight_files(folder) == [one, two]


def test_folder_with_a_torch_file(folder):
  shutil.copy(PTH / "f32_stream.pth", folder / "pytorch_model.bin")
  assert_same(weight_files.read_folder(folder), stored("f32.npz"))


def test_folder_with_torch_shards(folder):
  one, two = "pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin"
  shutil.copy(PTH / "f32_zip.pth", folder / one)
  shutil.copy(PTH / "f32_parallel_zip.pth", folder / two)
  index = {"weight_map": {"proj.weight": one, "module.proj.weight": two}}
  path = folder / "pytorch_model.bin.index.json"
  path.write_text(json.dumps(index))
  expected = {**stored("f32.npz"), **stored("f32_parallel.npz")}
  assert_same(weight_files.read_folder(folder), expected)


def test_safetensors_come_first(folder):
  shutil.copy(PTH / "f32_zip.pth", folder / "pytorch_model.bin")
  split(folder)
  assert_same(weight_files.read_folder(folder), tensors())


def test_shards_stay_within_the_folder(folder):
  inner = folder / "inner"
  inner.mkdir()
  (folder / "w.safetensors").write_bytes(as_safetensors(tensors()))
  index = {"weight_map": {"a": "../w.safetensors"}}
  (inner / "model.safetensors.index.json").write_text(json.dumps(index))
  text = refusal(weight_files.read_folder, inner)
  assert f"cannot read {inner / 'w.safetensors'}: No such file" in text


@pytest.mark.parametrize("missing", [0, 1])
def test_missing_shard(missing, folder):
  path = split(folder)[missing]
  path.unlink()
  assert f"cannot read {path}: No such" in refusal(
    weight_files.read_folder, folder
  )


@pytest.mark.parametrize(
  "index,says",
  [
    ("", "is not whole JSON"),
    ("{", "is not whole JSON"),
    ("[" * 10**5, "is not whole JSON"),
    ("\ufeff{}", "is not whole JSON"),
    ("[]", "holds no JSON object"),
    ("null", "holds no JSON object"),
    ("{}", "lists no weights"),
    ('{"weight_map": {}}', "lists no weights"),
    ('{"weight_map": []}', "lists no weights"),
    ('{"weight_map": {"a": null, "b": "x"}}', "lists no weights"),
  ],
  ids=lambda v: v[:40],
)
def test_broken_index(index, says, folder):
  path = split(folder)[2]
  path.write_text(index, encoding="utf-8")
  text = refusal(weight_files.read_folder, folder)
  assert str(path) in text and says in text


@pytest.mark.parametrize(
  "shard", ["", ".", "..", "/", "a\0b", "x" * 300, "config.json", "\n"]
)
def test_index_of_impossible_shards(shard, folder):
  (folder / "config.json").write_text("{}")
  path = folder / "model.safetensors.index.json"
  path.write_text(json.dumps({"weight_map": {"a": shard}}))
  assert str(folder) in refusal(weight_files.read_folder, folder)


def test_index_that_is_no_text(folder):
  path = split(folder)[2]
  path.write_bytes(b"\xff\xfe\x00")
  assert f"{path} is not whole JSON" in refusal(
    weight_files.read_folder, folder
  )


def test_folder_without_weights(folder):
  for path in (folder, folder / "none"):
    text = refusal(weight_files.read_folder, path)
    assert f"{path} has no weights" in text
    assert "model.safetensors" in text and "pytorch_model.bin" in text


# Mistakes with single files.


def test_missing_file(tmp_path):
  path = tmp_path / "w.pth"
  assert f"cannot read {path}: No such" in refusal(weight_files.read, path)
  path = tmp_path / ("w" * 300 + ".pth")
  assert f"cannot read {path}: " in refusal(weight_files.read, path)


def test_folder_instead_of_a_file(tmp_path):
  text = refusal(weight_files.read, tmp_path)
  assert "Is a directory" in text


def test_empty_file(tmp_path):
  path = tmp_path / "w.npz"
  path.touch()
  text = refusal(weight_files.read, path)
  assert f"{path} is empty, expected a file of weights" in text


@pytest.mark.parametrize("name", ["w.h5", "w", "w.NPZ"])
def test_unknown_suffix(name, tmp_path):
  path = tmp_path / name
  path.write_bytes(as_npz(tensors()))
  text = refusal(weight_files.read, path)
  assert f"{path} is none of the known .safetensors" in text
  for suffix in weight_files.SUFFIXES:
    assert suffix in text


@pytest.mark.parametrize("suffix", weight_files.SUFFIXES)
def test_cut_file(suffix, tmp_path):
  path = tmp_path / ("w" + suffix)
  data = WRITERS[suffix](tensors())
  kind = suffix.strip(".") if suffix == ".safetensors" else suffix
  kind = ".pth" if suffix in (".pt", ".bin") else kind
  for part in (0.01, 0.2, 0.5, 0.9, 0.999):
    path.write_bytes(data[: max(1, min(int(part * len(data)), len(data) - 1))])
    text = refusal(weight_files.read, path)
    assert f"{path} is not a whole {kind} file: " in text


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_wrong_format(suffix, tmp_path):
  path = tmp_path / ("w" + suffix)
  archive = io.BytesIO()
  with zipfile.ZipFile(archive, "w") as file:
    file.writestr("word/document.xml", "<xml/>")
  contents = {
    **{kind: WRITERS[kind](tensors()) for kind in WRITERS},
    "page": b"<!DOCTYPE html>\n<html>Not found</html>",
    "pickle": pickle.dumps({"a": 1}),
    "zeros": bytes(1000),
    "zip": archive.getvalue(),
  }
  own = {".pth", ".pt", ".bin"} if suffix == ".pth" else {suffix}
  for kind in contents.keys() - own:
    path.write_bytes(contents[kind])
    text = refusal(weight_files.read, path)
    assert f"{path} is not a whole " in text or f"{path} is refused" in text
    assert suffix in text


def test_a_single_array_is_no_npz(tmp_path):
  path = tmp_path / "w.npz"
  with open(path, "wb") as f:
    np.save(f, np.zeros(3))
  text = refusal(weight_files.read, path)
  assert f"{path} is not a whole .npz file: it holds a single array" in text


def test_npz_with_other_entries(tmp_path):
  path = tmp_path / "w.npz"
  data = io.BytesIO(as_npz(tensors()))
  with zipfile.ZipFile(data, "a") as archive:
    archive.writestr("readme.txt", "hello")
  path.write_bytes(data.getvalue())
  assert "it holds more than arrays" in refusal(weight_files.read, path)


class Writes:
  """Pickles as a call that makes a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


def test_npz_of_objects_runs_nothing(tmp_path):
  path, made = tmp_path / "w.npz", tmp_path / "made"
  array = np.array([Writes(made)], object)
  path.write_bytes(as_npz({"a": tensors()["a.bias"], "b": array}))
  text = refusal(weight_files.read, path)
  assert f"{path} is not a whole .npz file: Object arrays" in text
  assert not made.exists()


def test_pickle_as_npz_runs_nothing(tmp_path):
  path, made = tmp_path / "w.npz", tmp_path / "made"
  path.write_bytes(pickle.dumps({"a": Writes(made)}))
  assert f"{path} is not a whole .npz file: " in refusal(
    weight_files.read, path
  )
  assert not made.exists()


@pytest.mark.parametrize("shape", ["(10**18,)", "(-1,)", "(2**62, 4)", "'x'"])
def test_npz_of_impossible_shapes(shape, tmp_path):
  header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"
  for text in (header, header.replace(shape, repr(eval(shape)))):
    text = text.ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.encode()
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("a.npy", array + bytes(16))
    text = refusal(weight_files.read, path)
    assert f"{path} is not a whole .npz file: " in text


def test_safetensors_with_unknown_numbers(tmp_path):
  header = {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
  text = json.dumps(header).encode()
  path = tmp_path / "w.safetensors"
  path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0")
  assert str(path) in refusal(weight_files.read, path)


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**40, 2**63, 2**64 - 1])
def test_safetensors_with_a_wrong_length(length, tmp_path):
  path = tmp_path / "w.safetensors"
  data = as_safetensors(tensors())
  path.write_bytes(struct.pack("<Q", length) + data[8:])
  text = refusal(weight_files.read, path)
  assert f"{path} is not a whole safetensors file: " in text


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_no_tensors(suffix, tmp_path):
  path = tmp_path / ("w" + suffix)
  path.write_bytes(WRITERS[suffix]({}))
  assert f"{path} has no tensors" in refusal(weight_files.read, path)


# What a .pth file may hold instead of a state dict.


def pth_of(value):
  plain = (0x1950A86A20F9469CFC6C, 1001, {}, value, [])
  return b"".join(pickle.dumps(v, 2) for v in plain)


@pytest.mark.parametrize(
  "value,says",
  [
    ({}, "has no tensors"),
    ({"model": {}}, "has no tensors"),
    ({"model": {}, "epoch": 1}, "has no tensors"),
    ({"epoch": 1}, "has no state dict: it holds 'epoch'; expected tensors"),
    ({"a": {"b": 1}}, "has no state dict: it holds 'a'; expected tensors"),
    ({"model": {"a": 1}}, "has no state dict: it holds 'a'; expected"),
    ({"model": None, 1: 2}, "has no state dict: it holds 'model', 1;"),
    ({"a\n": 1}, "has no state dict: it holds 'a\\n'; expected"),
    ([1, 2], "holds a list, expected a state dict"),
    (3, "holds a int, expected a state dict"),
    (None, "holds a NoneType, expected a state dict"),
    ("text", "holds a str, expected a state dict"),
  ],
  ids=str,
)
def test_no_state_dict(value, says, tmp_path):
  path = tmp_path / "w.pth"
  path.write_bytes(pth_of(value))
  text = refusal(weight_files.read, path)
  assert f"{path} {says}" in text
  if "no state dict" in says:
    assert "state_dict" in text and "model" in text


def test_hostile_pth(tmp_path):
  path, made = tmp_path / "w.bin", tmp_path / "made"
  path.write_bytes(pth_of({"a": Writes(made)}))
  text = refusal(weight_files.read, path)
  assert f"{path} is refused: it wants to use" in text
  assert not made.exists()


# Damage.


def assert_loads_or_refuses(path, files):
  results = set()
  for data in files:
    path.write_bytes(data)
    try:
      got = weight_files.read(path)
      assert all(isinstance(v, np.ndarray) for v in got.values())
      results.add("loads")
    except UserError as e:
      assert str(path) in one_line(e)
      results.add("refuses")
  assert results == {"loads", "refuses"}


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_damaged_files(suffix, tmp_path):
  data = WRITERS[suffix](tensors())
  path = tmp_path / ("w" + suffix)
  assert_loads_or_refuses(path, mutations(data, 300, seed=0))


def test_damaged_compressed_npz(tmp_path):
  data = as_npz(tensors(), np.savez_compressed)
  assert_loads_or_refuses(tmp_path / "w.npz", mutations(data, 100, seed=1))


def test_damaged_arrays_in_a_whole_npz(tmp_path):
  """The archive's checksums would hide the headers from most damage."""
  array = io.BytesIO()
  np.save(array, tensors()["a.weight"])

  def files():
    for data in mutations(array.getvalue(), 100, seed=2):
      file = io.BytesIO()
      with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", data)
      yield file.getvalue()

  assert_loads_or_refuses(tmp_path / "w.npz", files())


def test_two_networks_in_one_file(tmp_path, monkeypatch):
  """With the names that a flat file of both would have, and nothing else."""
  arrays = tensors()
  value = {
    "student": {f"module.{k}": v for k, v in arrays.items()},
    "teacher": arrays,
    "optimizer": {"state": {0: {"step": 1}}},
    "args": {"lr": 5e-4},
  }
  monkeypatch.setattr(weight_files.pth, "read", lambda path: value)
  (tmp_path / "checkpoint.pth").write_bytes(b"x")
  want = {f"teacher.{k}": v for k, v in arrays.items()}
  want |= {f"student.module.{k}": v for k, v in arrays.items()}
  assert_same(weight_files.read(tmp_path / "checkpoint.pth"), want)
