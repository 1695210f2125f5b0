"""ASiT's task: who sees what, what is remembered, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from astjax.engine import optim, sharding
from astjax.engine.step import init_state, make_train_step, train_key
from astjax.errors import UserError
from astjax.models import ast
from astjax.ops import gmml, losses, posemb
from astjax.run import job
from astjax.tasks import asit
from astjax.tasks.base import cut
from astjax.tools import average_checkpoints
from astjax.weights import convert, tables
from tests.tasks.test_contract import KWARGS, MODEL, make_batch, make_views
from tests.test_train import assert_same_bits, final_state, run
from tests.tiny import tiny_asit

PLAIN = {"num_classes": 0, "steps_per_epoch": 10.0, "total_steps": 100}
SIZES = {"r1": {"outputs": (10, 6)}, "r2": {"outputs": (10,)}}


def make(preset="r2", model=None, **kw):
  model = MODEL | {"prefix": ("cls",)} | (model or {})
  given = PLAIN | KWARGS["asit"] | SIZES[preset] | kw
  return asit.Asit(backbone=ast.make_backbone(**model), preset=preset, **given)


@functools.cache
def method(task, name):
  """A method of any equal task, compiled once."""
  return jax.jit(getattr(task, name))


@functools.cache
def prepared(task, rows):
  batch = make_views(rows)
  params = method(task, "init_params")(jax.random.key(0), batch)
  batch = method(task, "corrupt")(batch, jax.random.key(1), 0)
  return params, task.init_state(params), batch


def prepare(task, rows=4):
  """(parameters, state, corrupted batch), in dicts that may be changed."""
  return jax.tree.map(lambda x: x, prepared(task, rows))


def changed(params, seed=5, scale=0.3):
  """Other parameters: a teacher that is not the student."""
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  noise = [
    scale * jax.random.normal(k, x.shape)
    for k, x in zip(keys, leaves, strict=True)
  ]
  leaves = [x + n for x, n in zip(leaves, noise, strict=True)]
  return jax.tree.unflatten(treedef, leaves)


@pytest.mark.parametrize(
  ("preset", "drop", "views", "epochs", "weights"),
  [
    ("r1", 0.7, 0, 30, (1.0, 1.0, 2.0)),
    ("r2", 0.5, 4, 5, (0.5, 0.5, 1.0)),
  ],
)
def test_presets(preset, drop, views, epochs, weights):
  task = make(preset)
  assert task.corruption == gmml.Gmml(drop, 0.3, 1, "zeros")
  assert task.local_views == views and task.loss_weights == weights
  assert task.student_temp == 0.1 and task.center_momentum == 0.9
  temps = [float(task.temperature(10 * e)) for e in range(epochs + 2)]
  expected = [*np.linspace(0.04, 0.07, epochs), 0.07, 0.07]
  np.testing.assert_allclose(temps, expected, rtol=1e-6)
  assert float(task.temperature(9)) == temps[0]
  golden = {"r1": {1: 0.0410344828, 15: 0.0555172414}, "r2": {1: 0.0475}}
  for epoch, value in golden[preset].items():
    assert temps[epoch] == pytest.approx(value, rel=1e-6)


def test_the_default_is_the_second_release():
  backbone = ast.make_backbone(**MODEL, prefix=("cls",))
  task = asit.Asit(backbone=backbone, **PLAIN)
  assert task.preset == "r2" and task.model.outputs == (8192,)
  how = {
    "drop_perc": 0.5,
    "drop_replace": 0.3,
    "drop_align": 1,
    "drop_fill": "zeros",
  }
  objective = {"name": "asit", "preset": "r2", "task_kw": how}
  assert task.saved_objective == objective
  sizes = {"hidden": 12, "bottleneck": 8, "outputs": (10,)}
  assert make().saved_objective == objective | sizes


def test_epochs_of_a_fraction_of_a_step():
  task = make(steps_per_epoch=2.5, teacher_temp_epochs=3)
  temps = [float(task.temperature(s)) for s in range(9)]
  assert temps == pytest.approx([0.04] * 3 + [0.055] * 2 + [0.07] * 4)
  assert float(make(teacher_temp_epochs=0).temperature(0)) == pytest.approx(
    0.07
  )


@pytest.mark.slow
@pytest.mark.rare
@pytest.mark.parametrize("preset", ["r1", "r2"])
def test_the_losses_by_hand(preset):
  """Who sees what: nothing of the task but its parts."""
  task = make(preset, chunk=1000)
  params, state, batch = prepare(task)
  teacher = changed(params)
  center = jnp.linspace(-0.1, 0.1, 10)
  sizes = task.model.outputs
  state |= {
    "teacher": teacher,
    "center_cls": center,
    "center_patch": center[: sizes[-1]],
  }
  loss, out = method(task, "loss")(params, state, batch, jax.random.key(2), 12)

  @jax.jit
  def see(params, fbank):
    out = task.model.apply(
      {"params": params}, cut({"fbank": jnp.asarray(fbank)}, task.backbone)
    )
    kernels = task.model.apply({"params": params}, method="kernels")
    logits = {k: out[k] @ kernels[k] for k in ("cls", "patch")}
    return logits | {"drawn": out["reconstruction"], "unit": out["cls"]}

  clean = [see(teacher, batch["fbank"][:, v]) for v in range(2)]
  views = [see(params, batch["corrupted"][:, v]) for v in range(2)]
  student_cls = [v["cls"] for v in views]
  if preset == "r2":
    grid = posemb.resize(params["backbone"]["pos_embed"]["grid"], (2, 2))
    positions = params["backbone"]["pos_embed"] | {"grid": grid}
    local = params | {"backbone": params["backbone"] | {"pos_embed": positions}}
    student_cls += [
      see(local, batch["fbank_local"][:, v])["cls"] for v in range(4)
    ]
  temp = {"r1": np.linspace(0.04, 0.07, 30)[1], "r2": 0.0475}[preset]

  def cross(teacher, student, center):
    p = jax.nn.softmax((teacher - center) / temp)
    return -jnp.mean(jnp.sum(p * jax.nn.log_softmax(student / 0.1), -1))

  pairs = [
    cross(clean[i]["cls"], s, state["center_cls"])
    for i in range(2)
    for v, s in enumerate(student_cls)
    if v != i
  ]
  assert len(pairs) == {"r1": 2, "r2": 10}[preset]
  cls = np.mean(pairs)
  patch = np.mean(
    [
      cross(clean[i]["patch"], views[i]["patch"], state["center_patch"])
      for i in range(2)
    ]
  )
  literal = lambda x: np.asarray(cut({"fbank": jnp.asarray(x)}, task.backbone))
  mask = literal(batch["mask"])
  error = [
    np.abs(views[v]["drawn"] - literal(batch["fbank"][:, v])) for v in range(2)
  ]
  recon = np.stack(error, axis=1)[mask].mean()
  weights = {"r1": (1, 1, 2), "r2": (0.5, 0.5, 1)}[preset]
  expected = np.dot(weights, (cls, patch, recon))
  np.testing.assert_allclose(out.metrics["cls"], cls, rtol=1e-4)
  np.testing.assert_allclose(out.metrics["patch"], patch, rtol=1e-4)
  np.testing.assert_allclose(out.metrics["recon"], recon, rtol=1e-4)
  np.testing.assert_allclose(loss, expected, rtol=1e-4)
  # Centers: after the loss, of the teacher's plain logits.
  for name, kind in (("center_cls", "cls"), ("center_patch", "patch")):
    logits = np.concatenate(
      [c[kind].reshape(-1, c[kind].shape[-1]) for c in clean]
    )
    value = 0.9 * state[name] + 0.1 * logits.mean(0)
    np.testing.assert_allclose(out.task_state[name], value, atol=1e-6)
  # Collapse: of the teacher alone.
  said = [
    jax.nn.softmax((c["cls"] - state["center_cls"]) / temp) for c in clean
  ]
  np.testing.assert_allclose(
    out.metrics["cls_entropy"],
    losses.entropy(jnp.mean(jnp.stack(said), axis=(0, 1))),
    rtol=1e-4,
  )
  units = jnp.stack([c["unit"] for c in clean])
  np.testing.assert_allclose(
    out.metrics["spread"], losses.spread(units), rtol=1e-4
  )


@pytest.mark.slow
def test_a_collapsed_teacher_shows():
  task = make()
  params, state, batch = prepare(task)
  zero = jax.tree.map(jnp.zeros_like, state["teacher"])
  for part in ("fc1", "fc2", "fc3"):
    state["teacher"]["projection"][part]["kernel"] = zero["projection"][part][
      "kernel"
    ]
  state["teacher"]["projection"]["fc3"]["bias"] = jnp.ones(8)
  _, out = method(task, "loss")(params, state, batch, jax.random.key(2), 0)
  assert out.metrics["spread"] < 1e-6
  one = {k: v[[0] * 4] for k, v in make_views().items()}
  one = method(task, "corrupt")(one, jax.random.key(1), 0)
  _, alone = method(task, "loss")(params, state, one, jax.random.key(2), 0)
  # All clips say the same, so the mean is no more even than each of them.
  np.testing.assert_allclose(
    out.metrics["cls_entropy"], alone.metrics["cls_entropy"], rtol=1e-5
  )


def test_the_corruption_is_of_the_global_views_alone():
  task = make()
  _, _, batch = prepare(task, rows=8)
  original = make_views(8)
  np.testing.assert_array_equal(batch["fbank"], original["fbank"])
  np.testing.assert_array_equal(batch["fbank_local"], original["fbank_local"])
  corrupted, mask = np.asarray(batch["corrupted"]), np.asarray(batch["mask"])
  assert corrupted.shape == mask.shape == (8, 2, 24, 16)
  np.testing.assert_array_equal(corrupted[~mask], original["fbank"][~mask])
  assert (mask.mean((2, 3)) >= 0.3).all()
  assert len({m.tobytes() for m in mask.reshape(16, -1)}) == 16


def test_nothing_corrupted_nothing_to_draw():
  task = make(drop_perc=0.0, drop_replace=0.0)
  params, state, batch = prepare(task)
  _, out = method(task, "loss")(params, state, batch, jax.random.key(2), 0)
  assert out.metrics["recon"] == 0 and np.isfinite(out.metrics["loss"])


@pytest.mark.slow
@pytest.mark.rare
def test_only_the_student_drops_paths():
  task = make(model={"drop_path": 0.5, "depth": 2})
  params, state, batch = prepare(task)
  params = changed(params)
  loss = method(task, "loss")
  found = [
    loss(params, state, batch, jax.random.key(s), 0)[1] for s in range(4)
  ]
  recon = [float(o.metrics["recon"]) for o in found]
  assert max(recon) > min(recon) + 1e-4
  assert len({float(o.metrics["spread"]) for o in found}) == 1
  for o in found[1:]:  # what the teacher says is the same
    np.testing.assert_array_equal(
      o.task_state["center_cls"], found[0].task_state["center_cls"]
    )
  # Without it evaluation is the same as that of a model that has none.
  plain = make(model={"depth": 2})
  for a, b in zip(
    jax.tree.leaves(method(task, "evaluate")(params, state, batch, 0)),
    jax.tree.leaves(method(plain, "evaluate")(params, state, batch, 0)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_local_views_teach_the_positions():
  """Resized ones: the gradient goes through the resizing."""
  task = make()
  params, state, batch = prepare(task)
  state["teacher"] = changed(params)

  def tokens(grid):
    positions = params["backbone"]["pos_embed"] | {"grid": grid}
    of = params | {"backbone": params["backbone"] | {"pos_embed": positions}}
    return jnp.sum(task._see_local(of, batch, None)[..., 0])

  grad = jax.jit(jax.grad(tokens))(params["backbone"]["pos_embed"]["grid"])
  # Two columns from six lie on the second and the fifth.
  assert grad.shape == (2, 6, 16)
  met = np.abs(grad).max((0, 2)) > 0
  np.testing.assert_array_equal(met, [False, True, False, False, True, False])


def test_the_teacher_follows():
  task = make()
  params, state, _ = prepare(task)
  state["teacher"] = changed(params)
  for step in (0, 40, 100):
    new = method(task, "after_update")(params, state, step)
    m = 1 - 0.004 * (1 + np.cos(np.pi * step / 100)) / 2
    for t, s, n in zip(
      *map(jax.tree.leaves, (state["teacher"], params, new["teacher"])),
      strict=True,
    ):
      np.testing.assert_allclose(n, m * t + (1 - m) * s, atol=2e-7)
    np.testing.assert_array_equal(new["center_cls"], state["center_cls"])
  still = method(task, "after_update")(params, state, 100)
  jax.tree.map(
    np.testing.assert_array_equal, still["teacher"], state["teacher"]
  )


def test_no_buffer_is_held_twice():
  task = make()
  batch = make_views()
  params = method(task, "init_params")(jax.random.key(0), batch)
  tx = optax.sgd(0.1)
  state = jax.jit(lambda p: init_state(task, p, tx))(params)
  places = [
    shard.data.unsafe_buffer_pointer()
    for x in jax.tree.leaves((state.params, state.task_state))
    for shard in x.addressable_shards
  ]
  assert len(set(places)) == len(places)
  jax.tree.map(
    np.testing.assert_array_equal, state.task_state["teacher"], state.params
  )


def test_evaluation_is_filled_alone():
  """Also a task that only replaces: a row must not depend on others."""
  task = make(drop_perc=0.5, drop_replace=0.9)
  params, state, _ = prepare(task)
  out = method(task, "evaluate")(params, state, make_views(), 0)
  other = make_views()
  other["fbank"][1:] += 3.0
  other = method(task, "evaluate")(params, state, other, 0)
  for name, value in out.items():
    np.testing.assert_allclose(value[0], other[name][0], rtol=1e-5, atol=1e-6)
  assert out["teacher"].shape == (4, 2, 8)
  summary, _ = task.summarise({k: np.asarray(v) for k, v in out.items()})
  assert tuple(summary) == task.metric_names
  assert 0 < summary["spread"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("frames", [8, 41])
def test_features_of_any_length(frames):
  """The teacher's class token, its positions resized."""
  task = make()
  params, state, _ = prepare(task)
  state["teacher"] = changed(params)
  fbank = np.random.default_rng(0).standard_normal((3, frames, 16))
  fbank = fbank.astype(np.float32)
  features = method(task, "features")
  out = features(params, state, {"fbank": fbank})
  teacher = asit._with_grid(state["teacher"], (2, frames // 4))
  apply = jax.jit(task.backbone.apply)
  expected = apply({"params": teacher["backbone"]}, fbank)
  np.testing.assert_allclose(out, expected["prefix"][:, 0], atol=1e-5)
  views = np.stack([fbank, fbank[:, ::-1]], axis=1)
  other = features(params, state, {"fbank": fbank[:, ::-1]})
  both = features(params, state, {"fbank": views})
  np.testing.assert_allclose(both, (out + other) / 2, atol=1e-5)


# Unit vectors of hardly anything, as at the start, have huge gradients.
SGD = optax.chain(optim._clip_each(3.0), optax.sgd(0.05))


def step_of(task, tx, size, rows, **kw):
  """Two steps on so many devices, the state split over half of them."""
  mesh = sharding.make_mesh(jax.devices()[:size], fsdp=max(1, size // 2))
  params = method(task, "init_params")(jax.random.key(0), rows)
  state = jax.jit(lambda p: init_state(task, p, tx))(params)
  homes = sharding.of_state(state, mesh)
  state = jax.device_put(state, homes)
  step = make_train_step(task, tx, (), mesh, shardings=homes, **kw)
  rows = {k: v for k, v in rows.items() if k != "label"}
  key = train_key(0)
  for i in range(2):
    state, metrics = step(state, sharding.to_global(rows, mesh), i, key)
  return state, {k: float(v) for k, v in metrics.items()}


@functools.cache
def stepped(preset, size, accumulate=1):
  task = make(preset, drop_only=False)
  return step_of(task, SGD, size, make_views(8), accumulate=accumulate)


@pytest.mark.slow
@pytest.mark.parametrize(
  "preset", [pytest.param("r1", marks=pytest.mark.rare), "r2"]
)
def test_four_devices_are_as_one(preset):
  """The same blocks and donors, one center, one mean over masked cells."""
  (one, metrics), (four, others) = stepped(preset, 1), stepped(preset, 4)
  for name, value in metrics.items():
    assert others[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    (one.params, one.task_state),
    (four.params, four.task_state),
  )


@pytest.mark.slow
@pytest.mark.rare
@pytest.mark.parametrize("size", [1, 4])
def test_micro_batches(size):
  """Centers are those of the whole batch; the teacher moves once."""
  whole, metrics = stepped("r2", 1)
  parts, others = stepped("r2", size, accumulate=2)
  for name in ("loss", "cls", "patch", "recon", "grad_norm"):
    assert others[name] == pytest.approx(metrics[name], rel=1e-4), name
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    (whole.params, whole.task_state),
    (parts.params, parts.task_state),
  )


@pytest.mark.slow
@pytest.mark.rare
def test_a_student_learns():
  """A few steps on one batch: all three losses fall."""
  task = make(momentum=1.0, total_steps=100)
  tx = optax.adam(3e-3)
  params, state, batch = prepare(task, rows=8)
  state["teacher"] = changed(params)
  opt = tx.init(params)

  @jax.jit
  def step(params, opt):
    grad_fn = jax.value_and_grad(task.loss, has_aux=True)
    (_, out), grads = grad_fn(params, state, batch, jax.random.key(0), 0)
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, out.metrics

  shown = []
  for _ in range(40):
    params, opt, metrics = step(params, opt)
    shown.append({k: float(v) for k, v in metrics.items()})
  for name in ("cls", "patch", "recon"):
    assert shown[-1][name] < shown[0][name], name


TABLES = {"r1": tables.ASIT_R1_PTH, "r2": tables.ASIT_R2_PTH}


def filled(preset, fill):
  """Parameters of the task's shapes."""
  init = make(preset).init_params
  shapes = jax.eval_shape(init, jax.random.key(0), make_views())
  return jax.tree.map(lambda x: fill(x.shape).astype(x.dtype), shapes)


@pytest.mark.parametrize("preset", TABLES)
def test_what_is_decayed(preset):
  """The original's matrices, also tokens, positions and lengths; no biases."""
  spared = ((r"(bias|scale)$", 0.0),)
  ones = filled(preset, np.ones)
  decayed = jax.tree.map(
    lambda x, factor: x * factor, ones, optim.by_name(ones, spared, 1.0)
  )
  names = convert.revert(decayed, TABLES[preset])
  assert "backbone.cls_token" in names and "backbone.pos_embed" in names
  assert ("head.last_layer.weight_g" in names) == (preset == "r2")
  for name, value in names.items():
    expected = value.ndim >= 2 and not name.endswith("bias")
    assert (value == expected).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("preset", TABLES)
def test_what_is_clipped_together(preset):
  """Each of the original's tensors by its own norm."""
  grads = filled(preset, np.random.default_rng(0).standard_normal)
  tx = optim._clip_each(3.0)
  clipped, _ = jax.jit(tx.update)(grads, tx.init(grads))
  table = TABLES[preset]
  before, after = (convert.revert(x, table) for x in (grads, clipped))
  for name, value in before.items():
    if preset == "r1" and name.endswith("weight_g"):
      continue  # no parameter
    factor = min(1.0, 3.0 / (np.linalg.norm(value) + 1e-6))
    np.testing.assert_allclose(
      after[name], factor * value, rtol=1e-5, atol=1e-7, err_msg=name
    )


def kept(line):
  return {k: v for k, v in line.items() if not k.startswith(("perf/", "time"))}


@pytest.mark.slow
@pytest.mark.rare
def test_a_run_stops_and_goes_on(tmp_path):
  """Student, teacher, centers and moments bit for bit."""
  config = tiny_asit(steps=8, evals={"val": {"every_steps": 4}})
  whole = run(tmp_path / "whole", config)
  run(tmp_path / "parts", config, stop_at=4)
  parts = run(tmp_path / "parts", config)
  assert list(map(kept, whole)) == list(map(kept, parts))
  one = final_state(tmp_path / "whole")
  assert_same_bits(one, final_state(tmp_path / "parts"))
  assert sum(".task_state['teacher']" in name for name in one) > 10
  for name in one:  # after some steps the teacher is another than the student
    if "teacher" in name and name.endswith("['kernel']"):
      student = name.replace(".task_state['teacher']", ".params")
      assert np.any(one[name] != one[student]), name
  assert np.any(one[".task_state['center_patch']"] != 0)
  names = {k for line in whole for k in line}
  assert {f"val/{k}" for k in make().metric_names} <= names
  shown = ("cls", "patch", "recon", "spread", "cls_entropy", "patch_entropy")
  assert {f"train/{k}" for k in shown} <= names
  rates = [x["train/lr"] for x in whole if "train/lr" in x]
  # 8 / 256 of the rate; three steps are an epoch: 0, 1/2, 1 of it, then down.
  peak = 5e-2 * 8 / 256
  assert rates[:4] == pytest.approx([0, peak / 2, peak, peak], rel=1e-5)


@pytest.mark.slow
@pytest.mark.rare
def test_the_length_of_the_run_is_part_of_it(tmp_path):
  """The teacher's momentum depends on it, whatever the other schedules."""
  config = tiny_asit(steps=4)
  config.schedule = {"lr": 1e-3}
  del config.optim["final_weight_decay"]
  run(tmp_path, config, stop_at=2)
  config.steps = 6
  with pytest.raises(UserError, match=r"config\.steps was 4, is 6"):
    run(tmp_path, config)


def test_the_decay_ends_with_the_run(monkeypatch):
  built = job.build(
    tiny_asit(steps=12), mesh=sharding.make_mesh(jax.devices()[:1])
  )
  params = jax.eval_shape(built.fresh_params)
  asked, real = [], optim.cosine
  spy = lambda *args: asked.append(args) or real(*args)
  monkeypatch.setattr(optim, "cosine", spy)
  # Made anew: `tests/reuse.py` keeps the one of `build`.
  job.Job.optimizer.__wrapped__(built, params)
  assert (0.04, 0.4, 12) in asked


@pytest.mark.parametrize(
  ("kw", "words"),
  [
    ({"preset": "r3"}, ["preset='r3'", "'r1', 'r2'"]),
    ({"drop_perc": 0.95}, ["drop_perc", "[0, 0.9]", "0.95"]),
    ({"drop_replace": -0.1}, ["drop_replace", "-0.1"]),
    ({"drop_align": 0}, ["drop_align=0 must be at least 1"]),
    ({"drop_align": 4}, ["drop_align=4", "12 frames are too few"]),
    ({"drop_fill": "tmie"}, ["drop_fill='tmie'", "'time'"]),
    ({"local_views": 2}, ["2 local views", "(1, 4, 8, 16)"]),
    ({"loss_weights": (1.0, 1.0)}, ["loss_weights", "three numbers"]),
    ({"teacher_temp": 0.0}, ["teacher_temp", "positive"]),
    ({"momentum": 1.5}, ["momentum=1.5 must be in [0, 1]"]),
    ({"chunk": -1}, ["chunk=-1 must be at least 0"]),
    ({"outputs": (8, 8)}, ["'r2'", "(8, 8)"]),
    ({"hiden": 2}, ["hiden", "Did you mean 'hidden'"]),
  ],
)
def test_nonsense_in_one_line(kw, words):
  config = tiny_asit()
  config.task_kw.update(kw)
  with pytest.raises(UserError) as error:
    job.build(config)
  assert "\n" not in str(error.value)
  for word in words:
    assert word in str(error.value)


@pytest.mark.slow
def test_a_batch_without_views():
  task = make()
  with pytest.raises(UserError, match=r"two or more views.*\(4, 24, 16\)"):
    task.corrupt(make_batch(), jax.random.key(0), 0)
  params, state, batch = prepare(task)
  del batch["fbank_local"]
  with pytest.raises(UserError, match=r"4 local views.*it has none"):
    jax.eval_shape(task.loss, params, state, batch, jax.random.key(0), 0)
  del batch["fbank"]
  with pytest.raises(UserError, match="neither 'fbank' nor 'patches'"):
    task.corrupt(batch, jax.random.key(0), 0)


def test_views_of_another_length_than_the_positions():
  task = make()
  params, state, batch = prepare(task)
  for name in ("fbank", "corrupted", "mask"):
    batch[name] = np.pad(batch[name], [(0, 0), (0, 0), (0, 4), (0, 0)])
  with pytest.raises(UserError, match="grid of 2 x 7 patches"):
    jax.eval_shape(task.loss, params, state, batch, jax.random.key(0), 0)


def test_it_is_a_value():
  assert make() == make() and hash(make()) == hash(make())
  assert make() != make(momentum=0.99)


def test_what_has_a_teacher_is_not_averaged():
  average = {"average": {"first_epoch": 1, "last_epoch": 2}}
  with pytest.raises(UserError, match=r"config\.average: the teacher"):
    job.build(tiny_asit(**average))


@pytest.mark.slow
@pytest.mark.rare
def test_checkpoints_with_a_teacher_are_not_averaged(tmp_path):
  run(tmp_path / "run", tiny_asit(steps=2))
  args = [f"--workdir={tmp_path / 'run'}", str(tmp_path / "mean")]
  assert average_checkpoints.main(args) == 2
  assert not (tmp_path / "mean").exists()
