"""The papers' recipes end to end, on small sets in the published layouts.

The model is tiny and starts from a tiny checkpoint of ten seconds, with the
patches of the published one; everything else is as in the config: layouts,
front-ends, draws, mixing, schedules, folds, averages, the choice of the best.
"""

import importlib

import jax
import numpy as np
import pytest

import astjax
from astjax import train
from astjax.engine import sharding
from astjax.models.heads import Head
from astjax.tools import reconstruct
from astjax.weights import info as model_info
from configs import asit_digits, ast_folder, ssast_folder
from tests.test_configs import make_data

RECIPES = [
  ("ast_esc50", "audioset"),
]
# Others of the same parts; `tests/test_configs.py` builds them all.
LIKEWISE = [
  ("asit_speechcommands", "v2"),
  ("ast_audioset", "full"),
  ("ast_audioset", "balanced"),
  ("ast_speechcommands", ""),
  ("ssast_audioset", ""),
  ("ssast_esc50", "patch"),
  ("ssast_esc50", "frame"),
  ("ssast_speechcommands", ""),
  ("ssast_superb", "ks"),
  ("ssast_superb", "er"),
  ("ssast_superb", "sid_patch"),
  ("asit_audioset", "balanced"),
  ("asit_esc50", ""),
  ("asit_speechcommands", "v1"),
  ("asit_voxceleb", ""),
]
RECIPES += [pytest.param(*which, marks=pytest.mark.rare) for which in LIKEWISE]
SIZES = {"width": 16, "depth": 1, "num_heads": 1, "dtype": "float32"}


# (patch size, stride, grid) of the published checkpoints.
STARTS = {
  "ast": ((16, 16), (10, 10), (12, 101)),
  "patch": ((16, 16), (16, 16), (8, 64)),
  "frame": ((128, 2), (128, 2), (1, 512)),
  "asit": ((16, 16), (16, 16), (8, 37)),
}
OBJECTIVES = {
  "ssast": {"name": "ssast"},
  "asit": {"name": "asit", "hidden": 8, "bottleneck": 4, "outputs": (8,)},
}


def start(name, config, folder):
  """A tiny model of ten or six seconds, as the published one is."""
  by = name.split("_")[0]
  kind = "frame" if config.model.patch_size[0] == 128 else "patch"
  kind = kind if by == "ssast" else by
  patch_size, stride, grid = STARTS[kind]
  info = model_info.ModelInfo(
    model={
      "width": 16,
      "depth": 1,
      "num_heads": 1,
      "patch_size": patch_size,
      "stride": stride,
      "prefix": ("cls",) if by == "asit" else ("cls", "dist"),
    },
    head=None if by in OBJECTIVES else Head(num_classes=527),
    objective=OBJECTIVES.get(by, {}),
  )
  params = jax.jit(lambda: info.init_params(grid, jax.random.key(0)))()
  model_info.save_model(folder, info, params)
  return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arg"), RECIPES)
def test_recipe(name, arg, tmp_path):
  module = importlib.import_module(f"configs.{name}")
  config = module.get_config(arg) if arg else module.get_config()
  make_data(name, tmp_path / "data", arg)
  config.input.data_dir = str(tmp_path / "data")
  config.input.batch_size = 2 * config.get("accumulate", 1)
  for split in config.evals.values():
    split.batch_size = 2
  config.epochs, config.steps = 2.0, 0
  if "average" in config:
    config.average = {"first_epoch": 1, "last_epoch": 2}
  config.init_from = start(name, config, tmp_path / "start")
  config.model.update(SIZES)
  mesh = sharding.make_mesh(jax.devices()[:1])
  history = train.train_and_evaluate(config, tmp_path / "run", mesh=mesh)
  names = {k for line in history for k in line}
  for split in config.evals:
    assert f"{split}/mAP" in names and f"{split}/accuracy" in names
  losses = [x["train/loss"] for x in history if "train/loss" in x]
  assert losses and np.isfinite(losses).all()
  if "average" in config:
    assert "val/average_mAP" in names and "val/ensemble_mAP" in names
    assert (tmp_path / "run" / "average" / "params.safetensors").is_file()
  if "test" in config.evals and config.evals.test.get("of_best"):
    assert sum("test/accuracy" in x for x in history) == 1
  model = astjax.load(tmp_path / "run")
  sound = next((tmp_path / "data").rglob("*.wav"))
  scores = model.predict(sound).scores
  assert scores.shape == (len(model.info.class_names),)
  is_softmax = config.task_kw.loss == "softmax_xent"
  assert model.info.head.scores == ("softmax" if is_softmax else "sigmoid")
  if name == "ssast_superb":
    num_classes = {"ks": 12, "sid": 2, "er": 4}[arg.split("_")[0]]
    assert len(model.info.class_names) == num_classes
    assert model.info.head.projection == 256
  if by_speech := {"v1": 12, "v2": 2}.get(arg):
    assert len(model.info.class_names) == by_speech
  if name.startswith("asit"):
    report = (tmp_path / "run" / "init_from.txt").read_text()
    assert "dropped (of the pre-training): projection" in report
    assert "adapted: backbone/pos_embed/grid: positions, 8 x " in report


@pytest.mark.slow
@pytest.mark.rare
def test_recordings_without_labels_then_with(tmp_path):
  """What `ssast_folder.py` says: pre-train, embed, fine-tune."""
  data = tmp_path / "data"
  make_data("ast_folder", data)
  mesh = sharding.make_mesh(jax.devices()[:1])

  def run(config, name):
    config.input.data_dir = str(data)
    config.input.batch_size = 2
    config.epochs, config.steps = 0.0, 2
    for split in config.evals.values():
      split.every_steps, split.every_epochs = 1, 0.0
    config.model.update(SIZES)
    return train.train_and_evaluate(config, tmp_path / name, mesh=mesh)

  history = run(ssast_folder.get_config(), "ssast")
  assert all(np.isfinite(x["train/loss"]) for x in history if "train/nce" in x)
  assert sum("val/accuracy" in x for x in history) == 2

  model = astjax.load(tmp_path / "ssast")
  sound = next(data.rglob("*.wav"))
  embedding = model.embed(sound)
  # The mean of the patch tokens: no prefix token has learned anything.
  assert model.info.head is None
  window = model.embed(np.zeros(80_240) + 0.1, 16_000)
  np.testing.assert_allclose(window.clip, window.frames.mean(0), atol=1e-5)
  assert embedding.clip.shape == window.clip.shape

  config = ast_folder.get_config()
  config.init_from = str(tmp_path / "ssast")
  config.task_kw.pooling = "tokens"
  history = run(config, "sounds")
  assert any("val/accuracy" in x for x in history)
  report = (tmp_path / "sounds" / "init_from.txt").read_text()
  assert "dropped (of the pre-training): discriminative/" in report
  assert astjax.load(tmp_path / "sounds").predict(sound).top(1)


@pytest.mark.slow
@pytest.mark.rare
def test_views_without_labels_then_with(tmp_path, capsys):
  """What `asit_digits.py` says: pre-train beside a probe, look, fine-tune."""
  data = tmp_path / "data"
  make_data("asit_digits", data)
  mesh = sharding.make_mesh(jax.devices()[:1])

  def run(stage, **how):
    config = asit_digits.get_config(stage)
    config.input.data_dir = str(data)
    config.input.batch_size = 4
    config.epochs, config.steps = 0.0, 2
    config.checkpoint = {"every_steps": 1, "keep": 1}
    for split in config.evals.values():
      split.every_steps, split.every_epochs = 1, 0.0
    config.model.update(SIZES)
    config.update(how)
    return train.train_and_evaluate(config, tmp_path / stage, mesh=mesh)

  history = run("pretrain")
  names = {k for line in history for k in line}
  assert {"train/cls_entropy", "test/spread", "knn/accuracy"} <= names
  assert sum("knn/accuracy" in x for x in history) == 2
  sound = next(data.rglob("*.wav"))
  assert astjax.load(tmp_path / "pretrain").embed(sound).clip.shape == (16,)
  picture = tmp_path / "x.png"
  args = [f"--model={tmp_path / 'pretrain'}", str(sound), f"--out={picture}"]
  assert reconstruct.main(args) == 0, capsys.readouterr().err
  assert picture.stat().st_size > 10_000

  history = run("few", init_from=str(tmp_path / "pretrain"))
  assert any("test/accuracy" in x for x in history)
  report = (tmp_path / "few" / "init_from.txt").read_text()
  assert "dropped (of the pre-training): projection" in report
  assert astjax.load(tmp_path / "few").predict(sound).top(1)
