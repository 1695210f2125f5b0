"""Torch files without torch: exact numbers, and nothing in them runs."""

import builtins
import contextlib
import copyreg
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from astjax.errors import UserError
from astjax.weights import pickle_machine, pth
from tests.weights.common import (
  assert_same_bits,
  flat,
  mutations,
  one_line,
  refusal,
)

FOLDER = pathlib.Path(__file__).parent.parent / "fixtures" / "pth"
FILES = sorted(p.name for p in FOLDER.glob("*.pth"))
CONTAINERS = ("zip", "stream")


# The files that torch wrote.


def test_all_kinds_of_files_are_there():
  kinds = {name.rsplit("_", 1)[0] for name in FILES}
  assert kinds >= {"f32", "f16", "bf16", "f32_parallel", "dtypes", "views"}
  assert len(FILES) == 2 * len(kinds)


@pytest.mark.parametrize("name", FILES)
def test_exact_numbers(name):
  value = pth.read(FOLDER / name)
  with np.load(FOLDER / f"{name.rsplit('_', 1)[0]}.npz") as expected:
    assert_same_bits(value, expected)


@pytest.mark.parametrize("container", CONTAINERS)
def test_types_names_and_order(container):
  value = pth.read(FOLDER / f"f32_{container}.pth")
  assert list(value)[:2] == ["proj.weight", "proj.bias"]
  parallel = pth.read(FOLDER / f"bf16_parallel_{container}.pth")
  assert list(parallel) == ["module." + name for name in value]
  assert parallel["module.head.weight"].dtype == ml_dtypes.bfloat16
  assert parallel["module.norm.num_batches_tracked"].shape == ()
  assert value["proj.weight"].flags.c_contiguous


@pytest.mark.parametrize("container", CONTAINERS)
def test_everything_around_the_weights(container):
  value = pth.read(FOLDER / f"wrapped_{container}.pth")
  args = value["args"]
  assert isinstance(args, dict)
  assert args == {"lr": 1e-3, "data": "x", "sizes": [1, 2], "ema": None}
  assert value["epoch"] == 3
  assert value["best"] == (0.5, True, "mAP")
  assert value["device"] == "cuda:1"
  assert value["shape"] == (2, 3)
  assert value["optimizer"]["param_groups"][0]["lr"] == 1e-3
  assert value["optimizer"]["state"][0]["step"] == 3


# Pickles by hand, in both containers.


class Ops:
  """Raw instructions that the standard pickler would not write."""

  @staticmethod
  def name(module, name):
    return f"c{module}\n{name}\n".encode()

  @staticmethod
  def value(value):
    return pickle.dumps(value, 2)[2:-1]

  @classmethod
  def call(cls, name, *args):
    module, _, name = name.rpartition(".")
    return cls.name(module, name) + b"(" + b"".join(args) + b"tR"

  @classmethod
  def dict(cls, **values):
    pairs = (cls.value(k) + v for k, v in values.items())
    return b"}(" + b"".join(pairs) + b"u"

  @classmethod
  def storage(cls, numel=4, key="0", kind="FloatStorage", rest=b""):
    return b"".join(
      [
        b"(" + cls.value("storage") + cls.name("torch", kind) + cls.value(key),
        cls.value("cpu") + cls.value(numel) + rest + b"tQ",
      ]
    )

  @classmethod
  def tensor(cls, size=(4,), stride=(1,), offset=0, **storage):
    return cls.call(
      "torch._utils._rebuild_tensor_v2",
      cls.storage(**storage),
      *map(cls.value, (offset, size, stride, False)),
      cls.call("collections.OrderedDict"),
    )


DATA = {"0": np.arange(4, dtype="<f4").tobytes()}


def zip_file(program, data=DATA, order=b"little"):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("a/data.pkl", b"\x80\x02" + program + b".")
    archive.writestr("a/byteorder", order)
    for key, numbers in data.items():
      archive.writestr(f"a/data/{key}", numbers)
    archive.writestr("a/version", "3\n")
  return file.getvalue()


def stream_file(program, data=DATA, keys=None):
  about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
  plain = (0x1950A86A20F9469CFC6C, 1001, about)
  if b"storage" not in program:
    data = {}
  return b"".join(
    [
      *(pickle.dumps(value, 2) for value in plain),
      b"\x80\x02" + program + b".",
      pickle.dumps(sorted(data), 2) if keys is None else keys + b".",
      *(struct.pack("<q", len(d) // 4) + d for _, d in sorted(data.items())),
    ]
  )


def file_of(container, program, data=DATA):
  return {"zip": zip_file, "stream": stream_file}[container](program, data)


@pytest.fixture
def read(tmp_path):
  """The object in the bytes of a file."""

  def read(data):
    path = tmp_path / "file.pth"
    path.write_bytes(data)
    return pth.read(path)

  return read


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_by_hand(container, read):
  program = Ops.dict(a=Ops.tensor(), b=Ops.tensor((2, 1), (2, 7), 1))
  value = read(file_of(container, program))
  np.testing.assert_array_equal(value["a"], np.arange(4, dtype=np.float32))
  np.testing.assert_array_equal(value["b"], np.float32([[1], [3]]))


@pytest.mark.parametrize(
  "kind,dtype",
  [("FloatStorage", "f4"), ("LongStorage", "i8"), ("BFloat16Storage", None)],
)
def test_big_endian_archive(kind, dtype, read):
  dtype = np.dtype(dtype or ml_dtypes.bfloat16)
  expected = np.arange(-3, 3).astype(dtype)
  data = {"0": expected.byteswap().tobytes()}
  program = Ops.tensor((2, 3), (1, 2), numel=6, kind=kind)
  value = read(zip_file(program, data, b"big"))
  assert value.dtype == dtype
  np.testing.assert_array_equal(value, expected.reshape(3, 2).T)
  text = refusal(read, zip_file(program, data, b"middle"))
  assert "byte order is b'middle'" in text


def test_a_stream_is_little_endian_whoever_wrote_it(read):
  data = stream_file(Ops.tensor())
  other = data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")
  assert other != data
  np.testing.assert_array_equal(read(other), read(data))


def test_every_instruction_for_plain_values(read):
  value = {
    "a": [1, -1, 255, 65535, 2**31, -(2**40), 10**60, 1.5, None, True, False],
    "b": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "c": ["ä", "x" * 300, b"y", b"z" * 300, {1, 2}, set(), [], {}, {1: {}}],
  }
  value["d"] = value["a"]
  for protocol in range(6):
    if protocol < 4:  # sets and bytes are functions there
      value["c"] = [v for v in value["c"] if not isinstance(v, (set, bytes))]
    data = pickle.dumps(value, protocol)
    start = 0 if protocol < 2 else 2
    assert read(zip_file(data[start:-1])) == value
  assert read(zip_file(b"(lp0\nI1\naI01\naL3L\naF2.5\na")) == [
    1,
    True,
    3,
    2.5,
  ]
  assert read(zip_file(b"I1\n(I2\n1I3\n02\x86")) == (1, 1)


# Pickles that run something.


class Runs:
  """Pickles as a call of the function."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


class SetsState:
  """Pickles as attributes to be set."""

  def __init__(self, path):
    self.path = path

  def __setstate__(self, state):
    open(state["path"], "w").close()


def touch(path):
  return f"touch {path}"


def opens(path):
  return f"open({str(path)!r}, 'w').close()"


_EXTENSION = 240

# name -> (program that makes the file at a path, the name that is refused)
ATTACKS = {
  "os.system": (
    lambda p: Ops.value(Runs(os.system, touch(p))),
    f"{os.name}.system",
  ),
  "eval": (
    lambda p: Ops.value(Runs(builtins.eval, opens(p))),
    "__builtin__.eval",
  ),
  "exec": (
    lambda p: pickle.dumps(Runs(builtins.exec, opens(p)), 4)[11:-1],
    "builtins.exec",
  ),
  "Popen": (
    lambda p: Ops.call("subprocess.Popen", Ops.value(["touch", str(p)])),
    "subprocess.Popen",
  ),
  "method": (
    lambda p: Ops.value(Runs(pathlib.Path.touch, p)),
    "__builtin__.getattr",
  ),
  "getattr chain": (
    lambda p: (
      Ops.call(
        "builtins.getattr",
        Ops.call("builtins.__import__", Ops.value("os")),
        Ops.value("system"),
      )
      + Ops.value((touch(p),))
      + b"R"
    ),
    "builtins.getattr",
  ),
  "STACK_GLOBAL": (
    lambda p: (
      b"\x8c\x05posix\x8c\x06system\x93" + Ops.value((touch(p),)) + b"R"
    ),
    "posix.system",
  ),
  "a dotted STACK_GLOBAL": (
    lambda p: (
      b"\x80\x04\x8c\x07pathlib\x8c\x0aPath.touch\x93"
      + Ops.call("pathlib.Path", Ops.value(str(p)))
      + b"\x85R"
    ),
    "pathlib.Path.touch",
  ),
  "INST": (
    lambda p: b"(" + Ops.value(touch(p)) + b"iposix\nsystem\n",
    "INST 'posix system'",
  ),
  "OBJ": (
    lambda p: (
      b"("
      + Ops.name("tests.weights.test_pth", "Writes")
      + Ops.value(str(p))
      + b"o"
    ),
    "tests.weights.test_pth.Writes",
  ),
  "NEWOBJ_EX": (
    lambda p: (
      Ops.name("tests.weights.test_pth", "Writes")
      + b")"
      + Ops.dict(path=Ops.value(str(p)))
      + b"\x92"
    ),
    "tests.weights.test_pth.Writes",
  ),
  "EXT1": (
    lambda p: bytes([0x82, _EXTENSION]) + Ops.value((touch(p),)) + b"R",
    f"EXT1 {_EXTENSION}",
  ),
  "BUILD": (
    lambda p: Ops.value(SetsState(str(p))),
    "tests.weights.test_pth.SetsState",
  ),
  "a call within a list": (
    lambda p: Ops.value([1, {"a": (Runs(os.system, touch(p)),)}]),
    f"{os.name}.system",
  ),
}


class Writes:
  """Writes a file when made."""

  def __new__(cls, path):
    open(path, "w").close()
    return super().__new__(cls)


@contextlib.contextmanager
def extension():
  """A number for a function, as packages may register one."""
  copyreg.add_extension(os.name, "system", _EXTENSION)
  yield
  copyreg.remove_extension(os.name, "system", _EXTENSION)


def around(container, program):
  """A file as torch writes it, with the program as one of its values."""
  weights = Ops.dict(a=Ops.tensor(), b=program)
  return file_of(container, Ops.dict(model=weights, epoch=Ops.value(3)))


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_runs(attack, read, tmp_path):
  made = tmp_path / "made"
  make, name = ATTACKS[attack]
  program = make(made)
  files = [b"\x80\x02" + program + b"."]
  for container in CONTAINERS:
    files += [file_of(container, program), around(container, program)]
  # In place of torch's own first words, or before them.
  files += [stream_file(b"N").replace(b"\x80\x02N.", files[0])]
  files += [files[0] + stream_file(Ops.tensor())]
  with extension():
    for file in files:
      text = refusal(read, file)
      assert name in text
      assert "file.pth is refused" in text and "nothing in it was run" in text
      assert not made.exists()
    # Python's own reader does run it.
    result = pickle.loads(files[0])
    if isinstance(result, subprocess.Popen):
      result.wait()
    assert made.exists()


@pytest.mark.parametrize(
  "name",
  [
    "_codecs.encode",
    "torch.load",
    "torch.hub.load",
    "torch.serialization.load",
    "torch._utils._rebuild_tensor_v2.__globals__",
    "torch._utils.__builtins__",
    "collections.OrderedDict.fromkeys",
    "collections.OrderedDict.__init__.__globals__",
    "argparse.Namespace.__class__",
    "argparse.FileType",
    "astjax.weights.pth.read",
    "numpy._core.multiarray._reconstruct",
    "runpy.run_path",
    "__main__.Model",
    "os.\r\tsystem\x1b[31m",
  ],
)
def test_names_that_are_not_in_the_table(name, read):
  module, _, attribute = name.rpartition(".")
  for program in (
    Ops.name(module, attribute),
    Ops.call(name),
    Ops.value(module) + Ops.value(attribute) + b"\x93",
  ):
    assert repr(name) in refusal(read, zip_file(program))


def test_names_in_any_letters(read):
  name = "os\N{LINE SEPARATOR}.\x85\ud800" + "x" * 10**5
  module, attribute = (
    b"X%b%b" % (struct.pack("<I", len(b)), b)
    for b in (n.encode(errors="surrogatepass") for n in name.split("."))
  )
  text = refusal(read, zip_file(module + attribute + b"\x93"))
  assert r"'os\u2028.\x85\ud800xxx" in text


def test_bytes_of_older_protocols_are_a_function(read):
  program = Ops.value({"a": b"\xff"})
  assert "'_codecs.encode'" in refusal(read, zip_file(program))


CALLS = {
  "a storage": Ops.call("torch.FloatStorage", Ops.value(3)),
  "a string": Ops.value("os.system") + Ops.value(("ls",)) + b"R",
  "a stand-in": Ops.call("collections.OrderedDict") + b")R",
  "with a list": Ops.name("collections", "OrderedDict") + b"]R",
  "of a storage by NEWOBJ": Ops.name("torch", "FloatStorage") + b")\x81",
  "attributes of a function": (
    Ops.name("collections", "OrderedDict")
    + Ops.dict(__code__=Ops.value("x"))
    + b"b"
  ),
  "attributes of a number": Ops.value(3) + b"}b",
  "too many arguments": Ops.call("argparse.Namespace", Ops.value(3)),
  "too few arguments": Ops.call("torch._utils._rebuild_tensor_v2"),
  "a dict of numbers": Ops.call("collections.OrderedDict", Ops.value([1])),
  "a device of lists": Ops.call("torch.device", b"]"),
}


@pytest.mark.parametrize("call", CALLS)
def test_calls_that_make_no_sense(call, read):
  text = refusal(read, zip_file(CALLS[call]))
  assert "file.pth is not a whole .pth file: " in text


def test_attributes_are_inert(read):
  state = Ops.dict(
    __class__=Ops.value("x"), update=Ops.value(1), lr=Ops.value(2)
  )
  for container in CONTAINERS:
    for name in ("collections.OrderedDict", "argparse.Namespace"):
      value = read(file_of(container, Ops.call(name) + state + b"b"))
      assert type(value) in (OrderedDict, pickle_machine.Namespace)
      assert not vars(value)
      assert value in ({}, {"__class__": "x", "update": 1, "lr": 2})


# Damage.


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"P",
    b"PK\x03\x04",
    b"PK\x05\x06" + bytes(18),
    b"\x80\x02.",
    b"\x80\x02N.",
    b"hello",
    b"\x93NUMPY\x01\x00",
    b"<!DOCTYPE html>\n<html>",
    bytes(1000),
    b"\xff" * 1000,
    b"(" * 1000,
    b"." * 1000,
    pickle.dumps({"a": 1}, 4),
  ],
  ids=lambda data: str(data[:8]),
)
def test_other_files(data, read):
  assert "file.pth is not a whole .pth file: " in refusal(read, data)


def test_missing_file_and_folder(tmp_path):
  path = tmp_path / "none.pth"
  assert f"cannot read {path}: No such file" in refusal(pth.read, path)
  assert f"cannot read {tmp_path}: Is a dir" in refusal(pth.read, tmp_path)


def test_an_archive_of_something_else(read):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("word/document.xml", "<xml/>")
  assert "has 0 data.pkl, expected one" in refusal(read, file.getvalue())


@pytest.mark.parametrize("container", CONTAINERS)
def test_cuts(container, read):
  data = (FOLDER / f"f32_{container}.pth").read_bytes()
  read(data)
  # A prime, so that the cuts fall on all places of what repeats.
  for end in [*range(0, len(data), 13), len(data) - 1]:
    refusal(read, data[:end])


def assert_plain(value):
  """Nothing of the machine's own is handed out."""
  known = (str, bytes, int, float, set, type(None), np.ndarray)
  for leaf in flat(value).values():
    assert isinstance(leaf, known), leaf


@contextlib.contextmanager
def calls_counted():
  """A list that gets the number of calls within: work, whatever the clock."""
  total, counts = 0, []

  def count(frame, event, arg):
    nonlocal total
    total += event in ("call", "c_call")

  sys.setprofile(count)
  try:
    yield counts
  finally:
    sys.setprofile(None)
    counts.append(total)


def assert_loads_or_refuses(read, whole, files):
  """Returns how often it did each; none takes much more than the whole one."""
  with calls_counted() as usual:
    read(whole)
  loaded = refused = 0
  for i, data in enumerate(files):
    with calls_counted() as calls:
      try:
        value = read(data)
        loaded += 1
      except UserError as e:
        value = None
        one_line(e)
        refused += 1
    assert_plain(value)
    assert calls[0] < 2 * usual[0], i
  return loaded, refused


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", ["f32", "wrapped"])
def test_damaged_files(container, name, read):
  data = (FOLDER / f"{name}_{container}.pth").read_bytes()
  counts = assert_loads_or_refuses(read, data, mutations(data, 150, seed=0))
  assert min(counts) > 0


@pytest.mark.parametrize("name", ["views", "wrapped"])
def test_damaged_pickles_in_whole_archives(name, read):
  """The archive's checksums would hide the pickle from most damage."""
  whole = (FOLDER / f"{name}_zip.pth").read_bytes()
  with zipfile.ZipFile(io.BytesIO(whole)) as archive:
    entries = {i: archive.read(i) for i in archive.namelist()}
  (key,) = (k for k in entries if k.endswith("data.pkl"))

  def files():
    for program in mutations(entries[key], 150, seed=1):
      file = io.BytesIO()
      with zipfile.ZipFile(file, "w") as archive:
        for name, data in (entries | {key: program}).items():
          archive.writestr(name, data)
      yield file.getvalue()

  assert min(assert_loads_or_refuses(read, whole, files())) > 0


# Files that ask for more than they are.


def laughs(kind="tuple", levels=40):
  """One within two within four: 2 ** levels in a few bytes."""
  again = {
    "tuple": lambda i: b"2\x86",
    "list": lambda i: b"q%c0](h%ch%ce" % (i, i, i),
    "dict": lambda i: b"q%c0}(K\x01h%cK\x02h%cu" % (i, i, i),
  }[kind]
  return b")" + b"".join(again(i) for i in range(levels))


HUGE = 2**60
SHAPES = {
  "huge size": dict(size=(2**40,)),
  "size beyond 64 bits": dict(size=(2**70,)),
  "sizes that overflow": dict(size=(2**33, 2**33), stride=(0, 0)),
  "huge stride": dict(stride=(2**45,)),
  "stride beyond 64 bits": dict(stride=(2**64 + 1,)),
  "huge offset": dict(offset=2**45),
  "offset beyond 64 bits": dict(offset=2**64),
  "offset by one": dict(offset=1),
  "negative offset": dict(offset=-1),
  "negative stride": dict(stride=(-1,), offset=3),
  "negative size": dict(size=(-4,)),
  "expanded": dict(size=(10**9,), stride=(0,)),
  "expanded twice": dict(size=(4, 10**5, 10**5), stride=(1, 0, 0)),
  "overlapping": dict(size=(2, 2, 2, 2), stride=(1, 1, 1, 1)),
  "fewer strides": dict(size=(2, 2)),
  "more strides": dict(stride=(1, 1)),
  "many axes": dict(size=(1,) * 33, stride=(1,) * 33),
  "size of floats": dict(size=(4.0,)),
  "size of truths": dict(size=(True,)),
  "size of texts": dict(size=("4",)),
  "no size": dict(size=None),
  "offset of a float": dict(offset=0.0),
  "empty and huge": dict(size=(0, HUGE, HUGE), stride=(1, 1, 1)),
  "empty and large": dict(size=(0, 2**47, 2**47), stride=(1, 1, 1)),
  "more numbers": dict(numel=5),
  "huge numbers": dict(numel=HUGE),
  "numbers beyond 64 bits": dict(numel=2**70),
  "fewer than none": dict(numel=-1),
  "wider numbers": dict(kind="DoubleStorage"),
  "unknown key": dict(key="1"),
  "key of a path": dict(key="../data.pkl\n"),
  "key of a number": dict(key=0),
  "a view of old": dict(rest=Ops.value(("0", 0, 4))),
}


@pytest.fixture
def small():
  """Nothing much is asked of the memory."""
  tracemalloc.start()
  yield
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 32 * pickle_machine.MOST_VALUES


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_impossible_tensors(shape, container, read, small):
  program = Ops.dict(a=Ops.tensor(**SHAPES[shape]))
  text = refusal(read, file_of(container, program))
  assert "file.pth is " in text


@pytest.mark.parametrize("container", CONTAINERS)
def test_unused_view_metadata_is_fine(container, read):
  np.testing.assert_array_equal(
    read(file_of(container, Ops.tensor(rest=b"N"))), np.arange(4)
  )


PROGRAMS = {
  "a list of itself": b"]2a",
  "a dict of itself": b"}q\x00Nh\x00s",
  "a tuple of itself": b"]2\x85q\x00ah\x00",
  "shared lists": laughs("list"),
  "few levels of shared lists": laughs("list", 18),
  "shared dicts": laughs("dict"),
  "shared long lists": b"]" + (b"q\x000](" + b"h\x00" * 100 + b"e") * 9,
  "shared tuples": laughs(),
  "as a key": b"}" + laughs() + b"Ns",
  "as the keys of a dict": b"(" + laughs() + b"Nd",
  "as many keys": b"}(" + laughs() + b"Nu",
  "as a member": b"\x8f(" + laughs() + b"\x90",
  "as the items of a dict": Ops.call(
    "collections.OrderedDict", b"]" + laughs() + b"N\x86a"
  ),
  "as a storage": laughs() + b"Q",
  "as a module": laughs() + Ops.value("x") + b"\x93",
  "as a name": Ops.value("os") + laughs() + b"\x93",
  "as a device": Ops.call("torch.device", laughs()),
  "as a size": Ops.call("torch.Size", laughs()),
  "as a function": laughs() + b")R",
  "nested deeply": b"]" * 10**5 + b"a" * (10**5 - 1),
  "nested tuples": b")" + b"\x85" * 10**5,
  "copies of a list": (
    b"]("
    + b"K\x01" * 10**5
    + b"eq\x00"
    + b"("
    + (Ops.name("torch", "Size") + b"h\x00\x85R") * 10**3
    + b"t"
  ),
  "copies of a text": (
    Ops.value("x" * 10**5)
    + b"q\x00"
    + b"("
    + (Ops.name("torch", "device") + b"h\x00\x85R") * 10**3
    + b"t"
  ),
  "copies of a dict": (
    b"}("
    + b"".join(Ops.value(i) + b"N" for i in range(10**4))
    + b"uq\x00"
    + b"("
    + (Ops.name("argparse", "Namespace") + b")Rh\x00b") * 10**3
    + b"t"
  ),
  "a long text": b"\x8d" + struct.pack("<Q", HUGE) + b"x",
  "long bytes": b"\x8e" + struct.pack("<Q", HUGE) + b"x",
  "an impossibly long text": b"\x8d" + b"\xff" * 8,
  "a long array of bytes": b"\x96" + struct.pack("<Q", HUGE),
  "a buffer": b"\x97",
  "a long number": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x",
  "a negative length": b"\x8b" + struct.pack("<i", -1),
  "a number of many digits": b"L" + b"9" * 10**5 + b"L\n",
  "a negative memo": b"]p-1\ng-2\n",
  "an unknown memo": b"j\xff\xff\xff\xff",
  "a mark": b"(",
  "a tuple of a mark": b"(\x85",
  "a function": Ops.name("collections", "OrderedDict"),
  "a storage": Ops.storage(),
  "nothing": b"",
  "an append to nothing": b"Na",
  "a pop of nothing": b"0",
  "half a pair": b"}(Nu",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_impossible_values(program, read, small):
  text = refusal(read, zip_file(PROGRAMS[program]))
  assert "file.pth is " in text


def test_far_memo(read, small):
  program = b"]r\xff\xff\xff\xff0j\xff\xff\xff\xffp123456789012345\n"
  assert read(zip_file(program)) == []


@pytest.mark.parametrize("container", CONTAINERS)
def test_many_views_of_one_storage(container, read, small):
  """It is read once, not once for each."""
  data = {"0": bytes(4 * 10**6)}
  view = Ops.tensor((1,), (1,), numel=10**6)
  value = read(file_of(container, b"(" + view * 200 + b"l", data))
  assert len(value) == 200


@pytest.mark.parametrize("container", CONTAINERS)
def test_many_copies_of_one_storage(container, read, small):
  data = {"0": bytes(4 * 10**6)}
  tensor = Ops.tensor((10**6,), (1,), numel=10**6)
  text = refusal(read, file_of(container, b"(" + tensor * 100 + b"l", data))
  assert "its tensors are far larger than the file" in text


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_storage_of_two_types(container, read):
  for other in ({"kind": "IntStorage"}, {"numel": 3}):
    program = b"(" + Ops.tensor() + Ops.tensor((1,), **other) + b"t"
    text = refusal(read, file_of(container, program))
    assert "storage '0' is of two types or sizes" in text


@pytest.mark.parametrize(
  "keys",
  [
    b"N",
    b"K\x01",
    b"(K\x00l",
    b"(" + laughs() + b"l",
    Ops.value(["0", "1"]),
    Ops.value("01"),
    b"]",
  ],
)
def test_wrong_keys_of_a_stream(keys, read, small):
  text = refusal(read, stream_file(Ops.tensor(), keys=keys))
  assert "file.pth is not a whole .pth file: " in text


def test_compressed_entry(read):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("a/data.pkl", b"N" * 10**5)
  text = refusal(read, file.getvalue())
  assert "'a/data.pkl' is compressed" in text


def entries_of(data):
  """Where the headers of a small archive's entries lie: (local, central)."""
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    infos, at = archive.infolist(), archive.start_dir
  out = {}
  for info in infos:
    out[info.filename] = (info.header_offset, at)
    at += 46 + len(info.filename) + len(info.extra) + len(info.comment)
  return out


def test_encrypted_entry(read):
  data = bytearray(zip_file(Ops.tensor()))
  local, central = entries_of(bytes(data))["a/data.pkl"]
  data[local + 6] |= 1
  data[central + 8] |= 1
  assert "encrypted" in refusal(read, bytes(data))


@pytest.mark.parametrize("size", [2**31, 2**32 - 2, 10**5])
def test_entry_of_a_wrong_size(size, read, small):
  data = bytearray(zip_file(Ops.tensor()))
  _, central = entries_of(bytes(data))["a/data/0"]
  data[central + 20 : central + 28] = struct.pack("<II", size, size)
  assert "entries overlap" in refusal(read, bytes(data))


def test_missing_entry(read):
  assert "'a/data/0' is missing" in refusal(read, zip_file(Ops.tensor(), {}))


def test_two_pickles(read):
  file = io.BytesIO(zip_file(Ops.tensor()))
  with zipfile.ZipFile(file, "a") as archive:
    archive.writestr("b/data.pkl", b"\x80\x02N.")
  assert "has 2 data.pkl, expected one" in refusal(read, file.getvalue())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name(read):
  file = io.BytesIO(zip_file(Ops.tensor()))
  with zipfile.ZipFile(file, "a") as archive:
    archive.writestr("a/data.pkl", b"\x80\x02N.")
  assert "two entries of one name" in refusal(read, file.getvalue())
