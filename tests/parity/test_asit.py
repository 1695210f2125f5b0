"""ASiT's outputs and training steps against the official implementations.

Weights enter through the tables of `weights/tables.py`; the original's own
corrupted views are handed in, as a batch after `corrupt` has them. A small
model that a formula describes comes after the fixtures.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astjax.engine import optim, sharding
from astjax.engine.step import init_state, make_train_step, train_key
from astjax.models import ast
from astjax.ops import patches as patch_ops
from astjax.tasks import asit
from astjax.tasks.base import cut
from astjax.weights import convert, tables
from tests.parity.conftest import assert_close
from tests.weights.common import converted

TABLES = {"r1": tables.ASIT_R1_PTH, "r2": tables.ASIT_R2_PTH}
PREFIX = {"r1": "head_cls.", "r2": "head."}
LAYERS = {"r1": ("cls_layer", "data_layer"), "r2": ("last_layer",)}
WEIGHTS = {
  "cls + data + 2 * recon": (1.0, 1.0, 2.0),
  "(cls + patch) / 2 + recon": (0.5, 0.5, 1.0),
}
METRICS = {"data": "patch", "total": "loss"}  # by the fixtures' columns


def make(
  weights, preset, num_heads, size, *, patch=16, views=0, scan=False, **kw
):
  """The task of a state dict, and the shapes of its parameters."""
  shape = lambda name: weights[name].shape
  head = PREFIX[preset]
  blocks = [k for k in weights if k.endswith("norm1.weight")]
  task = asit.Asit(
    backbone=ast.make_backbone(
      width=weights["backbone.norm.weight"].size,
      depth=len(blocks),
      num_heads=num_heads,
      patch_size=(patch, patch),
      stride=(patch, patch),
      prefix=("cls",),
      scan=scan,
    ),
    preset=preset,
    hidden=shape(head + "mlp.0.bias")[0],
    bottleneck=shape(head + "mlp.4.bias")[0],
    outputs=tuple(
      shape(f"{head}{layer}.weight_v")[0] for layer in LAYERS[preset]
    ),
    recon_widths=tuple(shape(f"head_recons.mlp.{i}.bias")[0] for i in (0, 4)),
    local_views=views,
    chunk=5,
    **kw,
  )
  batch = {"fbank": np.zeros((1, 2, *size), np.float32)}
  return task, jax.eval_shape(task.init_params, jax.random.key(0), batch)


def build(fixture, **kw):
  meta = fixture.meta
  temp = meta["teacher_temp"]
  weights = fixture.state_dict()
  task, expected = make(
    weights,
    meta["preset"],
    meta["heads"],
    (meta["num_frames"], meta["num_mel_bins"]),
    patch=meta["patch_size"],
    views=meta.get("num_local_views", 0),
    steps_per_epoch=float(meta["steps_per_epoch"]),
    total_steps=meta["steps_per_epoch"] * meta["epochs"],
    student_temp=meta["student_temp"],
    teacher_temp=temp["end"],
    teacher_temp_start=temp["start"],
    teacher_temp_epochs=temp["warmup_epochs"],
    momentum=meta["momentum_teacher"],
    center_momentum=meta["center_momentum"],
    **kw,
  )
  # The preset's weights are those that the fixture was made with.
  assert task.loss_weights == WEIGHTS[meta["loss"]]
  return task, converted(weights, TABLES[meta["preset"]], expected)


def batch_of(fixture, step):
  """A batch after `corrupt`, from the names that the meta gives."""
  meta = fixture.meta
  rows, patch = meta["batch"], meta["patch_size"]
  frames, bins = meta["num_frames"], meta["num_mel_bins"]
  draw = lambda name, frames, scale=1.0: fixture.seeded.seeded_array(
    f"asit/{step}/{name}", (rows, 1, frames, bins), fixture.seed, scale
  )[:, 0]

  def mask(view):
    coarse = fixture.seeded.seeded_array(
      f"asit/{step}/{view}/mask",
      (rows, 1, frames // patch, bins // patch),
      fixture.seed,
    )[:, 0]
    return (coarse > 0).repeat(patch, axis=1).repeat(patch, axis=2)

  stack = lambda f, n: np.stack([f(v) for v in range(n)], axis=1)
  views = meta["num_views"]
  clean = stack(lambda v: draw(v, frames, 0.5), views)
  alien = stack(lambda v: draw(f"{v}/alien", frames, 0.5), views)
  mask = stack(mask, views)
  batch = {
    "fbank": clean,
    "mask": mask,
    "corrupted": np.where(mask, alien, clean),
    "id": np.arange(rows, dtype=np.int32),
  }
  if local := meta.get("num_local_views"):
    batch["fbank_local"] = stack(
      lambda v: draw(f"local{v}", meta["local_frames"], 0.5), local
    )
  return batch


def outputs(task, params, fbank):
  """Of views [B, V, T, F], in the original's order: view by view.

  Class logits [V * B, C], patch logits [V * B, N, C'] time by time, and the
  reconstruction [V * B, T, F].
  """
  fbank = np.moveaxis(fbank, 0, 1).reshape(-1, *fbank.shape[2:])
  patches = cut({"fbank": jnp.asarray(fbank)}, task.backbone)
  out = jax.jit(task.model.apply)({"params": params}, patches)
  kernels = task.model.apply({"params": params}, method="kernels")
  tokens = out["patch"].reshape(*patches.shape[:3], -1)
  tokens = jnp.swapaxes(tokens, 1, 2).reshape(*out["patch"].shape)
  drawn = patch_ops.unpatchify(
    out["reconstruction"], patch_size=task.backbone.patch_size
  )
  return out["cls"] @ kernels["cls"], tokens @ kernels["patch"], drawn


def local_logits(task, params, batch):
  """Class logits of the local views [V' * B, C], view by view."""
  token = jax.jit(lambda p: task._see_local(p, batch, None))(params)
  kernels = task.model.apply({"params": params}, method="kernels")
  token = np.moveaxis(np.asarray(token), 0, 1)
  return token.reshape(-1, token.shape[-1]) @ np.asarray(kernels["cls"])


@pytest.mark.fixtures("asit_*")
def test_schedules(fixture):
  meta = fixture.meta
  spe, epochs = meta["steps_per_epoch"], meta["epochs"]
  total = spe * epochs
  task, _ = build(fixture)
  with jax.enable_x64(True):
    steps = np.arange(total, dtype=np.float64)
    assert_close(_schedule(meta)(steps), fixture["lr"], 1e-9)
    decay = optim.cosine(*meta["weight_decay"], total)
    assert_close(decay(steps), fixture["wd"], 1e-9)
    momentum = 1.0 - task.teacher_rate(steps)
    assert_close(momentum, fixture["momentum"], 1e-9)


def _schedule(meta):
  return optim.make_schedule(
    lr=meta["base_lr"],
    steps_per_epoch=float(meta["steps_per_epoch"]),
    total_steps=meta["steps_per_epoch"] * meta["epochs"],
    decay="cosine",
    final_lr=meta["min_lr"],
    warmup="linspace",
    warmup_epochs=float(meta["warmup_epochs"]),
  )


@pytest.mark.fixtures("asit_*")
def test_forward(fixture):
  task, params = build(fixture)
  batch = batch_of(fixture, 0)
  cls, tokens, drawn = outputs(task, params, batch["corrupted"])
  if task.local_views:
    cls = np.concatenate([cls, local_logits(task, params, batch)])
  assert_close(cls, fixture["student_cls_step0"], 2e-5)
  teacher = outputs(task, params, batch["fbank"])[0]
  assert_close(teacher, fixture["teacher_cls_step0"], 2e-5)
  kind = "data" if "student_data_step0_first8" in fixture.arrays else "patch"
  expected = fixture[f"student_{kind}_step0_first8"]
  rows = tokens.reshape(-1, tokens.shape[-1])[: len(expected)]
  assert_close(rows, expected, 2e-5)
  assert_close(drawn[None, :1], fixture["recons_step0_first"], 2e-5)


@pytest.mark.slow
@pytest.mark.fixtures("asit_*")
def test_train(fixture, monkeypatch):
  meta = fixture.meta
  task, params = build(fixture, scan=True)  # it compiles in half the time
  # The first release looks for a name that it does not have.
  is_r2 = meta["preset"] == "r2"
  thawed = meta.get("freeze_last_layer_epochs", 0) if is_r2 else 0
  tx = optim.make_optimizer(
    params,
    _schedule(meta),
    name="adamw",
    b1=meta["adamw_betas"][0],
    b2=meta["adamw_betas"][1],
    eps=meta["eps"],
    weight_decay=meta["weight_decay"][0],
    final_weight_decay=meta["weight_decay"][1],
    no_decay=(r"(bias|scale)$",),
    clip_each=meta["clip_per_parameter"],
    freeze_first=("projection/last/",) if thawed else (),
    freeze_epochs=float(thawed),
    steps_per_epoch=float(meta["steps_per_epoch"]),
    total_steps=meta["steps_per_epoch"] * meta["epochs"],
  )
  monkeypatch.setattr(asit.Asit, "corrupt", lambda self, batch, *_: batch)
  mesh = sharding.make_mesh(jax.devices()[:1])
  step_fn = make_train_step(task, tx, (), mesh)
  state = jax.jit(lambda p: init_state(task, p, tx))(params)
  state = jax.device_put(state, sharding.replicated(mesh))
  columns = [METRICS.get(name, name) for name in meta["history_columns"]]
  history = []
  for step in range(meta["steps"]):
    batch = sharding.to_global(batch_of(fixture, step), mesh)
    state, metrics = step_fn(state, batch, step, train_key(0))
    assert metrics["finite"]
    history.append([float(metrics[name]) for name in columns])
  assert_close(history, fixture["history"], 1e-4)

  table = TABLES[meta["preset"]]
  student = convert.revert(state.params, table)
  teacher = convert.revert(state.task_state["teacher"], table)
  layers = dict(
    zip(("cls", "data"), LAYERS["r1"], strict=True), last="last_layer"
  )
  lengths = [k for k in fixture.arrays if k.endswith("_weight_g")]
  assert lengths
  for name in lengths:
    layer = layers[name.removesuffix("_weight_g")]
    value = student[f"{PREFIX[meta['preset']]}{layer}.weight_g"]
    assert_close(value, fixture[name], 1e-5)
  for name in ("center_cls", "center_data", "center_patch"):
    if name in fixture.arrays:
      ours = name.replace("data", "patch")
      value = np.asarray(state.task_state[ours]).reshape(fixture[name].shape)
      assert_close(value, fixture[name], 1e-5)
  token = "backbone.cls_token"
  assert_close(teacher[token], fixture["teacher_cls_token"], 1e-5)
  reference = fixture["student_cls_token"]
  assert student[token].shape == reference.shape
  error = np.abs(student[token] - reference)
  error /= np.maximum(1.0, np.abs(reference))
  assert np.mean(error <= 1e-5) >= 0.999
  assert error.max() <= 5e-4


@pytest.mark.fixtures("asit_*")
def test_out_and_in_again(fixture):
  """The official names, bit for bit, both ways."""
  _, params = build(fixture)
  weights = fixture.state_dict()
  table = TABLES[fixture.meta["preset"]]
  out = convert.revert(params, table)
  assert out.keys() == weights.keys()
  for name, value in weights.items():
    assert out[name].dtype == value.dtype and out[name].shape == value.shape
    assert out[name].tobytes() == value.tobytes(), name
  back = converted(out, table, params)
  jax.tree.map(np.testing.assert_array_equal, back, params)


# The small model of a formula.


def wave(shape, scale, j):
  i = np.arange(np.prod(shape), dtype=np.float64)
  x = 43758.5453 * np.sin(12.9898 * (i + 1) + 78.233 * (j + 1))
  values = 2 * scale * (x - np.floor(x) - 0.5)
  return values.astype(np.float32).reshape(shape)


def formula_weights(preset):
  """The state dict: parameter k of a part has its values from k + offset."""
  wide = {"r1": 6, "r2": 24}[preset]
  outs = {"r1": (12, 8), "r2": (12,)}[preset]
  linear = lambda name, n, m: [
    (f"{name}.weight", (n, m)),
    (f"{name}.bias", (n,)),
  ]
  norm = lambda name: [(f"{name}.weight", (24,)), (f"{name}.bias", (24,))]

  def mlp(name, *widths):
    pairs = zip(widths[1:], widths[:-1], strict=True)
    return [
      entry
      for i, (n, m) in enumerate(pairs)
      for entry in linear(f"{name}mlp.{2 * i}", n, m)
    ]

  backbone = [
    ("cls_token", (1, 1, 24)),
    ("pos_embed", (1, 9, 24)),
    ("patch_embed.proj.weight", (24, 1, 16, 16)),
    ("patch_embed.proj.bias", (24,)),
  ]
  for i in range(2):
    block = f"blocks.{i}."
    backbone += norm(block + "norm1")
    backbone += linear(block + "attn.qkv", 72, 24)
    backbone += linear(block + "attn.proj", 24, 24)
    backbone += norm(block + "norm2")
    backbone += linear(block + "mlp.fc1", 96, 24)
    backbone += linear(block + "mlp.fc2", 24, 96)
  backbone += norm("norm")
  projection = mlp("", 24, 20, 20, 10)
  for layer, n in zip(LAYERS[preset], outs, strict=True):
    projection += [
      (f"{layer}.weight_g", (n, 1)),
      (f"{layer}.weight_v", (n, 10)),
    ]
  drawing = [
    *mlp("", 24, 24, 24, wide),
    ("convTrans.weight", (wide, 1, 16, 16)),
    ("convTrans.bias", (1,)),
  ]
  out = {}
  for prefix, offset, entries in (
    ("backbone.", 0, backbone),
    (PREFIX[preset], 100, projection),
    ("head_recons.", 200, drawing),
  ):
    for k, (name, shape) in enumerate(entries):
      value = wave(shape, 0.2, k + offset)
      if len(shape) == 1 and name.endswith("weight"):
        value = value + 1
      if name.endswith("weight_g"):
        value = np.ones(shape, np.float32)
      out[prefix + name] = value
  return out


def formula(preset, **kw):
  """(task, params, batch) of the small model."""
  weights = formula_weights(preset)
  task, expected = make(
    weights,
    preset,
    3,
    (64, 32),
    views={"r1": 0, "r2": 4}[preset],
    steps_per_epoch=1.0,
    total_steps=100,
    **kw,
  )
  params = converted(weights, TABLES[preset], expected)
  views = lambda numbers, frames: np.stack(
    [wave((2, frames, 32), 1.0, j) for j in numbers], axis=1
  )
  clean = views((1000, 1001), 64)
  mask = np.zeros(clean.shape, bool)
  mask[..., 5:40, 3:20] = True
  batch = {
    "fbank": clean,
    "mask": mask,
    "corrupted": np.where(mask, np.float32(0), clean),
    "fbank_local": views(range(1002, 1006), 32),
    "id": np.arange(2, dtype=np.int32),
  }
  return task, params, batch


def test_the_formula_is_the_one():
  _, _, batch = formula("r1")
  expected = [0.27946, 0.67328, 0.68119, -0.38646]
  np.testing.assert_allclose(batch["fbank"][0, 0, 0, :4], expected, atol=1e-5)
  row = formula_weights("r1")["backbone.blocks.0.attn.qkv.weight"][0, :4]
  expected = [-0.15693, 0.16170, 0.01660, 0.11637]
  np.testing.assert_allclose(row, expected, atol=1e-5)


def near(actual, *expected):
  np.testing.assert_allclose(np.ravel(actual), expected, rtol=0, atol=1.5e-5)


def tokens_of(task, params, fbank):
  """Class and patch tokens [V * B, 1 + N, D], in the original's order."""
  fbank = np.moveaxis(fbank, 0, 1).reshape(-1, *fbank.shape[2:])
  grid = cut({"fbank": fbank}, task.backbone).shape[1:3]
  params = asit._with_grid(params, grid)
  out = task.backbone.apply({"params": params["backbone"]}, fbank)
  patch = out["tokens"].reshape(len(fbank), *grid, -1)
  patch = jnp.swapaxes(patch, 1, 2).reshape(out["tokens"].shape)
  return np.concatenate([out["prefix"], patch], axis=1)


@pytest.mark.parametrize("preset", ["r1", "r2"])
def test_formula_tokens(preset):
  task, params, batch = formula(preset)
  clean = tokens_of(task, params, batch["fbank"])
  near(clean[0, 0, :6], 1.41372, 0.78459, 0.56371, -0.51217, 0.76500, -0.03023)
  near(clean[3, 8, :6], 0.49303, 0.55463, -1.95430, 0.68765, 0.34889, 0.43605)
  hidden = tokens_of(task, params, batch["corrupted"])
  near(
    hidden[1, 4, :6], -0.67516, 1.94695, 2.61834, -1.96581, -0.77773, 0.12763
  )
  if preset == "r2":
    local = tokens_of(task, params, batch["fbank_local"])
    near(local[0, 0, :6], 0.71787, 1.41206, 0.36877, 0.33089, 0.62499, 0.30831)
    near(local[7, 4, :4], 0.04862, -1.08190, 1.77428, 2.00361)


def test_formula_outputs_of_r1():
  task, params, batch = formula("r1")
  cls, patch, _ = outputs(task, params, batch["fbank"])
  near(
    cls[0],
    *(-0.21102, 0.22039, -0.15336, 0.22925, -0.47438, 0.26713),
    *(-0.33940, -0.12600, 0.67087, -0.15452, -0.53507, -0.26279),
  )
  near(
    patch.reshape(-1, 8)[0],
    *(-0.06414, -0.45959, -0.05151, 0.28587),
    *(-0.49437, 0.52322, -0.21662, 0.23674),
  )
  cls, patch, drawn = outputs(task, params, batch["corrupted"])
  near(cls[3, :4], -0.24422, 0.30911, -0.16749, 0.12023)
  near(patch.reshape(-1, 8)[31, :4], -0.05598, -0.24841, 0.07266, 0.12188)
  near(drawn[0, 0, :5], 0.11877, 0.19608, 0.13850, 0.19216, 0.12458)
  near(drawn[3, 63, 27:], 0.11572, 0.17063, 0.14515, 0.14977, 0.11714)
  assert drawn.mean() == pytest.approx(0.140354, abs=2e-6)


def test_formula_outputs_of_r2():
  task, params, batch = formula("r2")
  _, patch, drawn = outputs(task, params, batch["corrupted"])
  near(patch[3, 7, :4], -0.44818, 0.11950, -0.14168, 0.16540)
  near(
    local_logits(task, params, batch)[0, :4],
    *(-0.26342, 0.25690, -0.19085, 0.17000),
  )
  near(drawn[0, 0, :5], 0.16229, 0.16551, 0.12897, 0.16049, 0.07659)
  assert drawn.mean() == pytest.approx(0.139689, abs=2e-6)


def loss_of(task, params, state, batch, step):
  _, out = jax.jit(task.loss)(params, state, batch, jax.random.key(0), step)
  return [float(out.metrics[k]) for k in ("cls", "patch", "recon", "loss")], out


@pytest.mark.parametrize(
  ("preset", "first", "second"),
  [
    ("r1", (0.052136, 0.022916, 0.512513, 1.100078), (0.053743, 0.024219)),
    ("r2", (0.027280, 0.024955, 0.512956, 0.539074), None),
  ],
)
def test_formula_losses(preset, first, second):
  task, params, batch = formula(preset)
  state = task.init_state(params)
  found, out = loss_of(task, params, state, batch, 0)
  np.testing.assert_allclose(found, first, rtol=0, atol=2e-6)
  centers = out.task_state
  if preset == "r1":
    near(centers["center_cls"][:4], -0.02677, 0.02193, -0.01890, 0.01955)
    near(centers["center_patch"][:4], -0.00660, -0.02898, 0.00789, -0.00047)
    found, _ = loss_of(task, params, centers, batch, 1)
    np.testing.assert_allclose(found[:2], second, rtol=0, atol=2e-6)
  else:
    near(centers["center_patch"][:4], -0.03110, -0.00415, -0.01463, 0.02520)


def test_formula_reconstruction_of_all_cells():
  task, params, batch = formula("r1", drop_only=False)
  found, _ = loss_of(task, params, task.init_state(params), batch, 0)
  assert found[2] == pytest.approx(0.509039, abs=2e-6)
