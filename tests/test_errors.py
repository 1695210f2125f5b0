"""Errors for people, and the check of what they gave against a signature."""

import dataclasses
import errno
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest

from astjax import errors
from astjax.errors import UserError


def test_a_place_does_not_change_the_kind():
  for kind in (UserError, errors.Outage):
    with pytest.raises(kind) as error, errors.located("config.x"):
      raise kind("no")
    assert type(error.value) is kind and str(error.value) == "config.x: no"


def test_what_may_pass_is_an_outage():
  kinds = {
    number: type(errors.file_error(OSError(number, "text"), "a file"))
    for number in (errno.ENOSPC, errno.ESTALE, errno.EIO, errno.EROFS)
  }
  assert kinds == {
    errno.ENOSPC: errors.Outage,
    errno.ESTALE: errors.Outage,
    errno.EIO: errors.Outage,
    errno.EROFS: UserError,
  }


def test_nearest():
  known = ["standardize", "pad_frames", "fbank"]
  hint = errors.nearest("standardise", known)
  assert hint == (
    " Did you mean 'standardize'? Known: fbank, pad_frames, standardize."
  )
  assert errors.nearest("qqq", known) == (
    " Known: fbank, pad_frames, standardize."
  )
  assert errors.nearest("x", []) == " Known: none."
  assert errors.nearest(3, [3, 4]) == " Did you mean '3'? Known: 3, 4."


def test_lookup():
  table = {"bce": 1, "softmax_xent": 2}
  assert errors.lookup(table, "bce", "loss") == 1
  with pytest.raises(UserError, match=r"^unknown loss 'bec'\. Did .*'bce'\?"):
    errors.lookup(table, "bec", "loss")
  with pytest.raises(UserError, match=r"unknown loss None\."):
    errors.lookup(table, None, "loss")


def shape(
  width: int,
  rate: float = 0.5,
  *,
  name: str = "a",
  flag: bool = False,
  kind: Literal["sum", "mean", 3] = "sum",
  size: tuple[int, int] = (1, 2),
  many: tuple[str, ...] = (),
  some: list[float] | None = None,
  maybe: int | None = None,
  table: Mapping[str, Any] | None = None,
  fn: Callable | None = None,
  anything: Any = None,
  bare=None,
):
  return {k: v for k, v in locals().items()}


def call(**given):
  return errors.call(shape, "config.x", {"width": 1} | given)


FITS = [
  ("width", 3),
  ("width", -3),
  ("rate", 0.25),
  ("rate", 2),  # an int for a float
  ("name", "b"),
  ("flag", True),
  ("kind", "mean"),
  ("kind", 3),
  ("size", (3, 4)),
  ("size", [3, 4]),  # a list for a tuple
  ("many", ()),
  ("many", ("a", "b", "c")),
  ("many", ["a"]),
  ("some", None),
  ("some", [1, 2.5]),
  ("some", (1.0,)),  # and a tuple for a list
  ("maybe", None),
  ("maybe", 4),
  ("table", {"a": 1}),
  ("anything", object()),
  ("bare", object()),
]

MISFITS = [
  ("width", 3.0, "float", "int"),
  ("width", True, "bool", "int"),
  ("width", "3", "str", "int"),
  ("width", None, "NoneType", "int"),
  ("rate", "0.1", "str", "float"),
  ("rate", True, "bool", "float"),
  ("rate", [0.1], "list", "float"),
  ("name", 1, "int", "str"),
  ("name", None, "NoneType", "str"),
  ("flag", 1, "int", "bool"),
  ("flag", "True", "str", "bool"),
  ("kind", "max", "str", "one of 'sum', 'mean', 3"),
  ("kind", None, "NoneType", "one of 'sum', 'mean', 3"),
  ("size", 3, "int", "tuple[int, int]"),
  ("size", "34", "str", "tuple[int, int]"),
  ("size", {3, 4}, "set", "tuple[int, int]"),
  ("size", (3, "4"), "tuple", "tuple[int, int]"),
  ("size", (3,), "tuple", "tuple[int, int]"),
  ("size", (3, 4, 5), "tuple", "tuple[int, int]"),
  ("many", "ab", "str", "tuple[str, ...]"),
  ("many", ("a", 1), "tuple", "tuple[str, ...]"),
  ("some", ["a"], "list", "list[float] | None"),
  ("some", 1.0, "float", "list[float] | None"),
  ("maybe", "x", "str", "int | None"),
  ("maybe", False, "bool", "int | None"),
  ("table", 3, "int", "Mapping[str, Any] | None"),
  ("table", [1], "list", "Mapping[str, Any] | None"),
]


@pytest.mark.parametrize(("name", "value"), FITS)
def test_fitting_types(name, value):
  assert call(**{name: value})[name] is value


@pytest.mark.parametrize(("name", "value", "is_", "wanted"), MISFITS)
def test_wrong_types(name, value, is_, wanted):
  with pytest.raises(UserError) as e:
    call(**{name: value})
  said = str(e.value)
  assert said.startswith(f"config.x: {name}={value!r} is {is_}, expected ")
  assert said.endswith(f"expected {wanted}")


def test_several_faults_name_one():
  with pytest.raises(UserError, match=r"config.x: (width|name)="):
    call(width="1", name=2)


def test_literals_keep_their_type():
  # True equals 1 and 1.0, but is not one of the choices.
  def pick(level: Literal[0, 1] = 0):
    return level

  assert errors.call(pick, "here", {"level": 1}) == 1
  with pytest.raises(UserError, match="one of 0, 1"):
    errors.call(pick, "here", {"level": 2})
  with pytest.raises(UserError, match="one of 0, 1"):
    errors.call(pick, "here", {"level": True})


@pytest.mark.parametrize("value", [[1], {"a": 1}])
def test_literals_meet_unhashable_values(value):
  with pytest.raises(UserError, match="one of 'sum', 'mean', 3"):
    call(kind=value)


def test_unknown_argument():
  with pytest.raises(UserError) as e:
    call(rat=0.1)
  assert str(e.value).startswith(
    "unknown argument 'rat' in config.x. Did you mean 'rate'? Known: anything, "
  )


def test_missing_argument():
  with pytest.raises(UserError) as e:
    errors.call(shape, "config.x", {})
  said = str(e.value)
  assert said.startswith("config.x: missing a required argument: 'width'")
  assert "it takes (width, rate=0.5, name='a', " in said


def test_own_arguments_are_not_the_users():
  def make(data, first: int, *, scale: float = 1.0, rng: str):
    return data, first, scale, rng

  out = errors.call(make, "here", {"first": 2, "scale": 3}, [0], rng="r")
  assert out == ([0], 2, 3, "r")
  for name in ("rng", "data"):
    with pytest.raises(UserError) as e:
      errors.call(make, "here", {"first": 2, name: 1}, [0], rng="r")
    assert f"unknown argument {name!r} in here" in str(e.value)
    assert "Known: first, scale." in str(e.value)
  with pytest.raises(UserError, match=r"it takes \(first, scale=1\.0\)$"):
    errors.call(make, "here", {}, [0], rng="r")


def test_own_arguments_are_not_checked():
  def make(*, steps: int, first: int):
    return steps, first

  assert errors.call(make, "here", {"first": 1}, steps=2.5) == (2.5, 1)


def test_positional():
  call = lambda args, given: errors.call(shape, "op", given, by_position=args)
  assert call((4, 0.1), {"name": "z"})["rate"] == 0.1
  with pytest.raises(UserError, match=r"^op: rate='x' is str"):
    call((4, "x"), {})
  with pytest.raises(UserError, match="op: too many positional"):
    call((1, 2, 3), {})
  with pytest.raises(UserError, match=r"op: multiple values .*'width'"):
    call((1,), {"width": 2})


@dataclasses.dataclass
class Settings:
  rate: int = 1
  names: Sequence[str] = ()


class Plain:
  def __init__(self, rate: int, *, deep: bool = False):
    self.rate, self.deep = rate, deep


@pytest.mark.parametrize("cls", [Settings, Plain])
def test_classes(cls):
  assert errors.call(cls, "config.s", {"rate": 3}).rate == 3
  with pytest.raises(UserError, match=r"config.s: rate='x' is str"):
    errors.call(cls, "config.s", {"rate": "x"})
  with pytest.raises(UserError, match=r"'rat' in config\.s\. Did .*'rate'"):
    errors.call(cls, "config.s", {"rat": 3})


def test_errors_of_the_function_itself_pass():
  def make(x: int):
    raise TypeError("inside")

  with pytest.raises(TypeError, match="inside"):
    errors.call(make, "here", {"x": 1})


def test_a_user_error_is_one_line():
  for fault in ({"rat": 1}, {"width": "x"}, {"kind": "z"}):
    with pytest.raises(UserError) as e:
      call(**fault)
    assert "\n" not in str(e.value)
    assert e.value.__cause__ is None


def test_every_default_fits_its_own_type():
  # What `shape` returns without arguments would pass if it were given.
  given = {
    name: p.default
    for name, p in inspect.signature(shape).parameters.items()
    if p.default is not inspect.Parameter.empty
  }
  assert call(**given) == call()
