"""Recipes in a string: what they build, and that nothing in them runs."""

from typing import Literal

import pytest

from astjax.errors import UserError
from astjax.ops import frontend, host_ops, xp
from astjax.ops.recipe import Random, apply, parse

MADE = []


def add(amount: int = 1, name: str = "x"):
  MADE.append(("add", amount, name))
  return lambda example, key, backend: example | {name: example[name] + amount}


def scale(by: float, how: Literal["up", "down"] = "up"):
  MADE.append(("scale", by, how))
  factor = by if how == "up" else 1 / by
  return lambda example, key, backend: example | {"x": example["x"] * factor}


def draw():
  @Random
  def op(example, key, backend):
    return example | {"drawn": [*example.get("drawn", []), tuple(key.tolist())]}

  return op


def sized(size: tuple[int, int] = (2, 3), *, reader: str):
  MADE.append(("sized", size, reader))
  return lambda example, key, backend: example | {"size": size, "from": reader}


def pick(*names: str):
  return lambda example, key, backend: {n: example[n] for n in names}


def secret():
  raise AssertionError("not listed, never called")


@pytest.fixture
def table():
  MADE.clear()
  return {op.__name__: op for op in (add, scale, draw, sized, pick)}


def run(recipe, table, example=None, **context):
  ops = parse(recipe, table, "here", **context)
  return apply(ops, example or {"x": 1}, xp.random_key(0), NUMPY)


NUMPY = xp.NUMPY


def refuse(recipe, table, **context):
  with pytest.raises(UserError) as e:
    parse(recipe, table, "config.input.on_host", **context)
  assert "\n" not in str(e.value)
  assert "config.input.on_host" in str(e.value)
  return str(e.value)


@pytest.mark.parametrize(
  ("recipe", "x"),
  [
    ("", 1),
    (" \n ", 1),
    ("add", 2),
    ("add()", 2),
    ("add(-3)", -2),
    ("add(amount=4)", 5),
    ("add|scale(10)", 20.0),
    ("scale(10)|add", 11.0),
    (" add ( 2 ) | scale( by = 0.5 ) ", 1.5),
    ("add|add|add", 4),
    ("add|(add|add)", 4),
    ("scale(4, how='down')|add(1, 'x',)", 1.25),
  ],
)
def test_ops_run_in_order(recipe, x, table):
  assert run(recipe, table)["x"] == x


def test_arguments_are_literals(table):
  parse("add(7, name='a|b(c)')|scale(-1e-3)", table, "here")
  assert MADE == [("add", 7, "a|b(c)"), ("scale", -1e-3, "up")]


def test_any_number_of_arguments(table):
  assert run("pick('x', 'z')", table, {"x": 1, "y": 2, "z": 3}) == {
    "x": 1,
    "z": 3,
  }


def test_context_goes_where_it_is_asked_for(table):
  out = run("add|sized((4, 5))|scale(2)", table, reader="disk", other=3)
  assert (out["size"], out["from"], out["x"]) == ((4, 5), "disk", 4)


def test_context_is_not_for_recipes(table):
  said = refuse("sized(reader='mine')", table, reader="disk")
  assert "unknown argument 'reader'" in said
  assert "Known: size." in said
  assert MADE == []


def test_the_same_op_twice_has_two_folds(table):
  ops = parse("draw|add|draw|draw", table, "here")
  assert [op.name for op in ops] == ["draw", "add", "draw", "draw"]
  assert len({op.fold for op in ops}) == 4
  assert all(0 <= op.fold < 2**31 for op in ops)


def test_a_fold_depends_on_the_name_and_its_count_alone(table):
  fold = lambda recipe: {}.fromkeys(
    (op.name, op.fold) for op in parse(recipe, table, "here")
  )
  alone = fold("draw")
  assert list(alone) == list(fold("draw()"))
  assert alone.keys() <= fold("add|scale(2)|draw|add").keys()
  assert fold("draw|add").keys() == fold("add|draw").keys()
  assert fold("add(1)").keys() == fold("add(2)").keys()
  assert fold("draw|draw").keys() < fold("draw|draw|draw").keys()


def test_each_op_gets_its_own_key(table):
  ops = parse("draw|add|draw", table, "here")
  key = xp.random_key(5)
  out = apply(ops, {"x": 0}, key, NUMPY)["drawn"]
  expected = [tuple(NUMPY.fold_in(key, ops[i].fold).tolist()) for i in (0, 2)]
  assert out == expected
  assert out[0] != out[1]


def test_the_example_is_left_as_it_is(table):
  example = {"x": 1}
  assert run("add(5)", table, example)["x"] == 6
  assert example == {"x": 1}


# Mistakes


def test_an_unknown_op_names_the_nearest(table):
  said = refuse("add|scael(2)", table)
  assert "unknown op 'scael'" in said
  assert "Did you mean 'scale'?" in said
  assert "Known: add, draw, pick, scale, sized." in said
  assert "Did you mean" not in refuse("zzzzzz", table)


@pytest.mark.parametrize(
  "recipe",
  [
    "__import__('os')",
    "__import__('os').system('touch pwned')",
    "secret",
    "secret()",
    "os",
    "os.system('true')",
    "add.__globals__",
    "add(__import__('os'))",
    "add(secret())",
    "add(amount=secret())",
    "add([secret() for _ in (1,)])",
    "add(*[1])",
    "(lambda: secret())()",
    "add()()",
    "add if secret() else add",
    "add or secret()",
    "add & add",
    "add + add",
    "-add",
    "add[0]",
    "'add'",
    "1",
    "f'{secret()}'",
    "add(f'{secret()}')",
    "(x := secret())",
    "add, add",
  ],
)
def test_nothing_is_executed(recipe, table):
  said = refuse(recipe, table)
  assert "is not a recipe like" in said or "unknown op" in said
  assert MADE == []


@pytest.mark.parametrize(
  "recipe",
  [
    *("add|", "|add", "add||add", "add(", "add)", "add add", "add;add"),
    *("add=1", "import os", "add(amount=)", "add(amount=1, 2)", "add('x)"),
  ],
)
def test_what_is_no_recipe(recipe, table):
  said = refuse(recipe, table)
  assert "is not a recipe like 'a|b(1)|c(x=2)'" in said
  assert repr(recipe) in said


@pytest.mark.parametrize(
  "recipe", ["add(**{'amount': 5})", "add(amount=1, **{'amount': 5})"]
)
def test_unpacking_is_not_ignored(recipe, table):
  refuse(recipe, table)


@pytest.mark.parametrize("recipe", ["add({[1]: 2})", "add(name={[]})"])
def test_a_literal_that_cannot_be(recipe, table):
  refuse(recipe, table)


@pytest.mark.parametrize(
  ("recipe", "told"),
  [
    ("add(amont=1)", "unknown argument 'amont'.*add.*Did you mean 'amount'"),
    ("add(1, 'x', 3)", r"add: too many.*it takes \(amount=1, name='x'\)"),
    ("scale", r"scale: missing.*'by'.*it takes \(by, how='up'\)"),
    ("add(1, amount=2)", "add: multiple values for argument 'amount'"),
    ("add('1')", "add: amount='1' is str, expected int"),
  ],
)
def test_wrong_arguments(recipe, told, table):
  with pytest.raises(UserError, match=told) as e:
    parse(recipe, table, "here", reader="disk")
  assert "here" in str(e.value)
  assert MADE == []


def test_an_error_stops_before_any_op_runs(table):
  refuse("add(1)|scael(2)", table)
  assert ("scale", 2, "up") not in MADE


def test_an_op_without_its_input(table):
  with pytest.raises(UserError, match=r"op add needs 'y'.*there are w, x$"):
    run("add|add(1, 'y')", table, {"x": 1, "w": 2})


@pytest.mark.parametrize(
  "recipe",
  [
    *("mix(1.5)", "mix(alpha=0)", "decode('left')", "random_crop(0)"),
    *("resample(0)", "fit(0)", "views(0)", "views(2, 0.0)"),
    *("roll_waveform(1.5)", "freq_mask(-1)", "cut_frames(0)", "noise(0)"),
    *("roll(0)", "time_mask(1.5)", "standardize(0, 0)", "fbank(0)"),
  ],
)
def test_ops_know_their_bounds(recipe):
  """Signatures of our own ops: an annotation lost would let nonsense in."""
  with pytest.raises(UserError, match=r"must be|expected"):
    parse(recipe, host_ops.OPS, "here", reader=None)
  name = recipe.split("(")[0]
  assert frontend.OPS.get(name, host_ops.OPS[name]) is host_ops.OPS[name]
