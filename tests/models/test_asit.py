"""ASiT's module: sizes of the two releases, heads, beginnings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astjax import errors
from astjax.errors import UserError
from astjax.models import asit, ast, heads
from astjax.weights import convert
from astjax.weights.info import ModelInfo
from tests.ops.common import noise

SQUARE = {"patch_size": (16, 16), "stride": (16, 16), "prefix": ("cls",)}
SMALL = {"width": 16, "depth": 1, "num_heads": 2} | SQUARE


def small(preset="r2", **kw):
  sizes = {"r1": (12, 8), "r2": (12,)}
  given = {"hidden": 20, "bottleneck": 10, "outputs": sizes[preset]} | kw
  return asit.make(ast.make_backbone(**SMALL), preset=preset, **given)


@functools.cache
def made(model):
  patches = noise((1, 2, 4, 256))
  return jax.jit(model.init)(jax.random.key(0), patches)["params"]


def init(model):
  """Parameters, in dicts that may be changed."""
  return jax.tree.map(lambda x: x, made(model))


@pytest.mark.parametrize(
  ("preset", "projection", "reconstruction", "total"),
  [
    ("r1", 8_655_104, 1_312_385, 95_449_729),
    ("r2", 8_401_152, 1_968_385, 95_851_777),
  ],
)
def test_sizes_of_the_original(preset, projection, reconstruction, total):
  """All that can be trained: the lengths of r1's output layers cannot."""
  info = ModelInfo(
    model={"variant": "base224"} | SQUARE,
    objective={"name": "asit", "preset": preset},
  )
  params = info.expected_params((8, 37))
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert count(params["backbone"]) == 85_482_240
  assert count(params["projection"]) == projection
  assert count(params["reconstruction"]) == reconstruction
  assert count(params) == total


@pytest.mark.slow
def test_names():
  names = set(convert.flatten(made(small("r1"))))
  layers = [
    f"{n}/{k}" for n in ("fc1", "fc2", "fc3") for k in ("kernel", "bias")
  ]
  heads_of = {n for n in names if not n.startswith("backbone/")}
  assert heads_of == {
    *(f"projection/{n}" for n in layers),
    "projection/cls/weight_v",
    "projection/patch/weight_v",
    *(f"reconstruction/{n}" for n in layers),
    "reconstruction/kernel",
    "reconstruction/bias",
  }
  names = set(convert.flatten(made(small())))
  assert {n for n in names if n.startswith("projection/last")} == {
    "projection/last/weight_g",
    "projection/last/weight_v",
  }


def test_how_they_begin():
  """Normal 0.02, but for what torch has as uniform: 1 / 16 of 256."""
  model = small(hidden=300, bottleneck=256, outputs=(64,))
  params = init(model)
  for name, value in convert.flatten(params).items():
    if name.startswith("backbone"):
      continue
    if "fc" in name:
      if name.endswith("bias"):
        assert not value.any(), name
      else:
        assert value.std() == pytest.approx(0.02, rel=0.1), name
    elif name.endswith("weight_g"):
      assert (value == 1).all()
    else:
      assert np.abs(value).max() <= 1 / 16, name
      if value.size > 100:
        assert value.std() == pytest.approx(1 / 16 / 3**0.5, rel=0.05), name


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["r1", "r2"])
def test_outputs_are_cosines(preset):
  model = small(preset)
  params = init(model)
  patches = noise((3, 2, 4, 256), 1)
  out = jax.jit(model.apply)({"params": params}, patches)
  assert out["cls"].shape == (3, 10) and out["patch"].shape == (3, 8, 10)
  assert out["reconstruction"].shape == patches.shape
  for name in ("cls", "patch"):
    np.testing.assert_allclose(jnp.sum(out[name] ** 2, -1), 1.0, rtol=1e-5)
  kernels = model.apply({"params": params}, method="kernels")
  assert kernels["cls"].shape == (10, 12)
  assert kernels["patch"].shape == (10, 12 if preset == "r2" else 8)
  for kernel in kernels.values():
    np.testing.assert_allclose(jnp.sum(kernel**2, 0), 1.0, rtol=1e-5)


def test_a_scale_that_learns():
  model = small()
  params = init(model)
  params["projection"]["last"]["weight_g"] = jnp.arange(12.0)
  kernels = model.apply({"params": params}, method="kernels")
  lengths = jnp.sqrt(jnp.sum(kernels["patch"] ** 2, 0))
  np.testing.assert_allclose(lengths, np.arange(12.0), rtol=1e-5)


def test_a_vector_of_zeros_has_a_gradient():
  """Whose norm has none."""
  head = heads.ProjectionHead(8, 4, (6,))
  x = jnp.zeros((2, 5))
  params = head.init(jax.random.key(0), x)
  zeroed = jax.tree.map(jnp.zeros_like, params)
  for tree in (params, zeroed):
    grad = jax.grad(lambda p: jnp.sum(head.apply(p, x)))(tree)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grad))


def test_the_reconstruction_is_a_transposed_convolution():
  """One patch: bias and the sum of channels times kernels."""
  head = heads.ReconstructionHead(6, 5, (3, 2))
  x = noise((4, 7), 2)
  params = head.init(jax.random.key(0), x)["params"]
  out = head.apply({"params": params}, x)
  z = x
  for name in ("fc1", "fc2", "fc3"):
    z = z @ params[name]["kernel"] + params[name]["bias"]
    z = jax.nn.gelu(z, approximate=False)
  expected = np.einsum("bc,cfu->bfu", z, params["kernel"]) + params["bias"]
  np.testing.assert_allclose(out, expected.reshape(4, 6), atol=1e-6)


@pytest.mark.slow
def test_heads_in_bfloat16():
  """Only the linear layers; unit vectors, kernels and cells are float32."""
  backbone = ast.make_backbone(**SMALL, dtype="bfloat16")
  model = asit.make(backbone, hidden=20, bottleneck=10, outputs=(12,))
  params = init(model)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
  out = jax.jit(model.apply)({"params": params}, noise((2, 2, 4, 256)))
  kernels = model.apply({"params": params}, method="kernels")
  for value in (*out.values(), *kernels.values()):
    assert value.dtype == jnp.float32


@pytest.mark.parametrize(
  "kw",
  [
    {},
    {"preset": "r1"},
    {"outputs": (5,), "recon_widths": (7, 9)},
    {"hidden": 2048, "bottleneck": 256},
  ],
)
def test_a_description_makes_the_same(kw):
  model = small(**kw)
  preset = kw.get("preset", "r2")
  assert asit.make(model.backbone, **model.describe()) == model
  usual = asit.make(model.backbone, preset=preset)
  assert usual.describe() == {"preset": preset}


@pytest.mark.parametrize(
  ("kw", "words"),
  [
    ({"outputs": (8, 4)}, ["'r2'", "outputs=(8192,)", "(8, 4)"]),
    ({"preset": "r1", "outputs": (8,)}, ["'r1'", "(8192, 1024)", "(8,)"]),
    ({"recon_widths": (8,)}, ["recon_widths=(0, 0)", "(8,)"]),
    ({"outputs": (0,)}, ["outputs=(0,)", "at least 1"]),
    ({"hidden": 0}, ["hidden=0 must be at least 1"]),
  ],
)
def test_sizes_that_do_not_fit(kw, words):
  with pytest.raises(UserError) as error:
    backbone = ast.make_backbone(**SMALL)
    errors.call(asit.make, "task_kw", kw, backbone=backbone)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  ("model", "words"),
  [
    ({"stride": (10, 10)}, ["(16, 16)", "(10, 10)", "do not overlap"]),
    ({"prefix": ("cls", "dist")}, ["('cls',)", "('cls', 'dist')"]),
    ({"prefix": ()}, ["('cls',)", "it is ()"]),
  ],
)
def test_backbones_that_do_not_fit(model, words):
  with pytest.raises(UserError) as error:
    asit.make(ast.make_backbone(**SMALL | model))
  for word in words:
    assert word in str(error.value)
