"""Reads numeric fixtures: outputs of the original implementations.

A parity test takes all it needs from a file's `meta`. The files lie in
`tests/fixtures`, or where the environment variable ASTJAX_FIXTURES points.
"""

import importlib.util
import json
import os
import pathlib

import jax
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent.parent / "fixtures"
ROOT = pathlib.Path(os.environ.get("ASTJAX_FIXTURES") or HERE)


def _load_seeded():
  path = ROOT / "seeded.py"
  path = path if path.exists() else HERE / "seeded.py"
  spec = importlib.util.spec_from_file_location("seeded", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class Fixture:
  """One .npz file: its meta, its arrays, and what its seed rebuilds."""

  seeded = _load_seeded()

  def __init__(self, path):
    self.name = path.stem
    with np.load(path) as z:
      self.arrays = {k: z[k] for k in z.files if k != "meta"}
      self.meta = json.loads(str(z["meta"]))
    self.seed = self.meta["seed"]

  def __getitem__(self, name):
    return self.arrays[name]

  def state_dict(self, key="state_dict"):
    """The seeded weights named by meta, scaled as it says."""
    folder = ROOT / "state_dicts"
    shapes = json.loads((folder / self.meta[key]).read_text())
    weights = self.seeded.seeded_state_dict(shapes, self.seed)
    scale = self.meta.get("scale", {"factor": 1.0})
    for name in weights:
      parts = scale.get("keys_containing", ())
      if name in scale.get("keys", ()) or any(p in name for p in parts):
        weights[name] = weights[name] * np.float32(scale["factor"])
    return weights


def pytest_generate_tests(metafunc):
  """`fixture` runs over all files that the test's `fixtures` mark globs."""
  mark = metafunc.definition.get_closest_marker("fixtures")
  if mark is None or "fixture" not in metafunc.fixturenames:
    return
  paths = sorted(ROOT.glob(mark.args[0] + ".npz"))
  if not paths:
    raise pytest.UsageError(f"no fixture {mark.args[0]}.npz in {ROOT}")
  metafunc.parametrize(
    "fixture", [pytest.param(p, id=p.stem) for p in paths], indirect=True
  )


@pytest.fixture
def fixture(request):
  """The loaded file."""
  return Fixture(request.param)


@pytest.fixture(autouse=True)
def full_precision(compiled_as_in_a_run):
  """Products at full float32 precision."""
  with jax.default_matmul_precision("highest"):
    yield


def assert_close(actual, expected, tolerance):
  """|a - b| <= tolerance * max(1, |b|), everywhere."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape
  error = np.abs(actual - expected) / np.maximum(1.0, np.abs(expected))
  assert error.max() <= tolerance, f"worst relative error {error.max():.3g}"


def zeros_of(model, spec):
  """Its parameters, of which all that matter come from a file."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), spec)["params"]
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
