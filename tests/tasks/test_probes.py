"""Probes: against independent computations, in runs, and what they refuse."""

import json
import sys
from typing import Any

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import sklearn.neighbors
from ml_collections import ConfigDict

from astjax import tasks
from astjax.data import pipeline
from astjax.engine import sharding
from astjax.engine.task import Task
from astjax.errors import UserError
from astjax.models.heads import Head
from astjax.ops import metrics
from astjax.ops.recipe import apply_rows, row_keys
from astjax.run import config as run_config
from astjax.run import job
from astjax.tasks import probes, supervised
from tests.run.test_record import load, logged
from tests.test_train import run
from tests.tiny import RATE, on_device, tiny_config


def clusters(count, classes=4, width=6, spread=0.4, seed=0):
  """Features around a place for each class, and their labels."""
  rng = np.random.default_rng(seed)
  places = np.random.default_rng(99).standard_normal((classes, width))
  number = np.arange(count) % classes
  x = places[number] + spread * rng.standard_normal((count, width))
  return x.astype(np.float32), np.eye(classes, dtype=np.float32)[number]


def several_labels(count, seed=0):
  """Each label stands for the sign of one feature."""
  x = np.random.default_rng(seed).standard_normal((count, 5))
  return x.astype(np.float32), (x[:, :3] > 0.3).astype(np.float32)


# --- nearest neighbours -----------------------------------------------------


@pytest.mark.parametrize("make", [clusters, several_labels])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 1)])
def test_knn_is_its_formula(make, k, temperature):
  known, labels = make(40)
  asked, _ = make(9, seed=1)
  scores = probes.knn(k, temperature).scores(known, labels, asked)
  for x, found in zip(asked.astype(np.float64), scores, strict=True):
    votes, total = np.zeros(labels.shape[1]), 0.0
    similar = [
      (x @ y / np.linalg.norm(x) / np.linalg.norm(y), j)
      for j, y in enumerate(known.astype(np.float64))
    ]
    for s, j in sorted(similar, reverse=True)[:k]:
      votes += np.exp(s / temperature) * labels[j]
      total += np.exp(s / temperature)
    np.testing.assert_allclose(found, votes / total, rtol=1e-6, atol=1e-12)


def test_knn_with_equal_weights_is_scikit_learn_s():
  known, labels = clusters(60, spread=1.0)
  asked, _ = clusters(30, spread=1.0, seed=1)
  theirs = sklearn.neighbors.KNeighborsClassifier(9, metric="cosine")
  theirs = theirs.fit(known, labels.argmax(1)).predict_proba(asked)
  scores = probes.knn(9, 1e9).scores(known, labels, asked)
  np.testing.assert_allclose(scores, theirs, atol=1e-6)


def test_knn_takes_all_where_there_are_fewer():
  known, labels = clusters(5)
  asked, _ = clusters(3, seed=1)
  many, all_of_them = (
    probes.knn(k).scores(known, labels, asked) for k in (20, 5)
  )
  np.testing.assert_array_equal(many, all_of_them)


def test_knn_looks_at_directions_alone():
  known, labels = clusters(30)
  asked, _ = clusters(10, seed=1)
  once = probes.knn(3).scores(known, labels, asked)
  twice = probes.knn(3).scores(1e4 * known, labels, 1e-4 * asked)
  np.testing.assert_allclose(once, twice, atol=1e-5)
  zeros = probes.knn(3).scores(known, labels, np.zeros_like(asked))
  assert np.isfinite(zeros).all()


def test_knn_of_more_than_fits_at_once(monkeypatch):
  known, labels = clusters(30)
  asked, _ = clusters(25, seed=1)
  whole = probes.knn().scores(known, labels, asked)
  monkeypatch.setattr(probes, "_BLOCK", 10)
  parts = probes.knn().scores(known, labels, asked)
  np.testing.assert_allclose(whole, parts, rtol=1e-12)


# --- logistic regression ----------------------------------------------------


def test_linear_of_one_label_is_a_softmax():
  known, labels = clusters(60)
  asked, want = clusters(40, seed=1)
  scores = probes.linear().scores(known, labels, asked)
  np.testing.assert_allclose(scores.sum(1), 1.0)
  assert metrics.accuracy(scores, want) > 0.9
  # The minimum of the summed loss and half of the squared weights.
  x = (known - known.mean(0)) / known.std(0)
  x, y = np.c_[x, np.ones(60)], (asked - known.mean(0)) / known.std(0)

  def loss(flat):
    w = flat.reshape(-1, 4)
    logp = scipy.special.log_softmax(x @ w, axis=1)
    return -(labels * logp).sum() + 0.5 * (w[:-1] ** 2).sum()

  w = scipy.optimize.minimize(loss, np.zeros(28)).x.reshape(-1, 4)
  theirs = scipy.special.softmax(np.c_[y, np.ones(40)] @ w, axis=1)
  np.testing.assert_allclose(scores, theirs, atol=5e-3)


def test_linear_of_several_labels():
  known, labels = several_labels(300)
  asked, want = several_labels(200, seed=1)
  scores = probes.linear().scores(known, labels, asked)
  assert ((scores >= 0) & (scores <= 1)).all()
  found, _ = metrics.classification(scores, want)
  assert found["mAP"] > 0.95


def test_linear_does_not_depend_on_scales():
  known, labels = clusters(60, spread=1.0)
  asked, _ = clusters(30, spread=1.0, seed=1)
  scale, shift = 10.0 ** np.arange(-3, 3), np.arange(6) - 2.0
  once = probes.linear().scores(known, labels, asked)
  other = probes.linear().scores(
    known * scale + shift, labels, asked * scale + shift
  )
  np.testing.assert_allclose(once, other, atol=1e-3)


def test_linear_with_classes_that_do_not_come_up():
  known, labels = clusters(30, classes=3)
  asked, _ = clusters(12, classes=3, seed=1)
  wide = np.pad(labels, ((0, 0), (1, 1)))
  scores = probes.linear().scores(known, wide, asked)
  assert not scores[:, [0, 4]].any()
  np.testing.assert_allclose(scores[:, 1:4].sum(1), 1.0)
  one = np.zeros_like(wide)
  one[:, 2] = 1.0
  scores = probes.linear().scores(known, one, asked)
  np.testing.assert_array_equal(scores, one[:12])
  # Of several labels: one that all have, and one that none has.
  both = np.c_[labels, np.ones(30), np.zeros(30)]
  scores = probes.linear().scores(known, both, asked)
  assert (scores[:, 3] == 1).all() and (scores[:, 4] == 0).all()


def test_linear_of_constant_features():
  known, labels = clusters(20)
  known[:, 0] = 3.0
  assert np.isfinite(probes.linear().scores(known, labels, known)).all()


def test_linear_says_when_it_has_not_converged(capsys):
  known, labels = clusters(60, spread=1.0)
  probes.linear(max_iter=2).scores(known, labels, known)
  assert "has not converged in 2 iterations" in capsys.readouterr().err


@pytest.mark.parametrize("name", probes.PROBES)
def test_probes_are_deterministic(name):
  known, labels = clusters(60, spread=1.0)
  probe = probes.build(name, {}, "here")
  scores = [probe.scores(known, labels, known) for _ in range(2)]
  np.testing.assert_array_equal(*scores)
  rated, per_class = probe.summarise({"scores": scores[0], "label": labels})
  assert tuple(rated) == probe.metric_names == ("accuracy", "mAP")
  assert len(per_class["AP"]) == 4


@pytest.mark.parametrize(
  ("name", "given", "told"),
  [
    ("knm", {}, "unknown here.probe 'knm'. Did you mean 'knn'?"),
    ("knn", {"k": 0}, "here.probe_kw: k=0 must be at least 1"),
    ("knn", {"k": 2.5}, "k=2.5 is float, expected int"),
    ("knn", {"temperature": 0.0}, "temperature=0.0 must be positive"),
    (
      "knn",
      {"neighbours": 3},
      "unknown argument 'neighbours' in here.probe_kw",
    ),
    ("linear", {"c": -1.0}, "c=-1.0 must be positive"),
    ("linear", {"max_iter": 0}, "max_iter=0 must be at least 1"),
  ],
)
def test_wrong_arguments(name, given, told):
  with pytest.raises(UserError) as error:
    probes.build(name, given, "here")
  assert told in str(error.value) and "\n" not in str(error.value)


def test_without_scikit_learn(monkeypatch):
  monkeypatch.setitem(sys.modules, "sklearn", None)
  probes.build("knn", {}, "here")
  with pytest.raises(UserError, match=r"pip install 'astjax\[probe\]'"):
    probes.build("linear", {}, "here")


# --- in a run ---------------------------------------------------------------


def probed(**given):
  """An evaluation of the tiny config that is a probe."""
  return {
    "probe": "knn",
    "split": "val",
    "train": {"split": "train"},
    "source_kw": {"num_examples": 30, "seconds": 0.215, "sample_rate": RATE},
    "on_device": on_device(),
  } | given


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """A supervised run with both probes."""
  folder = tmp_path_factory.mktemp("both")
  config = tiny_config(
    steps=6,
    best="knn/mAP",
    evals={
      "knn": probed(every_steps=2, probe_kw={"k": 5}),
      "linear": probed(probe="linear", batch_size=4),
    },
  )
  run(folder, config)
  return folder, config


def test_probes_are_evaluations(both):
  folder, _ = both
  assert list(logged(folder, "knn/accuracy")) == [2, 4, 6]
  assert list(logged(folder, "linear/mAP")) == [6]
  assert logged(folder, "knn/num_examples")[6] == 30
  keys = {
    k
    for line in (folder / "metrics.jsonl").read_text().splitlines()
    for k in json.loads(line)
    if k.split("/")[0] in ("knn", "linear")
  }
  assert {k.split("/")[1] for k in keys} == {
    "accuracy",
    "mAP",
    "num_examples",
  }
  table = (folder / "knn_classes.csv").read_text().splitlines()
  assert table[0] == "class,AP,AUC,num_positive" and len(table) == 11


def features(loaded, state, split):
  """[n, D] and labels, clip by clip, without a mesh."""
  found, labels = [], []
  keys = row_keys(jax.random.key(0, impl="threefry2x32"), 1)

  @jax.jit
  def hear(batch):
    ready = apply_rows(split.device_ops, batch, keys)
    return loaded.task.features(state.params, {}, ready)[0]

  for batch in pipeline.eval_batches(
    split.reader, split.host_ops, batch_size=1
  ):
    found.append(hear(batch))
    labels.append(batch["label"][0])
  return np.stack(found), np.stack(labels)


@pytest.mark.slow
def test_they_rate_the_features_of_the_task(both):
  """The padding of the last batches takes no part."""
  folder, _ = both
  loaded, state, _ = load(folder)
  split = loaded.evals["knn"]
  assert len(split.known.reader.source) == 30
  known, asked = (features(loaded, state, s) for s in (split.known, split))
  for name, probe in {"knn": probes.knn(5), "linear": probes.linear()}.items():
    scores = probe.scores(*known, asked[0])
    want, _ = metrics.classification(scores, asked[1])
    for metric in ("accuracy", "mAP"):
      found = logged(folder, f"{name}/{metric}")[6]
      assert found == pytest.approx(want[metric], abs=2e-3), (name, metric)


def test_a_probe_decides_on_the_best(both):
  folder, _ = both
  history = logged(folder, "knn/mAP")
  _, _, record = load(folder)
  assert record["best"] == max(history.values())
  assert history[record["best_step"]] == record["best"]


@pytest.mark.slow
def test_several_devices_find_the_same(both, tmp_path):
  folder, config = both
  run(tmp_path, config, devices=4)
  for key in ("knn/mAP", "linear/mAP"):
    one, four = logged(folder, key), logged(tmp_path, key)
    assert one.keys() == four.keys()
    for step in one:
      assert one[step] == pytest.approx(four[step], abs=2e-3)


@pytest.mark.slow
def test_averaged_weights_are_probed_and_ensembles_left_alone(tmp_path):
  config = tiny_config(
    steps=6,
    evals={"knn": probed()},
    average={"first_epoch": 1, "last_epoch": 2},
    ensemble_predictions=True,
  )
  history = run(tmp_path, config)
  keys = {k for line in history for k in line}
  assert {"knn/average_mAP", "val/average_mAP", "val/ensemble_mAP"} <= keys
  assert "knn/ensemble_mAP" not in keys
  # A finished run only rates what its log does not have yet.
  config.evals["again"] = ConfigDict(probed())
  history = run(tmp_path, config)
  last = [x for x in history if "again/mAP" in x]
  assert len(last) == 1 and "again/average_mAP" in {
    k for line in history for k in line
  }


# --- what is refused --------------------------------------------------------


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"train": {}}, "config.evals.knn.train names the recordings that are"),
    ({"probe": ""}, "train and probe_kw belong to a probe, such as"),
    ({"probe": "svm"}, "unknown config.evals.knn.probe 'svm'"),
    (
      {"probe_kw": {"k": -1}},
      "probe_kw: k=-1 must be at least 1",
    ),
    ({"train": {"spilt": "a"}}, "'spilt' in config.evals.knn.train"),
    ({"train": {"draw": "balanced"}}, "'draw' in config.evals.knn.train"),
    ({"train": {"split": 3}}, "config.evals.knn.train: split=3 is int"),
    (
      {"train": {"split": "val", "batch_size": 4}},
      "config.evals.knn.train names the recordings that are rated",
    ),
    (
      {"train": {"source": "nowhere"}},
      "unknown config.evals.knn.train.source 'nowhere'",
    ),
    (
      {"train": {"split": "train", "on_device": on_device("freq_mask(4)")}},
      "config.evals.knn.train draws at random (freq_mask)",
    ),
    (
      {"on_host": f"decode|fit(20, {RATE})|quantise"},
      "config.evals.knn: a probe needs labels: put multi_hot into its on_host",
    ),
    (
      {
        "train": {
          "split": "train",
          "on_host": f"decode|fit(20, {RATE})|quantise",
        }
      },
      "config.evals.knn.train: a probe needs labels",
    ),
    (
      {"on_device": "to_float|center|fbank(num_mel_bins=16)|cut_frames(3)"},
      "config.evals.knn",
    ),
  ],
)
def test_mistakes_in_a_config(change, told):
  config = tiny_config(evals={"knn": probed()})
  config.evals.knn = ConfigDict(probed(**change))
  with pytest.raises(UserError) as error:
    job.build(config, mesh=sharding.make_mesh(jax.devices()[:1]))
  assert told in str(error.value) and "\n" not in str(error.value)


def test_probe_kw_alone():
  config = tiny_config(evals={"val": {"probe_kw": {"k": 3}}})
  with pytest.raises(UserError, match="train and probe_kw belong to a probe"):
    run_config.parse(config)


@pytest.mark.parametrize("best", ["knn/loss", "knn/mAUC"])
def test_only_its_own_metrics_decide(best):
  config = tiny_config(best=best, evals={"knn": probed()})
  with pytest.raises(UserError, match=f"'{best}' is no metric.*knn/accuracy"):
    job.build(config, mesh=sharding.make_mesh(jax.devices()[:1]))


class Featureless(supervised.Supervised):
  """Stands for a task of somebody else's."""

  features = Task.features


class Tokens(supervised.Supervised):
  """Its features have a shape of their own."""

  def features(self, params, task_state, batch):
    return batch["fbank"]


@pytest.mark.parametrize(
  ("kind", "told"),
  [
    (Featureless, "the task 'supervised' has none"),
    (Tokens, r"of shape \(1, 20, 16\); a probe needs \[B, D\]"),
  ],
)
def test_tasks_without_features(kind, told, monkeypatch):
  def make(*, backbone: Any, num_classes: int, **own: Any):
    head = Head(num_classes=num_classes)
    return kind(backbone=backbone, head=head, loss_name="bce")

  monkeypatch.setitem(tasks.TASKS, "supervised", make)
  config = tiny_config(evals={"knn": probed()})
  config.task_kw = {}
  with pytest.raises(UserError, match=told):
    job.build(config, mesh=sharding.make_mesh(jax.devices()[:1]))
