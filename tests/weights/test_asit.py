"""ASiT's pre-training: its files in and out, and the start from them."""

import argparse
import dataclasses
import json
from functools import partial

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

import astjax
from astjax.engine import step
from astjax.errors import UserError
from astjax.models.heads import Head
from astjax.run import checkpoint
from astjax.tools import convert_weights
from astjax.weights import (
  adapt,
  convert,
  load,
  registry,
  tables,
)
from astjax.weights import info as model_info
from astjax.weights.front_end import FrontEnd
from astjax.weights.identify import identify
from astjax.weights.info import ModelInfo
from tests.parity.conftest import HERE, Fixture
from tests.weights.test_info import same

pytestmark = pytest.mark.usefixtures("one_device")

TABLES = {"r1": tables.ASIT_R1_PTH, "r2": tables.ASIT_R2_PTH}
SIZES = {
  "r1": {"hidden": 20, "bottleneck": 10, "outputs": (12, 8)},
  "r2": {"hidden": 20, "bottleneck": 10, "outputs": (12,)},
}
SIZES["r1"]["recon_widths"] = (24, 6)
STARTS = {"teacher": "teacher.", "student": "student.module."}
RATES = {"r1": 32_000, "r2": 16_000}
GRID = (3, 4)  # 48 mel bins, 64 frames
BACKBONE = {
  "width": 32,
  "depth": 2,
  "num_heads": 2,
  "mlp_dim": 64,
  "patch_size": (16, 16),
  "stride": (16, 16),
  "prefix": ("cls",),
  "layer_norm_eps": 1e-6,
}


def info_of(preset="r2"):
  objective = {"name": "asit", "preset": preset, **SIZES[preset]}
  return ModelInfo(model=BACKBONE, objective=objective)


def random_params(info, seed=0, grid=GRID):
  rng = np.random.default_rng(seed)
  draw = lambda x: rng.standard_normal(x.shape).astype(np.float32)
  return jax.tree.map(draw, info.expected_params(grid))


INFO = {preset: info_of(preset) for preset in TABLES}
PARAMS = {preset: random_params(INFO[preset]) for preset in TABLES}
STUDENTS = {preset: random_params(INFO[preset], 1) for preset in TABLES}


def official(folder, preset="r2", *, networks=("teacher",), change=None):
  """A file with the names of `checkpoint.pth`, in one level."""
  names = {}
  for network in networks:
    params = (PARAMS if network == "teacher" else STUDENTS)[preset]
    for name, array in convert.revert(params, TABLES[preset]).items():
      names[STARTS[network] + name] = array
  if change:
    change(names)
  save_file(names, folder / "m.safetensors")
  return folder / "m.safetensors"


def options(**kwargs):
  return load.Options(**{"num_heads": 2, "num_mel_bins": 48, **kwargs})


def command(*args):
  return convert_weights.main([str(a) for a in args])


# What a file is.


@pytest.mark.parametrize("preset", TABLES)
def test_the_two_releases(preset, tmp_path):
  loaded = load.load(official(tmp_path, preset), options())
  which = {"r1": "first", "r2": "second"}[preset]
  assert loaded.kind == f"official ASiT ({which} release)"
  assert loaded.info.model == BACKBONE
  assert loaded.info.objective == INFO[preset].objective
  assert loaded.info.head is None and not loaded.is_image
  same(loaded.params, PARAMS[preset])
  # Its front-end is known: each release has one.
  front_end = FrontEnd.from_recipe(loaded.info.recipe)
  assert front_end == FrontEnd(
    sample_rate=RATES[preset],
    num_frames=64,
    num_mel_bins=48,
    statistics=registry.AUDIOSET_STATISTICS,
    channel="first",
    padding="waveform",
  )
  assert any(f"at {RATES[preset]:,} Hz" in note for note in loaded.notes)


def test_usual_sizes_are_not_told():
  info = ModelInfo(model=BACKBONE, objective={"name": "asit"})
  shapes = info.expected_params(GRID)
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  names = convert.revert(params, TABLES["r2"])
  found = identify(names, options(num_mel_bins=48), digest="", file_name="x")
  assert found.info.objective == {"name": "asit", "preset": "r2"}


def test_one_of_two_networks(tmp_path):
  def change(names):
    names["CLS_PATCH_loss.center"] = np.zeros((1, 12), np.float32)

  path = official(tmp_path, networks=("student", "teacher"), change=change)
  teacher = load.load(path, options())
  same(teacher.params, PARAMS["r2"])
  assert "of two networks the teacher" in teacher.notes
  assert "CLS_PATCH_loss.center" in teacher.dropped
  assert "student.module.backbone.cls_token" in teacher.dropped
  student = load.load(path, options(network="student"))
  same(student.params, STUDENTS["r2"])
  assert "teacher.backbone.cls_token" in student.dropped


@pytest.mark.parametrize(
  ("have", "want"), [("teacher", "student"), ("student", "teacher")]
)
def test_a_network_that_is_not_there(have, want, tmp_path):
  path = official(tmp_path, networks=(have,))
  told = f"has no {want}; network='{have}' is there"
  with pytest.raises(UserError, match=told):
    load.load(path, options(network=want))


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_bare_names(wrapper, tmp_path):
  names = convert.revert(PARAMS["r1"], TABLES["r1"])
  save_file(
    {wrapper + k: v for k, v in names.items()}, tmp_path / "m.safetensors"
  )
  loaded = load.load(tmp_path / "m.safetensors", options())
  same(loaded.params, PARAMS["r1"])
  assert not loaded.dropped


@pytest.mark.parametrize(
  "wrapper", ["model.", "backbone.", "module.model.backbone."]
)
def test_the_transformer_alone(wrapper, tmp_path):
  """As other people's files have it."""
  backbone = {"backbone": PARAMS["r2"]["backbone"]}
  names = convert.revert(backbone, tables.ASIT_BACKBONE)
  assert names["pos_embed"].shape == (1, 13, 32) and "cls_token" in names
  save_file(
    {wrapper + k: v for k, v in names.items()}, tmp_path / "m.safetensors"
  )
  loaded = load.load(tmp_path / "m.safetensors", options())
  assert loaded.kind == "ASiT" and loaded.info.model == BACKBONE
  assert not loaded.info.objective and loaded.info.head is None
  assert not loaded.info.recipe
  same(loaded.params, backbone)


def test_a_transformer_of_images_is_none(tmp_path):
  names = image_names()
  save_file(
    {f"backbone.{k}": v for k, v in names.items()}, tmp_path / "m.safetensors"
  )
  loaded = load.load(tmp_path / "m.safetensors", options())
  assert loaded.is_image and loaded.kind == "timm vision transformer"


def tuned(stride=(10, 10)):
  return dataclasses.replace(
    INFO["r2"],
    model=BACKBONE | {"stride": stride},
    head=Head(num_classes=3),
    objective={},
  )


def test_a_fine_tuned_one(tmp_path):
  info = tuned()
  params = random_params(info, grid=(4, 7))
  names = convert.revert(params, tables.ASIT_PTH)
  assert {k for k in names if not k.startswith("v.")} == {
    f"mlp_head.{i}.{k}" for i in (0, 1) for k in ("weight", "bias")
  }
  save_file(names, tmp_path / "m.safetensors")
  loaded = load.load(tmp_path / "m.safetensors", options())
  assert loaded.kind == "fine-tuned ASiT"
  assert loaded.info.model == info.model and loaded.info.head == info.head
  same(loaded.params, params)
  assert "10 x 10 (assumed)" in loaded.notes[0]


def test_time_before_frequency(tmp_path):
  """Token t * 3 + f of the file is the one at (f, t) here."""
  names = load_file(official(tmp_path))
  loaded = load.load(tmp_path / "m.safetensors", options())
  grid, sequence = loaded.params[convert.GRID], "teacher.backbone.pos_embed"
  for f, t in np.ndindex(3, 4):
    np.testing.assert_array_equal(grid[f, t], names[sequence][0, 1 + t * 3 + f])
  kernel = names["teacher.backbone.patch_embed.proj.weight"]  # [D, 1, t, f]
  np.testing.assert_array_equal(
    loaded.params[adapt.KERNEL], kernel[:, 0].transpose(2, 1, 0)
  )
  drawn = names["teacher.head_recons.convTrans.weight"]  # [C, 1, t, f]
  np.testing.assert_array_equal(
    loaded.params["reconstruction/kernel"], drawn[:, 0].swapaxes(1, 2)
  )


def test_lengths_of_a_teacher_are_nearly_one(tmp_path):
  """Running means in float32 of what stays at one."""

  def change(names):
    names["teacher.head_cls.cls_layer.weight_g"] -= np.float32(1e-6)

  loaded = load.load(official(tmp_path, "r1", change=change), options())
  same(loaded.params, PARAMS["r1"])


def put(name, value):
  return lambda names: names.update({f"teacher.{name}": value})


def drop(*starts):
  def change(names):
    for name in [
      n for n in names if n.removeprefix("teacher.").startswith(starts)
    ]:
      del names[name]

  return change


@pytest.mark.parametrize(
  ("preset", "change", "given", "told"),
  [
    ("r2", drop("head_recons"), {}, r"- reconstruction/fc1/bias \(head_recons"),
    ("r2", drop("head.mlp.4.b"), {}, r"- projection/fc3/bias \(head.mlp.4.b"),
    ("r2", drop("head.last_layer.weight_g"), {}, "- projection/last/weight_g"),
    ("r1", drop("head_cls.data"), {}, "- projection/patch/weight_v"),
    ("r1", drop("head_cls.cls_layer.weight_g"), {}, "weight_g is not in the"),
    (
      "r1",
      put("head_cls.cls_layer.weight_g", np.full((12, 1), 2.0)),
      {},
      "of ones, which stays as it is",
    ),
    ("r2", put("head_cls.mlp.0.bias", np.zeros(20)), {}, "meets no rule"),
    ("r2", put("backbone.x", np.zeros(3)), {}, "backbone.x meets no rule"),
    (
      "r2",
      put("backbone.cls_token", np.zeros((1, 1, 9))),
      {},
      r"is \(9,\) in the file, \(32,\) in the model",
    ),
    ("r2", None, {"num_mel_bins": 128}, "are no grid of 8 rows"),
    (
      "r2",
      None,
      {"stride": (10, 10)},
      "ASiT's patches do not overlap",
    ),
    ("r2", None, {"grid": (2, 4)}, r"13 positions, expected 1 .* and 2 x 4"),
  ],
)
def test_a_file_that_does_not_fit(preset, change, given, told, tmp_path):
  path = official(tmp_path, preset, change=change)
  with pytest.raises(UserError, match=told) as e:
    load.load(path, options(**given))
  assert "\n" not in str(e.value)


@pytest.mark.torch
@pytest.mark.parametrize("container", ["zip", "stream"])
@pytest.mark.parametrize("preset", TABLES)
def test_a_checkpoint_of_torch(preset, container, tmp_path):
  """As its training writes it, optimiser, arguments and all."""
  torch = pytest.importorskip("torch")
  of = lambda params, prefix="": {
    prefix + k: torch.from_numpy(np.array(v))
    for k, v in convert.revert(params, TABLES[preset]).items()
  }
  learning = torch.nn.Linear(2, 2)
  optimizer = torch.optim.AdamW(learning.parameters())
  learning(torch.ones(1, 2)).sum().backward()
  optimizer.step()
  center = {"center": torch.zeros(1, 12)}
  value = {
    "student": of(random_params(INFO[preset], 1), "module."),
    "teacher": of(PARAMS[preset]),
    "optimizer": optimizer.state_dict(),
    "epoch": 100,
    "args": argparse.Namespace(lr=5e-4, use_fp16=False, wavs=["a"], seed=None),
    "fp16_scaler": {"scale": 65536.0, "_growth_tracker": 3},
  }
  if preset == "r1":
    value |= {"loss_cls": center, "loss_data": center}
  else:
    value["CLS_PATCH_loss"] = center | {"center2": torch.zeros(1, 1, 12)}
  path = tmp_path / "checkpoint.pth"
  torch.save(value, path, _use_new_zipfile_serialization=container == "zip")
  for network, seed in (("teacher", 0), ("student", 1)):
    loaded = load.load(path, options(network=network))
    assert loaded.info.objective == INFO[preset].objective
    same(loaded.params, random_params(INFO[preset], seed))


@pytest.mark.torch
def test_arguments_that_cannot_be_read(tmp_path):
  torch = pytest.importorskip("torch")
  names = convert.revert(PARAMS["r2"], TABLES["r2"])
  value = {
    "teacher": {k: torch.from_numpy(np.array(v)) for k, v in names.items()}
  }
  value["args"] = argparse.Namespace(folder=tmp_path)
  torch.save(value, tmp_path / "m.pth")
  with pytest.raises(UserError, match=r"wants to use 'pathlib.*PosixPath'"):
    load.load(tmp_path / "m.pth", options())


# Our own formats.


@pytest.mark.parametrize("preset", TABLES)
def test_a_folder(preset, tmp_path):
  how = {"drop_perc": 0.4}
  objective = INFO[preset].objective | {"task_kw": how}
  info = dataclasses.replace(INFO[preset], objective=objective)
  model_info.save_model(tmp_path / "model", info, PARAMS[preset])
  loaded = load.load(tmp_path / "model")
  assert loaded.info.objective["preset"] == preset
  assert loaded.info.objective["task_kw"] == how
  same(loaded.params, PARAMS[preset])
  with pytest.raises(UserError, match="one network, not a student"):
    load.load(tmp_path / "model", load.Options(network="student"))


def save_run(run, preset="r2"):
  """A work directory with one checkpoint of two networks."""
  saved = checkpoint.Checkpoints(run)
  state = step.TrainState(
    step=np.int32(3),
    params=STUDENTS[preset],
    opt_state=optax.sgd(1.0).init(STUDENTS[preset]),
    task_state={"teacher": PARAMS[preset], "center_cls": np.zeros(12)},
  )
  saved.save(state, {})
  saved.wait()
  saved.close()
  (run / "model.json").write_text(json.dumps(INFO[preset].to_json()))


def test_a_run_has_both_networks(tmp_path):
  run = tmp_path / "run"
  save_run(run)
  for network, params in (
    ("teacher", PARAMS["r2"]),
    ("student", STUDENTS["r2"]),
  ):
    loaded = load.load(run, options(network=network))
    same(loaded.params, params)
    assert loaded.info.origin.endswith(f"step 3, {network}")
  assert load.load(run).info.origin.endswith("teacher")


@pytest.mark.parametrize(
  ("preset", "network"),
  [
    ("r1", "teacher"),
    ("r2", "student"),
    pytest.param("r1", "student", marks=pytest.mark.rare),
    pytest.param("r2", "teacher", marks=pytest.mark.rare),
  ],
)
def test_official_names(preset, network, tmp_path, capsys):
  params = PARAMS[preset]
  if network == "student":
    params = STUDENTS[preset]
    save_run(tmp_path / "m", preset)
  else:
    model_info.save_model(tmp_path / "m", INFO[preset], params)
  out = tmp_path / "o.safetensors"
  flags = ["--format=official", f"--network={network}"]
  assert command(tmp_path / "m", out, *flags) == 0
  names = load_file(out)
  assert all(k.startswith(STARTS[network]) for k in names)
  save_file(names, tmp_path / "bare.safetensors")
  for path, own in (
    (out, load.Options(network=network)),
    (tmp_path / "bare.safetensors", options(network=network)),
  ):
    loaded = load.load(path, own)
    assert loaded.info.model == BACKBONE
    assert loaded.info.objective["preset"] == preset
    same(loaded.params, params)


def test_official_names_of_a_fine_tuned_one(tmp_path, capsys):
  info = tuned()
  params = random_params(info, grid=(4, 7))
  model_info.save_model(tmp_path / "m", info, params)
  out = tmp_path / "o.safetensors"
  assert command(tmp_path / "m", out, "--format=official") == 0
  loaded = load.load(out)
  assert loaded.kind == "fine-tuned ASiT" and loaded.info.head == info.head
  same(loaded.params, params)


STATE_DICTS = {
  p.stem: json.loads(p.read_text())
  for p in sorted(HERE.glob("state_dicts/asit_*_base_*.json"))
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STATE_DICTS)
@pytest.mark.rare
def test_the_released_sizes_come_back_bit_by_bit(name, tmp_path):
  """Official, ours, official; without any flag."""
  weights = Fixture.seeded.seeded_state_dict(STATE_DICTS[name], 0)
  for key in [k for k in weights if k.endswith("weight_g") and "r1" in name]:
    weights[key] = np.ones_like(weights[key])
  source = tmp_path / "a.safetensors"
  save_file({f"teacher.{k}": v for k, v in weights.items()}, source)
  assert command(source, tmp_path / "ours") == 0
  info, flat = model_info.read_model(tmp_path / "ours")
  preset = name.split("_")[1]
  assert info.objective == {"name": "asit", "preset": preset}
  assert flat[convert.GRID].shape == (8, 37, 768)
  assert FrontEnd.from_recipe(info.recipe).num_frames == 592
  out = tmp_path / "b.safetensors"
  assert command(tmp_path / "ours", out, "--format=official") == 0
  back = load_file(out)
  assert len(back) == len(weights)
  for key, want in weights.items():
    array = back[f"teacher.{key}"]
    assert (array.dtype, array.shape) == (want.dtype, want.shape)
    np.testing.assert_array_equal(array, want)


# Beginnings.


def started(given=None, *, info, grid, source, params, folder):
  """The start of a model like `info` from a saved one: (params, report)."""
  model_info.save_model(folder / "source", source, params)
  return _started(folder / "source", given, info=info, grid=grid)


def _started(path, given, *, info, grid):
  init = jax.jit(partial(info.init_params, grid))
  return load.start(
    load.load(path, given),
    init(jax.random.key(0)),
    backbone=info.backbone(),
    head=info.head,
    objective=info.objective,
    options=given,
  )


def test_fine_tuning_starts(tmp_path):
  out, report = started(
    info=tuned(),
    grid=(4, 7),
    source=INFO["r2"],
    params=PARAMS["r2"],
    folder=tmp_path,
  )
  assert out.keys() == {"backbone", "head"}
  parts = {k.split("/")[0] for k in report.dropped}
  assert parts == {"projection", "reconstruction"}
  assert {k.split("/")[0] for k in report.fresh} == {"head"}
  assert not report.notes  # its class token has learned something
  old = PARAMS["r2"]["backbone"]
  for name in ("cls_token", "patch_embed", "encoder"):
    jax.tree.map(
      np.testing.assert_array_equal, out["backbone"][name], old[name]
    )
  np.testing.assert_array_equal(
    out["backbone"]["pos_embed"]["prefix"], old["pos_embed"]["prefix"]
  )
  assert report.changed == {
    convert.GRID: "positions, 3 x 4 -> 4 x 7 (bilinear)"
  }


def wave_grid():
  """[F', T', 1] of the numbers that are known of the original's rules."""
  t, f = np.meshgrid(np.arange(37), np.arange(8), indexing="ij")
  return np.sin(0.05 * (8 * t + f) + 0.2).T[..., None].astype(np.float32)


def near(values, *expected):
  np.testing.assert_allclose(values, expected, rtol=0, atol=2e-6)


def test_golden_positions_of_a_fine_tuning():
  out = adapt.resize_grid(wave_grid(), (12, 101))[..., 0].T  # [T', F']
  near(
    [out[0, 0], out[1, 1], out[50, 6], out[100, 11], out.mean()],
    *(0.198669, 0.240951, 0.965625, 0.687444, 0.116711),
  )
  speech = adapt.resize_grid(wave_grid(), (12, 12))[..., 0].T
  near([speech[0, 0], speech[11, 11]], -0.958924, -0.319519)


@pytest.mark.parametrize("shape", [(12, 101), (12, 50), (12, 12), (6, 101)])
def test_frequency_or_time_first_is_the_same(shape):
  grid = np.random.default_rng(0).standard_normal((8, 37, 5))
  grid = grid.astype(np.float32)
  other = adapt.resize_grid(adapt.resize_grid(grid, (shape[0], 37)), shape)
  np.testing.assert_allclose(
    adapt.resize_grid(grid, shape), other, rtol=0, atol=1e-6
  )


def test_golden_positions_of_a_pre_training():
  out = adapt.resize_bicubic(wave_grid(), (8, 12))[..., 0].T
  near(
    [out[0, 0], out[1, 3], out[-1, -1], out.mean()],
    *(0.583968, 0.904532, 0.925369, 0.121947),
  )
  out = adapt.resize_bicubic(wave_grid(), (8, 62))[..., 0].T
  near(
    [out[0, 0], out[1, 3], out[-1, -1], out.mean()],
    *(0.163395, 0.456139, 0.665416, 0.116999),
  )
  out = adapt.resize_bicubic(wave_grid(), (8, 64))[..., 0].T
  near([out[0, 0], out.mean()], 0.162621, 0.116972)
  grid = wave_grid()
  np.testing.assert_array_equal(adapt.resize_bicubic(grid, (8, 37)), grid)


def test_pre_training_goes_on(tmp_path):
  """All is taken as it is; at another length positions are bicubic."""
  given = {"source": INFO["r2"], "params": PARAMS["r2"]}
  out, report = started(info=INFO["r2"], grid=GRID, folder=tmp_path, **given)
  same(convert.flatten(out), PARAMS["r2"])
  assert not report.dropped and not report.fresh and not report.changed
  out, report = started(
    info=INFO["r2"], grid=(3, 2), folder=tmp_path / "shorter", **given
  )
  assert report.changed == {convert.GRID: "positions, 3 x 4 -> 3 x 2 (bicubic)"}
  np.testing.assert_array_equal(
    out["backbone"]["pos_embed"]["grid"],
    adapt.resize_bicubic(PARAMS["r2"]["backbone"]["pos_embed"]["grid"], (3, 2)),
  )


def test_one_release_does_not_go_on_as_the_other(tmp_path):
  with pytest.raises(UserError, match=r"projection/cls/weight_v is not in the"):
    started(
      info=INFO["r2"],
      grid=GRID,
      source=INFO["r1"],
      params=PARAMS["r1"],
      folder=tmp_path,
    )


def image_names():
  """A plain vision transformer on 14 x 14 patches of images, named by timm."""
  info = ModelInfo(model=BACKBONE)
  params = random_params(info, 2, grid=(14, 14))
  names = convert.revert(params, tables.TIMM_VIT)
  rng = np.random.default_rng(3)
  kernel = rng.standard_normal((32, 3, 16, 16)).astype(np.float32)
  return names | {"patch_embed.proj.weight": kernel}


def from_images(tmp_path):
  """Names of the official ASiT that starts from it, and the report."""
  save_file(image_names(), tmp_path / "vit.safetensors")
  info = dataclasses.replace(INFO["r2"], model=BACKBONE)
  out, report = _started(
    tmp_path / "vit.safetensors",
    options(rows="time"),
    info=info,
    grid=(8, 37),
  )
  return convert.revert(out, TABLES["r2"]), report


def test_pre_training_starts_from_images(tmp_path):
  """Rows of an image become time, as the file of an ASiT has it."""
  source = image_names()
  out, report = from_images(tmp_path)
  np.testing.assert_allclose(
    out["backbone.patch_embed.proj.weight"],
    source["patch_embed.proj.weight"].sum(axis=1, keepdims=True),
    atol=1e-6,
  )
  pos = out["backbone.pos_embed"]
  np.testing.assert_array_equal(pos[:, :1], source["pos_embed"][:, :1])
  np.testing.assert_array_equal(out["backbone.cls_token"], source["cls_token"])
  # Both axes are resized as the middle ones of a grid that only knows one.
  square = source["pos_embed"][0, 1:].reshape(14, 14, 32)
  expected = adapt.resize_bicubic(square, (37, 8)).reshape(1, 296, 32)
  np.testing.assert_allclose(pos[:, 1:], expected, atol=1e-6)
  assert "14 x 14 -> 8 x 37 (bicubic)" in report.changed[convert.GRID]
  assert {k.split("/")[0] for k in report.fresh} == {
    "projection",
    "reconstruction",
  }


@pytest.mark.torch
def test_pre_training_from_images_beside_torch(tmp_path):
  torch = pytest.importorskip("torch")
  square = torch.from_numpy(image_names()["pos_embed"][0, 1:])
  square = square.reshape(1, 14, 14, 32).permute(0, 3, 1, 2)
  expected = torch.nn.functional.interpolate(
    square, size=(37, 8), mode="bicubic", align_corners=False
  )
  expected = expected.permute(0, 2, 3, 1).reshape(1, 296, 32)
  out, _ = from_images(tmp_path)
  np.testing.assert_allclose(
    out["backbone.pos_embed"][:, 1:], expected.numpy(), atol=1e-5
  )


def test_images_for_a_classifier_have_ast_s_rule(tmp_path):
  save_file(image_names(), tmp_path / "vit.safetensors")
  _, report = _started(
    tmp_path / "vit.safetensors",
    options(rows="time"),
    info=tuned(),
    grid=(12, 50),
  )
  assert "14 x 14 -> 12 x 50 (bilinear)" in report.changed[convert.GRID]


def test_a_classifier_by_command(tmp_path, capsys):
  source = official(tmp_path)
  flags = ["--num_classes=3", "--num_heads=2", "--source_mel_bins=48"]
  args = [*flags, "--input=48x128", "--stride=10x10"]
  assert command(source, tmp_path / "out", *args) == 0
  said = capsys.readouterr().out
  assert "dropped (of the pre-training): " in said and "fresh: head" in said
  info = load.load(tmp_path / "out").info
  assert not info.objective and info.head == Head(num_classes=3)
  front_end = FrontEnd.from_recipe(info.recipe)
  assert front_end.num_frames == 128 and front_end.padding == "waveform"
  student = [*args, "--network=student"]
  assert command(source, tmp_path / "student", *student) == 2
  assert "network='teacher' is there" in capsys.readouterr().err


def test_embeddings_need_no_fine_tuning(tmp_path):
  """The clip's is the class token's."""
  path = official(tmp_path)
  model = astjax.load(path, options=options())
  sound = np.random.default_rng(0).standard_normal(10_000) * 0.1
  found = model.embed(sound.astype(np.float32), 16_000, whole=False)
  assert found.clip.shape == (32,) and np.isfinite(found.clip).all()
  with pytest.raises(UserError, match="no classifier"):
    model.predict(sound.astype(np.float32), 16_000)
