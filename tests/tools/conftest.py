"""Runs that the tests of the tools share, and do not change."""

import jax
import pytest

from astjax import train
from astjax.engine import sharding
from tests.serving import sounds
from tests.tiny import tiny_config, tiny_ssast


def trained(folder, config):
  """The work directory of a run on one device."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  train.train_and_evaluate(config, folder, mesh=mesh)
  return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
  """Four steps of a classifier of ten classes, with all their checkpoints."""
  config = tiny_config(
    schedule={"lr": 0.02}, checkpoint={"every_steps": 1, "keep": 9}
  )
  return trained(tmp_path_factory.mktemp("tiny") / "run", config)


@pytest.fixture(scope="session")
def sounds_run(tmp_path_factory):
  """A run on `sounds.RECORDINGS`, which lie beside it in sounds/."""
  folder = tmp_path_factory.mktemp("sounds")
  return sounds.trained(sounds.write(folder / "sounds"), folder / "workdir")


@pytest.fixture(scope="session")
def ssast_run(tmp_path_factory):
  """One step of both objectives, two of four patches hidden."""
  return trained(tmp_path_factory.mktemp("ssast") / "run", tiny_ssast(steps=1))


@pytest.fixture
def mistake(capsys):
  """A check that a command ended with one line that says something."""

  def check(code, words, lines=1):
    assert code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == lines and error[-1].startswith("astjax: error: ")
    assert words in error[-1]

  return check
