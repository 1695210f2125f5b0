"""The mean of saved checkpoints as a model."""

import json

import jax
import numpy as np
import pytest

from astjax.tools import average_checkpoints
from astjax.weights import info as model_info
from astjax.weights import load, orbax_params
from tests.test_train import run
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  config = tiny_config(
    schedule={"lr": 0.02}, checkpoint={"every_steps": 1, "keep": 9}
  )
  run(folder, config)
  return folder


def saved(workdir, step):
  with orbax_params.reader(workdir) as checkpoints:
    return checkpoints.params(step)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("flags", "steps"),
  [
    ([], [1, 2, 3, 4]),
    (["--last=3"], [2, 3, 4]),
    (["--last=1"], [4]),
    (["--steps=4,1"], [1, 4]),
  ],
)
def test_mean_of_the_steps(flags, steps, workdir, tmp_path, capsys):
  out = tmp_path / "model"
  assert (
    average_checkpoints.main([f"--workdir={workdir}", *flags, str(out)]) == 0
  )
  listed = ", ".join(map(str, steps))
  assert f"the mean of steps {listed}" in capsys.readouterr().out
  info, params = model_info.read_model(out)
  assert info.origin == f"trained by astjax, averaged over steps {listed}"
  for name, value in params.items():
    parts = [saved(workdir, s)[name].astype(np.float64) for s in steps]
    expected = np.mean(parts, axis=0).astype(np.float32)
    np.testing.assert_allclose(value, expected, rtol=1e-7, atol=0)
  loaded = load.load(out)
  assert loaded.info.head.num_classes == 10
  run(tmp_path / "next", tiny_config(steps=1, init_from=str(out)))


def test_the_weights_are_of_the_training(workdir):
  """What the tool reads is what training saved: the newest step's."""
  newest = saved(workdir, 4)
  step, params = orbax_params.read_params(workdir)
  for name, value in newest.items():
    if step == 4:
      np.testing.assert_array_equal(value, params[name])
  changed = jax.tree.map(lambda a, b: (a != b).any(), newest, saved(workdir, 1))
  assert any(changed.values())


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--workdir=nowhere", "{out}"], "nowhere is not a work directory"),
    (
      ["--workdir={run}", "--steps=1,7", "{out}"],
      "no checkpoint of step 7; it",
    ),
    (["--workdir={run}", "--last=5", "{out}"], "--last=5, but the run has 4"),
    (["--workdir={run}", "--last=0", "{out}"], "--last=0"),
    (["--workdir={run}", "{run}"], "is there already"),
  ],
)
def test_mistakes_end_in_one_line(flags, said, workdir, tmp_path, capsys):
  out = tmp_path / "model"
  args = [f.format(run=workdir, out=out) for f in flags]
  assert average_checkpoints.main(args) == 1
  lines = capsys.readouterr().err.strip().splitlines()
  assert len([x for x in lines if x.startswith("astjax: error:")]) == 1
  assert said in lines[-1]
  assert not out.exists()


def test_wrong_flags(workdir, capsys):
  with pytest.raises(SystemExit) as error:
    average_checkpoints.main([f"--workdir={workdir}", "--steps=a", "out"])
  assert error.value.code == 2
  assert "'a' are no steps like 100,200" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_averaged(tmp_path, capsys):
  run(tmp_path / "run", tiny_config(steps=2, checkpoint={"every_steps": 1}))
  # As after a silent flip: the digest of a parameter does not match.
  path = tmp_path / "run" / "checkpoints" / "1" / "meta" / "metadata"
  meta = json.loads(path.read_text())
  leaf = next(k for k in meta["leaves"] if k.startswith("params/"))
  meta["leaves"][leaf][2] = "0" * 64
  path.write_text(json.dumps(meta))
  args = [f"--workdir={tmp_path / 'run'}", str(tmp_path / "out")]
  assert average_checkpoints.main(args) == 1
  assert "checkpoint 1 of" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()
