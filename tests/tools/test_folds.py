"""Cross-validation: by hand, and through real runs."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from astjax.tools import folds

ROOT = pathlib.Path(__file__).parent.parent.parent

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


def arguments(project, workdir):
  return [
    f"--config={project / 'config.py'}",
    f"--workdir={workdir}",
    "--folds=1,2,3",
    "--evaluation=val",
    f"--config.input.data_dir={project / 'sounds'}",
  ]


def command(project, workdir):
  return folds.main(arguments(project, workdir))


@pytest.mark.slow
def test_three_folds(project, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  # Killed in the second fold, and the same command is given again.
  process = subprocess.Popen(
    [sys.executable, "-m", "astjax.tools.folds", *arguments(project, tmp_path)],
    cwd=ROOT,
    start_new_session=True,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  end = time.monotonic() + 200
  while not (tmp_path / "fold_2" / "config.json").exists():
    assert process.poll() is None and time.monotonic() < end
    time.sleep(0.05)
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  assert not (tmp_path / "folds.json").exists()
  assert command(project, tmp_path) == 0
  out = capsys.readouterr().out
  assert "fold 1: finished before" in out
  assert "last evaluation" in out and "the original's choice" in out
  result = json.loads((tmp_path / "folds.json").read_text())
  curves = []
  for fold in "123":
    folder = tmp_path / f"fold_{fold}"
    lines = [
      json.loads(line)
      for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
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
  before = {p: p.stat().st_mtime for p in tmp_path.rglob("metrics.jsonl")}
  assert command(project, tmp_path) == 0
  assert len(re.findall("finished before", capsys.readouterr().out)) == 3
  assert before == {
    p: p.stat().st_mtime for p in tmp_path.rglob("metrics.jsonl")
  }


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
  ],
)
def test_mistakes(args, told, tmp_path, capsys):
  assert folds.main(["--config=c.py", f"--workdir={tmp_path}", *args]) == 1
  assert told in capsys.readouterr().err


def test_folds_of_different_lengths():
  with pytest.raises(Exception, match="different numbers of evaluations"):
    folds.summarise({"1": [0.1], "2": [0.1, 0.2]})
