"""The pictures of a run."""

import dataclasses
import shutil

import numpy as np
import pytest
import scipy.special

from astjax.run import job
from astjax.tools import reconstruct, report

pytestmark = pytest.mark.usefixtures("one_device")


def test_pictures(tiny_run, tmp_path, capsys):
  workdir = shutil.copytree(tiny_run, tmp_path / "run")
  assert report.main([f"--workdir={workdir}", "--clips=3"]) == 0
  told = capsys.readouterr().out
  for name in ("learning_curve.png", "predictions.png"):
    assert (workdir / name).read_bytes()[:4] == b"\x89PNG"
    assert name in told


def test_a_run_without_classifier(ssast_run, tmp_path, capsys):
  workdir = shutil.copytree(ssast_run, tmp_path / "run")
  assert report.main([f"--workdir={workdir}"]) == 0
  assert (workdir / "learning_curve.png").is_file()
  assert not (workdir / "predictions.png").exists()
  assert "astjax.tools.reconstruct" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_scores_are_of_the_training_s_kind(
  kind, tiny_run, tmp_path, monkeypatch
):
  """Bars of a softmax add up to 1."""
  run, state = job.load_run(tiny_run)
  head = dataclasses.replace(run.task.head, scores=kind)
  run = dataclasses.replace(run, task=dataclasses.replace(run.task, head=head))
  seen = []
  monkeypatch.setattr(
    report, "_draw", lambda split, out, scores, _: seen.append((out, scores))
  )
  monkeypatch.setattr(reconstruct, "save", lambda figure, path: None)
  report.predictions(run, state, tmp_path, clips=3)
  ((out, scores),) = seen
  logits = out["logits"][:3]
  expected = {
    "sigmoid": scipy.special.expit(logits),
    "softmax": scipy.special.softmax(logits, axis=-1),
  }
  np.testing.assert_allclose(scores, expected[kind])


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (["--workdir=nowhere"], "not a work directory"),
    (["--workdir={}", "--split=tset"], "unknown evaluation 'tset'"),
    (["--workdir={}", "--clips=0"], "at least 1"),
  ],
)
def test_mistakes_end_in_one_line(args, said, tiny_run, mistake):
  mistake(report.main([a.format(tiny_run) for a in args]), said)
