"""The strict table: every name has its place, and mistakes are listed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astjax.errors import UserError
from astjax.models import ast, heads
from astjax.weights import convert, tables
from astjax.weights.convert import Rule, Transform
from tests.weights.common import converted

# Eleven blocks, so that 1 and 10 have to be told apart.
D, DEPTH, CLASSES, GRID, PATCH = 8, 11, 5, (2, 3), (4, 6)

# The names of a published AST checkpoint, after "module.".
BLOCK = {
  "norm1.weight": (D,),
  "norm1.bias": (D,),
  "attn.qkv.weight": (3 * D, D),
  "attn.qkv.bias": (3 * D,),
  "attn.proj.weight": (D, D),
  "attn.proj.bias": (D,),
  "norm2.weight": (D,),
  "norm2.bias": (D,),
  "mlp.fc1.weight": (4 * D, D),
  "mlp.fc1.bias": (4 * D,),
  "mlp.fc2.weight": (D, 4 * D),
  "mlp.fc2.bias": (D,),
}
SHAPES = {
  "v.cls_token": (1, 1, D),
  "v.dist_token": (1, 1, D),
  "v.pos_embed": (1, 2 + GRID[0] * GRID[1], D),
  "v.patch_embed.proj.weight": (D, 1, *PATCH),
  "v.patch_embed.proj.bias": (D,),
  **{f"v.blocks.{i}.{k}": s for i in range(DEPTH) for k, s in BLOCK.items()},
  "v.norm.weight": (D,),
  "v.norm.bias": (D,),
  "v.head.weight": (1000, D),
  "v.head.bias": (1000,),
  "v.head_dist.weight": (1000, D),
  "v.head_dist.bias": (1000,),
  "mlp_head.0.weight": (D,),
  "mlp_head.0.bias": (D,),
  "mlp_head.1.weight": (CLASSES, D),
  "mlp_head.1.bias": (CLASSES,),
}


def state_dict(prefix=""):
  rng = np.random.default_rng(0)
  return {
    prefix + k: rng.standard_normal(s).astype(np.float32)
    for k, s in SHAPES.items()
  }


@pytest.fixture(scope="module")
def expected():
  backbone = ast.make_backbone(
    width=D, depth=DEPTH, num_heads=2, patch_size=PATCH, stride=PATCH
  )
  model = ast.AST(backbone, heads.ClassifierHead(CLASSES))
  x = jax.ShapeDtypeStruct((1, GRID[1] * 6, GRID[0] * 4), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


def official(source, tree):
  """As a file is read: recognised first, then converted."""
  what, table, names, *_ = tables.recognise(source)
  assert what == "official AST" and table is tables.AST_PTH
  return converted(names, table, tree)


def message(source, rules, tree):
  with pytest.raises(UserError) as e:
    converted(source, rules, tree)
  text = str(e.value)
  start = "these weights do not fit the model: "
  assert text.startswith(start)
  return text.removeprefix(start).split("; ")


# The table of AST


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_every_array_arrives(prefix, expected):
  source = state_dict(prefix)
  tree = official(source, expected)
  assert jax.tree.structure(tree) == jax.tree.structure(expected)
  assert jax.tree.all(
    jax.tree.map(lambda a, b: a.shape == b.shape, tree, expected)
  )
  w = {k.removeprefix(prefix): v for k, v in source.items()}
  backbone, head = tree["backbone"], tree["head"]
  same = np.testing.assert_array_equal
  same(backbone["cls_token"], w["v.cls_token"][0, 0])
  same(backbone["dist_token"], w["v.dist_token"][0, 0])
  same(backbone["pos_embed"]["prefix"], w["v.pos_embed"][0, :2])
  for f in range(GRID[0]):  # frequency-major
    for t in range(GRID[1]):
      place = 2 + f * GRID[1] + t
      same(backbone["pos_embed"]["grid"][f, t], w["v.pos_embed"][0, place])
  kernel = w["v.patch_embed.proj.weight"]
  for df, dt in ((0, 0), (3, 1), (2, 5)):
    same(backbone["patch_embed"]["kernel"][df, dt], kernel[:, 0, df, dt])
  same(backbone["patch_embed"]["bias"], w["v.patch_embed.proj.bias"])
  for i in range(DEPTH):  # "1" and "10" are told apart
    block = backbone["encoder"][f"block_{i}"]
    for name in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2"):
      parent, child = name.split("/")
      source_name = f"v.blocks.{i}.{parent}.{child}"
      same(block[parent][child]["kernel"], w[source_name + ".weight"].T)
      same(block[parent][child]["bias"], w[source_name + ".bias"])
    for name in ("norm1", "norm2"):
      same(block[name]["scale"], w[f"v.blocks.{i}.{name}.weight"])
      same(block[name]["bias"], w[f"v.blocks.{i}.{name}.bias"])
  same(backbone["encoder"]["norm"]["scale"], w["v.norm.weight"])
  same(backbone["encoder"]["norm"]["bias"], w["v.norm.bias"])
  same(head["norm"]["scale"], w["mlp_head.0.weight"])
  same(head["norm"]["bias"], w["mlp_head.0.bias"])
  same(head["linear"]["kernel"], w["mlp_head.1.weight"].T)
  same(head["linear"]["bias"], w["mlp_head.1.bias"])


def test_no_name_may_be_missing(expected):
  for name in SHAPES:
    source = state_dict()
    del source[name]
    if name.startswith("v.head"):  # not used, so not needed
      converted(source, tables.AST_PTH, expected)
      continue
    problems = message(source, tables.AST_PTH, expected)
    assert len(problems) == (2 if name == "v.pos_embed" else 1)
    for p in problems:
      assert p.startswith("- ") and p.endswith(f" ({name}) is not in the file")


@pytest.mark.parametrize(
  "name",
  [
    "v.blocks.0.attn.k_bias",
    "module.v.cls_token",
    "v.cls_token_",
    "x.v.cls_token",
    "v.blocks.0.norm1.weights",
    "v.blocks.x.norm1.weight",
    "mlp_head.2.weight",
    "vXcls_token",
  ],
)
def test_a_name_without_a_rule(name, expected):
  source = state_dict() | {name: np.zeros(D, np.float32)}
  assert message(source, tables.AST_PTH, expected) == [
    f"+ {name} meets no rule of the table"
  ]


def test_a_block_too_many(expected):
  name = "v.blocks.11.norm1.weight"
  source = state_dict() | {name: np.zeros(D, np.float32)}
  assert message(source, tables.AST_PTH, expected) == [
    f"+ backbone/encoder/block_11/norm1/scale ({name}) is not in the model"
  ]


def test_with_and_without_module_in_one_file(expected):
  source = state_dict("module.") | {"v.norm.bias": np.zeros(D, np.float32)}
  with pytest.raises(UserError, match=r"module\.v\.cls_token meets no rule"):
    converted(source, tables.AST_PTH, expected)


def test_a_block_under_two_numbers(expected):
  source = state_dict() | {"v.blocks.01.norm1.bias": np.zeros(D, np.float32)}
  assert message(source, tables.AST_PTH, expected) == [
    "v.blocks.01.norm1.bias is given twice"
  ]


@pytest.mark.parametrize(
  ("name", "shape", "told"),
  [
    ("mlp_head.1.bias", (6,), "(mlp_head.1.bias) is (6,) in the file, (5,)"),
    (
      "mlp_head.1.weight",
      (D, CLASSES),
      "head/linear/kernel (mlp_head.1.weight)",
    ),
    ("mlp_head.1.weight", (CLASSES,), "expected a matrix"),
    ("v.cls_token", (1, 1, 9), "(v.cls_token) is (9,) in the file, (8,)"),
    ("v.pos_embed", (1, 9, D), "has 9 positions, expected 2 of the prefix"),
    ("v.pos_embed", (1, 7, D), "has 7 positions, expected 2 of the prefix"),
    ("v.pos_embed", (8, D), "expected positions [1, P + N, D]"),
    ("v.patch_embed.proj.weight", (D, 3, *PATCH), "is (4, 6, 3, 8) in the"),
    ("v.patch_embed.proj.weight", (D, 1, 6, 4), "is (6, 4, 8) in the file"),
    ("v.patch_embed.proj.weight", (D, 24), "expected a patch kernel"),
    ("v.blocks.2.norm1.bias", (1, D), "is (1, 8) in the file, (8,)"),
  ],
)
def test_a_wrong_shape(name, shape, told, expected):
  source = state_dict() | {name: np.zeros(shape, np.float32)}
  with pytest.raises(UserError) as e:
    converted(source, tables.AST_PTH, expected)
  assert told in str(e.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite(value, expected):
  source = state_dict()
  source["v.norm.bias"][3] = value
  assert "not finite" in message(source, tables.AST_PTH, expected)[0]


def test_whole_numbers_are_no_weights(expected):
  source = state_dict() | {"v.norm.bias": np.zeros(D, np.int64)}
  assert "of type int64" in message(source, tables.AST_PTH, expected)[0]


def test_out_and_in_again(expected):
  source = state_dict()
  params = converted(source, tables.AST_PTH, expected)
  out = convert.revert(params, tables.AST_PTH)
  unused = {k for k in source if k.startswith("v.head")}
  assert out.keys() == source.keys() - unused
  for name, array in out.items():
    np.testing.assert_array_equal(array, source[name])


def test_a_parameter_without_a_name():
  with pytest.raises(UserError, match="no name for the parameter mask_token"):
    convert.revert({"mask_token": np.zeros(D)}, tables.AST_PTH)


def test_many_problems_are_counted(expected):
  problems = message({}, tables.AST_PTH, expected)
  total = len(jax.tree.leaves(expected))
  assert len(problems) == 9
  assert problems[-1] == f"and {total - 8} more"


# Any table


TREE = {
  "a": jax.ShapeDtypeStruct((2,), jnp.float32),
  "b": {"c": jax.ShapeDtypeStruct((2,), jnp.float32)},
}
RULES = (Rule(("x",), ("a",)), Rule(("y",), ("b/c",)))
X, Y = np.arange(2.0), np.arange(2.0) + 5


def test_a_small_table():
  out = converted({"x": X, "y": Y}, RULES, TREE)
  assert list(out) == ["a", "b"]
  np.testing.assert_array_equal(out["b"]["c"], Y)


def test_missing_and_unexpected_stand_together():
  rules = (Rule(("x",), ("a",)), Rule(("y",), ("b/d",)))
  assert message({"x": X, "y": Y}, rules, TREE) == [
    "+ b/d (y) is not in the model",
    "- b/c is not in the file",
  ]


def test_two_rules_for_one_name():
  rules = (*RULES, Rule(("x",), ("b/c",)))
  problems = message({"x": X, "y": Y}, rules, TREE)
  assert problems[0] == "+ x meets 2 rules of the table"


def test_a_rule_that_drops_still_counts():
  rules = (*RULES, Rule(("x",)))
  problems = message({"x": X, "y": Y}, rules, TREE)
  assert problems[0] == "+ x meets 2 rules of the table"
  out = converted({"x": X, "y": Y, "z": X}, (*RULES, Rule(("z",))), TREE)
  assert set(convert.flatten(out)) == {"a", "b/c"}


def test_a_target_set_twice():
  rules = (*RULES, Rule(("z",), ("b/c",)))
  assert message({"x": X, "y": Y, "z": Y}, rules, TREE) == [
    "b/c is set twice, the second time by z"
  ]


def test_patterns_fit_whole_names():
  problems = message({"x": X, "y": Y, "xx": X, "zy": Y}, RULES, TREE)
  assert problems == [
    "+ xx meets no rule of the table",
    "+ zy meets no rule of the table",
  ]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_parameters_have_the_type_of_the_model(dtype):
  out = converted({"x": X.astype(dtype), "y": Y.astype(dtype)}, RULES, TREE)
  assert {v.dtype for v in jax.tree.leaves(out)} == {np.dtype(np.float32)}


def test_one_source_for_two_targets_and_back():
  halves = Transform(
    lambda x: (x[:2], x[2:]), lambda a, b: (np.concatenate([a, b]),)
  )
  rules = (Rule(("xy",), ("a", "b/c"), halves),)
  out = converted({"xy": np.arange(4.0)}, rules, TREE)
  np.testing.assert_array_equal(out["a"], [0, 1])
  np.testing.assert_array_equal(out["b"]["c"], [2, 3])
  back = convert.revert(out, rules)
  np.testing.assert_array_equal(back["xy"], np.arange(4.0))


def test_two_sources_for_one_target_and_back():
  joined = Transform(
    lambda *x: (np.concatenate(x),), lambda x: tuple(np.split(x, 2))
  )
  rules = (
    Rule(("n.{i}.q", "n.{i}.k"), ("block_{i}/qk",), joined),
    Rule(("unused",)),
  )
  tree = {"block_7": {"qk": jax.ShapeDtypeStruct((4,), jnp.float32)}}
  source = {"n.7.k": Y, "n.7.q": X, "unused": X}
  out = converted(source, rules, tree)
  np.testing.assert_array_equal(out["block_7"]["qk"], [*X, *Y])
  back = convert.revert(out, rules)
  assert list(back) == ["n.7.q", "n.7.k"]
  np.testing.assert_array_equal(back["n.7.k"], Y)
  assert message({"n.7.q": X}, rules, tree) == ["- n.7.k is not in the file"]
