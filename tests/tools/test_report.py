"""The pictures of a run."""

import jax
import pytest

from astjax import train
from astjax.engine import sharding
from astjax.tools import report
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  mesh = sharding.make_mesh(jax.devices()[:1])
  train.train_and_evaluate(tiny_config(steps=3), folder, mesh=mesh)
  return folder


def test_pictures(workdir, capsys):
  assert report.main([f"--workdir={workdir}", "--clips=3"]) == 0
  for name in ("learning_curve.png", "predictions.png"):
    assert (workdir / name).read_bytes()[:4] == b"\x89PNG"
    assert name in capsys.readouterr().out or name == "predictions.png"


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (["--workdir=nowhere"], "not a work directory"),
    (["--workdir={}", "--split=tset"], "unknown evaluation 'tset'"),
    (["--workdir={}", "--clips=0"], "at least 1"),
  ],
)
def test_mistakes_end_in_one_line(args, said, workdir, capsys):
  assert report.main([a.format(workdir) for a in args]) == 1
  lines = capsys.readouterr().err.strip().splitlines()
  assert len([x for x in lines if x.startswith("astjax: error:")]) == 1
  assert said in lines[-1]
