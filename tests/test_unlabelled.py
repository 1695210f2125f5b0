"""Recordings without labels: a whole run of a task that needs none."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import astjax
from astjax import errors, job, run_config, sharding, tasks
from astjax.models import ast
from astjax.tasks.base import LossOut
from astjax.tools import dataset_stats, report
from tests.test_train import run
from tests.tiny import RATE, tiny_config


@dataclasses.dataclass(frozen=True)
class Mean:
  """Learns that the tokens' mean be one; stands for any pre-training."""

  backbone: ast.Backbone
  metric_names = ("loss",)
  one_label = False
  head = None
  objective = {}  # noqa: RUF012

  def init_params(self, rng, batch):
    return {"backbone": self.backbone.init(rng, batch["fbank"])["params"]}

  def init_state(self, params):
    return {}

  def corrupt(self, batch, rng, step):
    return batch

  def features(self, params, task_state, batch):
    out = self.backbone.apply({"params": params["backbone"]}, batch["fbank"])
    return out["tokens"].mean(1)

  def loss(self, params, task_state, batch, rng, step):
    loss = jnp.mean((self.features(params, task_state, batch) - 1) ** 2)
    return loss, LossOut({"loss": loss}, task_state)

  def after_update(self, params, task_state, step):
    return task_state

  def evaluate(self, params, task_state, batch, step):
    error = self.features(params, task_state, batch) - 1
    return {"loss": jnp.mean(error**2, axis=-1)}

  def summarise(self, outputs):
    return {"loss": float(np.mean(outputs["loss"]))}, {}


def make(*, model: dict, num_classes: int, **own: Any) -> Mean:
  return Mean(ast.make_backbone(**model))


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setitem(tasks.TASKS, "mean", make)
  rng = np.random.default_rng(0)
  for i in range(20):
    path = tmp_path / "data" / str(i % 3) / f"{i}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * rng.standard_normal(1500 + 50 * i), RATE)
  config = tiny_config(task="mean", best="val/loss", best_is_lowest=True)
  config.task_kw = {}
  config.input.update(source="filenames", split="train")
  config.input.source_kw = {"holdout": 0.3}
  config.input.data_dir = str(tmp_path / "data")
  config.input.on_host = config.input.on_host.replace("|multi_hot", "").replace(
    ", 'label'", ""
  )
  config.evals.val.source_kw = {"holdout": 0.3}
  return config


def test_a_whole_run(config, tmp_path, capsys):
  history = run(tmp_path / "run", config)
  assert {"train/loss", "val/loss"} <= {k for line in history for k in line}
  config.steps = 6
  assert "train/loss" in run(tmp_path / "run", config)[-2]
  pytest.importorskip("matplotlib")
  assert report.main([f"--workdir={tmp_path / 'run'}"]) == 0
  assert "learning_curve.png\n" in capsys.readouterr().out
  assert not (tmp_path / "run" / "predictions.png").exists()
  model = astjax.load(tmp_path / "run")
  sound = next((tmp_path / "data").rglob("*.wav"))
  assert model.embed(sound).clip.shape == (16,)
  with pytest.raises(errors.UserError, match="has no classifier"):
    model.predict(sound)


def test_evaluations_may_have_other_labels(config, tmp_path):
  """Classes matter to a classifier alone."""
  config.evals.val.update(source="folder", split="")
  config.evals.val.source_kw = {}
  built = job.build(config, mesh=sharding.make_mesh(jax.devices()[:1]))
  assert built.train.class_names == ()
  assert built.evals["val"].class_names == ("0", "1", "2")
  assert built.model_info().class_names == ()


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({}, "learns classes, and the training data has no labels"),
    ({"multi_hot": True}, r"on_host: .*multi_hot needs labels, the source has"),
    ({"draw": "balanced"}, "draw='balanced': no recording has a label"),
  ],
)
def test_a_classifier_needs_labels(change, told, config):
  config.task, config.best = "supervised", ""
  if change.pop("multi_hot", False):
    host = config.input.on_host.replace("|keep(", "|multi_hot|keep(")
    config.input.on_host = host
  config.input.update(change)
  with pytest.raises(errors.UserError, match=told) as error:
    job.build(config, mesh=sharding.make_mesh(jax.devices()[:1]))
  assert "\n" not in str(error.value)


def test_labels_of_another_name(config, tmp_path):
  """A table whose column is called otherwise must not train on nothing."""
  rows = ["path,mids"] + [f"{i % 3}/{i}.wav,/m/a" for i in range(20)]
  (tmp_path / "data" / "clips.csv").write_text("\n".join(rows) + "\n")
  (tmp_path / "data" / "names.txt").write_text("/m/a\n/m/b\n")
  config.task, config.best = "supervised", ""
  config.input.source = "csv"
  config.input.source_kw = {
    "csv": "clips.csv",
    "label_list": "names.txt",
    "holdout": 0.3,
  }
  config.input.on_host = config.input.on_host.replace(
    "|keep", "|multi_hot|keep"
  )
  with pytest.raises(errors.UserError, match="the recordings have no labels"):
    job.build(config, mesh=sharding.make_mesh(jax.devices()[:1]))


def test_statistics(config, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(
    dataset_stats, "load_config", lambda _: run_config.to_plain(config)
  )
  for flags in ([], ["--original"]):
    assert dataset_stats.main(["--config=x", *flags]) == 0
    assert "recordings: standardize(" in capsys.readouterr().out
