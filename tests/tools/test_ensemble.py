"""Several runs on one evaluation."""

import json

import numpy as np
import pytest
import scipy.special

from astjax.data import pipeline
from astjax.engine.step import make_eval_step
from astjax.ops import metrics
from astjax.run import evaluation, job
from astjax.tools import ensemble
from tests.test_train import run
from tests.tiny import tiny_config

KEYS = ("mAP", "mAUC", "d_prime", "accuracy")


def config(seed, **overrides):
  return tiny_config(seed=seed, schedule={"lr": 0.02}, **overrides)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Two seeds of one setting (S), and one of another setting (M)."""
  folder = tmp_path_factory.mktemp("runs")
  run(folder / "a", config(0))
  run(folder / "b", config(1))
  other = {"width": 24, "patch_size": (4, 5), "stride": (4, 5)}
  run(folder / "c", config(2, model=other, evals={"val": {"batch_size": 4}}))
  return folder


def logits(folder):
  """By hand, from the work directory."""
  built, state = job.load_run(folder)
  split = built.evals["val"]
  step = make_eval_step(built.task, split.device_ops, built.mesh)
  batches = pipeline.eval_batches(
    split.reader, split.host_ops, batch_size=split.config.batch_size
  )
  return evaluation.outputs(step, state, batches, built.mesh)


@pytest.mark.slow
def test_mean_of_scores(runs, tmp_path, capsys):
  path = tmp_path / "ensemble.json"
  folders = [str(runs / name) for name in "abc"]
  assert ensemble.main([*folders, f"--json={path}"]) == 0
  result = json.loads(path.read_text())
  assert result["split"] == "val" and result["num_examples"] == 10
  outs = [logits(folder) for folder in folders]
  scores = [scipy.special.expit(o["logits"].astype(np.float64)) for o in outs]
  for folder, got, score in zip(folders, result["runs"], scores, strict=True):
    assert got["run"] == folder and got["step"] == 4
    expected, _ = metrics.classification(score, outs[0]["label"])
    assert {k: got[k] for k in KEYS} == pytest.approx(expected, abs=1e-12)
  expected, _ = metrics.classification(np.mean(scores, 0), outs[0]["label"])
  assert result["ensemble"] == pytest.approx(expected, abs=1e-12)
  assert result["ensemble"]["mAP"] not in [r["mAP"] for r in result["runs"]]
  shown = capsys.readouterr().out
  assert "ensemble" in shown and f"{expected['mAP']:.4f}" in shown


def test_a_run_s_own_log_agrees(runs):
  """What the run logged at its end is what the tool finds."""
  lines = (runs / "a" / "metrics.jsonl").read_text().splitlines()
  logged = json.loads(lines[-1])
  found = ensemble.rate([str(runs / "a")])["runs"][0]
  for key in KEYS:
    assert found[key] == pytest.approx(logged[f"val/{key}"], abs=1e-12)


@pytest.mark.slow
def test_dumps_stand_in_for_runs(runs, tmp_path):
  """Also without the run, its data and its checkpoints."""
  folders = [str(runs / name) for name in "ab"]
  whole = ensemble.rate(folders, dump=True)
  moved = tmp_path / "b.npz"
  (runs / "b" / "val_predictions.npz").rename(moved)
  again = ensemble.rate([folders[0], str(moved)])
  assert again["ensemble"] == whole["ensemble"]
  assert again["runs"][1] == whole["runs"][1] | {"run": str(moved)}


@pytest.fixture(scope="module")
def strangers(runs):
  """Runs that are not about the same things, one step each."""
  clips = {"num_examples": 8}
  data = {
    "fewer": config(0, steps=1, evals={"val": {"source_kw": clips}}),
    "split": config(0, steps=1, evals={"val": {"split": "test"}}),
    "name": config(0, steps=1),
  }
  data["name"].evals = {"test": data["name"].evals.val}
  data["name"].best = ""
  for name, given in data.items():
    run(runs / name, given)
  return runs


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (["{}/a", "{}/nothing"], "nothing is not a work directory"),
    (["{}/a", "{}/a"], "is given twice"),
    (["{}/a", "{}/fewer"], "fewer has 8 recordings in val, "),
    (["{}/a", "{}/split"], "split has other recordings in val than"),
    (["{}/a", "{}/name"], "unknown evaluation 'val'. Known: test."),
    (["{}/a", "--split=vla"], "Did you mean 'val'"),
    (["{}/a", "{}/a/config.json"], "neither a work directory nor predictions"),
    (["{}/a", "--json={}/no/x.json"], "there is no such folder"),
  ],
)
def test_mistakes_end_in_one_line(args, said, strangers, capsys):
  assert ensemble.main([a.format(strangers) for a in args]) == 1
  lines = capsys.readouterr().err.strip().splitlines()
  assert len([x for x in lines if x.startswith("astjax: error:")]) == 1
  assert said in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["labels", "class_names", "names", "split"])
def test_dumps_have_to_agree(what, runs, tmp_path, capsys):
  ensemble.rate([str(runs / "a")], dump=True)
  path = tmp_path / "other.npz"
  with np.load(runs / "a" / "val_predictions.npz") as file:
    fields = {k: file[k] for k in file.files}
  if what == "labels":
    fields["labels"] = 1 - fields["labels"]
  elif what == "split":
    fields["split"] = np.array("test")
  else:
    fields[what] = np.array([*fields[what][:-1], "other"])
  np.savez(path, **fields)
  assert ensemble.main([str(runs / "a"), str(path)]) == 1
  error = capsys.readouterr().err
  expected = {
    "labels": "other labels in val",
    "class_names": "other classes in val",
    "names": "other recordings in val",
    "split": "is of the evaluation 'test', not 'val'",
  }
  assert expected[what] in error
