"""AST logits and training steps against the official implementation.

Weights enter through the table of `weights/tables.py`, losses through the
supervised task, updates through the optimiser and the train step of the loop.
"""

import jax
import numpy as np
import pytest

from astjax.engine import optim, sharding
from astjax.engine.step import init_state, make_train_step, train_key
from astjax.models import ast
from astjax.tasks import supervised
from astjax.weights import convert, tables
from tests.parity.conftest import assert_close
from tests.weights.common import converted

LOSSES = {"bce": "bce", "ce": "softmax_xent"}


def build(meta, *, num_classes, loss="bce", scan=False):
  task = supervised.make(
    backbone=ast.make_backbone(
      meta["model_size"],
      num_heads=meta["num_heads"],
      stride=(meta["fstride"], meta["tstride"]),
      scan=scan,
    ),
    num_classes=num_classes,
    loss=loss,
  )
  spec = np.zeros((1, meta["input_tdim"], meta["input_fdim"]), np.float32)
  expected = jax.eval_shape(
    task.init_params, jax.random.key(0), {"fbank": spec}
  )
  return task, expected


@pytest.mark.fixtures("ast_forward_*")
def test_forward(fixture):
  meta = fixture.meta
  task, expected = build(meta, num_classes=meta["label_dim"])
  params = converted(fixture.state_dict(), tables.AST_PTH, expected)
  spec = fixture.seeded.seeded_spectrogram(
    meta["spec_name"],
    (meta["batch"], meta["input_tdim"], meta["input_fdim"]),
    fixture.seed,
  )
  logits = jax.jit(task.model.apply)({"params": params}, spec)
  assert_close(logits, fixture["logits"], 2e-5)


def labels(fixture, step):
  meta = fixture.meta
  shape = (meta["batch"], meta["label_dim"])
  z = fixture.seeded.seeded_array(f"label/{step}", shape, fixture.seed)
  if meta["loss"] == "bce":
    return (z > 1.0).astype(np.float32)
  return np.eye(meta["label_dim"], dtype=np.float32)[z.argmax(-1)]


@pytest.mark.slow
@pytest.mark.fixtures("ast_train_*")
def test_train(fixture):
  meta = fixture.meta
  task, expected = build(
    meta, num_classes=meta["label_dim"], loss=LOSSES[meta["loss"]], scan=True
  )
  params = converted(fixture.state_dict(), tables.AST_PTH, expected)
  assert meta["optimizer"] == "Adam"
  tx = optim.make_optimizer(
    params,
    lambda step: meta["lr"],
    name="adam",
    b1=meta["betas"][0],
    b2=meta["betas"][1],
    eps=meta["eps"],
    weight_decay=meta["weight_decay_l2"],
  )
  mesh = sharding.make_mesh(jax.devices()[:1])
  step_fn = make_train_step(task, tx, (), mesh)
  state = jax.jit(lambda p: init_state(task, p, tx))(params)
  state = jax.device_put(state, sharding.replicated(mesh))
  losses, norms = [], []
  for step in range(meta["steps"]):
    shape = (meta["batch"], meta["input_tdim"], meta["input_fdim"])
    batch = {
      "fbank": fixture.seeded.seeded_spectrogram(
        f"train/{step}", shape, fixture.seed
      ),
      "label": labels(fixture, step),
      "id": np.arange(meta["batch"], dtype=np.int32),
    }
    batch = sharding.to_global(batch, mesh)
    state, metrics = step_fn(state, batch, step, train_key(0))
    losses.append(float(metrics["loss"]))
    norms.append(float(metrics["grad_norm"]))
  assert_close(losses, fixture["loss"], 1e-4)
  assert_close(norms, fixture["grad_norm"], 1e-4)

  after = {
    "head_weight": np.asarray(state.params["head"]["linear"]["kernel"]).T,
    "pos_embed": np.concatenate(
      [
        state.params["backbone"]["pos_embed"]["prefix"],
        convert.flatten(state.params)["backbone/pos_embed/grid"].reshape(
          -1, expected["backbone"]["cls_token"].shape[0]
        ),
      ]
    )[None, : fixture["pos_embed"].shape[1]],
  }
  assert meta["head_weight"] == "mlp_head.1.weight"
  for name, value in after.items():
    reference = fixture[name]
    assert value.shape == reference.shape
    error = np.abs(value - reference) / np.maximum(1.0, np.abs(reference))
    assert np.mean(error <= 1e-5) >= 0.999
    assert error.max() <= 5e-4
