"""Micro-batches: one update as of the whole batch, wherever they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from astjax import errors
from astjax.engine import sharding
from astjax.engine import step as steps
from astjax.engine.task import LossOut
from astjax.ops import platform
from astjax.run import job
from tests.test_train import assert_same_bits, final_state, losses, run
from tests.tiny import tiny_config, tiny_ssast


def assert_close(a, b):
  """Parameters to 1e-5, less the key third of qkv/bias (gradient zero)."""
  for name in a:
    if name.startswith(".params"):
      x, y = a[name], b[name]
      if "qkv" in name and "bias" in name:
        x, y = (v.reshape(3, -1)[[0, 2]] for v in (x, y))
      np.testing.assert_allclose(x, y, rtol=0, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  return folder, run(folder, tiny_config(steps=10))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("parts", "devices"),
  [
    pytest.param(2, 1, marks=pytest.mark.rare),
    pytest.param(8, 1, marks=pytest.mark.rare),
    (2, 4),
  ],
)
def test_as_the_whole_batch(parts, devices, whole, tmp_path):
  folder, history = whole
  config = tiny_config(steps=10, accumulate=parts)
  other = run(tmp_path, config, devices=devices)
  one, two = losses(history), losses(other)
  assert one.keys() == two.keys()
  for step in one:
    assert abs(one[step] - two[step]) <= 1e-5 * max(1.0, abs(one[step]))
  norms = [
    [h["train/grad_norm"] for h in x if "train/grad_norm" in h]
    for x in (history, other)
  ]
  np.testing.assert_allclose(*norms, rtol=1e-4)
  assert_close(final_state(folder), final_state(tmp_path, devices))


@pytest.mark.slow
@pytest.mark.rare
def test_masks_are_those_of_the_whole_batch(tmp_path):
  """Self-supervised: the same patches are hidden, however it is divided."""
  config = tiny_ssast()
  one = run(tmp_path / "one", config)
  config.accumulate = 2
  two = run(tmp_path / "two", config)
  compared = set()
  for a, b in zip(one, two, strict=True):
    for name in ("train/loss", "train/accuracy", "train/mse", "val/loss"):
      if name in a:
        assert a[name] == pytest.approx(b[name], rel=1e-5), name
        compared.add(name)
  assert len(compared) == 4


@pytest.mark.rare
@pytest.mark.slow
def test_resumed(tmp_path):
  config = tiny_config(steps=6, accumulate=4, model={"drop_path": 0.5})
  run(tmp_path / "whole", config)
  run(tmp_path / "cut", config, stop_at=3)
  run(tmp_path / "cut", config)
  assert_same_bits(
    final_state(tmp_path / "cut"), final_state(tmp_path / "whole")
  )
  with pytest.raises(errors.UserError, match=r"config\.accumulate was 4, is 2"):
    run(tmp_path / "cut", tiny_config(**{**config, "accumulate": 2}))


@pytest.mark.slow
def test_older_runs_go_on(tmp_path):
  """Their config.json does not have the key."""
  run(tmp_path, tiny_config(steps=4), stop_at=2)
  path = tmp_path / "config.json"
  assert "accumulate" not in path.read_text()
  assert len(losses(run(tmp_path, tiny_config(steps=4, accumulate=1)))) == 4


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_nothing(tmp_path):
  config = tiny_config(steps=9, accumulate=2, schedule={"lr": 1e38})
  with pytest.raises(errors.UserError, match="not finite"):
    run(tmp_path, config)
  for name, value in final_state(tmp_path).items():
    if name.startswith(".params"):
      assert np.isfinite(value).all(), name


@pytest.mark.parametrize(
  ("devices", "size", "parts", "told"),
  [
    (1, 8, 3, "8 does not divide evenly over 1 devices in 3 micro-batches"),
    (
      4,
      8,
      4,
      "over 4 devices in 4 micro-batches; use a positive multiple of 16",
    ),
    (4, 6, 2, "batch_size=6 does not divide evenly over 4 devices; use"),
    (1, 8, 0, "config: accumulate=0 must be at least 1"),
  ],
)
def test_sizes_that_do_not_fit(devices, size, parts, told):
  config = tiny_config(accumulate=parts, input={"batch_size": size})
  mesh = sharding.make_mesh(jax.devices()[:devices])
  with pytest.raises(errors.UserError) as error:
    job.build(config, mesh=mesh)
  assert told in str(error.value) and "\n" not in str(error.value)


def test_the_step_gathers_nothing():
  """Micro-batches on four devices: no row leaves its device."""
  built = job.build(tiny_config(accumulate=2))
  assert built.mesh.size == 4
  tx, state = job.abstract_state(built)
  step = steps.make_train_step(
    built.task, tx, built.train.device_ops, built.mesh, accumulate=2
  )
  batch = {
    name: jax.ShapeDtypeStruct((8, *shape), dtype)
    for name, (shape, dtype) in built.train.row_shapes.items()
  }
  key = steps.train_key(0)
  text = step.lower(state, batch, 0, key).compile().as_text()
  assert "all-reduce" in text
  for other in ("all-gather", "all-to-all", "collective-permute"):
    assert other not in text


@pytest.mark.parametrize("devices", [1, 4])
def test_rows_of_every_device(devices):
  """Each micro-batch has them; every row is in one."""
  mesh = sharding.make_mesh(jax.devices()[:devices])
  rows = jax.device_put(jnp.arange(24), sharding.by_row(mesh))
  split = jax.jit(lambda x: sharding.micro_batches({"x": x}, 3, mesh)["x"])
  out = split(rows)
  assert out.shape == (3, 8)
  assert sorted(np.asarray(out).ravel()) == list(range(24))
  for before, after in zip(
    rows.addressable_shards, out.addressable_shards, strict=True
  ):
    assert before.device == after.device
    assert {*np.asarray(before.data)} == {*np.asarray(after.data).ravel()}


@dataclasses.dataclass(frozen=True)
class Remembering:
  """Remembers a moving average, a constant and a number; draws."""

  def init_state(self, params):
    return {
      "average": jnp.float32(0.3),
      "constant": jnp.float32(0.1),
      "count": jnp.int32(0),
    }

  def corrupt(self, batch, rng, step):
    row = jax.random.uniform(rng, batch["x"].shape)
    return batch | {"x": batch["x"] + 0.1 * row}

  def loss(self, params, task_state, batch, rng, step):
    mean = jnp.mean(batch["x"])
    drawn = jax.random.uniform(rng)
    new = {
      "average": 0.9 * task_state["average"] + 0.1 * mean,
      "constant": task_state["constant"],
      "count": task_state["count"] + 1,
    }
    loss = jnp.mean((batch["x"] - params["w"]) ** 2)
    return loss, LossOut({"loss": loss, "mean": mean, "drawn": drawn}, new)

  def after_update(self, params, task_state, step):
    return task_state | {"count": task_state["count"] + 10}


def test_what_a_task_remembers_and_draws():
  mesh = sharding.make_mesh(jax.devices()[:1])
  task, tx = Remembering(), optax.sgd(0.1)
  key = steps.train_key(0)
  batch = {"x": jnp.linspace(0, 1, 12), "id": jnp.arange(12)}
  found = {}
  for parts in (1, 3):
    params = {"w": jnp.float32(0.5)}
    state = steps.init_state(task, params, tx)
    step = steps.make_train_step(task, tx, (), mesh, accumulate=parts)
    found[parts] = step(state, batch, 0, key)
  (one, of_one), (three, of_three) = found[1], found[3]
  for name in ("loss", "mean", "grad_norm"):
    np.testing.assert_allclose(of_one[name], of_three[name], rtol=1e-5)
  np.testing.assert_allclose(one.params["w"], three.params["w"], rtol=1e-6)
  # Exactly linear in the mean of the batch; a constant keeps its bits.
  a, b = one.task_state, three.task_state
  np.testing.assert_allclose(a["average"], b["average"], rtol=1e-6)
  assert b["constant"] == np.float32(0.1)
  assert a["count"] == b["count"] == 11 and b["count"].dtype == jnp.int32
  # The model's draws: the step's key, then the number of the micro-batch.
  rng = jax.random.fold_in(jax.random.fold_in(key, 0), steps._MODEL)
  np.testing.assert_allclose(of_one["drawn"], jax.random.uniform(rng))
  draws = [jax.random.uniform(jax.random.fold_in(rng, i)) for i in range(3)]
  np.testing.assert_allclose(of_three["drawn"], np.mean(draws), rtol=1e-6)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_what_is_not_finite_changes_nothing_on_any_platform(kind):
  """A branch on a CPU, a choice value by value elsewhere."""
  task, tx = Remembering(), optax.sgd(0.1, momentum=0.9)
  mesh = sharding.make_mesh(jax.devices()[:1])
  step = steps.make_train_step(task, tx, (), mesh)
  batch = {"x": jnp.linspace(0, 1, 12), "id": jnp.arange(12)}
  key, weight = steps.train_key(0), np.float32(0.5)
  state = steps.init_state(task, {"w": jnp.array(weight)}, tx)
  with platform.compiling_for(kind):
    bad = batch | {"x": batch["x"].at[3].set(np.nan)}
    state, found = step(state, bad, 0, key)
    assert not found["finite"] and state.params["w"] == weight
    assert state.step == 0 and state.task_state["count"] == 0
    state, found = step(state, batch, 1, key)  # it does not follow the state
    assert found["finite"] and state.step == 0
    state, found = step(state, batch, 0, key)
  # d/dw of the mean of (x + 0.1 u - w)^2, one draw u for each number
  rng = jax.random.fold_in(jax.random.fold_in(key, 0), steps._CORRUPT)
  x = batch["x"] + 0.1 * jax.random.uniform(rng, (12,))
  expected = weight + 0.2 * jnp.mean(x - weight)
  np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5)
  assert state.step == 1 and state.task_state["count"] == 11
