"""What every task promises, whatever it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astjax import tasks
from astjax.weights import convert
from astjax.weights.info import ModelInfo

MODEL = {
  "width": 16,
  "depth": 1,
  "num_heads": 2,
  "patch_size": (8, 4),
  "stride": (8, 4),
}
KWARGS = {
  "supervised": {},
  "ssast": {"num_mask": 5},
  "asit": {"hidden": 12, "bottleneck": 8, "outputs": (10,), "chunk": 5},
}
# What training shows beside the metrics of an evaluation.
ALSO_SHOWN = {"asit": {"cls_entropy", "patch_entropy"}}
ROWS = 4


def build(name, **kw):
  return tasks.build(
    name,
    KWARGS[name] | kw,
    model=MODEL | ({"prefix": ("cls",)} if name == "asit" else {}),
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


def make_views(rows=ROWS):
  """Two global and four local views of each clip."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal((rows, *shape)).astype(np.float32)
  return make_batch(rows) | {
    "fbank": draw(2, 24, 16),
    "fbank_local": draw(4, 8, 16),
  }


@pytest.fixture(scope="module", params=sorted(tasks.TASKS))
def name(request):
  return request.param


@pytest.fixture(scope="module")
def task(name):
  return build(name)


@pytest.fixture(scope="module")
def batch(name):
  return make_views() if name == "asit" else make_batch()


@pytest.fixture(scope="module")
def params(task, batch):
  return jax.jit(task.init_params)(jax.random.key(0), batch)


@functools.cache
def compiled(task):
  """(the loss, its gradient, evaluation) of parameters, batch and seed."""

  def loss(params, batch, seed=1):
    state = task.init_state(params)
    batch = task.corrupt(batch, jax.random.key(seed), 0)
    return task.loss(params, state, batch, jax.random.key(2), 0)

  def evaluate(params, batch, step=0):
    return task.evaluate(params, task.init_state(params), batch, step)

  grad = jax.grad(lambda *args: loss(*args)[0])
  return jax.jit(loss), jax.jit(grad), jax.jit(evaluate)


def test_all_tasks_are_here():
  assert set(KWARGS) == set(tasks.TASKS)


def test_it_is_frozen_and_hashable(task):
  assert hash(task) == hash(task)
  with pytest.raises(AttributeError):
    task.model = None


def test_the_backbone_is_the_part_that_moves(task, params):
  assert "backbone" in params
  fbank = make_batch()["fbank"]
  apply = jax.jit(task.backbone.apply)
  out = apply({"params": params["backbone"]}, fbank)
  assert out["tokens"].shape == (ROWS, 12, 16)


def test_a_saved_model_has_these_parameters(task, params):
  info = ModelInfo(
    model=task.backbone.describe(),
    head=task.head,
    objective=task.saved_objective,
  )
  expected = info.expected_params((2, 6))
  shapes = lambda tree: {k: v.shape for k, v in convert.flatten(tree).items()}
  assert shapes(expected) == shapes(params)


@pytest.mark.slow
def test_the_loss_is_pure(name, task, params, batch):
  loss, _, _ = compiled(task)
  first, out = loss(params, batch)
  again, _ = compiled.__wrapped__(task)[0](params, batch)  # traced again
  assert first.shape == () and float(first) == float(again)
  assert out.metrics["loss"] == first
  also = ALSO_SHOWN.get(name, set())
  assert set(out.metrics) - also <= set(task.metric_names)
  assert also <= set(out.metrics)


@pytest.mark.slow
def test_every_parameter_learns(task, params, batch):
  """Unused parameters would move under Adam with coupled decay."""
  _, grad, _ = compiled(task)
  both = [convert.flatten(grad(params, batch, seed)) for seed in (1, 2)]
  for path in both[0]:
    if path.endswith("attn/qkv/bias"):  # the key third has a zero gradient
      continue
    assert max(np.abs(found[path]).max() for found in both) > 0, path


@pytest.mark.slow
def test_a_row_depends_on_itself_alone(task, params, batch):
  """Evaluation: per example, and nothing drawn but from the id."""
  _, _, evaluate = compiled(task)
  out, again = evaluate(params, batch), evaluate(params, batch, 5)
  # The same two rows, in other places and beside others.
  order = np.array([2, 0, 0, 2])
  part = {k: v[order] for k, v in batch.items()}
  part["id"][2:] += 100
  part = evaluate(params, part)
  for name, value in out.items():
    assert value.shape[0] == ROWS
    np.testing.assert_array_equal(value, again[name])
    np.testing.assert_allclose(
      np.asarray(value)[[2, 0]], part[name][:2], rtol=2e-5, atol=1e-6
    )


def test_the_summary_has_the_metrics_it_names(task, params, batch):
  _, _, evaluate = compiled(task)
  out = evaluate(params, batch)
  host = {k: np.asarray(v) for k, v in out.items()} | {
    "label": batch["label"],
    "id": batch["id"],
  }
  summary, _ = task.summarise(host)
  assert tuple(summary) == task.metric_names
  assert all(isinstance(v, float) for v in summary.values())


def test_features(task, params):
  features = jax.jit(task.features)
  out = features(params, task.init_state(params), make_batch())
  assert out.shape == (ROWS, 16) and out.dtype == jnp.float32


def test_literal_patches_give_the_same(task, params, batch):
  from astjax.ops import patches

  cut = dict(batch)
  fbank = cut.pop("fbank")
  cut["patches"] = patches.patchify(fbank, patch_size=(8, 4), stride=(8, 4))
  loss, _, _ = compiled(task)
  one, other = loss(params, batch)[0], loss(params, cut)[0]
  np.testing.assert_allclose(one, other, rtol=1e-5)
