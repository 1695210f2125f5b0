"""Files that torch writes here and now, read without it."""

import argparse
import re
import zipfile

import numpy as np
import pytest

from astjax.weights import pth
from tests.weights.common import assert_same_bits

torch = pytest.importorskip("torch")
make_pth = pytest.importorskip("tests.weights.make_pth")

pytestmark = pytest.mark.torch

CONTAINERS = ("zip", "stream")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", make_pth.cases())
def test_fresh_files(name, container, tmp_path):
  value = make_pth.cases()[name]
  path = tmp_path / "fresh.pth"
  make_pth.save(value, path, container)
  assert_same_bits(pth.read(path), make_pth.expected(value))


@pytest.mark.parametrize("name", make_pth.cases())
def test_the_stored_numbers_are_those_of_this_torch(name):
  with np.load(make_pth.FOLDER / f"{name}.npz") as stored:
    assert_same_bits(make_pth.expected(make_pth.cases()[name]), stored)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", make_pth.cases())
def test_torch_reads_the_stored_files_alike(name, container):
  path = make_pth.FOLDER / f"{name}_{container}.pth"
  with torch.serialization.safe_globals([argparse.Namespace]):
    value = torch.load(path, map_location="cpu")
  assert_same_bits(pth.read(path), make_pth.expected(value))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", make_pth.FLOATS.values(), ids=str)
def test_a_wide_tensor(dtype, container, tmp_path):
  """Two matrices as wide as those of the base model, one of them turned."""
  rng = np.random.default_rng(2)
  wide = make_pth.numbers(rng, 3072, 768).to(dtype)
  value = {"wide": wide, "turned": wide.T, "row": wide[1234]}
  path = tmp_path / "wide.pth"
  make_pth.save(value, path, container)
  assert_same_bits(pth.read(path), make_pth.expected(value))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("container", CONTAINERS)
def test_all_protocols(protocol, container, tmp_path):
  value = make_pth.cases()["views"]
  path = tmp_path / "p.pth"
  torch.save(
    value,
    path,
    pickle_protocol=protocol,
    _use_new_zipfile_serialization=container == "zip",
  )
  assert_same_bits(pth.read(path), make_pth.expected(value))


def test_a_thousand_tensors_in_order(tmp_path):
  value = {f"t{i}": torch.full((i % 7,), i) for i in range(1000)}
  for container in CONTAINERS:
    path = tmp_path / f"{container}.pth"
    make_pth.save(value, path, container)
    got = pth.read(path)
    assert list(got) == list(value)
    assert_same_bits(got, make_pth.expected(value))


def assert_torch_agrees(path):
  value = torch.load(path, map_location="cpu")
  assert_same_bits(pth.read(path), make_pth.expected(value))


def test_byte_order_of_an_archive(tmp_path):
  value = make_pth.cases()["bf16"]
  make_pth.save(value, tmp_path / "a.pth", "zip")
  with (
    zipfile.ZipFile(tmp_path / "a.pth") as old,
    zipfile.ZipFile(tmp_path / "big.pth", "w") as new,
  ):
    for name in old.namelist():
      data = old.read(name)
      new.writestr(name, b"big" if name.endswith("byteorder") else data)
  assert_torch_agrees(tmp_path / "big.pth")


def test_byte_order_of_a_stream_means_nothing(tmp_path):
  make_pth.save(make_pth.cases()["f32"], tmp_path / "a.pth", "stream")
  data = (tmp_path / "a.pth").read_bytes()
  other, n = re.subn(rb"(?<=little_endianq.)\x88", b"\x89", data)
  assert n == 1
  (tmp_path / "big.pth").write_bytes(other)
  assert_torch_agrees(tmp_path / "big.pth")
