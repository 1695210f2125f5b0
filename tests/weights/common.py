"""Shared by the tests that read files: damage, refusals, bits, names."""

import ml_dtypes
import numpy as np
import pytest

from astjax.errors import UserError
from astjax.weights.convert import (
  GRID,
  INPUT_SIZE,
  PREFIX,
  check,
  flatten,
  lay_out,
  rename,
)


def converted(source, rules, expected):
  """A foreign state dict as parameters of the shapes of `expected`."""
  flat, _ = rename(source, rules)
  flat.pop(INPUT_SIZE, None)
  leaves = flatten(expected)
  if GRID in leaves:
    num_prefix = leaves[PREFIX].shape[0] if PREFIX in leaves else 0
    flat = lay_out(flat, num_prefix, leaves[GRID].shape[:2])
  return check(flat, expected, rules)


def refusal(read, path):
  """The one line with which `read` turns `path` down."""
  with pytest.raises(UserError) as e:
    read(path)
  return one_line(e.value)


def one_line(error):
  text = str(error)
  assert len(text.splitlines()) == 1 and text.isprintable(), repr(text)
  assert len(text) < 700, text
  return text


def mutations(data, count, seed):
  """`count` damaged copies, each of one to three damages."""
  rng = np.random.default_rng(seed)

  def place():
    return int(rng.integers(len(data) + 1))

  def piece():
    start = place()
    return slice(start, start + int(rng.integers(1, 40)))

  def damage(data):
    match rng.integers(6):
      case 0:  # flip
        data = bytearray(data)
        for _ in range(rng.integers(1, 5)):
          if data:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        return bytes(data)
      case 1:  # another byte
        data = bytearray(data)
        for _ in range(rng.integers(1, 3)):
          if data:
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        return bytes(data)
      case 2:  # cut out
        cut = piece()
        return data[: cut.start] + data[cut.stop :]
      case 3:  # insert
        at = place()
        return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]
      case 4:  # repeat
        again = piece()
        return data[: again.stop] + data[again] + data[again.stop :]
      case _:  # one piece over another
        new, at = data[piece()], place()
        return data[:at] + new + data[at + len(new) :]

  for _ in range(count):
    damaged = data
    for _ in range(rng.integers(1, 4)):
      damaged = damage(damaged)
    yield damaged


def flat(value, name=""):
  """{name: leaf} of nested dicts, lists and tuples."""
  if isinstance(value, dict):
    items = value.items()
  elif isinstance(value, (list, tuple)):
    items = enumerate(value)
  else:
    return {name: value}
  return {
    k: leaf
    for key, v in items
    for k, leaf in flat(v, f"{name}/{key}" if name else str(key)).items()
  }


def bits(array):
  """bfloat16 as its uint16; such files hold no other uint16."""
  if array.dtype == ml_dtypes.bfloat16:
    return array.view(np.uint16)
  return array


def assert_same_bits(value, expected):
  """All arrays in nested dicts against {name: array}."""
  arrays = {k: v for k, v in flat(value).items() if isinstance(v, np.ndarray)}
  assert sorted(arrays) == sorted(expected)
  for name, array in arrays.items():
    got, want = bits(array), expected[name]
    assert (got.dtype, got.shape) == (want.dtype, want.shape), name
    assert got.tobytes() == want.tobytes(), name
