"""SSAST's objectives and training steps against the official implementation.

The original's masks are handed in, as a batch after `corrupt` has them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astjax.engine import optim, sharding
from astjax.engine.step import init_state, make_train_step, train_key
from astjax.models import ast
from astjax.tasks import ssast
from astjax.weights import tables
from tests.parity.conftest import assert_close
from tests.weights.common import converted


def build(meta, *, scan=False, **kw):
  """The task, and the shapes of its parameters."""
  patch = (meta["fshape"], meta["tshape"])
  backbone = ast.make_backbone(
    width=64 * meta["num_heads"],
    num_heads=meta["num_heads"],
    patch_size=patch,
    stride=patch,
    scan=scan,
  )
  task = ssast.Ssast(backbone=backbone, num_mask=meta["num_mask"], **kw)
  batch = {"fbank": np.zeros((1, *size(meta)[1:]), np.float32)}
  return task, jax.eval_shape(task.init_params, jax.random.key(0), batch)


def size(meta):
  return meta["batch"], meta["input_tdim"], meta["input_fdim"]


def official(fixture, expected):
  """The fixture's weights, its layers of other names left out."""
  names = fixture.state_dict()
  return converted(names, tables.SSAST_PTH, expected)


@pytest.mark.fixtures("ssast_pretrain_*")
def test_objectives(fixture):
  meta = fixture.meta
  task, expected = build(meta, passes=1)
  params = official(fixture, expected)
  batch = {
    "fbank": fixture.seeded.seeded_spectrogram(
      meta["spec_name"], size(meta), fixture.seed
    ),
    "mask_index": fixture["mask_index"][:, None].astype(np.int32),
  }
  _, out = jax.jit(task.loss)(params, {}, batch, jax.random.key(0), 0)
  assert_close(out.metrics["nce"], fixture["nce"], 1e-4)
  assert_close(out.metrics["mse"], fixture["mse"], 1e-4)
  assert_close(out.metrics["accuracy"], fixture["acc"], 1e-6)


@pytest.mark.slow
@pytest.mark.fixtures("ssast_pretrain_*")
def test_train(fixture, monkeypatch):
  meta = fixture.meta
  how = meta["train"]
  task, expected = build(meta, mse_weight=float(how["lam"]), scan=True)
  params = official(fixture, expected)
  tx = optim.make_optimizer(
    params,
    lambda step: how["lr"],
    name="adam",
    b1=how["betas"][0],
    b2=how["betas"][1],
    eps=how["eps"],
    weight_decay=how["weight_decay_l2"],
  )
  # [steps, passes, batch, M] -> the masks of a batch, [batch, passes, M].
  masks = fixture["train_mask_index"].swapaxes(1, 2).astype(np.int32)
  handed_in = lambda self, batch, rng, step: (
    batch | {"mask_index": jnp.asarray(masks)[step]}
  )
  monkeypatch.setattr(ssast.Ssast, "corrupt", handed_in)
  mesh = sharding.make_mesh(jax.devices()[:1])
  step_fn = make_train_step(task, tx, (), mesh)
  state = jax.jit(lambda p: init_state(task, p, tx))(params)
  state = jax.device_put(state, sharding.replicated(mesh))
  columns = how["history_columns"]
  history = []
  for step in range(how["steps"]):
    batch = {
      "fbank": fixture.seeded.seeded_spectrogram(
        f"ssast_train/{step}", size(meta), fixture.seed
      ),
      "id": np.arange(meta["batch"], dtype=np.int32),
    }
    batch = sharding.to_global(batch, mesh)
    state, metrics = step_fn(state, batch, step, train_key(0))
    history.append([float(metrics[name]) for name in columns])
  reference = fixture["train_history"]
  for i, name in enumerate(columns):
    tolerance = 1e-6 if name == "accuracy" else 1e-4
    assert_close(np.array(history)[:, i], reference[:, i], tolerance)
