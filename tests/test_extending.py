"""What docs/extending.md shows works, from outside of the package."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

import astjax
from astjax import models, tasks
from astjax.data import sources
from astjax.ops import frontend, host_ops, recipe, xp
from astjax.run import job
from astjax.weights import load
from tests import toy_mae
from tests.test_train import assert_same_bits, final_state, one_device, run
from tests.tiny import tiny_config, tiny_ssast

# Other tests see the tables as they are without it.
MAE = (tasks.TASKS.pop("mae"), models.OBJECTIVES.pop("mae"))
PAGE = pathlib.Path(__file__).parent.parent / "docs" / "extending.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def block(word):
  """What the page's block with this word defines."""
  (code,) = (b for b in BLOCKS if word in b)
  names: dict = {"__name__": "extension"}
  exec(code, names)
  return names


def mae(**overrides):
  config = tiny_ssast(best="val/loss", best_is_lowest=True, task="mae")
  config.task_kw = {"num_mask": 2, "decoder_width": 8}
  config.update(overrides)
  return config


def register(patch):
  patch.setitem(tasks.TASKS, "mae", MAE[0])
  patch.setitem(models.OBJECTIVES, "mae", MAE[1])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  register(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A finished pre-training."""
  folder = tmp_path_factory.mktemp("mae")
  with pytest.MonkeyPatch.context() as patch:
    register(patch)
    run(folder, mae())
  return folder


def test_the_page_shows_the_module_that_is_tested():
  assert BLOCKS[0] == pathlib.Path(toy_mae.__file__).read_text()
  task = BLOCKS[0].split("@dataclasses")[1].split("\n\n\n")[0]
  assert task.count("\n") <= 60


def test_the_encoder_sees_what_is_visible():
  task = tasks.build(
    "mae", mae().task_kw.to_dict(), model=mae().model.to_dict()
  )
  rng = np.random.default_rng(0)
  batch = {"fbank": rng.standard_normal((3, 20, 16)), "id": np.arange(3)}
  params = jax.jit(task.init_params)(jax.random.key(0), batch)
  index = np.array([[0, 1], [2, 3], [0, 3]])
  patches = np.asarray(
    toy_mae.cut(batch, task.backbone), np.float32
  )  # [B, 2, 2, K]
  other = patches.reshape(3, 4, -1).copy()
  np.put_along_axis(other, index[..., None], 7.0, axis=1)
  other = other.reshape(patches.shape)
  draw = jax.jit(lambda x: task.model.apply({"params": params}, x, index))
  np.testing.assert_array_equal(draw(patches), draw(other))
  assert np.abs(draw(patches) - draw(patches + 1)).max() > 1e-3


def test_an_objective_from_outside_resumes(whole, tmp_path):
  run(tmp_path, mae(), stop_at=2)
  history = run(tmp_path, mae())
  assert "val/loss" in history[-1]
  assert_same_bits(final_state(whole), final_state(tmp_path))
  described = json.loads((tmp_path / "model.json").read_text())["objective"]
  assert described == {"name": "mae", "width": 8, "task_kw": {"num_mask": 2}}


def run_of(folder):
  """The last line of a run's metrics."""
  return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def start(config):
  built = job.build(config, mesh=one_device())
  params, _, report = job.warm_params(built)
  return params, report


def test_a_classifier_starts_from_it(whole, tmp_path):
  config = tiny_config(
    steps=1, init_from=str(whole), task_kw={"pooling": "tokens"}
  )
  params, report = start(config)
  known = load.load(whole).params
  kernel = params["backbone"]["patch_embed"]["kernel"]
  np.testing.assert_array_equal(kernel, known["backbone/patch_embed/kernel"])
  text = "\n".join(report)
  assert "decoder" in text and "of the pre-training" in text
  assert run(tmp_path, config)[-1]["val/num_examples"] == 10


def test_it_goes_on_from_itself(whole, tmp_path):
  config = mae(init_from=str(whole))
  params, _ = start(config)
  known = load.load(whole).params
  for name in ("mask_token", "draw/kernel"):
    value = params
    for part in name.split("/"):
      value = value[part]
    np.testing.assert_array_equal(value, known[name])
  assert run(tmp_path, config)[-1]["val/loss"] != run_of(whole)["val/loss"]


def test_its_backbone_is_there_for_those_who_do_not_know_it(whole, monkeypatch):
  monkeypatch.delitem(models.OBJECTIVES, "mae")
  loaded = load.load(whole)
  assert all(name.startswith("backbone/") for name in loaded.params)
  start(tiny_config(init_from=str(whole), task_kw={"pooling": "tokens"}))


def test_a_backbone_and_a_source(tmp_path):
  block("BACKBONES")
  Tones = block("SOURCES")["Tones"]
  config = tiny_config(steps=2, task_kw={"pooling": "tokens"})
  config.model = {"name": "bag", "width": 16, "patch_size": (8, 10)}
  config.model.stride = (8, 10)
  config.input.source = "tones"
  config.input.source_kw = config.evals.val.source_kw = {"count": 12}
  try:
    history = run(tmp_path, config)
  finally:
    del sources.SOURCES["tones"]
  assert "val/mAP" in history[-1]
  heard = Tones(data_dir="", split="", folds=()).read(0)
  found = astjax.load(tmp_path).predict(*heard)
  assert found.class_names == ("low", "high")
  del models.BACKBONES["bag"]


def test_an_op():
  """The same on both sides."""
  block("host_ops.OPS")
  x, found = np.ones((4, 3), np.float32), []
  key = jax.random.key(0, impl="threefry2x32")
  for table, own_key, side in (
    (host_ops.OPS, np.asarray(jax.random.key_data(key)), xp.NUMPY),
    (frontend.OPS, key, xp.JAX),
  ):
    ops = recipe.parse("gain(1.5)", table, "config.input")
    del table["gain"]
    found.append(recipe.apply(ops, {"fbank": x}, own_key, side)["fbank"])
  assert 1.0 < found[0][0, 0] < 1.5 and (found[0] == found[0][0, 0]).all()
  np.testing.assert_array_equal(*found)


def test_an_export(whole, tmp_path, capsys):
  block("def export")["export"](str(whole), tmp_path / "mae.npz")
  with np.load(tmp_path / "mae.npz") as file:
    assert "backbone.patch_embed.kernel" in file.files
  assert "decode|fit" in capsys.readouterr().out
