"""What every task promises, whatever it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astjax import saved_model, tasks
from astjax.weights import convert
from astjax.weights.model_info import ModelInfo

MODEL = {
  "width": 16,
  "depth": 2,
  "num_heads": 2,
  "patch_size": (8, 4),
  "stride": (8, 4),
}
KWARGS = {"supervised": {}, "ssast": {"num_mask": 5}}
ROWS = 4


def build(name, **kw):
  return tasks.build(
    name,
    KWARGS[name] | kw,
    model=MODEL,
    num_classes=3,
    steps_per_epoch=10.0,
    total_steps=100,
  )


def make_batch(rows=ROWS):
  rng = np.random.default_rng(0)
  return {
    "fbank": rng.standard_normal((rows, 24, 16)).astype(np.float32),
    "label": np.eye(3, dtype=np.float32)[np.arange(rows) % 3],
    "id": np.arange(rows, dtype=np.int32) + 7,
    "valid": np.ones(rows, bool),
  }


@pytest.fixture(params=sorted(tasks.TASKS))
def task(request):
  return build(request.param)


@pytest.fixture
def params(task):
  return jax.jit(task.init_params)(jax.random.key(0), make_batch())


def test_all_tasks_are_here():
  assert set(KWARGS) == set(tasks.TASKS)


def test_it_is_frozen_and_hashable(task):
  assert hash(task) == hash(task)
  with pytest.raises(AttributeError):
    task.model = None


def test_the_backbone_is_the_part_that_moves(task, params):
  assert "backbone" in params
  fbank = make_batch()["fbank"]
  out = task.backbone.apply({"params": params["backbone"]}, fbank)
  assert out["tokens"].shape == (ROWS, 12, 16)


def test_a_saved_model_has_these_parameters(task, params):
  info = ModelInfo(
    model=saved_model.describe(task.backbone),
    head=task.head,
    objective=task.objective,
  )
  expected = saved_model.expected_params(info, (2, 6))
  shapes = lambda tree: {k: v.shape for k, v in convert.flatten(tree).items()}
  assert shapes(expected) == shapes(params)


def loss_of(task, params, batch, seed=1):
  state = task.init_state(params)
  batch = task.corrupt(batch, jax.random.key(seed), 0)
  return task.loss(params, state, batch, jax.random.key(2), 0)


def test_the_loss_is_pure(task, params):
  first, out = loss_of(task, params, make_batch())
  again, _ = loss_of(task, params, make_batch())
  jitted, _ = jax.jit(lambda p, b: loss_of(task, p, b))(params, make_batch())
  assert first.shape == () and float(first) == float(again)
  np.testing.assert_allclose(first, jitted, rtol=1e-5)
  assert out.metrics["loss"] == first
  assert set(out.metrics) <= set(task.metric_names)


def test_every_parameter_learns(task, params):
  """Unused parameters would move under Adam with coupled decay."""

  def total(params):
    return sum(loss_of(task, params, make_batch(), seed)[0] for seed in (1, 2))

  for path, grad in convert.flatten(jax.grad(total)(params)).items():
    if path.endswith("attn/qkv/bias"):  # the key third has a zero gradient
      continue
    assert np.abs(grad).max() > 0, path


def test_a_row_depends_on_itself_alone(task, params):
  """Evaluation: per example, and nothing drawn but from the id."""
  batch = make_batch()
  state = task.init_state(params)
  out = jax.jit(task.evaluate)(params, state, batch, 0)
  again = jax.jit(task.evaluate)(params, state, batch, 5)
  order = np.array([2, 0])
  some = {k: v[order] for k, v in batch.items()}
  part = jax.jit(task.evaluate)(params, state, some, 0)
  for name, value in out.items():
    assert value.shape[0] == ROWS
    np.testing.assert_array_equal(value, again[name])
    np.testing.assert_allclose(value[order], part[name], rtol=2e-5, atol=1e-6)


def test_the_summary_has_the_metrics_it_names(task, params):
  batch = make_batch()
  out = task.evaluate(params, task.init_state(params), batch, 0)
  host = {k: np.asarray(v) for k, v in out.items()} | {
    "label": batch["label"],
    "id": batch["id"],
  }
  summary, _ = task.summarise(host)
  assert tuple(summary) == task.metric_names
  assert all(isinstance(v, float) for v in summary.values())


def test_features(task, params):
  out = task.features(params, task.init_state(params), make_batch())
  assert out.shape == (ROWS, 16) and out.dtype == jnp.float32


def test_literal_patches_give_the_same(task, params):
  from astjax.ops import patches

  batch = make_batch()
  cut = dict(batch)
  fbank = cut.pop("fbank")
  cut["patches"] = patches.patchify(fbank, patch_size=(8, 4), stride=(8, 4))
  one, _ = loss_of(task, params, batch)
  other, _ = loss_of(task, params, cut)
  np.testing.assert_allclose(one, other, rtol=1e-5)
