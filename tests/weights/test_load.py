"""A checkpoint from anywhere, and a model that starts from it."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from astjax.errors import UserError
from astjax.models import ast
from astjax.weights import convert, load, registry, tables
from astjax.weights import info as model_info
from tests.weights import google
from tests.weights.test_info import INFO, random_params

PARAMS = random_params()


def official(tmp_path, name="m.safetensors", change=None):
  tensors = {f"module.{k}": v for k, v in _names().items()}
  if change:
    change(tensors)
  save_file(tensors, tmp_path / name)
  return tmp_path / name


def _names():
  return convert.revert(PARAMS, tables.AST_PTH)


def options(**kwargs):
  return load.Options(num_heads=2, **kwargs)


def test_the_grid_of_a_bare_file_is_told(tmp_path):
  loaded = load.load(official(tmp_path), options(grid=(3, 3), stride=(10, 10)))
  assert loaded.kind == "official AST"
  assert loaded.info.model == INFO.model
  assert loaded.info.head.num_classes == 3
  assert loaded.params[convert.GRID].shape == (3, 3, 32)


@pytest.mark.parametrize(
  ("name", "mels", "stride", "grid"),
  [
    ("m.safetensors", 36, (10, 10), (3, 3)),
    ("audioset_12_10_0.5.safetensors", 40, (12, 10), (3, 3)),
    ("audioset_16_12_x.safetensors", 16, (16, 12), (1, 9)),
    ("model_2024_05.safetensors", 36, (10, 10), (3, 3)),
  ],
)
def test_the_grid_of_a_bare_file_follows(name, mels, stride, grid, tmp_path):
  """From the stride in its name, 10 by default, and the mel bins."""
  loaded = load.load(official(tmp_path, name), options(num_mel_bins=mels))
  assert loaded.info.model["stride"] == stride
  assert loaded.params[convert.GRID].shape[:2] == grid
  assert f"source grid {grid[0]} x {grid[1]}" in loaded.notes[0]


def test_a_published_name_is_known(tmp_path):
  path = official(tmp_path, "audioset_10_10_0.4593.safetensors")
  path = path.rename(tmp_path / "audioset_16_16_0.4422.pth")
  with pytest.raises(UserError, match=r"not a whole \.pth file"):
    load.load(path, options())


@pytest.mark.parametrize(
  ("given", "told"),
  [
    ({}, r"its 9 patch positions are no grid of 12 rows"),
    ({"grid": (2, 3)}, r"11 positions, expected 2 .* and 2 x 3"),
  ],
)
def test_a_grid_that_is_wrong(given, told, tmp_path):
  path = official(tmp_path)
  with pytest.raises(UserError, match=told):
    load.load(path, options(**given))


def test_heads_that_nobody_tells(tmp_path):
  with pytest.raises(UserError, match="width of 32 does not tell"):
    load.load(official(tmp_path), load.Options(grid=(3, 3)))


def drop(name):
  return lambda tensors: tensors.pop(name)


def put(name, array):
  return lambda tensors: tensors.update({name: array})


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (drop("module.v.blocks.1.norm2.bias"), r"- .*\(v.blocks.1.norm2.bias\) is"),
    (drop("module.v.pos_embed"), r"- backbone/pos_embed/sequence is not in"),
    (drop("module.v.norm.weight"), "- backbone/encoder/norm/scale is not in"),
    (drop("module.mlp_head.1.bias"), r"\+ head/linear/kernel"),
    (drop("module.v.cls_token"), "positions"),
    (put("module.v.what", np.zeros(3)), r"\+ v.what meets no rule"),
    (put("other.v.x", np.zeros(3)), "meets no rule"),
    (
      put("module.v.blocks.0.norm1.bias", np.zeros(9, np.float32)),
      r"\(v.blocks.0.norm1.bias\) is \(9,\) in the file, \(32,\) in the model",
    ),
    (put("module.v.norm.bias", np.full(32, np.nan)), "not finite"),
    (put("module.v.pos_embed", np.zeros((11, 32))), "expected positions"),
    (put("module.v.norm.weight", np.zeros((0,))), "in the file"),
  ],
)
def test_a_file_that_does_not_fit(change, told, tmp_path):
  path = official(tmp_path, change=change)
  with pytest.raises(UserError, match=told) as e:
    load.load(path, options(grid=(3, 3)))
  assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_names_of_another_model(tmp_path):
  save_file({"conv1.weight": np.zeros(3)}, tmp_path / "m.safetensors")
  with pytest.raises(UserError, match=r"no known model: conv1\.weight"):
    load.load(tmp_path / "m.safetensors")


def test_a_folder_without_a_model(tmp_path):
  with pytest.raises(UserError, match="neither a model of astjax"):
    load.load(tmp_path)


def test_a_folder_without_weights(tmp_path):
  config = {"model_type": "audio-spectrogram-transformer"}
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="has no weights"):
    load.load(tmp_path)


def test_a_run_without_a_checkpoint(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(UserError, match=r"cannot read .*model\.json"):
    load.load(tmp_path)


# The start of a model.


def fresh(model, grid=(3, 3)):
  backbone = ast.make_backbone(**model)
  cells = np.zeros((1, *grid, np.prod(backbone.patch_size)), np.float32)
  params = jax.jit(backbone.init)(jax.random.key(0), patches=cells)["params"]
  return backbone, {"backbone": params}


def test_from_google_to_audio(tmp_path):
  path = tmp_path / "vit.npz"
  np.savez(path, **google.state_dict("old", width=32, side=4))
  loaded = load.load(path, options())
  assert loaded.is_image and loaded.info.model["prefix"] == ("cls",)
  model = {**loaded.info.model, "stride": (10, 10), "prefix": ("cls", "dist")}
  backbone, params = fresh(model, (2, 7))
  out, report = load.start(loaded, params, backbone=backbone)
  assert report.fresh == ["backbone/dist_token"]
  assert out["backbone"]["pos_embed"]["grid"].shape == (2, 7, 32)
  # It runs.
  backbone.apply({"params": out["backbone"]}, np.zeros((1, 76, 26)))


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"width": 64}, r"has width 32, the model 64"),
    ({"depth": 3}, r"has depth 2, the model 3"),
    ({"num_heads": 4}, r"has num_heads 2, the model 4"),
    (
      {"patch_size": (16, 8)},
      r"has patch_size \(16, 16\), the model \(16, 8\)",
    ),
    ({"mlp_dim": 96}, r"fc1/bias is \(64,\) in the file, \(96,\) in the model"),
  ],
)
def test_a_model_of_another_size(change, told, tmp_path):
  loaded = load.load(official(tmp_path), options(grid=(3, 3)))
  backbone, params = fresh({**INFO.model, **change})
  with pytest.raises(UserError, match=told):
    load.start(loaded, params, backbone=backbone)


def test_another_epsilon_is_noted(tmp_path):
  loaded = load.load(official(tmp_path), options(grid=(3, 3)))
  backbone, params = fresh({**INFO.model, "layer_norm_eps": 1e-12})
  _, report = load.start(loaded, params, backbone=backbone)
  told = "its layer norms have epsilon 1e-06, the model's 1e-12"
  assert told in report.notes


def test_classes_have_to_be_the_same(tmp_path):
  model_info.save_model(tmp_path / "m", INFO, PARAMS)
  loaded = load.load(tmp_path / "m")
  backbone, _ = fresh(INFO.model)
  taken, report = load.start(
    loaded,
    PARAMS,
    backbone=backbone,
    head=INFO.head,
    class_names=INFO.class_names,
    options=options(fresh=()),
  )
  assert not report.fresh and "linear" in taken["head"]
  with pytest.raises(UserError, match="class 1 is 'cat', here 'cow'"):
    load.start(
      loaded,
      PARAMS,
      backbone=backbone,
      head=INFO.head,
      class_names=("dog", "cow", "Glocke, groß"),
      options=options(fresh=()),
    )
  other = dataclasses.replace(INFO.head, pooling="tokens")
  with pytest.raises(UserError, match="has pooling='prefix'"):
    load.start(
      loaded, PARAMS, backbone=backbone, head=other, options=options(fresh=())
    )


def test_only_images_are_turned(tmp_path):
  loaded = load.load(official(tmp_path), options(grid=(3, 3)))
  backbone, params = fresh(INFO.model)
  with pytest.raises(UserError, match="is for images"):
    load.start(loaded, params, backbone=backbone, options=options(rows="time"))


def test_positions_without_the_prefix_are_google_s_alone(tmp_path):
  path = official(
    tmp_path,
    change=put("module.v.pos_embed", np.zeros((1, 9, 32), np.float32)),
  )
  with pytest.raises(UserError, match="9 positions, expected 2"):
    load.load(path, options(grid=(3, 3)))


def test_names_beside_the_weights(tmp_path):
  """An optimiser's state is left out and told; anything else stops."""
  names = google.state_dict("old", width=32, side=4)
  names = {f"params/{k}": v for k, v in names.items()}
  np.savez(tmp_path / "a.npz", **names, **{"opt/mu": np.zeros(3)})
  assert "opt/mu" in load.load(tmp_path / "a.npz", options()).dropped
  np.savez(tmp_path / "b.npz", **names, **{"junk": np.zeros(3)})
  with pytest.raises(UserError, match="junk meets no rule"):
    load.load(tmp_path / "b.npz", options())


@pytest.mark.parametrize(
  ("source", "target", "kept"),
  [
    (("cls",), ("cls", "dist"), ("backbone/pos_embed/prefix", "head/.*")),
    (("cls", "dist"), ("cls",), ("backbone/.*_token", "head/.*")),
  ],
)
def test_tokens_that_stay_fresh(source, target, kept, tmp_path):
  info = dataclasses.replace(
    INFO, model=INFO.model | {"prefix": source}, recipe=""
  )
  model_info.save_model(tmp_path / "m", info, random_params(info))
  loaded = load.load(tmp_path / "m")
  backbone, params = fresh({**INFO.model, "prefix": target})
  out, _ = load.start(
    loaded, params, backbone=backbone, options=options(fresh=kept)
  )
  assert out["backbone"].keys() == params["backbone"].keys()


def test_a_config_that_names_a_variant(tmp_path):
  """Whatever way the sizes are written, they are known afterwards."""
  info = dataclasses.replace(
    INFO,
    model={"variant": "tiny224", "width": 32, "depth": 2, "num_heads": 2}
    | {"mlp_dim": 64},
  )
  model_info.save_model(tmp_path / "m", info, PARAMS)
  loaded = load.load(tmp_path / "m")
  assert loaded.info.model == INFO.model


def test_a_wrong_file_in_the_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("ASTJAX_CACHE", str(tmp_path))
  name = "deit_tiny_distilled_patch16_224"
  file = tmp_path / registry.CHECKPOINTS[name].file_name
  shutil.copy(
    pathlib.Path(__file__).parent.parent / "fixtures/pth/f32_zip.pth", file
  )
  with pytest.raises(UserError, match="is not the published file"):
    load.load(name)
  with pytest.raises(UserError, match="no known model"):
    load.load(file)  # a file of one's own may have any name
