"""`config.init_from`: a training that starts from weights."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from astjax import errors, train
from astjax.engine import sharding
from astjax.models import ast
from astjax.run import job
from astjax.weights import convert, load
from astjax.weights import info as model_info
from astjax.weights.info import ModelInfo
from tests.tiny import tiny_config

PIXELS = {"patch_size": (8, 10), "stride": (8, 10)}


def run(workdir, *, devices=1, stop_at=None, **config):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  return train.train_and_evaluate(
    tiny_config(**config), workdir, mesh=mesh, stop_at=stop_at
  )


@pytest.fixture(scope="module")
def first(tmp_path_factory):
  """A short run, which others start from."""
  folder = tmp_path_factory.mktemp("first")
  run(folder)
  return folder


def params_after_no_step(config, devices=1):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  built = job.build(config, mesh=mesh)
  params, _, lines = job.warm_params(built)
  _, state = job.fresh_state(built, params)
  flat = {k: np.asarray(v) for k, v in convert.flatten(state.params).items()}
  return flat, lines


def test_it_starts_from_the_weights(first):
  """All but the classifier, which is as fresh as without them."""
  config = tiny_config(init_from=str(first), seed=3)
  flat, lines = params_after_no_step(config)
  source = load.load(first).params
  built = job.build(config, mesh=sharding.make_mesh(jax.devices()[:1]))
  fresh = convert.flatten(job.fresh_state(built)[1].params)
  for path, array in flat.items():
    same = fresh if path.startswith("head/") else source
    np.testing.assert_array_equal(array, same[path])
  assert any(line.startswith("fresh: head/") for line in lines)
  assert any("step 4" in line for line in lines)


def test_the_classifier_too(first):
  config = tiny_config(init_from=str(first), init_kw={"fresh": ()})
  flat, _ = params_after_no_step(config)
  source = load.load(first).params
  for path, array in flat.items():
    np.testing.assert_array_equal(array, source[path])


def test_another_length(first):
  """Positions are adapted when the clips are longer."""
  on_host = tiny_config().input.on_host.replace(
    "num_frames=20", "num_frames=30"
  )
  config = tiny_config(init_from=str(first), input={"on_host": on_host})
  flat, lines = params_after_no_step(config)
  assert flat[convert.GRID].shape[:2] == (2, 3)
  assert any("2 x 2 -> 2 x 3 (bilinear)" in line for line in lines)


@pytest.mark.slow
def test_from_a_pre_training(tmp_path):
  """A classifier on the patches of a pre-trained SSAST."""
  model = ast.make_backbone(**tiny_config().model).describe()
  info = ModelInfo(model=model, objective={"name": "ssast"})
  params = info.init_params((2, 2), jax.random.key(1))
  model_info.save_model(tmp_path / "ssast", info, params)
  config = tiny_config(
    init_from=str(tmp_path / "ssast"),
    init_kw={"positions": "corrected"},
    task_kw={"pooling": "tokens"},
  )
  flat, lines = params_after_no_step(config)
  for path, array in convert.flatten({"backbone": params["backbone"]}).items():
    np.testing.assert_array_equal(flat[path], array)
  assert any(x.startswith("dropped (of the pre-training)") for x in lines)
  assert any(x.startswith("fresh: head/") for x in lines)


def test_the_log_and_the_folder_say_so(first, tmp_path, capsys):
  history = run(tmp_path, init_from=str(first))
  out = capsys.readouterr().out
  assert f"start       {first}" in out
  text = (tmp_path / "init_from.txt").read_text()
  assert re.search(r"taken: \d+ arrays as they are", text)
  assert "SHA-256" in text
  assert all(line in out for line in text.splitlines()[:3])
  assert history[-1]["step"] == 4
  model = json.loads((tmp_path / "model.json").read_text())
  assert model["model"]["width"] == 16 and len(model["class_names"]) == 10
  assert model["recipe"].startswith("decode|fit(num_frames=20")
  assert "mask" not in model["recipe"] and "multi_hot" not in model["recipe"]


@pytest.mark.slow
def test_resumed_without_the_weights(first, tmp_path):
  """Once it has a checkpoint, a run does not look at the file again."""
  source = tmp_path / "source"
  shutil.copytree(first, source)
  whole = run(tmp_path / "whole", init_from=str(source), steps=4)
  run(tmp_path / "parts", init_from=str(source), steps=4, stop_at=2)
  shutil.rmtree(source)
  parts = run(tmp_path / "parts", init_from=str(source), steps=4)
  losses = [
    [h["train/loss"] for h in history if "train/loss" in h]
    for history in (whole, parts)
  ]
  assert losses[0] == losses[1]


def test_four_devices_start_alike(first):
  config = tiny_config(init_from=str(first))
  one, four = (params_after_no_step(config, n)[0] for n in (1, 4))
  for path, array in one.items():
    np.testing.assert_array_equal(array, four[path])


@pytest.mark.parametrize(
  ("config", "told"),
  [
    ({"init_from": "nowhere"}, "'nowhere' is no existing path, no published"),
    (
      {"init_from": "deit_base_distiled_patch16_384"},
      "Did you mean 'deit_base_",
    ),
    ({"init_from": "gone.pth"}, "'gone.pth' is no existing path"),
    (
      {"init_from": "{first}", "model": {"width": 32}},
      "has width 16, the model",
    ),
    ({"init_from": "{first}/config.json"}, "is none of the known"),
    ({"init_from": 3}, "init_from=3 is int, expected str"),
    ({"init_kw": {"row": "time"}}, "unknown argument 'row' in config.init_kw"),
    ({"init_kw": {"rows": "up"}}, "expected one of 'frequency', 'time'"),
    ({"init_kw": {"positions": "right"}}, "'original', 'corrected'"),
    ({"init_kw": {"pooling": "cls"}}, "'prefix', 'tokens'"),
    ({"init_kw": {"grid": (0, 1)}}, "int at least 1"),
    (
      {"init_from": "{first}", "init_kw": {"fresh": ("hed/.*",)}},
      "'hed/.*' meets none of the model's parameters",
    ),
  ],
)
def test_what_cannot_be(config, told, first, tmp_path):
  if isinstance(config.get("init_from"), str):
    name = config["init_from"].format(first=first)
    config = config | {"init_from": name}
  with pytest.raises(errors.UserError) as e:
    run(tmp_path, **config)
  assert told in str(e.value) and "\n" not in str(e.value)


def test_another_start_is_another_training(first, tmp_path):
  run(tmp_path, init_from=str(first))
  with pytest.raises(errors.UserError, match=r"config\.init_from was"):
    run(tmp_path)


def test_a_damaged_best_checkpoint_is_passed_over(tmp_path, capsys):
  run(tmp_path, steps=4, evals={"val": {"every_steps": 2}})
  steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
  step_of = lambda: int(load.load(tmp_path).info.origin.split()[-1])
  best = step_of()
  for path in (tmp_path / "checkpoints" / str(best)).rglob("*"):
    if path.is_file() and "state" in str(path) and path.stat().st_size > 200:
      data = bytearray(path.read_bytes())
      data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
      path.write_bytes(data)
  assert step_of() in set(steps) - {best}
  assert "is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_where_the_weights_come_from_is_kept(first, tmp_path):
  model = json.loads((first / "model.json").read_text())
  model["licence"] = "BSD-3-Clause"
  shutil.copytree(first, tmp_path / "source")
  (tmp_path / "source" / "model.json").write_text(json.dumps(model))
  run(tmp_path / "tuned", init_from=str(tmp_path / "source"))
  info = load.load(tmp_path / "tuned").info
  assert info.licence == "BSD-3-Clause"
  assert info.origin == (
    "trained by astjax from trained by astjax, step 4, step 4"
  )
  assert str(tmp_path) not in info.origin
  # A resumed run does not forget it.
  run(tmp_path / "tuned", init_from=str(tmp_path / "source"))
  assert load.load(tmp_path / "tuned").info.licence == "BSD-3-Clause"


def test_another_pooling_is_refused(first, tmp_path):
  with pytest.raises(errors.UserError, match="has pooling='prefix'"):
    run(
      tmp_path,
      init_from=str(first),
      init_kw={"fresh": ()},
      task_kw={"pooling": "tokens"},
    )
