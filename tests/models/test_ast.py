"""The AST model: sizes, equivalent ways through it, and what it refuses."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from astjax import models
from astjax.errors import UserError
from astjax.models import ast, heads, vit
from astjax.ops import patches
from astjax.tasks import supervised
from astjax.weights import convert

FRAMES, MELS, CLASSES = 24, 16, 5
SMALL = {
  "variant": "tiny224",
  "width": 32,
  "depth": 2,
  "num_heads": 4,
  "patch_size": (8, 6),
  "stride": (4, 5),
}
GRID = (3, 4)


def make(pooling="prefix", **model):
  backbone = ast.make_backbone(**SMALL | model)
  head = heads.ClassifierHead(CLASSES)
  return ast.AST(backbone, head, pooling)


def spectrogram(batch=3, frames=FRAMES, mels=MELS, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((batch, frames, mels)) * 0.5
  return x.astype(np.float32)


@functools.cache
def shapes(**model):
  """The parameters of `make(**model)`, without making them."""
  init = make(**model).init
  return jax.eval_shape(init, jax.random.key(0), spectrogram(1))["params"]


def fill(tree):
  """Parameters large enough that every part of the model shows."""
  rng = np.random.default_rng(0)

  def leaf(shape):
    scale = 2 * shape.shape[0] ** -0.5 if len(shape.shape) == 2 else 0.3
    x = rng.standard_normal(shape.shape) * scale
    return jnp.asarray(x, shape.dtype)

  return jax.tree.map(leaf, tree)


@functools.cache
def params(**model):
  return fill(shapes(**model))


@functools.cache
def compiled(model, train, hidden):
  static = {k: True for k, v in {"train": train, "hidden": hidden}.items() if v}

  def apply(tree, rngs, x, kwargs):
    return model.apply({"params": tree}, x, **kwargs, **static, rngs=rngs)

  return jax.jit(apply)


def run(model, tree, x, rng=None, train=False, hidden=False, **kwargs):
  rngs = {} if rng is None else {"drop_path": jax.random.key(rng)}
  return compiled(model, train, hidden)(tree, rngs, x, kwargs)


def logits(x=None, *, use=None, pooling="prefix", config=None, **kwargs):
  config = config or {}
  tree = params(**config) if use is None else use
  return run(make(pooling, **config), tree, x, **kwargs)


def tokens(x=None, *, use=None, config=None, **kwargs):
  config = config or {}
  tree = params(**config) if use is None else use
  return run(make(**config).backbone, tree["backbone"], x, **kwargs)


def cut(x):
  return patches.patchify(
    x, patch_size=SMALL["patch_size"], stride=SMALL["stride"]
  )


# Sizes


def count(num_classes, frames, mels=128, **model):
  backbone = ast.make_backbone(**model)
  task = supervised.make(backbone=backbone, num_classes=num_classes)
  batch = {"fbank": jax.ShapeDtypeStruct((1, frames, mels), jnp.float32)}
  tree = jax.eval_shape(task.init_params, jax.random.key(0), batch)
  assert {v.dtype for v in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
  return sum(v.size for v in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ("variant", "classes", "frames", "published", "width"),
  [
    ("base384", 527, 1024, 88_132_063, 768),
    ("base384", 35, 128, 86_933_491, 768),
    ("base384", 50, 512, 87_295_234, 768),
    ("small224", 527, 1024, 22_833_631, 384),
    ("tiny224", 527, 1024, 6_109_663, 192),
  ],
)
def test_parameter_counts(variant, classes, frames, published, width):
  # The published models carry two unused classifiers of 1,000 classes.
  unused = 2 * (1000 * width + 1000)
  assert count(classes, frames, variant=variant) == published - unused


@pytest.mark.parametrize(
  ("model", "frames", "mels", "grid"),
  [
    ({"stride": (16, 16), "depth": 1}, 1024, 128, (8, 64)),
    ({"stride": (12, 14)}, 1024, 128, (11, 73)),
    ({"patch_size": (128, 2), "stride": (128, 1)}, 100, 128, (1, 99)),
    ({"patch_size": (16, 16), "stride": (10, 10)}, 57, 40, (3, 5)),
    ({"patch_size": (5, 3), "stride": (7, 2)}, 31, 64, (9, 15)),
  ],
)
def test_any_size_and_stride(model, frames, mels, grid):
  backbone = ast.make_backbone(**SMALL | model)
  x = spectrogram(1, frames, mels)
  tree = jax.eval_shape(backbone.init, jax.random.key(0), x)["params"]
  assert tree["pos_embed"]["grid"].shape == (*grid, 32)
  out = run(backbone, fill(tree), x)
  assert out["tokens"].shape == (1, grid[0] * grid[1], 32)
  assert np.all(np.isfinite(out["tokens"]))


@pytest.mark.parametrize("variant", ast.VARIANTS)
def test_variants(variant):
  backbone = ast.make_backbone(variant)
  encoder = backbone.encoder
  assert encoder.depth == 12 and encoder.layer_norm_eps == 1e-6
  assert backbone.width == 64 * encoder.num_heads
  assert (backbone.patch_size, backbone.stride) == ((16, 16), (10, 10))
  changed = ast.make_backbone(variant, width=60, depth=3, num_heads=5)
  encoder = changed.encoder
  assert (changed.width, encoder.depth, encoder.num_heads) == (60, 3, 5)


# Equivalent ways through the model


def test_a_part_of_the_patches_knows_its_place():
  """All in another order: the same tokens. Some: those of a smaller set."""
  x, order = spectrogram(2), np.random.default_rng(0).permutation(12)
  whole = tokens(x)["tokens"]
  turned = tokens(x, keep=jnp.asarray([order] * 2))["tokens"]
  np.testing.assert_allclose(turned, whole[:, order], atol=1e-5)
  keep = jnp.asarray([[0, 5, 7], [11, 2, 3]])
  some = tokens(x, keep=keep)["tokens"]
  assert some.shape == (2, 3, 32)
  # What is left out is not seen.
  patches = np.asarray(cut(x)).copy().reshape(2, 12, -1)
  for row, kept in zip(patches, keep, strict=True):
    row[np.setdiff1d(np.arange(12), kept)] = 9.0
  other = tokens(patches=patches.reshape(cut(x).shape), keep=keep)
  np.testing.assert_array_equal(other["tokens"], some)


def test_backbones_by_name():
  backbone = models.build(SMALL | {"name": "ast"})
  assert backbone == models.build(SMALL) == ast.make_backbone(**SMALL)
  assert "name" not in backbone.describe()
  assert models.build(backbone.describe()).describe() == backbone.describe()


def test_patches_are_as_good_as_a_spectrogram():
  x = spectrogram()
  np.testing.assert_allclose(logits(patches=cut(x)), logits(x), atol=1e-5)


@pytest.mark.parametrize("attention", ["xla", "per_head", "auto"])
def test_attention_implementations(attention):
  rng = np.random.default_rng(1)
  q, k, v = rng.standard_normal((3, 2, 7, 3, 8)).astype(np.float32)
  scores = np.einsum("bqhd,bkhd->bhqk", q, k) * 8**-0.5
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum("bhqk,bkhd->bqhd", weights, v)
  out = jax.jit(vit.ATTENTION[attention])(q, k, v)
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_gelu_is_exact():
  # The usual approximation by a tanh is off by up to 5e-4.
  x = np.linspace(-4, 4, 64, dtype=np.float32).reshape(1, 1, 64)
  eye = {"kernel": np.eye(64), "bias": np.zeros(64)}
  out = vit.Mlp(64).apply({"params": {"fc1": eye, "fc2": eye}}, x)
  expected = x * (1 + scipy.special.erf(x / np.sqrt(2))) / 2
  np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["xla", "per_head"])
def test_model_with_each_attention(attention):
  x = spectrogram()
  out = logits(x, use=params(), config={"attention": attention})
  np.testing.assert_allclose(out, logits(x), atol=1e-5)


def test_remat_changes_nothing():
  x, tree = spectrogram(), params()

  def loss(remat):
    model = make(remat=remat, drop_path=0.5, attention="xla")

    def fn(tree):
      out = model.apply(
        {"params": tree}, x, train=True, rngs={"drop_path": jax.random.key(0)}
      )
      return jnp.sum(out**2)

    return jax.jit(jax.value_and_grad(fn))(tree)

  (value, grads), (value_remat, grads_remat) = loss(False), loss(True)
  np.testing.assert_allclose(value_remat, value, rtol=1e-5)
  for a, b in zip(
    jax.tree.leaves(grads), jax.tree.leaves(grads_remat), strict=True
  ):
    np.testing.assert_allclose(b, a, atol=1e-4 * max(1, np.abs(a).max()))


@pytest.mark.parametrize("remat", [False, True])
def test_blocks_in_a_loop_change_nothing(remat):
  x, tree = spectrogram(), params()

  def loss(**config):
    model = make(attention="xla", **config)
    fn = lambda tree: jnp.sum(model.apply({"params": tree}, x, train=True) ** 2)
    return jax.jit(jax.value_and_grad(fn))(tree)

  (value, grads), (again, others) = loss(), loss(scan=True, remat=remat)
  np.testing.assert_allclose(again, value, rtol=1e-5)
  assert jax.tree.structure(grads) == jax.tree.structure(others)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True):
    np.testing.assert_allclose(b, a, atol=1e-4 * max(1, np.abs(a).max()))
  init = lambda **kw: jax.eval_shape(make(**kw).init, jax.random.key(0), x)
  assert init() == init(scan=True)


def test_remat_holds_less():
  """In a loop: XLA's CPU compiler undoes it elsewhere."""
  x = jax.ShapeDtypeStruct((16, 128, 64), jnp.float32)

  def temporaries(remat):
    backbone = ast.make_backbone(
      width=32,
      depth=8,
      num_heads=2,
      patch_size=(8, 8),
      stride=(8, 8),
      attention="xla",
      scan=True,
      remat=remat,
    )
    model = ast.AST(backbone, heads.ClassifierHead(3))
    tree = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    fn = lambda p, x: jnp.sum(model.apply({"params": p}, x, train=True) ** 2)
    program = jax.jit(jax.grad(fn)).lower(tree, x).compile()
    return program.memory_analysis().temp_size_in_bytes

  assert temporaries(True) < 0.4 * temporaries(False)


def test_a_loop_drops_paths_and_shows_all_blocks():
  """The first block none, later ones more: half of the last one's branches."""
  x = np.random.default_rng(0).standard_normal((512, 3, 8)).astype(np.float32)
  kw = {"depth": 3, "num_heads": 2, "mlp_dim": 8, "attention": "xla"}
  encoder = vit.Encoder(drop_path=0.5, scan=True, **kw)
  tree = vit.Encoder(**kw).init(jax.random.key(0), x, train=False)
  keys = {"drop_path": jax.random.key(1)}
  out, hidden = encoder.apply(tree, x, train=True, rngs=keys)
  again, _ = encoder.apply(tree, x, train=True, rngs=keys)
  np.testing.assert_array_equal(out, again)
  whole = vit.Encoder(**kw).apply(tree, x, train=False)[1]
  assert len(hidden) == 3
  np.testing.assert_allclose(hidden[0], whole[0], atol=1e-5)
  # Both branches of a clip are dropped with the square of a block's rate.
  for i, rate in ((1, 0.25), (2, 0.5)):
    same = np.all(np.asarray(hidden[i] == hidden[i - 1]), axis=(1, 2)).mean()
    assert abs(same - rate**2) < 4 * (rate**2 * (1 - rate**2) / 512) ** 0.5


def test_bfloat16():
  config = {"dtype": "bfloat16"}
  assert {v.dtype for v in jax.tree.leaves(shapes(**config))} == {
    jnp.dtype("float32")
  }
  x = spectrogram(8)
  exact, rough = logits(x), logits(x, use=params(), config=config)
  assert rough.dtype == jnp.float32
  assert tokens(x, config=config)["tokens"].dtype == jnp.bfloat16
  error = np.abs(exact - rough)
  assert 0 < error.max() < 0.1 * np.std(exact)


def test_under_jit_and_without():
  x = spectrogram()
  plain = make().apply({"params": params()}, x)
  np.testing.assert_allclose(plain, logits(x), atol=1e-5)


def test_rows_do_not_meet():
  x = spectrogram(4)
  whole = logits(x)
  np.testing.assert_allclose(logits(x[1:2]), whole[1:2], atol=1e-5)
  np.testing.assert_allclose(logits(x[::-1]), whole[::-1], atol=1e-5)
  assert np.abs(whole[0] - whole[1]).max() > 0.05


def test_patches_know_their_place_by_the_position_alone():
  # Attention sees a set: patches that are permuted together with their
  # positions give permuted tokens. Fixes the order f' * T' + t' too.
  x, tree = spectrogram(), params()
  order = np.random.default_rng(0).permutation(12)
  flat = convert.flatten(tree)
  grid = flat["backbone/pos_embed/grid"]
  flat["backbone/pos_embed/grid"] = grid.reshape(12, -1)[order].reshape(
    grid.shape
  )
  shuffled = cut(x).reshape(3, 12, -1)[:, order].reshape(cut(x).shape)
  out = tokens(patches=shuffled, use=convert.unflatten(flat))
  expected = tokens(x)
  np.testing.assert_allclose(
    out["tokens"], expected["tokens"][:, order], atol=1e-5
  )
  np.testing.assert_allclose(out["prefix"], expected["prefix"], atol=1e-5)
  same_places = tokens(patches=shuffled)["tokens"]
  assert np.abs(same_places - expected["tokens"][:, order]).max() > 0.05


# What comes out


@pytest.mark.parametrize("prefix", [("cls", "dist"), ("cls",), ()])
def test_prefixes(prefix):
  config = {"prefix": prefix}
  have = {k for k in shapes(**config)["backbone"] if k.endswith("_token")}
  assert have == {f"{name}_token" for name in prefix}
  out = tokens(spectrogram(), config=config, hidden=True)
  assert out["prefix"].shape == (3, len(prefix), 32)
  assert out["tokens"].shape == (3, 12, 32)
  assert out["hidden"][0].shape == (3, 12 + len(prefix), 32)
  out = logits(spectrogram(), config=config, pooling="tokens")
  assert out.shape == (3, CLASSES)
  if not prefix:
    assert "prefix" not in shapes(**config)["backbone"]["pos_embed"]


@pytest.mark.parametrize("pooling", ["prefix", "tokens"])
def test_pooling_and_head(pooling):
  x, tree = spectrogram(), params()
  parts = tokens(x)
  if pooling == "prefix":
    expected = (parts["prefix"][:, 0] + parts["prefix"][:, 1]) / 2
  else:
    expected = parts["tokens"].mean(1)
  features = make(pooling).apply({"params": tree}, x, method="outputs")[
    "features"
  ]
  np.testing.assert_allclose(features, expected, atol=1e-5)
  head = jax.tree.map(np.asarray, tree["head"])
  z = np.asarray(expected, np.float64)
  z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
  z = z * head["norm"]["scale"] + head["norm"]["bias"]
  z = z @ head["linear"]["kernel"] + head["linear"]["bias"]
  np.testing.assert_allclose(logits(x, pooling=pooling), z, atol=1e-5)


def test_the_head_has_the_larger_epsilon():
  # Visible where the features hardly vary: 1e-5 shrinks them, 1e-6 does not.
  head = heads.ClassifierHead(4)
  x = np.array([[-1.0, 1.0, -1.0, 1.0]], np.float32) * 1e-3
  tree = {
    "norm": {"scale": np.ones(4), "bias": np.zeros(4)},
    "linear": {"kernel": np.eye(4), "bias": np.zeros(4)},
  }
  out = head.apply({"params": tree}, x)
  np.testing.assert_allclose(out, x / np.sqrt(1e-6 + 1e-5), rtol=1e-4)


def test_hidden_outputs():
  config = {"depth": 3}
  out = tokens(spectrogram(), config=config, hidden=True)
  assert [h.shape for h in out["hidden"]] == [(3, 14, 32)] * 3
  assert "hidden" not in tokens(spectrogram(), config=config)
  # The last one is before the final norm.
  last = np.asarray(out["hidden"][-1], np.float64)
  norm = params(**config)["backbone"]["encoder"]["norm"]
  z = (last - last.mean(-1, keepdims=True)) / np.sqrt(
    last.var(-1, keepdims=True) + 1e-6
  )
  z = z * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
  np.testing.assert_allclose(out["prefix"], z[:, :2], atol=1e-5)
  np.testing.assert_allclose(out["tokens"], z[:, 2:], atol=1e-5)
  # A model that is cut off gives the same first blocks.
  tree = params(**config)
  encoder = {k: v for k, v in tree["backbone"]["encoder"].items()}
  del encoder["block_2"]
  short = tree | {"backbone": tree["backbone"] | {"encoder": encoder}}
  first = tokens(spectrogram(), use=short, hidden=True)["hidden"]
  for a, b in zip(first, out["hidden"][:2], strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


# Masking


MASK = np.random.default_rng(3).random((3, 12)) < 0.4


def test_mask_replaces_exactly_the_masked_tokens():
  # A mask token that is the embedding of some patch does what that patch does
  # in the masked places; the position is added to both.
  x, tree = cut(spectrogram()), params()
  patch = np.random.default_rng(4).standard_normal(48).astype(np.float32)
  embed = tree["backbone"]["patch_embed"]
  token = patch @ np.asarray(embed["kernel"]).reshape(48, -1) + embed["bias"]
  replaced = np.where(MASK.reshape(3, *GRID)[..., None], patch, x)
  out = tokens(patches=x, mask=MASK, mask_token=token)
  expected = tokens(patches=replaced)
  for name in ("prefix", "tokens"):
    np.testing.assert_allclose(out[name], expected[name], atol=1e-5)
  assert np.abs(out["tokens"] - tokens(patches=x)["tokens"]).max() > 0.05


def test_what_is_masked_is_not_seen():
  x, token = cut(spectrogram()), np.ones(32, np.float32)
  other = np.where(MASK.reshape(3, *GRID)[..., None], 9.0, x)
  a, b = (
    tokens(patches=p.astype(np.float32), mask=MASK, mask_token=token)
    for p in (x, other)
  )
  np.testing.assert_array_equal(a["tokens"], b["tokens"])
  np.testing.assert_array_equal(a["prefix"], b["prefix"])
  # Masked tokens still differ from each other: by their position.
  row = np.asarray(a["tokens"])[0, MASK[0]]
  assert len(np.unique(row.round(3), axis=0)) == len(row) > 1


def test_an_empty_mask_changes_nothing():
  x = spectrogram()
  out = tokens(x, mask=np.zeros((3, 12), bool), mask_token=np.ones(32))
  np.testing.assert_allclose(out["tokens"], tokens(x)["tokens"], atol=1e-6)


# Drop path


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_drop_path_keeps_the_mean(rate):
  x = np.full((20_000, 1, 2), 3.0, np.float32)
  out = vit.DropPath(rate).apply(
    {}, x, train=True, rngs={"drop_path": jax.random.key(0)}
  )
  kept = np.asarray(out[:, 0, 0]) != 0
  np.testing.assert_array_equal(out[:, 0, 0], out[:, 0, 1])  # whole rows
  np.testing.assert_allclose(out[kept], 3.0 / (1 - rate), rtol=1e-6)
  assert abs(kept.mean() - (1 - rate)) < 0.015
  assert abs(out.mean() - 3.0) < 0.1


def test_drop_path_only_in_training():
  config, x = {"drop_path": 0.7}, spectrogram(8)
  np.testing.assert_allclose(logits(x, config=config), logits(x), atol=1e-6)
  first, same, other = (
    logits(x, config=config, train=True, rng=rng) for rng in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, same)
  assert np.abs(first - other).max() > 0.05
  assert np.abs(first - logits(x)).max() > 0.05
  # Without a rate no rng is needed.
  np.testing.assert_allclose(logits(x, train=True), logits(x), atol=1e-6)


def test_drop_path_grows_with_depth():
  # A block changes nothing where both of its branches are dropped.
  config = {"depth": 3, "drop_path": 0.8}
  x = spectrogram(600)
  out = tokens(x, config=config, train=True, rng=0, hidden=True)["hidden"]
  still = tokens(x, config=config, hidden=True)["hidden"]
  np.testing.assert_allclose(out[0], still[0], atol=1e-5)
  idle = [
    np.mean(np.all(np.asarray(a == b), axis=(1, 2)))
    for a, b in itertools.pairwise(out)
  ]
  assert idle[0] == pytest.approx(0.4**2, abs=0.06)
  assert idle[1] == pytest.approx(0.8**2, abs=0.08)


# Initial values


def test_initial_values():
  model = ast.AST(
    ast.make_backbone("tiny224", depth=1, stride=(10, 10)),
    heads.ClassifierHead(50),
  )
  x = spectrogram(1, 128, 128)
  init = jax.jit(lambda seed: model.init(jax.random.key(seed), x)["params"])
  flat, same, other = (
    {k: np.asarray(v) for k, v in convert.flatten(init(seed)).items()}
    for seed in (0, 0, 1)
  )
  normal, uniform, zeros, ones = set(), {}, set(), set()
  for name in flat:
    if name.endswith("scale"):
      ones.add(name)
    elif name.startswith("backbone/patch_embed"):
      uniform[name] = 1 / 16
    elif name.startswith("head/linear"):
      uniform[name] = 192**-0.5
    elif name.endswith("bias"):
      zeros.add(name)
    else:
      normal.add(name)
  assert (len(normal), len(uniform), len(zeros), len(ones)) == (8, 4, 8, 4)
  for name in normal:
    spread = 4 * 0.02 / np.sqrt(2 * flat[name].size)
    assert flat[name].std() == pytest.approx(0.02, abs=spread), name
    assert abs(flat[name].mean()) < 4 * 0.02 / np.sqrt(flat[name].size), name
  for name, bound in uniform.items():
    value = flat[name]
    assert np.abs(value).max() <= bound, name
    assert value.max() > 0.8 * bound > -0.8 * bound > value.min(), name
    std = bound / np.sqrt(3)
    assert value.std() == pytest.approx(std, rel=3 / np.sqrt(value.size)), name
  assert all(np.all(flat[name] == 0) for name in zeros)
  assert all(np.all(flat[name] == 1) for name in ones)
  for name in flat:
    np.testing.assert_array_equal(flat[name], same[name])
    if name not in zeros | ones:
      assert np.mean(flat[name] == other[name]) < 0.01, name


# Mistakes


def test_another_input_size():
  with pytest.raises(UserError, match=r"3 x 6 patches.*has 3 x 4"):
    make().apply({"params": params()}, spectrogram(frames=34))
  with pytest.raises(UserError, match=r"4 x 4 patches.*has 3 x 4"):
    make().apply({"params": params()}, spectrogram(mels=20))
  # As many patches as there are positions is not enough.
  with pytest.raises(UserError, match=r"4 x 3 patches.*has 3 x 4"):
    make().apply({"params": params()}, spectrogram(frames=19, mels=20))
  with pytest.raises(UserError, match=r"2 x 4 patches.*has 3 x 4"):
    make().apply({"params": params()}, patches=cut(spectrogram())[:, :2])


def test_an_input_smaller_than_a_patch():
  with pytest.raises(UserError, match=r"8 mel bins x 6 frames does not fit"):
    make().apply({"params": params()}, spectrogram(frames=5))


def test_patches_of_another_size():
  with pytest.raises(UserError, match=r"47 cells.*\(8, 6\) has 48"):
    make().apply({"params": params()}, patches=cut(spectrogram())[..., 1:])


@pytest.mark.parametrize(
  ("model", "message"),
  [
    ({"variant": "base348"}, "'base348'. Did you mean 'base384'"),
    ({"num_heads": 5}, "width 32 must be a multiple of num_heads 5"),
    ({"width": -32}, "width=-32 must be at least 0"),
    ({"depth": -1}, "depth=-1 must be at least 0"),
    ({"stride": (0, 5)}, r"stride=\(0, 5\) is tuple, expected tuple.int at"),
    ({"name": "atl"}, "config.model.name 'atl'. Did you mean 'ast'"),
    ({"prefix": ("dist",)}, "'dist'.*use"),
    ({"prefix": ("cls", "cls")}, "prefix"),
    ({"drop_path": 1.0}, "drop_path=1.0 must be in .0, 1."),
    ({"drop_path": -0.1}, "drop_path=-0.1 must be in"),
    ({"attention": "xlaa"}, "Did you mean 'xla'"),
    ({"dtype": "float16"}, "dtype='float16'.*'bfloat16'"),
  ],
)
def test_wrong_sizes(model, message):
  with pytest.raises(UserError, match=message):
    models.build(SMALL | model)


def test_wrong_pooling():
  with pytest.raises(UserError, match="Did you mean 'prefix'"):
    make("prefixes").apply({"params": params()}, spectrogram())
  with pytest.raises(UserError, match="needs prefix tokens"):
    backbone = ast.make_backbone(**SMALL | {"prefix": ()})
    supervised.make(backbone=backbone, num_classes=2)
