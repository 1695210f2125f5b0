"""Recordings without labels: a whole run of a task that needs none."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

import astjax
from astjax import cli, errors, tasks
from astjax.data import pipeline
from astjax.engine import sharding
from astjax.engine.step import make_eval_step
from astjax.engine.task import LossOut
from astjax.models import ast
from astjax.run import evaluation, job
from astjax.tools import dataset_stats, report
from tests.test_train import run
from tests.tiny import FRAMES, MELS, RATE, SAMPLES, on_device, tiny_config

pytestmark = pytest.mark.usefixtures("one_device")


@dataclasses.dataclass(frozen=True)
class Mean:
  """Learns that the tokens' mean be one; stands for any pre-training."""

  backbone: ast.Backbone
  metric_names = ("loss",)
  one_label = False
  head = None
  saved_objective = {}  # noqa: RUF012
  length_matters = False

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


def make(*, backbone: Any, num_classes: int, **own: Any) -> Mean:
  return Mean(backbone)


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


@pytest.mark.slow
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
    ({}, "the training data has no labels"),
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
  monkeypatch.setattr(cli, "load_config", lambda _: config)
  for flags in ([], ["--original"]):
    assert dataset_stats.main(["--config=x", *flags]) == 0
    assert "recordings: standardize(" in capsys.readouterr().out


def labelled(config, **given):
  """An evaluation of the same recordings, with their labels."""
  host = config.input.on_host.replace("|keep(", "|multi_hot|keep('label', ")
  return ConfigDict(
    {
      "source": "folder",
      "source_kw": {"holdout": 0.3},
      "split": "val",
      "on_host": host,
      "on_device": on_device(),
      "probe": "knn",
      "train": {"split": "train"},
    }
    | given
  )


@pytest.mark.slow
def test_a_probe_has_labels_of_its_own(config, tmp_path):
  config.evals.knn = labelled(config, every_steps=2)
  config.best, config.best_is_lowest = "knn/accuracy", False
  history = run(tmp_path / "run", config)
  found = [x["knn/accuracy"] for x in history if "knn/accuracy" in x]
  assert len(found) == 2 and all(0 <= x <= 1 for x in found)
  table = (tmp_path / "run" / "knn_classes.csv").read_text().splitlines()
  assert [line.split(",")[0] for line in table] == ["class", "0", "1", "2"]
  assert astjax.load(tmp_path / "run").class_names == ()


def test_broken_recordings_of_a_probe_are_listed(config, tmp_path):
  config.evals.knn = labelled(config)
  for name in "abcdefgh":
    (tmp_path / "data" / "0" / f"{name}.wav").write_text("no sound")
  run(tmp_path / "run", config)
  listed = (tmp_path / "run" / "unreadable.txt").read_text()
  assert "knn.train" in listed


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"source": "filenames"}, "multi_hot needs labels, the source has none"),
    (
      {"train": {"source": "synthetic", "source_kw": {"sample_rate": RATE}}},
      "config.evals.knn has 3 classes, config.evals.knn.train 10; number 0",
    ),
    (
      {"on_host": None},
      "config.evals.knn: a probe needs labels: put multi_hot",
    ),
  ],
)
def test_mistakes_of_a_probe(change, told, config):
  config.evals.knn = labelled(config, **change)
  with pytest.raises(errors.UserError, match=told) as error:
    job.build(config, mesh=sharding.make_mesh(jax.devices()[:1]))
  assert "\n" not in str(error.value)


@dataclasses.dataclass(frozen=True)
class OfViews(Mean):
  """The same of [B, V, T, F], with local views beside them."""

  def init_params(self, rng, batch):
    assert batch["fbank"].shape[1:] == (2, FRAMES, MELS)
    assert batch["fbank_local"].shape[1:] == (3, FRAMES // 2, MELS)
    return super().init_params(rng, {"fbank": batch["fbank"][:, 0]})

  def features(self, params, task_state, batch):
    fbank = batch["fbank"]
    flat = fbank.reshape(-1, *fbank.shape[-2:])
    out = super().features(params, task_state, {"fbank": flat})
    return out.reshape(*fbank.shape[:-2], -1)


def make_of_views(*, backbone: Any, **own: Any) -> OfViews:
  return OfViews(backbone)


def views_of(random):
  return (
    f"decode|resample({RATE})|views(2, 0.3, local_count=3, local_seconds=0.2, "
    f"sample_rate={RATE}, random={random})|quantise|quantise('audio_local')"
    "|keep('audio', 'audio_local')"
  )


MEL = f"sample_rate={RATE}, num_mel_bins={MELS}"
FRONT_END = f"center(num_samples='')|fbank({MEL})"
STANDARDIZE = "standardize(-3.559, 3.5)"
ON_VIEWS = (
  f"to_float|{FRONT_END}|cut_frames({FRAMES})|{STANDARDIZE}"
  "|to_float('audio_local')|center('audio_local', num_samples='')"
  f"|fbank({MEL}, audio='audio_local', out='fbank_local')"
  f"|cut_frames({FRAMES // 2}, 'fbank_local')"
  "|standardize(-3.559, 3.5, 'fbank_local')"
)


@pytest.mark.slow
@pytest.mark.rare
def test_a_model_of_views_hears_one_clip(config, tmp_path, monkeypatch):
  """Trained and evaluated on views, probed and used on clips."""
  monkeypatch.setitem(tasks.TASKS, "mean", make_of_views)
  clip = config.input.on_host.replace("decode|", f"decode|resample({RATE})|")
  config.input.on_host = clip
  config.evals.knn = labelled(
    config, on_device=f"to_float|{FRONT_END}|{STANDARDIZE}"
  )
  config.input.on_host = views_of(True)
  config.input.on_device = ON_VIEWS
  config.evals.val.on_host = views_of(False)
  config.evals.val.on_device = ON_VIEWS
  folder = tmp_path / "run"
  history = run(folder, config)
  assert {"val/loss", "knn/accuracy"} <= {k for line in history for k in line}
  model = astjax.load(folder)
  assert model.info.recipe == (
    f"decode|resample({RATE})|fit(num_frames={FRAMES}, sample_rate={RATE})"
    "|quantise|to_float"
    f"|{FRONT_END}|{STANDARDIZE}"
  )
  # The same numbers as the probe sees.
  loaded, state = job.load_run(folder)
  split = loaded.evals["knn"]
  step = make_eval_step(
    loaded.task, split.device_ops, loaded.mesh, features=True
  )
  batches = pipeline.eval_batches(split.reader, split.host_ops, batch_size=4)
  out = evaluation.outputs(step, state, batches, loaded.mesh)
  source = split.reader.source
  compared = 0
  for i, want in zip(out["id"], out["features"], strict=True):
    audio, rate = source.read(int(i))
    if len(audio) > SAMPLES:  # no column is left out as padding
      found = model.embed(audio, rate, whole=False).frames.mean(0)
      np.testing.assert_allclose(found, want, rtol=0, atol=1e-5)
      compared += 1
  assert compared > 2
  # Longer ones than it was trained on are heard, too.
  assert np.isfinite(model.embed(np.tile(audio, 9), rate).clip).all()


def test_views_need_a_recipe_without_draws_in_evaluations(config):
  config.input.on_host = views_of(True)
  config.input.on_device = ON_VIEWS
  with pytest.raises(errors.UserError, match=r"evals.val draws .*\(views\)"):
    job.build(config, mesh=sharding.make_mesh(jax.devices()[:1]))
