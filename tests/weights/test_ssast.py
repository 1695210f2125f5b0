"""SSAST's pre-training: its files in and out, and the start from them."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

import astjax
from astjax import models
from astjax.engine import step
from astjax.errors import UserError
from astjax.models.heads import Head
from astjax.run import checkpoint
from astjax.tools import convert_weights
from astjax.weights import (
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
from tests.weights.common import converted
from tests.weights.test_info import same

pytestmark = pytest.mark.usefixtures("one_device")

HEADS = ["discriminative", "generative"]
GRIDS = {(16, 16): (3, 4), (128, 2): (1, 8)}
NAMES = {
  "mask_embed": (1, 1, 32),
  "cpredlayer.0.weight": (32, 32),
  "cpredlayer.2.bias": (256,),
  "gpredlayer.0.bias": (32,),
  "gpredlayer.2.weight": (256, 32),
}


def info_of(patch=(16, 16), heads=tuple(HEADS)):
  return ModelInfo(
    model={
      "width": 32,
      "depth": 2,
      "num_heads": 2,
      "mlp_dim": 64,
      "patch_size": patch,
      "stride": patch,
      "prefix": ("cls", "dist"),
      "layer_norm_eps": 1e-6,
    },
    objective={"name": "ssast", "heads": list(heads)},
  )


def random_params(info, seed=0):
  grid = GRIDS[tuple(info.model["patch_size"])]
  rng = np.random.default_rng(seed)
  draw = lambda x: rng.standard_normal(x.shape).astype(np.float32)
  return jax.tree.map(draw, info.expected_params(grid))


INFO = info_of()
PARAMS = random_params(INFO)
FRAME = info_of((128, 2))


def official(folder, *, info=INFO, params=PARAMS, size=None, change=None):
  """A file as its authors write it, without metadata."""
  names = convert.revert(params, tables.SSAST_PTH)
  names |= {"v.head.weight": np.zeros((5, 32)), "v.head.bias": np.zeros(5)}
  if size:
    keys = ("p_input_fdim", "p_input_tdim")
    names |= {k: np.array(n) for k, n in zip(keys, size, strict=True)}
  if change:
    change(names)
  save_file(
    {f"module.{k}": v for k, v in names.items()}, folder / "m.safetensors"
  )
  return folder / "m.safetensors"


def options(**kwargs):
  return load.Options(**{"num_heads": 2, **kwargs})


def command(*args):
  return convert_weights.main([str(a) for a in args])


# What a file is.


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_the_table_both_ways(wrapper):
  names = convert.revert(
    {**PARAMS, convert.INPUT_SIZE: np.array([48, 64])}, tables.SSAST_PTH
  )
  for name, shape in NAMES.items():
    assert names[name].shape == shape
  assert names["p_input_tdim"].shape == () and names["p_input_tdim"] == 64
  assert names["p_input_fdim"].dtype == np.int64
  kernel = PARAMS["generative"]["fc2"]["kernel"]
  np.testing.assert_array_equal(names["gpredlayer.2.weight"], kernel.T)
  found = tables.recognise({wrapper + k: v for k, v in names.items()})
  assert found.kind == "official SSAST" and found.table is tables.SSAST_PTH
  expected = INFO.expected_params(GRIDS[16, 16])
  back = converted(found.names, found.table, expected)
  same(convert.flatten(back), PARAMS)


@pytest.mark.parametrize(
  ("size", "given"),
  [
    ((48, 64), {}),
    ((63, 79), {}),  # the original, too, leaves a remainder out
    (None, {"num_mel_bins": 48}),
    (None, {"grid": (3, 4), "stride": (16, 16)}),
    ((48, 64), {"stride": [16, 16]}),
  ],
)
def test_the_grid_of_patches(size, given, tmp_path):
  loaded = load.load(official(tmp_path, size=size), options(**given))
  assert loaded.kind == "official SSAST"
  assert loaded.info.model == INFO.model
  assert loaded.info.objective == INFO.objective
  assert loaded.info.head is None and not loaded.is_image
  same(loaded.params, PARAMS)
  assert sorted(loaded.dropped) == ["v.head.bias", "v.head.weight"]
  assert "patches do not overlap" in loaded.notes[0]


@pytest.mark.parametrize("size", [(128, 16), None])
def test_the_grid_of_frames(size, tmp_path):
  params = random_params(FRAME)
  path = official(tmp_path, info=FRAME, params=params, size=size)
  loaded = load.load(path, options())
  assert loaded.info.model == FRAME.model
  same(loaded.params, params)


@pytest.mark.parametrize("head", HEADS)
def test_one_objective_alone(head, tmp_path):
  info = info_of(heads=(head,))
  params = random_params(info)
  loaded = load.load(
    official(tmp_path, params=params, size=(48, 64)), options()
  )
  assert loaded.info.objective == info.objective
  same(loaded.params, params)


def test_a_fine_tuned_frame_model_without_its_stride(tmp_path):
  """The original's scripts move frames one by one."""
  info = tuned((128, 1), FRAME)
  shapes = info.expected_params((1, 5))
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  names = convert.revert(params, tables.AST_PTH)
  save_file(names, tmp_path / "m.safetensors")
  loaded = load.load(tmp_path / "m.safetensors", options())
  assert loaded.info.model == info.model and not loaded.info.objective
  assert loaded.params[convert.GRID].shape[:2] == (1, 5)
  assert "128 x 1 (assumed)" in loaded.notes[0]


def put(name, value):
  return lambda names: names.update({name: value})


def drop(*starts):
  def change(names):
    for name in [n for n in names if n.startswith(starts)]:
      del names[name]

  return change


@pytest.mark.parametrize(
  ("change", "given", "told"),
  [
    (put("p_input_fdim", np.array(0)), {}, "expected whole numbers above 0"),
    (put("p_input_fdim", np.array(32.0)), {}, "expected whole numbers above 0"),
    (put("p_input_fdim", np.ones(3, int)), {}, "expected whole numbers above"),
    (drop("p_input_tdim"), {}, "- p_input_tdim is not in the file"),
    (put("p_input_tdim", np.array(96)), {}, r"14 positions, expected 2"),
    (
      put("p_input_tdim", np.array(8)),
      {},
      "a patch of 16 mel bins",
    ),
    (drop("p_input"), {}, "are no grid of 8 rows"),
    (drop("gpredlayer.2.b"), {}, r"- generative/fc2/bias \(gpredlayer.2.bias"),
    (drop("cpred", "gpred"), {}, r"- discriminative/fc1/kernel \(cpredlayer.0"),
    (drop("mask_embed"), {}, "cpredlayer.0.weight meets no rule"),
    (put("mlp_head.1.bias", np.zeros(3)), {}, "mlp_head.1.bias meets no rule"),
    (
      put("mask_embed", np.zeros((1, 1, 9))),
      {},
      r"mask_token \(mask_embed\) is \(9,\) in the file, \(32,\) in the model",
    ),
    (None, {"stride": (10, 10)}, "the stride is 16 x 16, not 10 x 10"),
    (None, {"grid": (4, 3)}, "of a grid of 3 x 4, not 4 x 3"),
  ],
)
def test_a_file_that_does_not_fit(change, given, told, tmp_path):
  path = official(tmp_path, size=(48, 64), change=change)
  with pytest.raises(UserError, match=told) as e:
    load.load(path, options(**given))
  assert "\n" not in str(e.value)


def test_overlapping_patches_are_refused():
  model = INFO.model | {"stride": (10, 10)}
  with pytest.raises(UserError, match="stride must be the patch_size"):
    dataclasses.replace(INFO, model=model).module()


@pytest.mark.parametrize("says_its_size", [True, False])
def test_a_published_file(says_its_size):
  """Its name tells what it has heard."""
  size = {"p_input_fdim": np.array(128), "p_input_tdim": np.array(1024)}
  info = dataclasses.replace(FRAME, model=FRAME.model | {"width": 64})
  shapes = info.expected_params((1, 512))
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  names = convert.revert(params, tables.SSAST_PTH)
  names |= size if says_its_size else {}
  known = registry.of_file("SSAST-Tiny-Frame-400.pth")
  found = identify(
    names,
    load.Options(),
    digest="",
    file_name=known.file_name,
    known=known,
  )
  assert found.info.model["num_heads"] == 1
  assert found.params[convert.GRID].shape == (1, 512, 64)
  front_end = FrontEnd.from_recipe(found.info.recipe)
  assert (front_end.num_mel_bins, front_end.num_frames) == (128, 1024)
  assert front_end.statistics == registry.AUDIOSET_STATISTICS


@pytest.mark.torch
@pytest.mark.parametrize("container", ["zip", "stream"])
def test_a_file_of_torch(container, tmp_path):
  """Written by a module in DataParallel: its size is two parameters."""
  torch = pytest.importorskip("torch")
  names = load_file(official(tmp_path, size=(48, 64)))
  tensors = {
    k: torch.nn.Parameter(torch.from_numpy(v), requires_grad=v.ndim > 0)
    for k, v in names.items()
  }
  assert tensors["module.p_input_fdim"].shape == ()
  path = tmp_path / "m.pth"
  torch.save(tensors, path, _use_new_zipfile_serialization=container == "zip")
  loaded = load.load(path, options())
  assert loaded.info.objective == INFO.objective
  same(loaded.params, PARAMS)


# Our own formats.


@pytest.mark.parametrize("heads", [HEADS, HEADS[:1], HEADS[1:]])
def test_a_folder_and_a_run(heads, tmp_path):
  info = info_of(heads=heads)
  params = random_params(info)
  model_info.save_model(tmp_path / "model", info, params)
  loaded = load.load(tmp_path / "model")
  assert loaded.info == info
  same(loaded.params, params)

  run = tmp_path / "run"
  saved = checkpoint.Checkpoints(run)
  state = step.TrainState(
    step=np.int32(3),
    params=params,
    opt_state=optax.sgd(1.0).init(params),
    task_state={},
  )
  saved.save(state, {})
  saved.wait()
  saved.close()
  (run / "model.json").write_text(json.dumps(info.to_json()))
  loaded = load.load(run)
  assert loaded.info.objective == info.objective
  same(loaded.params, params)


def test_a_folder_of_another_objective(tmp_path):
  model_info.save_model(tmp_path / "model", info_of(heads=HEADS[:1]), PARAMS)
  with pytest.raises(UserError, match=r"\+ generative/fc1/bias is not in the"):
    load.load(tmp_path / "model")


def test_official_names(tmp_path, capsys):
  model_info.save_model(tmp_path / "m", INFO, PARAMS)
  out = tmp_path / "o.safetensors"
  assert command(tmp_path / "m", out, "--format=official") == 0
  names = load_file(out)
  assert all(k.startswith("module.") for k in names)
  size = [names[f"module.p_input_{k}dim"] for k in "ft"]
  assert [(n.shape, n.dtype, n.item()) for n in size] == [
    ((), np.int64, 48),
    ((), np.int64, 64),
  ]
  save_file(names, tmp_path / "bare.safetensors")
  for path, own in ((out, None), (tmp_path / "bare.safetensors", options())):
    loaded = load.load(path, own)
    assert loaded.info.model == INFO.model
    assert loaded.info.objective == INFO.objective
    same(loaded.params, PARAMS)


def test_official_names_of_one_objective(tmp_path, capsys):
  info = info_of(heads=HEADS[1:])
  params = random_params(info)
  model_info.save_model(tmp_path / "m", info, params)
  out = tmp_path / "o.safetensors"
  assert command(tmp_path / "m", out, "--format=official") == 0
  same(load.load(out).params, params)


def test_hugging_face_has_no_such_model(tmp_path, capsys):
  model_info.save_model(tmp_path / "m", INFO, PARAMS)
  assert command(tmp_path / "m", tmp_path / "hf", "--format=hf") == 2
  told = capsys.readouterr().err.strip()
  assert told == (
    "astjax: error: the model has no classifier, Hugging Face's AST has one"
  )
  assert not (tmp_path / "hf").exists()


def small(shapes):
  """The names of tiny at the width of small."""
  wider = {192: 384, 576: 1152, 768: 1536}
  return {k: [wider.get(n, n) for n in s] for k, s in shapes.items()}


STATE_DICTS = {
  p.stem: json.loads(p.read_text())
  for p in sorted(HERE.glob("state_dicts/ssast_*.json"))
}
STATE_DICTS |= {
  name.replace("tiny", "small"): small(shapes)
  for name, shapes in STATE_DICTS.items()
  if "tiny" in name
}


@pytest.mark.slow
@pytest.mark.rare
@pytest.mark.parametrize("name", STATE_DICTS)
def test_every_size_comes_back_bit_by_bit(name, tmp_path):
  """Official, ours, official: all but ImageNet's unused classifiers."""
  shapes = STATE_DICTS[name]
  assert len(shapes) == 166
  weights = Fixture.seeded.seeded_state_dict(shapes, 0)
  patch = weights["v.patch_embed.proj.weight"].shape[2:]
  count = weights["v.pos_embed"].shape[1] - 2
  weights["p_input_fdim"] = np.array(128)
  weights["p_input_tdim"] = np.array(count // (128 // patch[0]) * patch[1])
  assert weights.keys() == shapes.keys()
  source = tmp_path / "a.safetensors"
  save_file({f"module.{k}": v for k, v in weights.items()}, source)
  assert command(source, tmp_path / "ours") == 0
  out = tmp_path / "b.safetensors"
  assert command(tmp_path / "ours", out, "--format=official") == 0
  back = load_file(out)
  assert len(back) == len(weights) - 4
  for key, array in back.items():
    want = weights[key.removeprefix("module.")]
    assert (array.dtype, array.shape) == (want.dtype, want.shape)
    np.testing.assert_array_equal(array, want)
  ours = load_file(tmp_path / "ours" / "params.safetensors")
  again = load.load(out).params
  assert ours.keys() == again.keys()
  for path, array in ours.items():
    np.testing.assert_array_equal(array, again[path])


# Beginnings.


def started(given=None, *, info, grid, source=INFO, params=PARAMS, folder):
  """The start of a model like `info` from a saved one: (params, report)."""
  model_info.save_model(folder / "source", source, params)
  init = jax.jit(partial(info.init_params, grid))
  return load.start(
    load.load(folder / "source"),
    init(jax.random.key(0)),
    backbone=info.backbone(),
    head=info.head,
    objective=info.objective,
    options=given,
  )


def tuned(stride=(10, 10), source=INFO):
  return dataclasses.replace(
    source,
    model=source.model | {"stride": stride},
    head=Head(num_classes=3, pooling="tokens"),
    objective={},
  )


def test_fine_tuning_starts(tmp_path):
  out, report = started(info=tuned(), grid=(3, 6), folder=tmp_path)
  assert out.keys() == {"backbone", "head"}
  assert {k.split("/")[0] for k in report.dropped} == {"mask_token", *HEADS}
  assert {*report.dropped.values()} == {"of the pre-training"}
  assert {k.split("/")[0] for k in report.fresh} == {"head"}
  # Whatever the stride is.
  np.testing.assert_array_equal(
    out["backbone"]["patch_embed"]["kernel"],
    PARAMS["backbone"]["patch_embed"]["kernel"],
  )
  # Three rows pass through eight, which changes them.
  assert "(ssast)" in report.changed[convert.GRID]
  _, report = started(
    options(positions="corrected"),
    info=tuned(),
    grid=(3, 6),
    folder=tmp_path / "corrected",
  )
  assert report.changed[convert.GRID] == (
    "positions, 3 x 4 -> 3 x 6 (bilinear)"
  )


def test_what_the_original_cannot_do_is_told(tmp_path):
  told = r"3 x 4 patches to 1 x 3 .* gives 2 rows; positions='corrected' can"
  with pytest.raises(UserError, match=told):
    started(info=tuned(), grid=(1, 3), folder=tmp_path)
  given = options(positions="corrected")
  out, _ = started(given, info=tuned(), grid=(1, 3), folder=tmp_path / "c")
  grid = PARAMS["backbone"]["pos_embed"]["grid"]
  np.testing.assert_array_equal(
    out["backbone"]["pos_embed"]["grid"], grid[1:2, 1:]
  )


def test_pre_training_goes_on(tmp_path):
  """All is taken as it is, and positions only change with the grid."""
  out, report = started(info=INFO, grid=(3, 4), folder=tmp_path)
  same(convert.flatten(out), PARAMS)
  assert not report.dropped and not report.fresh and not report.changed
  _, report = started(info=INFO, grid=(3, 5), folder=tmp_path / "longer")
  assert report.changed == {
    convert.GRID: "positions, 3 x 4 -> 3 x 5 (bilinear)"
  }


def test_pre_training_of_a_model_without_it(tmp_path):
  """From a fine-tuned model: its classifier goes, the parts are fresh."""
  source = tuned((16, 16))
  fresh = source.init_params((3, 4), jax.random.key(1))
  out, report = started(
    info=INFO, grid=(3, 4), source=source, params=fresh, folder=tmp_path
  )
  assert out.keys() == PARAMS.keys()
  assert {k.split("/")[0] for k in report.fresh} == {"mask_token", *HEADS}
  assert {k.split("/")[0] for k in report.dropped} == {"head"}


def test_a_classifier_by_command(tmp_path, capsys):
  model_info.save_model(tmp_path / "m", INFO, PARAMS)
  args = ["--num_classes=3", "--input=48x96", "--stride=10x10"]
  assert command(tmp_path / "m", tmp_path / "out", *args) == 0
  said = capsys.readouterr().out
  assert "dropped (of the pre-training): " in said and "fresh: head" in said
  info = load.load(tmp_path / "out").info
  assert not info.objective and info.head == Head(
    num_classes=3, pooling="tokens"
  )
  cut = ["--num_classes=3", "--input=16x48"]
  assert command(tmp_path / "m", tmp_path / "cut", *cut) == 2
  assert "positions='corrected' can" in capsys.readouterr().err
  cut.append("--positions=corrected")
  assert command(tmp_path / "m", tmp_path / "cut", *cut) == 0
  assert command(tmp_path / "m", tmp_path / "o", *args[1:]) == 2
  assert "may not overlap" in capsys.readouterr().err


def test_embeddings_need_no_fine_tuning(tmp_path):
  recipe = FrontEnd(16_000, 64, 48, (-4.0, 4.5)).recipe()
  model_info.save_model(
    tmp_path / "m", dataclasses.replace(INFO, recipe=recipe), PARAMS
  )
  model = astjax.load(tmp_path / "m")
  sound = np.random.default_rng(0).standard_normal(10_000) * 0.1
  assert model.embed(sound.astype(np.float32), 16_000).clip.shape == (32,)
  with pytest.raises(UserError, match="no classifier"):
    model.predict(sound.astype(np.float32), 16_000)


def test_an_objective_that_this_process_does_not_know(tmp_path, monkeypatch):
  """A user's own gives its backbone to a fine-tuning, as strictly as ever."""
  model_info.save_model(tmp_path / "m", INFO, PARAMS)
  monkeypatch.delitem(models.OBJECTIVES, "ssast")
  loaded = load.load(tmp_path / "m")
  assert loaded.info.objective == {}
  assert loaded.dropped and "mask_token" in loaded.dropped
  assert all(path.startswith("backbone/") for path in loaded.params)
  assert "'ssast' is not known here" in loaded.notes[0]
  fresh = {"backbone": PARAMS["backbone"]}
  params, report = load.start(loaded, fresh, backbone=INFO.backbone())
  assert params.keys() == {"backbone"} and not report.fresh
  arrays = load_file(tmp_path / "m" / "params.safetensors")
  del arrays["backbone/encoder/norm/scale"]
  save_file(arrays, tmp_path / "m" / "params.safetensors")
  with pytest.raises(UserError, match="- backbone/encoder/norm/scale is not"):
    load.load(tmp_path / "m")
