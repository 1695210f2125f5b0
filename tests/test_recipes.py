"""The papers' recipes end to end, on small sets in the published layouts.

The model is tiny and starts from a tiny checkpoint of ten seconds; everything
else is as in the config: layouts, front-ends, draws, mixing, schedules, folds,
averages, the choice of the best.
"""

import importlib

import jax
import numpy as np
import pytest

import astjax
from astjax import saved_model, sharding, train
from astjax.weights import model_info
from tests.test_configs import make_data

RECIPES = [
  ("ast_audioset", "full"),
  ("ast_audioset", "balanced"),
  ("ast_esc50", "audioset"),
  ("ast_speechcommands", ""),
]
SIZES = {"width": 16, "depth": 1, "num_heads": 1, "dtype": "float32"}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """A tiny AST of ten seconds, as the AudioSet model is."""
  info = model_info.ModelInfo(
    model={"width": 16, "depth": 1, "num_heads": 1},
    head=model_info.Head(num_classes=527),
  )
  params = jax.jit(
    lambda: saved_model.init_params(info, (12, 101), jax.random.key(0))
  )()
  folder = tmp_path_factory.mktemp("start") / "model"
  model_info.save(folder, info, params)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arg"), RECIPES)
def test_recipe(name, arg, start, tmp_path):
  module = importlib.import_module(f"configs.{name}")
  config = module.get_config(arg) if arg else module.get_config()
  make_data(name, tmp_path / "data")
  config.input.data_dir = str(tmp_path / "data")
  config.input.batch_size = 2
  for split in config.evals.values():
    split.batch_size = 2
  config.epochs = 2.0
  if "average" in config:
    config.average = {"first_epoch": 1, "last_epoch": 2}
  config.init_from = str(start)
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
  if name == "ast_speechcommands":  # tested once
    assert sum("test/accuracy" in x for x in history) == 1
  model = astjax.load(tmp_path / "run")
  sound = next((tmp_path / "data").rglob("*.wav"))
  scores = model.predict(sound).scores
  assert scores.shape == (len(model.info.class_names),)
  if name != "ast_audioset":
    assert model.info.head.scores == (
      "sigmoid" if name == "ast_speechcommands" else "softmax"
    )
