"""What a run remembers: plateau, averaged weights, ensembles of scores."""

import json
import math
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
import scipy.special

from astjax import errors, train
from astjax.data import pipeline
from astjax.engine import sharding
from astjax.engine.step import make_eval_step, make_train_step, train_key
from astjax.ops import metrics
from astjax.run import checkpoint, evaluation, job, processes
from astjax.run import config as run_config
from astjax.run import record as run_record
from astjax.run.config import AverageConfig, PlateauConfig
from astjax.run.record import Ensemble, Mean, Plateau, WeightAverage
from astjax.weights import convert
from astjax.weights import info as model_info
from tests.test_train import assert_same_bits, final_state, flip_a_bit, run
from tests.tiny import tiny_config

NAN, INF = math.nan, math.inf


def scales(values, **config):
  plateau = Plateau(PlateauConfig(metric="val/x", **config))
  out = []
  for value in values:
    plateau.update(value)
    out.append(plateau.scale)
  return out


# Worked out by hand from torch's description of ReduceLROnPlateau.
TABLE = {
  "better every time": ({}, [1, 2, 3, 4], [1, 1, 1, 1]),
  "the third in a row": ({}, [5, 4, 4, 4, 4], [1, 1, 1, 0.5, 0.5]),
  "counted anew": (
    {},
    [5, 4, 4, 4, 4, 4, 4],
    [1, 1, 1, 0.5, 0.5, 0.5, 0.25],
  ),
  "an improvement resets": (
    {},
    [5, 4, 4, 6, 5, 5, 5],
    [1, 1, 1, 1, 1, 1, 0.5],
  ),
  "no patience": ({"patience": 0}, [1, 1, 2, 2], [1, 0.5, 0.5, 0.25]),
  "as good is not better": ({"patience": 0}, [1, 1], [1, 0.5]),
  "below the threshold": ({"patience": 0}, [1, 1.0001, 1.0002], [1, 0.5, 0.5]),
  "slow gains add up": (
    {"patience": 0},
    [1, 1.00009, 1.00018],
    [1, 0.5, 0.5],
  ),
  "no threshold": ({"patience": 0, "threshold": 0.0}, [1, 1.00001], [1, 1]),
  "lower is better": (
    {"patience": 1, "mode": "min"},
    [3, 2, 2, 2, 1, 1],
    [1, 1, 1, 0.5, 0.5, 0.5],
  ),
  "another factor": ({"patience": 0, "factor": 0.1}, [1, 0], [1, 0.1]),
  "nan is bad": ({"patience": 0}, [NAN, 1, NAN], [0.5, 0.5, 0.25]),
  "infinity is the best": ({"patience": 0}, [INF, INF, 9], [1, 0.5, 0.25]),
  "negative, as torch": ({"patience": 0}, [-1, -1.00005, -1.1], [1, 1, 0.5]),
}


@pytest.mark.parametrize("name", TABLE)
def test_plateau_by_hand(name):
  config, values, expected = TABLE[name]
  assert scales(values, **config) == expected


@pytest.mark.torch
@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("patience", [0, 1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_plateau_is_torch_s(mode, patience, seed):
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(seed)
  values = rng.normal(size=200).cumsum() * 10.0 ** rng.integers(-6, 2, 200)
  values = np.where(rng.random(200) < 0.05, NAN, values)
  optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
  theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
    optimizer, mode=mode, factor=0.5, patience=patience, threshold=1e-4, eps=0
  )
  expected = []
  for value in values:
    theirs.step(float(value))
    expected.append(optimizer.param_groups[0]["lr"])
  assert scales(values, mode=mode, patience=patience) == expected
  assert expected[-1] < 1


def test_mean_loses_nothing():
  """Against the exact sum, over eleven orders of magnitude."""
  rng = np.random.default_rng(0)
  sets = rng.normal(size=(40, 500)) * 10.0 ** rng.integers(-8, 3, (40, 500))
  sets = sets.astype(np.float32)
  mean = Mean()
  for i, values in enumerate(sets):
    mean.add({"x": values}, times=1 + i % 2)
  weights = [1 + i % 2 for i in range(40)]
  assert mean.count == sum(weights) == 60
  for i in range(500):
    terms = [w * float(x) for w, x in zip(weights, sets[:, i], strict=True)]
    size = math.fsum(map(abs, terms)) / 60
    assert abs(mean.value()["x"][i] - math.fsum(terms) / 60) < 1e-14 * size


def test_epochs_end_between_steps():
  """Of 2.5 steps; and an epoch of a third of a step, counted as often."""
  average = WeightAverage(AverageConfig(first_epoch=2, last_epoch=4), 2.5)
  assert [s for s in range(1, 20) if average.is_due(s)] == [5, 8, 10]
  assert average.last_step == 10
  average = WeightAverage(AverageConfig(first_epoch=1, last_epoch=5), 1 / 3)
  for step, x in ((1, 4.0), (2, 9.0)):
    assert average.is_due(step)
    average.add(step, {"x": np.float32(x)})
  assert average.mean.count == 5
  assert average.mean.value()["x"] == (3 * 4.0 + 2 * 9.0) / 5


def test_ensemble_keeps_what_all_could_read():
  scores = np.arange(12.0).reshape(4, 3)
  ensemble = Ensemble("data", np.array([0, 1, 4, 7]), Mean())
  rows, mean = ensemble.add(np.array([0, 1, 4, 7]), scores)
  assert rows.tolist() == [0, 1, 2, 3]
  np.testing.assert_array_equal(mean, scores)
  rows, mean = ensemble.add(np.array([1, 2, 7]), 10 * scores[:3])
  assert rows.tolist() == [0, 2]  # of the three: ids 1 and 7
  expected = (scores[[1, 3]] + 10 * scores[[0, 2]]) / 2
  np.testing.assert_array_equal(mean, expected)
  assert ensemble.ids.tolist() == [1, 7]


def test_other_data_starts_another_ensemble():
  record = run_record.start(
    run_config.parse(tiny_config(ensemble_predictions=True)), 3.0
  )
  ids = np.arange(3)
  one = record.ensemble("val", "a", ids)
  one.add(ids, np.ones((3, 2)))
  assert record.ensemble("val", "a", ids) is one
  assert record.ensemble("val", "b", ids).mean.count == 0


# --- in a run


def remembering(**overrides):
  """20 clips in batches of 8: epochs end at steps 3, 5, 8, 10 and 13."""
  base = {
    "steps": 13,
    "input": {"source_kw": {"num_examples": 20}},
    "evals": {"val": {"every_steps": 2}},
    "schedule": {"lr": 0.02},
    "plateau": {"metric": "val/mAP", "patience": 1, "threshold": 0.02},
    "average": {"first_epoch": 2, "last_epoch": 4},
    "ensemble_predictions": True,
    "checkpoint": {"every_steps": 1, "keep": 20},
  }
  return tiny_config(**(base | overrides))


EVALUATED = (2, 4, 6, 8, 10, 12, 13)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted run with all of its checkpoints."""
  folder = tmp_path_factory.mktemp("whole")
  run(folder, remembering())
  return folder


def log(folder):
  """The lines, without what the clock decides."""
  lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
  return [
    {
      k: v
      for k, v in json.loads(line).items()
      if k != "time" and not k.startswith("perf/")
    }
    for line in lines
  ]


def logged(folder, key):
  return {x["step"]: x[key] for x in log(folder) if key in x}


def load(folder, step=None):
  """(job, state, record) of a checkpoint, the newest by default."""
  config = json.loads((folder / "config.json").read_text())["config"]
  mesh = sharding.make_mesh(jax.devices()[:1])
  built = job.build(config, mesh=mesh)
  _, template = job.abstract_state(built)
  store = checkpoint.Checkpoints(folder, read_only=True)
  state, record = (
    store.restore_step(template, step) if step else store.restore(template)
  )
  store.close()
  return built, state, record


def outputs(built, state):
  split = built.evals["val"]
  step = make_eval_step(built.task, split.device_ops, built.mesh)
  batches = pipeline.eval_batches(
    split.reader, split.host_ops, batch_size=split.config.batch_size
  )
  return evaluation.outputs(step, state, batches, built.mesh)


def assert_same_run(a, b):
  """Logs, state, record and averaged model, bit for bit."""
  assert log(a) == log(b)
  assert_same_bits(final_state(a), final_state(b))
  (_, _, x), (_, _, y) = load(a), load(b)
  assert_same_bits(x.pop("arrays"), y.pop("arrays"))
  assert x == y
  for name in ("params.safetensors", "config.json"):
    files = [folder / "average" / name for folder in (a, b)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_average_is_that_of_the_saved_checkpoints(whole):
  taken = [
    convert.flatten(jax.tree.map(np.asarray, load(whole, s)[1].params))
    for s in (5, 8, 10)
  ]
  info, params = model_info.read_model(whole / "average")
  assert "epochs 2 to 4" in info.origin
  assert params.keys() == taken[0].keys()
  moved = 0.0
  for name, value in params.items():
    assert value.dtype == np.float32
    parts = np.stack([t[name].astype(np.float64) for t in taken])
    np.testing.assert_allclose(value, parts.mean(0), rtol=1e-6, atol=0)
    moved = max(moved, np.abs(parts[0] - parts[2]).max())
  assert moved > 1e-2  # the three are not one
  arrays = load(whole)[2]["arrays"]
  for name in params:
    total = sum(t[name].astype(np.float64) for t in taken)
    np.testing.assert_array_equal(arrays[f"average/{name}"], total)


def test_averaged_model_is_rated(whole):
  built, state, _ = load(whole)
  _, flat = model_info.read_model(whole / "average")
  out = outputs(built, state.replace(params=convert.unflatten(flat)))
  expected, _ = built.task.summarise(out)
  assert set(expected) == {"loss", "mAP", "mAUC", "d_prime", "accuracy"}
  for name, value in expected.items():
    assert logged(whole, f"val/average_{name}") == {13: value}
  assert logged(whole, "val/loss")[13] != expected["loss"]


@pytest.mark.slow
def test_ensemble_is_that_of_the_saved_checkpoints(whole):
  scores = []
  for step in EVALUATED:
    built, state, record = load(whole, step)
    out = outputs(built, state)
    logits = out["logits"].astype(np.float64)
    scores.append(scipy.special.expit(logits))
    mean = np.mean(scores, axis=0)
    saved = record["arrays"]
    np.testing.assert_array_equal(saved["ensembles/val/ids"], out["id"])
    np.testing.assert_allclose(
      saved["ensembles/val/scores"] / len(scores), mean, rtol=1e-14
    )
    expected, _ = metrics.classification(mean, out["label"])
    for name, value in expected.items():
      got = logged(whole, f"val/ensemble_{name}")[step]
      assert abs(got - value) < 1e-12
  assert logged(whole, "val/ensemble_mAP").keys() == set(EVALUATED)
  assert logged(whole, "val/ensemble_mAP")[2] == logged(whole, "val/mAP")[2]
  assert logged(whole, "val/ensemble_mAP")[13] != logged(whole, "val/mAP")[13]


def test_softmax_scores_are_sigmoids_too():
  logits = np.array([[40.0, -1.0, 0.0]], np.float32)
  expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
  got = evaluation.scores({"logits": logits})
  assert got.dtype == np.float64
  np.testing.assert_allclose(got, expected, rtol=1e-15)


def test_logged_rate_is_the_plateau_s(whole):
  values = logged(whole, "val/mAP")
  after = dict(
    zip(
      EVALUATED,
      scales([values[s] for s in EVALUATED], patience=1, threshold=0.02),
      strict=True,
    )
  )
  rates = logged(whole, "train/lr")
  for step in range(1, 14):
    scale = next((after[s] for s in reversed(EVALUATED) if s < step), 1.0)
    assert rates[step] == pytest.approx(0.02 * scale, rel=1e-6)
  assert 0.02 > rates[13] > 0
  assert load(whole)[2]["plateau"]["scale"] == after[13]


@pytest.mark.slow
def test_scale_multiplies_the_rate_and_compiles_once():
  """Half of it is the step at half the rate, through the whole chain."""
  states = {}
  for rate, given in ((0.02, (1.0, 0.5)), (0.01, (1.0,))):
    config = tiny_config(
      schedule={"lr": rate},
      optim={
        "name": "adamw",
        "weight_decay": 0.1,
        "freeze": ("patch_embed",),
        "lr_multipliers": (("head", 10.0),),
      },
    )
    built = job.build(config, mesh=sharding.make_mesh(jax.devices()[:1]))
    batches = pipeline.train_batches(
      built.train.reader,
      built.train.host_ops,
      batch_size=8,
      seed=0,
      first_step=0,
      last_step=1,
    )
    batch = sharding.to_global(next(batches), built.mesh)
    batches.close()
    tx, state = job.fresh_state(built)
    fresh = jax.tree.map(np.asarray, state)
    step = make_train_step(
      built.task, tx, built.train.device_ops, built.mesh, scaled=True
    )
    for scale in given:
      state = jax.device_put(fresh, sharding.replicated(built.mesh))
      key = train_key(0)
      state, _ = step(state, batch, 0, key, np.float32(scale))
      states[rate, scale] = jax.tree.map(np.asarray, state.params)
    assert step._cache_size() == 1
  a, b = states[0.02, 0.5], states[0.01, 1.0]
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8), a, b
  )
  kernel = lambda tree: tree["head"]["linear"]["kernel"]
  assert np.abs(kernel(states[0.02, 1.0]) - kernel(a)).max() > 1e-3


@pytest.mark.slow
def test_resumed_is_uninterrupted(whole, tmp_path):
  """Before an evaluation, after the end of an epoch, before the last step."""
  for stop in (1, 9, 12):
    run(tmp_path, remembering(), stop_at=stop)
  run(tmp_path, remembering())
  assert_same_run(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.rare
def test_resumed_from_the_checkpoint_before(whole, tmp_path):
  """A kill after evaluations and ends of epochs that are not saved."""
  config = remembering(checkpoint={"every_steps": 1000, "keep": 20}, best="")
  run(tmp_path / "a", config)
  assert log(tmp_path / "a") == log(whole)
  run(tmp_path / "b", config, stop_at=7)
  shutil.copytree(tmp_path / "b", tmp_path / "then")
  run(tmp_path / "b", config, stop_at=11)
  shutil.rmtree(tmp_path / "b" / "checkpoints")
  shutil.copytree(
    tmp_path / "then" / "checkpoints", tmp_path / "b" / "checkpoints"
  )
  run(tmp_path / "b", config)
  assert_same_run(tmp_path / "b", tmp_path / "a")


@pytest.mark.slow
def test_a_signal_owes_an_evaluation(whole, tmp_path, monkeypatch):
  """It comes before the next step; also if that start is killed at once."""
  honest = processes.Signals.asked

  def asked(self, step):
    if step == 6:
      self.received = signal.SIGTERM
    return honest(self, step)

  with monkeypatch.context() as m:
    m.setattr(processes.Signals, "asked", asked)
    with pytest.raises(errors.Stopped):
      run(tmp_path, remembering())
  assert 6 not in logged(tmp_path, "val/mAP")
  assert load(tmp_path)[2]["owed"] == ["val"]

  def die(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as m:
    m.setattr(train._Loop, "_save", die)
    with pytest.raises(KeyboardInterrupt):
      run(tmp_path, remembering())
  assert 6 in logged(tmp_path, "val/mAP")
  run(tmp_path, remembering())
  assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_the_best_survives_a_resume(tmp_path):
  config = tiny_config(
    steps=6,
    evals={"val": {"every_steps": 2}},
    checkpoint={"every_steps": 1, "keep": 1},
  )
  run(tmp_path, config, stop_at=3)
  run(tmp_path, config)
  values = logged(tmp_path, "val/mAP")
  assert max(values, key=lambda s: (values[s], -s)) == 2
  kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
  assert kept == {2, 6}
  assert int(job.load_run(tmp_path)[1].step) == 2


@pytest.mark.slow
@pytest.mark.rare
def test_an_owed_evaluation_can_be_the_best(tmp_path, monkeypatch):
  config = tiny_config(
    steps=6,
    evals={"val": {"every_steps": 2}},
    checkpoint={"every_steps": 1, "keep": 2},
  )
  run(tmp_path / "a", config)
  values = logged(tmp_path / "a", "val/mAP")
  best = max(values, key=lambda s: (values[s], -s))
  assert best < 6

  def asked(self, step):
    self.received = signal.SIGTERM if step == best else None
    return self.received is not None

  with monkeypatch.context() as m:
    m.setattr(processes.Signals, "asked", asked)
    with pytest.raises(errors.Stopped):
      run(tmp_path / "b", config)
  run(tmp_path / "b", config)
  kept = [
    {int(p.name) for p in (tmp_path / x / "checkpoints").iterdir()}
    for x in ("a", "b")
  ]
  assert kept[0] == kept[1] == {best, 5, 6}


@pytest.mark.slow
@pytest.mark.rare
def test_four_devices_remember_the_same(whole, tmp_path):
  run(tmp_path, remembering(), devices=4)
  for a, b in zip(log(whole), log(tmp_path), strict=True):
    assert a.keys() == b.keys()
    for key in a:
      if key.startswith("val/") or key == "train/lr":
        assert abs(a[key] - b[key]) <= 1e-4, key
  _, x = model_info.read_model(whole / "average")
  _, y = model_info.read_model(tmp_path / "average")
  for name in x:
    if "qkv/bias" not in name:  # the gradient of its key third is zero
      np.testing.assert_allclose(x[name], y[name], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_finished_run_repairs_its_average(whole, tmp_path):
  shutil.copytree(whole, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "average")
  run(tmp_path / "run", remembering())
  assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.rare
def test_longer_run_averages_more(whole, tmp_path):
  config = remembering(steps=10)
  run(tmp_path, config)
  assert (
    "epochs 2 to 4" in model_info.read_model(tmp_path / "average")[0].origin
  )
  config.steps, config.average.last_epoch = 13, 5
  run(tmp_path, config)
  assert (
    "epochs 2 to 5" in model_info.read_model(tmp_path / "average")[0].origin
  )
  arrays, before = load(tmp_path)[2]["arrays"], load(whole)[2]["arrays"]
  _, state, _ = load(tmp_path)
  for name, value in convert.flatten(state.params).items():
    expected = before[f"average/{name}"] + np.asarray(value, np.float64)
    np.testing.assert_array_equal(arrays[f"average/{name}"], expected)


@pytest.mark.slow
def test_average_is_never_of_fewer_epochs(whole, tmp_path):
  """A range that began before it was asked for is refused."""
  run(tmp_path, remembering(average={}), stop_at=9)
  with pytest.raises(errors.UserError, match="2 have passed by step 9, and"):
    run(tmp_path, remembering())
  later = remembering(average={"first_epoch": 4, "last_epoch": 5})
  run(tmp_path, later)
  assert load(tmp_path)[2]["average"]["count"] == 2


@pytest.mark.slow
@pytest.mark.rare
def test_damaged_arrays_are_passed_over(whole, tmp_path, capsys):
  run(tmp_path, remembering(), stop_at=9)
  folder = tmp_path / "checkpoints" / "9"
  (folder / "arrays").rename(folder / "state_of_arrays")
  (folder / "state").rename(folder / "other")
  (folder / "state_of_arrays").rename(folder / "state")
  flip_a_bit(folder)
  (folder / "state").rename(folder / "arrays")
  (folder / "other").rename(folder / "state")
  run(tmp_path, remembering())
  assert "checkpoint 9 is damaged and passed over" in capsys.readouterr().err
  assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_older_checkpoints_restore(tmp_path):
  """Without the arrays, and without what the record now has."""
  config = tiny_config(steps=6, evals={"val": {"every_steps": 2}})
  run(tmp_path / "a", config)
  run(tmp_path / "b", config, stop_at=4)
  store = tmp_path / "b" / "checkpoints"
  for step in store.iterdir():
    assert {p.name for p in step.iterdir() if p.is_dir()} >= {"state", "meta"}
    assert not (step / "arrays").exists()
    path = step / "meta" / "metadata"
    meta = json.loads(path.read_text())
    assert meta.pop("arrays") == {}
    for key in ("owed", "ensembles"):
      del meta["record"][key]
    assert set(meta["record"]) == {
      "metric",
      "lower_is_better",
      "best",
      "best_step",
    }
    path.write_text(json.dumps(meta))
  run(tmp_path / "b", config)
  assert log(tmp_path / "a") == log(tmp_path / "b")
  assert_same_bits(final_state(tmp_path / "a"), final_state(tmp_path / "b"))
  config.ensemble_predictions = True  # may be switched on in between
  config.steps = 8
  run(tmp_path / "b", config)
  assert set(logged(tmp_path / "b", "val/ensemble_mAP")) == {8}


def test_without_these_sections_nothing_is_added(tmp_path):
  run(tmp_path, tiny_config(steps=4, evals={"val": {"every_steps": 2}}))
  keys = {key for line in log(tmp_path) for key in line}
  assert not [k for k in keys if "average" in k or "ensemble" in k]
  assert not (tmp_path / "average").exists()
  assert load(tmp_path)[2]["arrays"] == {}


@pytest.mark.slow
def test_the_plateau_s_evaluation_is_training(tmp_path):
  """Seeing it more often would be another run; moving its data is not."""
  run(tmp_path, remembering(), stop_at=2)
  more = remembering()
  more.evals.val.every_steps = 1
  with pytest.raises(errors.UserError, match=r"evals\.val\.every_steps was 2"):
    run(tmp_path, more)
  moved = remembering()
  moved.evals.val.data_dir = os.fspath(tmp_path)
  run(tmp_path, moved, stop_at=3)


MISTAKES = {
  "metric": (
    {"plateau": {"metric": "val/acuracy"}},
    ["config.plateau.metric='val/acuracy'", "'val/accuracy'"],
  ),
  "metric seen once": (
    {"evals": {"val": {"every_steps": 0}}, "plateau": {"metric": "val/mAP"}},
    ["only at the end", "config.evals.val.every_epochs"],
  ),
  "factor": ({"plateau": {"factor": 1.0}}, ["config.plateau", "factor=1.0"]),
  "patience": ({"plateau": {"patience": -1}}, ["patience=-1"]),
  "threshold": ({"plateau": {"threshold": 1.0}}, ["threshold=1.0"]),
  "mode": ({"plateau": {"mode": "best"}}, ["mode='best'", "'max', 'min'"]),
  "unknown key": ({"plateau": {"patiense": 1}}, ["did you mean 'patience'"]),
  "turned round": (
    {"average": {"first_epoch": 4, "last_epoch": 2}},
    ["first_epoch=4", "last_epoch=2"],
  ),
  "one end": ({"average": {"last_epoch": 2}}, ["first_epoch=0"]),
  "too late": (
    {"average": {"first_epoch": 2, "last_epoch": 9}},
    ["config.average.last_epoch=9", "1.333 epochs"],
  ),
  "not a section": ({"average": 5}, ["config.average=5 is not a section"]),
  "not a flag": (
    {"ensemble_predictions": 3},
    ["ensemble_predictions=3", "bool"],
  ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
  overrides, said = MISTAKES[name]
  base = {"evals": {"val": {"every_steps": 2}}}
  with pytest.raises(errors.UserError) as error:
    job.build(tiny_config(**(base | overrides)))
  for part in said:
    assert part.lower() in str(error.value).lower()
  assert "\n" not in str(error.value)
