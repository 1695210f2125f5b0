"""The mean of saved checkpoints as a model."""

import json
import shutil

import numpy as np
import pytest

from astjax.tools import average_checkpoints
from astjax.weights import info as model_info
from astjax.weights import load, orbax_params
from tests.test_train import run
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("one_device")


def average(workdir, *flags):
  return average_checkpoints.main([f"--workdir={workdir}", *map(str, flags)])


@pytest.mark.parametrize(
  ("flags", "steps"),
  [
    ([], [1, 2, 3, 4]),
    (["--last=3"], [2, 3, 4]),
    (["--steps=4,1"], [1, 4]),
  ],
)
def test_mean_of_the_steps(flags, steps, tiny_run, tmp_path, capsys):
  out = tmp_path / "model"
  assert average(tiny_run, *flags, out) == 0
  listed = ", ".join(map(str, steps))
  assert f"the mean of steps {listed}" in capsys.readouterr().out
  info, params = model_info.read_model(out)
  assert info.origin == f"trained by astjax, averaged over steps {listed}"
  with orbax_params.reader(tiny_run) as checkpoints:
    parts = [checkpoints.params(step) for step in steps]
  for name, value in params.items():
    each = [part[name].astype(np.float64) for part in parts]
    assert (each[0] != each[-1]).any() or name.endswith("/bias")
    expected = np.mean(each, axis=0).astype(np.float32)
    np.testing.assert_allclose(value, expected, rtol=1e-7, atol=0)
  assert load.load(out).info.head.num_classes == 10


@pytest.mark.slow
def test_a_training_starts_from_it(tiny_run, tmp_path):
  assert average(tiny_run, tmp_path / "model") == 0
  config = tiny_config(steps=1, init_from=str(tmp_path / "model"))
  run(tmp_path / "next", config)
  assert "averaged over" in (tmp_path / "next" / "init_from.txt").read_text()


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--workdir=nowhere", "{out}"], "nowhere is not a work directory"),
    (
      ["--workdir={run}", "--steps=1,7", "{out}"],
      "no checkpoint of step 7 among",
    ),
    (["--workdir={run}", "--last=5", "{out}"], "--last=5, but the run has 4"),
    (["--workdir={run}", "--last=0", "{out}"], "--last=0"),
    (["--workdir={run}", "{run}"], "is there already"),
    (["--workdir={run}", "--steps=a", "{out}"], "are no steps like 100,200"),
  ],
)
def test_mistakes_end_in_one_line(flags, said, tiny_run, tmp_path, mistake):
  out = tmp_path / "model"
  args = [f.format(run=tiny_run, out=out) for f in flags]
  mistake(average_checkpoints.main(args), said)
  assert not out.exists()


def test_a_damaged_checkpoint_is_not_averaged(tiny_run, tmp_path, mistake):
  folder = shutil.copytree(tiny_run, tmp_path / "run")
  # As after a silent flip: the digest of a parameter does not match.
  path = folder / "checkpoints" / "1" / "meta" / "metadata"
  meta = json.loads(path.read_text())
  leaf = next(k for k in meta["leaves"] if k.startswith("params/"))
  meta["leaves"][leaf][2] = "0" * 64
  path.write_text(json.dumps(meta))
  mistake(average(folder, tmp_path / "out"), "checkpoint 1 of")
  assert not (tmp_path / "out").exists()
