"""Statistics of a data set against a direct computation."""

import re

import numpy as np
import pytest
import soundfile

from astjax.ops import fbank
from astjax.tools import dataset_stats

CONFIG = """
from configs import ast_folder

def get_config():
  c = ast_folder.get_config()
  c.input.split = ""
  c.input.source_kw = {}
  return c
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
  root = tmp_path_factory.mktemp("stats")
  rng = np.random.default_rng(0)
  for i in range(7):
    path = root / "sounds" / ("a", "b")[i % 2] / f"{i}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = rng.standard_normal(4_000 + 1_500 * i) * 0.02 * (i + 1)
    soundfile.write(path, wave, 16_000, subtype="PCM_16")
  (root / "config.py").write_text(CONFIG)
  return root


def numbers(out):
  found = re.search(r"(\d+) recordings: standardize\((\S+), (\S+)\)", out)
  return int(found[1]), float(found[2]), float(found[3])


def run(project, *flags):
  return dataset_stats.main(
    [
      f"--config={project / 'config.py'}",
      f"--data_dir={project / 'sounds'}",
      *flags,
    ]
  )


def test_real_cells_alone(project, capsys):
  assert run(project) == 0
  count, mean, std = numbers(capsys.readouterr().out)
  cells = np.concatenate([mels.ravel() for mels in fbanks(project)])
  assert count == 7
  assert mean == pytest.approx(cells.mean(), abs=1e-4)
  assert std == pytest.approx(cells.std(), abs=1e-4)


def fbanks(project):
  for path in (project / "sounds").rglob("*.wav"):
    wave, _ = soundfile.read(path, dtype="float32")
    yield fbank.fbank(wave - wave.mean(), fbank.FbankSpec())


def test_the_original_counts_padding_and_masks(project, capsys):
  assert run(project, "--original") == 0
  count, mean, _ = numbers(capsys.readouterr().out)
  assert count == 7
  # Most of the 500 frames are padding, which is 0.
  assert mean > np.concatenate([*fbanks(project)]).mean() / 2


@pytest.mark.parametrize(
  ("args", "told"),
  [
    (["--config=no.py"], "the config file 'no.py' does not exist"),
    (["--config={}:nonsense"], "get_config"),
    (["--config={}", "--data_dir=nowhere"], "no data directory"),
  ],
)
def test_mistakes(args, told, project, mistake):
  args = [a.format(project / "config.py") for a in args]
  mistake(dataset_stats.main(args), told)
