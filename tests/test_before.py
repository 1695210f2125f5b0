"""What an older astjax wrote is read, resumed, converted and predicted from.

`fixtures/before` stays as it is: a change that fails here would strand the runs
and the models of users. Only what users call is called.
"""

from __future__ import annotations

import csv
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import astjax
from astjax import train
from astjax.engine import sharding
from astjax.tools import convert_weights, predict

BEFORE = pathlib.Path(__file__).parent / "fixtures" / "before"
RUNS = ("supervised", "ssast", "asit")
MODELS = ("supervised", "model", "hugging_face", "official.safetensors")
# format -> what was written of the supervised run
CONVERTED = {
  "astjax": "model",
  "hf": "hugging_face",
  "official": "official.safetensors",
}
SOUNDS = [f"sounds/val/{name}.wav" for name in ("a/0", "b/1", "c/long")]
PREDICT = ("--model=model", "--windows", "--top=0", *SOUNDS)


def resumed(run):
  """{step: its metrics} of the steps after the stop, from metrics.jsonl."""
  log = pathlib.Path(run, "metrics.jsonl")
  old = log.read_bytes()
  saved = json.loads(pathlib.Path(run, "config.json").read_text())
  mesh = sharding.make_mesh(jax.devices()[:1])
  train.train_and_evaluate(saved["config"], run, mesh=mesh)
  new = log.read_bytes()
  assert new.startswith(old)
  found: dict[str, dict[str, float]] = {}
  for line in map(json.loads, new[len(old) :].splitlines()):
    step = found.setdefault(str(line.pop("step")), {})
    step |= {k: v for k, v in line.items() if k.startswith(("train/", "val"))}
  return found


def scores(model):
  """{recording: its windows' scores and their mean}."""
  heard = astjax.load(model, batch_size=2).predict(SOUNDS)
  return {
    path: {
      "whole": dict(zip(p.class_names, p.scores.tolist(), strict=True)),
      "windows": p.window_scores.tolist(),
    }
    for path, p in zip(SOUNDS, heard, strict=True)
  }


def embeddings(run):
  """{recording: its embedding} of one and of several windows."""
  paths = SOUNDS[1:]
  heard = astjax.load(run, batch_size=2).embed(paths)
  return {p: e.clip.tolist() for p, e in zip(paths, heard, strict=True)}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
  folder = tmp_path_factory.mktemp("before")
  shutil.copytree(BEFORE, folder, dirs_exist_ok=True)
  return folder


@pytest.fixture
def before(copied, monkeypatch):
  """A copy as the working directory: paths in it are relative."""
  monkeypatch.chdir(copied)
  return json.loads((copied / "numbers.json").read_text())


def assert_same(found, want, rtol=1e-5):
  """Nested dicts and lists of numbers; JAX's versions differ in roundings."""
  if isinstance(want, dict):
    assert found.keys() == want.keys()
    for key in want:
      assert_same(found[key], want[key], rtol)
  else:
    np.testing.assert_allclose(found, want, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("run", RUNS)
def test_a_stopped_run_goes_on(before, run, tmp_path):
  shutil.copytree(run, tmp_path / run)
  assert_same(resumed(tmp_path / run), before["resumed"][run])


@pytest.mark.parametrize("model", MODELS)
def test_scores(before, model):
  assert_same(scores(model), before["scores"][model])


@pytest.mark.parametrize("run", ("ssast", "asit"))
def test_embeddings(before, run):
  assert_same(embeddings(run), before["embeddings"][run])


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_run_converts(before, kind, tmp_path):
  kept = pathlib.Path(CONVERTED[kind])
  new = tmp_path / kept.name
  assert convert_weights.main(["supervised", str(new), f"--format={kind}"]) == 0
  assert_same_files(new, kept)


def assert_same_files(new, kept):
  if kept.is_dir():
    assert {p.name for p in new.iterdir()} == {p.name for p in kept.iterdir()}
    for path in kept.iterdir():
      assert_same_files(new / path.name, path)
  elif kept.suffix == ".json":
    assert json.loads(new.read_text()) == json.loads(kept.read_text())
  elif kept.suffix == ".safetensors":
    found, want = load_file(new), load_file(kept)
    assert found.keys() == want.keys()
    for name, array in want.items():
      np.testing.assert_array_equal(found[name], array, name)
  else:
    assert new.read_text() == kept.read_text()


def test_predictions_go_on(before, tmp_path):
  want = pathlib.Path("predictions.jsonl").read_text()
  output = tmp_path / "p.jsonl"
  output.write_text(want[: want.index("\n") + 20])  # one line and a torn one
  assert predict.main([*PREDICT, f"--output={output}"]) == 0
  lines = output.read_text().splitlines()
  assert lines[0] == want.splitlines()[0]
  for line, old in zip(lines, want.splitlines(), strict=True):
    line, old = json.loads(line), json.loads(old)
    parts = [(line, old), *zip(line["windows"], old["windows"], strict=True)]
    for part, old_part in parts:
      found, kept = part.pop("scores"), old_part.pop("scores")
      np.testing.assert_allclose(found, kept, atol=2e-6)
    assert line == old


def test_a_table_of_predictions(before, tmp_path):
  output = tmp_path / "p.csv"
  assert predict.main([*PREDICT, f"--output={output}"]) == 0
  tables = []
  for path in (output, pathlib.Path("predictions.csv")):
    with open(path, newline="", encoding="utf-8") as file:
      tables.append(list(csv.reader(file)))
  assert tables[0][0] == tables[1][0] and len(tables[0]) == len(tables[1])
  for row, old in zip(tables[0][1:], tables[1][1:], strict=True):
    is_score = [name.startswith("score_") for name in tables[1][0]]
    for value, kept, numeric in zip(row, old, is_score, strict=True):
      if numeric:
        np.testing.assert_allclose(float(value), float(kept), atol=2e-6)
      else:
        assert value == kept
