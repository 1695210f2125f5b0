"""Several runs on one evaluation."""

import json
import shutil

import numpy as np
import pytest
import scipy.special

from astjax.ops import metrics
from astjax.run import evaluation, job
from astjax.tools import ensemble
from tests.test_train import run
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("one_device")

KEYS = ("mAP", "mAUC", "d_prime", "accuracy")


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
  """Two runs: other seeds, other models, other sizes of a batch."""
  folder = tmp_path_factory.mktemp("runs")
  shutil.copytree(tiny_run, folder / "a")
  other = tiny_config(
    seed=1,
    steps=2,
    schedule={"lr": 0.02},
    model={"width": 24, "patch_size": (4, 5), "stride": (4, 5)},
    evals={"val": {"batch_size": 4}},
  )
  run(folder / "b", other)
  return folder


def logits(folder):
  """By hand, from the work directory."""
  built, state = job.load_run(folder)
  return evaluation.evaluate(built, state, built.evals["val"])


def test_mean_of_scores(runs, tmp_path, capsys):
  path = tmp_path / "ensemble.json"
  folders = [str(runs / name) for name in "ab"]
  assert ensemble.main([*folders, f"--json={path}"]) == 0
  result = json.loads(path.read_text())
  assert result["split"] == "val" and result["num_examples"] == 10
  outs = [logits(folder) for folder in folders]
  scores = [scipy.special.expit(o["logits"].astype(np.float64)) for o in outs]
  for folder, got, score in zip(folders, result["runs"], scores, strict=True):
    assert got["run"] == folder and got["step"] in (2, 4)
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


def test_dumps_stand_in_for_runs(runs, tmp_path):
  """Also without the run, its data and its checkpoints."""
  folders = [str(runs / name) for name in "ab"]
  whole = ensemble.rate(folders, dump=True)
  moved = tmp_path / "b.npz"
  (runs / "b" / "val_predictions.npz").rename(moved)
  again = ensemble.rate([folders[0], str(moved)])
  assert again["ensemble"] == whole["ensemble"]
  assert again["runs"][1] == whole["runs"][1] | {"run": str(moved)}


def rename(evals):
  evals["test"] = evals.pop("val")


# What makes the evaluation of a run another one.
CHANGES = {
  "fewer": lambda evals: evals["val"]["source_kw"].update(num_examples=8),
  "split": lambda evals: evals["val"].update(split="test"),
  "name": rename,
}


@pytest.fixture(scope="module")
def strangers(runs):
  """Runs that are not about the same things."""
  for name, change in CHANGES.items():
    path = shutil.copytree(runs / "a", runs / name) / "config.json"
    written = json.loads(path.read_text())
    change(written["config"]["evals"])
    if name == "name":
      written["config"]["best"] = ""
    path.write_text(json.dumps(written))
  return runs


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (["{}/a", "{}/nothing"], "nothing is not a work directory"),
    (["{}/a", "{}/a"], "a run is given twice"),
    (["{}/a", "{}/fewer"], "fewer has 8 recordings in val, "),
    (["{}/a", "{}/split"], "split has other recordings in val than"),
    (["{}/a", "{}/name"], "unknown evaluation 'val'. Known: test."),
    (["{}/a", "--split=vla"], "Did you mean 'val'"),
    (["{}/a", "{}/a/config.json"], "neither a work directory nor predictions"),
    (["{}/a", "--json={}/no/x.json"], "there is no such folder"),
  ],
)
def test_mistakes_end_in_one_line(args, said, strangers, mistake):
  mistake(ensemble.main([a.format(strangers) for a in args]), said)


@pytest.mark.parametrize("what", ["labels", "class_names", "names", "split"])
def test_dumps_have_to_agree(what, runs, tmp_path, mistake):
  if not (runs / "a" / "val_predictions.npz").exists():
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
  expected = {
    "labels": "other labels in val",
    "class_names": "other classes in val",
    "names": "other recordings in val",
    "split": "is of the evaluation 'test', not 'val'",
  }
  dump = str(runs / "a" / "val_predictions.npz")
  mistake(ensemble.main([dump, str(path)]), expected[what])
