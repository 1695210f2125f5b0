"""SSAST's task: which masks meet which objective, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from astjax.engine import sharding
from astjax.engine.step import init_state, make_train_step, train_key
from astjax.errors import UserError
from astjax.models import ast
from astjax.ops import losses, patches
from astjax.run import job
from astjax.tasks import ssast
from astjax.tasks.base import cut
from tests.tasks.test_asit import method
from tests.tasks.test_contract import MODEL, make_batch
from tests.test_train import run
from tests.tiny import tiny_ssast

PLAIN = {"num_classes": 0, "steps_per_epoch": 1.0, "total_steps": 1}


def make(model=MODEL, **kw):
  backbone = ast.make_backbone(**model)
  return ssast.Ssast(backbone=backbone, **PLAIN | {"num_mask": 5} | kw)


@functools.cache
def prepare(task):
  batch = make_batch()
  params = method(task, "init_params")(jax.random.key(0), batch)
  return params, method(task, "corrupt")(batch, jax.random.key(1), 0)


def test_masks_of_the_passes_are_different():
  _, batch = prepare(make())
  assert batch["mask_index"].shape == (4, 2, 5)
  masks = {tuple(m) for m in np.asarray(batch["mask_index"]).reshape(8, 5)}
  assert len(masks) > 6  # clip by clip and pass by pass
  _, batch = prepare(make(passes=1))
  assert batch["mask_index"].shape == (4, 1, 5)


@pytest.mark.parametrize("passes", [1, 2])
def test_joint_is_the_sum_of_its_parts(passes):
  """Each objective by hand, with its own pass of the backbone."""
  task = make(passes=passes)
  params, batch = prepare(task)
  loss, out = method(task, "loss")(params, {}, batch, jax.random.key(2), 0)
  index = np.asarray(batch["mask_index"])
  flat = patches.patchify(
    batch["fbank"], patch_size=(8, 4), stride=(8, 4)
  ).reshape(4, 12, 32)

  def predict(head, view):
    hidden = np.zeros((4, 12), bool)
    np.put_along_axis(hidden, index[:, view], True, axis=1)
    tokens = jax.jit(task.backbone.apply)(
      {"params": params["backbone"]},
      batch["fbank"],
      mask=hidden,
      mask_token=params["mask_token"],
    )["tokens"]
    layers = params[head]
    x = tokens @ layers["fc1"]["kernel"] + layers["fc1"]["bias"]
    x = jnp.maximum(x, 0) @ layers["fc2"]["kernel"] + layers["fc2"]["bias"]
    chosen = np.take_along_axis(np.asarray(x), index[:, view, :, None], 1)
    return np.take_along_axis(flat, index[:, view, :, None], 1), chosen

  nce, hits = losses.info_nce(*predict("discriminative", 0))
  mse = losses.masked_mse(*predict("generative", passes - 1))
  np.testing.assert_allclose(out.metrics["nce"], nce.mean(), rtol=1e-4)
  np.testing.assert_allclose(out.metrics["mse"], mse.mean(), rtol=1e-4)
  np.testing.assert_allclose(out.metrics["accuracy"], hits.mean())
  np.testing.assert_allclose(loss, nce.mean() + 10 * mse.mean(), rtol=1e-4)


@pytest.mark.parametrize(
  ("objective", "heads", "names"),
  [
    ("discriminative", {"discriminative"}, ("loss", "nce", "accuracy")),
    ("generative", {"generative"}, ("loss", "mse")),
  ],
)
def test_one_objective(objective, heads, names):
  task = make(objective=objective, mse_weight=3.0)
  params, batch = prepare(task)
  assert set(params) == {"backbone", "mask_token", *heads}
  assert batch["mask_index"].shape == (4, 1, 5)
  loss, out = method(task, "loss")(params, {}, batch, jax.random.key(2), 0)
  assert task.saved_objective["heads"] == tuple(heads)
  assert task.metric_names == names
  assert set(out.metrics) == set(names)  # sorted by jax.tree
  assert loss == out.metrics[names[1]]  # its weight is of the joint one


def test_hidden_cells_do_not_reach_the_prediction():
  task = make(passes=1)
  params, batch = prepare(task)
  index = np.asarray(batch["mask_index"])[:, 0]
  literal = np.asarray(
    patches.patchify(batch["fbank"], patch_size=(8, 4), stride=(8, 4))
  ).copy()
  flat = literal.reshape(4, 12, 32)
  for row, hidden in zip(flat, index, strict=True):
    row[hidden] += 3.0
  apply = jax.jit(lambda x: task.model.apply({"params": params}, x, index))
  original = apply(cut(batch, task.backbone))
  changed = apply(jnp.asarray(literal))
  for name, value in original.items():
    np.testing.assert_allclose(value, changed[name], atol=1e-6)


def test_masks_of_an_evaluation_are_of_the_ids():
  """The same clip under other ids, and at other places in the batch."""
  task = make()
  params, batch = prepare(task)
  clip = np.asarray(batch["fbank"])[:1]
  same = batch | {"fbank": np.repeat(clip, 4, axis=0)}
  out = method(task, "evaluate")(params, {}, same, 0)
  assert len({float(x) for x in out["mse"]}) == 4
  turned = same | {"id": np.asarray(same["id"])[::-1]}
  again = method(task, "evaluate")(params, {}, turned, 0)
  np.testing.assert_allclose(again["mse"], out["mse"][::-1], rtol=1e-5)


@pytest.mark.slow
def test_evaluation_has_its_own_number_of_masks():
  """A constant prediction is right for one hidden patch of them all."""
  task = make(num_mask=5, eval_num_mask=8, softmax_over="patches")
  params, batch = prepare(task)
  params = dict(params)
  zeros = jax.tree.map(jnp.zeros_like, params["discriminative"])
  zeros["fc2"]["bias"] = jnp.ones(32)
  params["discriminative"] = zeros
  out = method(task, "evaluate")(params, {}, batch, 0)
  np.testing.assert_allclose(out["accuracy"], 1 / 8)
  _, trained = method(task, "loss")(params, {}, batch, jax.random.key(0), 0)
  np.testing.assert_allclose(trained.metrics["accuracy"], 1 / 5)


@pytest.mark.slow
def test_frames_are_hidden_one_by_one():
  """A patch with all mel bins: no clusters, and patch 0 can be hidden."""
  model = MODEL | {"patch_size": (16, 2), "stride": (16, 2)}
  _, batch = prepare(make(model=model, num_mask=9, passes=1))
  assert np.asarray(batch["mask_index"]).shape == (4, 1, 9)
  keys = jax.random.split(jax.random.key(0), 300)
  task = make(model=model, num_mask=4, passes=1)
  index = np.asarray(jax.jit(lambda k: task._draw(k, (1, 12), 4))(keys))
  assert (index == 0).any() and (index == 11).any()
  clusters = make(model=model, num_mask=4, passes=1, masking="clusters")
  index = np.asarray(jax.jit(lambda k: clusters._draw(k, (1, 12), 4))(keys))
  assert not (index == 0).any()


@pytest.mark.slow
def test_one_and_four_devices():
  """The same masks and losses; patches and tokens stay where they are."""
  task = make()
  params, _ = prepare(task)
  rows = {k: v for k, v in make_batch(8).items() if k != "label"}
  found = []
  for size in (1, 4):
    mesh = sharding.make_mesh(jax.devices()[:size])
    batch = sharding.to_global(rows, mesh)
    masks = jax.jit(
      lambda b: task.corrupt(b, jax.random.key(3), 0)["mask_index"],
      in_shardings=(sharding.by_row(mesh),),
      out_shardings=sharding.by_row(mesh),
    )(batch)
    tx = optax.sgd(0.1)
    step = make_train_step(task, tx, (), mesh)
    state = jax.jit(lambda p, tx=tx: init_state(task, p, tx))(params)
    state = jax.device_put(state, sharding.replicated(mesh))
    program = step.lower(state, batch, 0, train_key(0)).compile()
    for name in ("all-gather", "all-to-all", "collective-permute"):
      assert name not in program.as_text(), name
    _, metrics = program(state, batch, 0, train_key(0))
    found.append((np.asarray(masks), {k: float(v) for k, v in metrics.items()}))
  np.testing.assert_array_equal(found[0][0], found[1][0])
  for name, value in found[0][1].items():
    assert found[1][1][name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
@pytest.mark.rare
def test_a_run_stops_and_goes_on(tmp_path):
  config = tiny_ssast(
    steps=8,
    evals={"val": {"every_steps": 4}},
    plateau={"metric": "val/accuracy"},
  )
  whole = run(tmp_path / "whole", config)
  run(tmp_path / "parts", config, stop_at=4)
  parts = run(tmp_path / "parts", config)
  for a, b in zip(whole, parts, strict=True):
    kept = lambda line: {
      k: v for k, v in line.items() if not k.startswith(("perf/", "time"))
    }
    assert kept(a) == kept(b)
  names = {k for line in whole for k in line}
  assert {f"val/{k}" for k in ("loss", "nce", "accuracy", "mse")} <= names


@pytest.mark.parametrize(
  ("kw", "words"),
  [
    ({"num_mask": 4}, ["cannot hide 4 of 4 patches", "between 1 and 2"]),
    ({"num_mask": 400}, ["config.input", "cannot hide 400 of 4", "num_mask"]),
    ({"num_mask": 0}, ["num_mask=0", "must be at least 1"]),
    ({"eval_num_mask": 4}, ["config.evals.val", "cannot hide 4 of 4"]),
    ({"passes": 3}, ["passes=3", "one of 1, 2"]),
    ({"mse_weight": 0.0}, ["mse_weight=0.0 must be positive"]),
    ({"objective": "jiont"}, ["objective='jiont'", "'joint'"]),
    ({"num_masks": 2}, ["num_masks", "Did you mean 'num_mask'"]),
    ({"softmax_over": "patch"}, ["softmax_over='patch'", "'patches'"]),
  ],
)
def test_nonsense_in_one_line(kw, words):
  config = tiny_ssast()
  config.task_kw.update(kw)
  with pytest.raises(UserError) as error:
    job.build(config)
  for word in words:
    assert word in str(error.value)


def test_overlapping_patches_are_refused():
  with pytest.raises(UserError, match=r"stride must be the patch_size"):
    make(model=MODEL | {"stride": (4, 4)})
