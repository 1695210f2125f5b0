"""Cross-validation: by hand, and through real runs."""

import json
import os
import signal
import sys
import types

import numpy as np
import pytest
import soundfile

from astjax import main
from astjax.errors import UserError
from astjax.tools import folds

CONFIG = """
from tests.tiny import tiny_config

def get_config():
  c = tiny_config(
    steps=4,
    task_kw={"loss": "softmax_xent"},
    evals={"val": {"split": "", "every_steps": 2}},
    best="val/accuracy",
    checkpoint={"every_steps": 2},
  )
  for section in (c.input, c.evals.val):
    section.source = "filenames"
    section.split = ""
    section.source_kw = {
      "pattern": r"(?P<label>low|high)_(?P<fold>\\d)_\\d+\\.wav$"
    }
  return c
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
  """Three folds of low and high tones, and a config."""
  root = tmp_path_factory.mktemp("folds")
  rng = np.random.default_rng(0)
  clock = np.arange(1_720) / 8_000
  for name, pitch in (("low", 300), ("high", 2_500)):
    for i in range(12):
      wave = 0.3 * np.sin(2 * np.pi * pitch * clock * rng.uniform(0.9, 1.1))
      path = root / "sounds" / f"{name}_{i % 3 + 1}_{i}.wav"
      path.parent.mkdir(exist_ok=True)
      soundfile.write(path, wave, 8_000)
  (root / "config.py").write_text(CONFIG)
  return root


def command(project, workdir):
  return folds.main(
    [
      f"--config={project / 'config.py'}",
      f"--workdir={workdir}",
      "--folds=1,2,3",
      "--evaluation=val",
      f"--config.input.data_dir={project / 'sounds'}",
    ]
  )


@pytest.fixture
def trained(monkeypatch):
  """What is trained, in this process; `fails` end with status 143 instead."""
  found = types.SimpleNamespace(folders=[], fails=[])

  def run(words):
    assert words[:3] == [sys.executable, "-m", "astjax.main"]
    name = words[-1].split("/")[-1]
    if name in found.fails:
      return 143
    found.folders.append(name)
    return main.main(words[3:])

  monkeypatch.setattr(folds, "run", run)
  return found


@pytest.mark.slow
def test_three_folds(project, tmp_path, capsys, trained):
  trained.fails = ["fold_2"]
  assert command(project, tmp_path) == 143
  assert "fold 2 ended with status 143" in capsys.readouterr().err
  assert (
    trained.folders == ["fold_1"] and not (tmp_path / "folds.json").exists()
  )
  trained.fails = []
  assert command(project, tmp_path) == 0
  out = capsys.readouterr().out
  assert trained.folders == ["fold_1", "fold_2", "fold_3"]
  assert "fold 1: finished before" in out
  assert "last evaluation" in out and "the original's choice" in out
  result = json.loads((tmp_path / "folds.json").read_text())
  curves = []
  for fold in "123":
    folder = tmp_path / f"fold_{fold}"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    curves.append([x["val/accuracy"] for x in lines if "val/accuracy" in x])
    # Each is trained on the others and rated on its own.
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["evals"]["val"]["folds"] == [fold]
    assert config["input"]["folds"] == [f for f in "123" if f != fold]
  curves = np.array(curves)
  assert curves.shape == (3, 2)
  assert result["last"]["mean"] == pytest.approx(curves[:, -1].mean())
  assert result["last"]["std"] == pytest.approx(curves[:, -1].std(ddof=1))
  best = result["best_mean_on_the_test_folds"]
  assert best["mean"] == pytest.approx(curves.mean(axis=0).max())
  # Again: nothing is trained.
  assert command(project, tmp_path) == 0
  assert len(trained.folders) == 3
  assert capsys.readouterr().out.count("finished before") == 3


# Waits until its parent catches SIGTERM, sends it one, waits for its own.
CHILD = """
import os, pathlib, signal

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
status = pathlib.Path(f"/proc/{os.getppid()}/status")
caught = 0
while not caught >> (signal.SIGTERM - 1) & 1:
  caught = int(status.read_text().split("SigCgt:")[1].split()[0], 16)
os.kill(os.getppid(), signal.SIGTERM)
signal.sigwait([signal.SIGTERM])
raise SystemExit(7)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
def test_signals_go_to_the_training():
  before = signal.getsignal(signal.SIGTERM)
  assert folds.run([sys.executable, "-c", CHILD]) == 7
  assert signal.getsignal(signal.SIGTERM) == before


def test_a_summary_by_hand():
  result = folds.summarise({"1": [0.2, 0.9, 0.6], "2": [0.4, 0.5, 0.6]})
  assert result["evaluations"] == 3
  assert result["mean_curve"] == pytest.approx([0.3, 0.7, 0.6])
  assert result["last"]["mean"] == pytest.approx(0.6)
  assert result["last"]["evaluation"] == 3
  best = result["best_mean_on_the_test_folds"]
  assert best["evaluation"] == 2 and best["folds"] == {"1": 0.9, "2": 0.5}
  assert best["std"] == pytest.approx(np.std([0.9, 0.5], ddof=1))


@pytest.mark.parametrize(
  ("args", "told"),
  [
    (["--folds=1"], "two folds or more"),
    (["--folds=1,1"], "two folds or more"),
    ([], "there is no config file 'c.py'"),
  ],
)
def test_mistakes(args, told, tmp_path, mistake):
  mistake(folds.main(["--config=c.py", f"--workdir={tmp_path}", *args]), told)


def test_folds_of_different_lengths():
  with pytest.raises(UserError, match="different numbers of evaluations"):
    folds.summarise({"1": [0.1], "2": [0.1, 0.2]})
