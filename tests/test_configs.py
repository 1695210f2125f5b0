"""Every config builds with every argument; its full-size step has shapes."""

import csv
import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile

from astjax.engine import sharding
from astjax.engine.step import make_train_step, train_key
from astjax.run import job

ROOT = pathlib.Path(__file__).parent.parent
ARGUMENTS = {
  "demo": [""],
  "ast_digits": [""],
  "ast_folder": ["", "scratch", "audioset"],
  "ast_audioset": ["full", "balanced"],
  "ast_esc50": ["audioset", "imagenet"],
  "ast_speechcommands": [""],
  "ssast_folder": [""],
  "ssast_digits": ["pretrain", "few", "all"],
  "ssast_pretrain": ["patch", "frame", "tiny", "tiny_frame"],
  "ssast_audioset": [""],
  "ssast_esc50": ["patch", "frame"],
  "ssast_speechcommands": [""],
  "ssast_superb": ["ks", "ks_patch", "sid", "sid_patch", "er", "er_patch"],
  "asit_folder": [""],
  "asit_digits": ["pretrain", "few", "all"],
  "asit_pretrain": ["r2", "r1", "small"],
  "asit_audioset": ["full", "balanced"],
  "asit_esc50": [""],
  "asit_speechcommands": ["v1", "v2"],
  "asit_voxceleb": [""],
}


def test_all_configs_are_listed():
  found = {p.stem for p in (ROOT / "configs").glob("*.py")}
  assert found - {"__init__", "common"} == set(ARGUMENTS)


def run_in(folder, code, *arguments):
  """Runs code in a folder in which `configs` is something else."""
  (folder / "configs").mkdir()
  code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
  command = [sys.executable, "-c", code, *arguments]
  env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  out = subprocess.run(
    command, cwd=folder, env=env, capture_output=True, text=True
  )
  assert out.returncode == 0, out.stderr
  return out.stdout


@pytest.mark.parametrize("copied", [False, True])
def test_a_config_is_read_from_any_folder(copied, tmp_path):
  path = ROOT / "configs" / "ast_esc50.py"
  if copied:
    path = shutil.copy(path, tmp_path / "mine.py")
  code = (
    "from astjax import cli\n"
    "sys.path.pop(0)\n"  # as if astjax alone were installed
    "print(cli.load_config(sys.argv[1]).input.source_kw.csv)"
  )
  assert run_in(tmp_path, code, f"{path}:imagenet") == "meta/esc50.csv\n"


def test_configs_are_a_package_of_any_name(tmp_path):
  shutil.copytree(ROOT / "configs", tmp_path / "recipes")
  code = (
    "sys.path[0] = ''\n"
    "from recipes import ast_esc50\n"
    "print(ast_esc50.get_config().input.source_kw.csv)"
  )
  assert run_in(tmp_path, code) == "meta/esc50.csv\n"


def write_sound(path, rate):
  path.parent.mkdir(parents=True, exist_ok=True)
  wave = 0.1 * np.random.default_rng(0).standard_normal(rate // 2)
  soundfile.write(path, wave, rate)


def make_data(name, folder, arg=""):
  """A few recordings in the layout that the config's docstring asks for."""
  if name == "ssast_superb":
    folder.mkdir(exist_ok=True)
    SUPERB[arg.split("_")[0]](folder)
  if name == "asit_voxceleb":
    make_speakers(folder)
  if arg == "v1":
    folder.mkdir(exist_ok=True)
    make_keywords(folder)
    return
  # The layouts of the three are the same.
  name = name.removeprefix("ss").replace("asit_", "ast_")
  if name == "ast_pretrain":
    for place in ("audioset/train", "audioset/eval"):
      write_sound(folder / place / "a" / "b.wav", 16_000)
    for part in ("train-clean-100", "train-clean-360", "train-other-500"):
      write_sound(folder / "LibriSpeech" / part / "19/198/19-0.flac", 16_000)
  if name == "ast_digits":
    for digit in range(10):
      for take in (0, 5, 7):
        write_sound(folder / f"{digit}_anna_{take}.wav", 8_000)
  if name == "ast_folder":
    for i in range(20):
      write_sound(folder / ("dog", "cat")[i % 2] / f"{i}.wav", 44_100)
  if name == "ast_esc50":  # five clips in each fold, of two classes
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for i in range(10):
      file = f"{i % 5 + 1}-{i}-A-{i % 2}.wav"
      rows.append(f"{file},{i % 5 + 1},{i % 2},{('dog', 'cat')[i % 2]},x,{i},A")
      write_sound(folder / "audio" / file, 44_100)
    (folder / "meta").mkdir()
    (folder / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
  if name == "ast_speechcommands":
    for word in ("yes", "no", "_background_noise_"):
      for i in range(4):
        write_sound(folder / word / f"{i}_nohash_0.wav", 16_000)
    (folder / "validation_list.txt").write_text("yes/0_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("no/0_nohash_0.wav\n")
  if name == "ast_audioset":
    write_sound(folder / "clips" / "a.wav", 16_000)
    with open(folder / "class_labels_indices.csv", "w", newline="") as f:
      writer = csv.writer(f)
      writer.writerow(["index", "mid", "display_name"])
      writer.writerows([i, f"/m/{i:05}", f"class {i}, a"] for i in range(527))
    for table in ("full", "balanced", "eval"):
      (folder / f"{table}.csv").write_text(
        'path,labels\nclips/a.wav,"/m/00003,/m/00526"\n'
      )


def make_keywords(folder):
  words = (
    "yes",
    "no",
    "up",
    "down",
    "left",
    "right",
    "on",
    "off",
    "stop",
    "go",
  )
  for word in (*words, "bed", "_background_noise_"):
    for i in range(2):
      write_sound(folder / word / f"{i}_nohash_0.wav", 48_000)
  for word in (*words, "_unknown_", "_silence_"):
    write_sound(folder / "test" / word / "0_nohash_0.wav", 16_000)
  (folder / "validation_list.txt").write_text("yes/0_nohash_0.wav\n")
  (folder / "testing_list.txt").write_text("bed/0_nohash_0.wav\n")


def make_speakers(folder):
  lines = []
  for speaker in ("id10001", "id11251"):
    for part in "1123":
      path = f"{speaker}/na8-QEFmj44/{len(lines):05}.wav"
      write_sound(folder / path, 16_000)
      lines.append(f"{part} {path}")
  (folder / "iden_split.txt").write_text("\n".join(lines) + "\n")


def make_emotions(folder):
  """As IEMOCAP has them; the table comes from the docstring's command."""
  for session in range(1, 6):
    dialog = f"Ses{session:02}F_impro01"
    place = folder / f"Session{session}"
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for i, emotion in enumerate(("neu", "hap", "exc", "sad", "ang", "xxx") * 4):
      turn = f"{dialog}_F{i:03}"
      lines.append(f"[{i}.0 - {i}.5]\t{turn}\t{emotion}\t[2.5, 2.5, 2.5]")
      lines.append("C-E2:\tNeutral;\t()")
      write_sound(place / "sentences" / "wav" / dialog / f"{turn}.wav", 16_000)
    table = place / "dialog" / "EmoEvaluation" / f"{dialog}.txt"
    table.parent.mkdir(parents=True)
    table.write_text("\n".join(lines) + "\n")
  text = importlib.import_module("configs.ssast_superb").__doc__
  command = re.search(r"\(echo.*?> iemocap\.csv", text, re.S).group()
  subprocess.run(command, shell=True, cwd=folder, check=True)


SUPERB = {"ks": make_keywords, "sid": make_speakers, "er": make_emotions}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "arg"),
  [(name, arg) for name, args in ARGUMENTS.items() for arg in args],
)
def test_builds_and_steps(name, arg, tmp_path):
  module = importlib.import_module(f"configs.{name}")
  config = module.get_config(arg) if arg else module.get_config()
  make_data(name, tmp_path, arg)
  if config.input.source != "synthetic":
    config.input.data_dir = str(tmp_path)
  config.model.depth = 1  # whose step is traced in a tenth of the time
  built = job.build(config, mesh=sharding.make_mesh(jax.devices()[:1]))
  num_classes = len(built.train.class_names)
  if name == "ssast_pretrain":
    assert num_classes == 0 and len(built.train.reader.source) == 4
  if arg != ARGUMENTS[name][0]:
    return  # `build` has traced the loss; the update is that of its neighbour

  state = jax.eval_shape(lambda: job.fresh_state(built)[1])
  tx = built.optimizer(state.params)
  step = make_train_step(
    built.task,
    tx,
    built.train.device_ops,
    built.mesh,
    accumulate=built.config.accumulate,
  )
  size = built.config.input.batch_size
  batch = {
    name: jax.ShapeDtypeStruct((size, *shape), dtype)
    for name, (shape, dtype) in built.train.row_shapes.items()
  }
  key = jax.eval_shape(lambda: train_key(0))
  out, metrics = jax.eval_shape(step, state, batch, 0, key)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), out) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  assert metrics["loss"].shape == ()
  if built.task.head:
    assert out.params["head"]["linear"]["bias"].shape == (num_classes,)


def test_the_generative_objective_alone(tmp_path):
  """What docs/ssast.md says of it."""
  config = importlib.import_module("configs.ssast_pretrain").get_config("tiny")
  make_data("ssast_pretrain", tmp_path)
  config.input.data_dir = str(tmp_path)
  config.task_kw.objective = "generative"
  config.best, config.best_is_lowest = "val/mse", True
  config.plateau.metric, config.plateau.mode = "val/mse", "min"
  built = job.build(config, mesh=sharding.make_mesh(jax.devices()[:1]))
  assert built.task.metric_names == ("loss", "mse")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_wrong_argument(name):
  module = importlib.import_module(f"configs.{name}")
  with pytest.raises(ValueError, match="nonsense"):
    module.get_config("nonsense")
