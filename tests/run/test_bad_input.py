"""Whatever is wrong with what was given ends in one line that says what.

Flags go through the command itself. Configs go through `job.build`, which is
what the command calls, and a few through the command as well.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
from ml_collections import ConfigDict

from astjax import main, train
from astjax.engine import sharding
from astjax.engine.step import TrainState
from astjax.errors import UserError
from astjax.run import job, workdir
from astjax.run.checkpoint import Checkpoints
from astjax.run.config import parse
from tests.tiny import FRAMES, MELS, RATE, on_device, tiny_config

ROOT = pathlib.Path(__file__).parent.parent.parent
DEMO = "--config=configs/demo.py"


@pytest.fixture(scope="module")
def one():
  """One device: it takes any batch, and compiles faster."""
  return sharding.make_mesh(jax.devices()[:1])


def _said(error: pytest.ExceptionInfo, *parts: str) -> str:
  text = str(error.value)
  assert "\n" not in text
  for part in parts:
    assert part in text
  return text


def _training_only(**overrides) -> ConfigDict:
  """The tiny config without its evaluation."""
  config = tiny_config(**overrides)
  config.evals = ConfigDict()
  config.best = ""
  return config


def _refused(config, mesh, *parts: str) -> str:
  with pytest.raises(UserError) as error:
    job.build(config, mesh=mesh)
  return _said(error, *parts)


# --- the command ------------------------------------------------------------


@pytest.fixture
def command(capsys):
  """Runs the command in this process; gives the one line that it ends in."""

  def run(*args: str) -> str:
    assert main.main([*map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert err.startswith("astjax: error: ") and err.count("\n") == 1
    return err

  return run


def test_the_process_ends_in_one_line_and_a_code():
  done = subprocess.run(
    [sys.executable, "-m", "astjax.main", DEMO],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr == (
    "astjax: error: no work directory: give one with --workdir=FOLDER\n"
  )


FLAGS = {
  "nothing": ([], ["no config", "--config="]),
  "no work directory": ([DEMO], ["no work directory", "--workdir=FOLDER"]),
  "one dash": (["-config=configs/demo.py"], ["no work directory"]),
  "missing config": (
    ["--config=configs/dmeo.py"],
    ["'configs/dmeo.py'", "does not exist"],
  ),
  "missing config, two words": (
    ["--config", "configs/dmeo.py"],
    ["'configs/dmeo.py'", "does not exist"],
  ),
  "folder": (["--config=configs"], ["'configs'", "is a folder"]),
  "config argument": (
    ["--config=configs/demo.py:foo"],
    ["configs/demo.py takes no argument, got 'foo'"],
  ),
  "unknown flag": (
    [DEMO, "--workdri=x"],
    ["unknown flag --workdri", "Did you mean 'workdir'"],
  ),
  "unknown flag like no other": (
    [DEMO, "--zzz"],
    ["unknown flag --zzz", "Known: config,", "workdir"],
  ),
  "word": ([DEMO, "train"], ["unexpected argument 'train'"]),
  "flag without a value": ([DEMO, "--config.seed"], ["--config.seed"]),
  "words for a number": (
    [DEMO, "--config.input.batch_size=many"],
    ["--config.input.batch_size=many"],
  ),
  "half a seed": ([DEMO, "--config.seed=0.5"], ["--config.seed=0.5"]),
  "number for a section": ([DEMO, "--config.model=3"], ["--config.model=3"]),
  "value without a config": (["--config.seed=1"], ["--config="]),
  "unknown section": (
    [DEMO, "--workdir=x", "--config.modle.width=3"],
    ["modle", "Did you mean", "model"],
  ),
}


@pytest.mark.parametrize("case", FLAGS)
def test_wrong_flags(case, command, monkeypatch):
  monkeypatch.chdir(ROOT)
  args, parts = FLAGS[case]
  line = command(*args)
  for part in parts:
    assert part in line


# Config files, and what the line must say; FILE is the file's name.
FILES = {
  "no function": ("x = 1\n", ["no function get_config"]),
  "raises": (
    "def get_config():\n  raise RuntimeError('out of\\nluck')\n",
    ["RuntimeError", "luck"],
  ),
  "raises while imported": ("1 / 0\n", ["ZeroDivisionError"]),
  "not Python": ("seed: 3\nmodel: {\n", ["not Python", "FILE", "line 2"]),
  "bad indent": (
    "def get_config():\n  x = 1\n    y = 2\n",
    ["not Python", "FILE", "line 3"],
  ),
  "bytes": (bytes(range(256)), ["not Python", "FILE"]),
  "missing module": ("import no_such_module\n", ["'no_such_module'"]),
  "returns nothing": ("def get_config():\n  x = 1\n", ["returned nothing"]),
  "returns a number": ("def get_config():\n  return 3\n", ["get_config"]),
  "returns a dict": (
    "def get_config():\n  return {'seed': 1}\n",
    ["get_config", "ConfigDict"],
  ),
  "reads a missing file": (
    "def get_config():\n  return open('/no/such/table.txt')\n",
    ["/no/such/table.txt"],
  ),
}


@pytest.mark.parametrize("case", FILES)
def test_wrong_config_files(case, tmp_path, command):
  text, parts = FILES[case]
  file = tmp_path / "bad_config.py"
  file.write_bytes(text if isinstance(text, bytes) else text.encode())
  line = command(f"--config={file}", f"--workdir={tmp_path / 'run'}")
  for part in parts:
    assert part.replace("FILE", str(file)) in line


def test_several_processes_need_each_flag(command, tmp_path):
  """All cases are in test_group."""
  args = (f"--config={ROOT / 'configs' / 'demo.py'}", f"--workdir={tmp_path}")
  assert "--coordinator=HOST:PORT" in command(*args, "--num_processes=2")


def test_the_command_names_the_nearest_key(command, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  line = command(DEMO, f"--workdir={tmp_path}", "--config.input.batch_siz=8")
  assert "unknown argument 'batch_siz' in config.input" in line
  assert "Did you mean 'batch_size'?" in line


def test_the_command_takes_values_in_every_form(monkeypatch):
  monkeypatch.chdir(ROOT)
  seen = []
  monkeypatch.setattr(main, "_train", seen.append)
  forms = (
    "-config.seed=3",
    "--config.steps",
    "7",
    "--noconfig.log.tensorboard",
  )
  new = "--config.input.folds=(1,2)"
  assert main.main([*forms, new, "--config", "configs/demo.py"]) == 0
  config = seen[0].config
  assert (config.seed, config.steps, config.input.folds) == (3, 7, (1, 2))
  assert config.log.tensorboard is False


# --- keys and types ---------------------------------------------------------

# What is laid over the tiny config, and what the line must say.
KEYS = {
  "unknown key": ({"sed": 1}, ["'sed' in config.", "Did you mean 'seed'"]),
  "unknown key of input": (
    {"input": {"batchsize": 8}},
    ["'batchsize' in config.input", "'batch_size'"],
  ),
  "unknown key of an evaluation": (
    {"evals": {"val": {"every_step": 8}}},
    ["'every_step' in config.evals.val", "'every_steps'"],
  ),
  "unknown key of log": (
    {"log": {"every": 8}},
    ["'every' in config.log", "every_steps"],
  ),
  "unknown key of checkpoint": (
    {"checkpoint": {"keeep": 8}},
    ["'keeep' in config.checkpoint", "'keep'"],
  ),
  "unknown key of the source": (
    {"input": {"source_kw": {"second": 1.0}}},
    ["'second' in config.input.source_kw", "'seconds'"],
  ),
  "unknown key of the model": (
    {"model": {"widht": 16}},
    ["'widht' in config.model", "'width'"],
  ),
  "unknown key of the task": (
    {"task_kw": {"los": "bce"}},
    ["'los' in config.task_kw", "'loss'"],
  ),
  "unknown key of the schedule": (
    {"schedule": {"warm_up": "none"}},
    ["'warm_up' in config.schedule", "'warmup'"],
  ),
  "unknown key of the optimiser": (
    {"optim": {"weight_decy": 0.1}},
    ["'weight_decy' in config.optim", "'weight_decay'"],
  ),
  "a key that is not the user's": (
    {"schedule": {"total_steps": 3}},
    ["'total_steps' in config.schedule"],
  ),
  "no section": ({"input": 3}, ["config.input=3", "section"]),
  "evals of a number": ({"evals": 3}, ["evals=3 is int"]),
  "seed of a word": ({"seed": "one"}, ["seed='one' is str", "expected int"]),
  "batch of a word": (
    {"input": {"batch_size": "8"}},
    ["config.input: batch_size='8' is str", "expected int"],
  ),
  "folds of a word": (
    {"input": {"folds": "12"}},
    ["config.input: folds='12' is str", "expected tuple"],
  ),
  "lr of a word": (
    {"schedule": {"lr": "1e-3"}},
    ["config.schedule: lr='1e-3' is str", "expected float"],
  ),
  "freeze of a word": (
    {"optim": {"freeze": "head"}},
    ["config.optim: freeze='head' is str", "expected tuple"],
  ),
}


@pytest.mark.parametrize("case", KEYS)
def test_unknown_keys_and_wrong_types(case, one):
  given, parts = KEYS[case]
  of_evaluation = "evals" in given
  make = tiny_config if of_evaluation else _training_only
  _refused(make(**given), one, *parts)


@pytest.mark.parametrize(
  ("path", "where"),
  [
    ("task", "config"),
    ("model", "config"),
    ("input", "config"),
    ("schedule", "config"),
    ("input.source", "config.input"),
    ("input.on_host", "config.input"),
    ("input.on_device", "config.input"),
    ("evals.val.on_device", "config.evals.val"),
    ("schedule.lr", "config.schedule"),
  ],
)
def test_missing_keys(path, where, one):
  config = tiny_config()
  *sections, key = path.split(".")
  section = config
  for name in sections:
    section = section[name]
  del section[key]
  _refused(config, one, f"{where}: ", f"{key!r}")


# --- values -----------------------------------------------------------------

NAN, INF = float("nan"), float("inf")

VALUES = {
  "negative seed": ({"seed": -1}, ["config: seed=-1", "0 to 2^32-1"]),
  "seed too large": ({"seed": 2**32}, ["config: seed=4294967296"]),
  "epochs and steps": ({"epochs": 1.0}, ["epochs=1.0", "steps=4", "once"]),
  "neither epochs nor steps": ({"steps": 0}, ["epochs=0.0", "steps=0"]),
  "negative steps": ({"steps": -4}, ["steps=-4"]),
  "negative epochs": ({"epochs": -1.0}, ["epochs=-1.0"]),
  "endless epochs": ({"epochs": INF, "steps": 0}, ["epochs=inf"]),
  "epochs not a number": ({"epochs": NAN}, ["epochs=nan"]),
  "batch of nothing": (
    {"input": {"batch_size": 0}},
    ["config.input.batch_size=0"],
  ),
  "negative batch": (
    {"input": {"batch_size": -8}},
    ["config.input: batch_size=-8"],
  ),
  "unknown task": ({"task": "supervise"}, ["config.task", "'supervised'"]),
  "unknown loss": (
    {"task_kw": {"loss": "mse"}},
    ["config.task_kw", "loss='mse'", "'bce', 'softmax_xent'"],
  ),
  "unknown source": (
    {"input": {"source": "synthetics"}},
    ["config.input.source 'synthetics'", "'synthetic'"],
  ),
  "no examples": (
    {"input": {"source_kw": {"num_examples": 0}}},
    ["num_examples=0"],
  ),
  "unknown variant": (
    {"model": {"variant": "tiny"}},
    ["variant 'tiny'", "'tiny224'"],
  ),
  "width of no whole heads": (
    {"model": {"num_heads": 3}},
    ["width 16", "num_heads 3"],
  ),
  "negative width": ({"model": {"width": -16}}, ["width=-16"]),
  "negative depth": ({"model": {"depth": -1}}, ["depth=-1"]),
  "negative mlp": ({"model": {"mlp_dim": -4}}, ["mlp_dim", "-4"]),
  "drop path of all": ({"model": {"drop_path": 1.0}}, ["drop_path", "1.0"]),
  "unknown dtype": ({"model": {"dtype": "float16"}}, ["'float16'", "bfloat16"]),
  "unknown attention": ({"model": {"attention": "flash"}}, ["'flash'", "xla"]),
  "attention of another device": (
    {"model": {"attention": "cudnn"}},
    ["attention", "cudnn"],
  ),
  "unknown prefix": ({"model": {"prefix": ("x",)}}, ["prefix ('x',)"]),
  "no prefix to pool": ({"model": {"prefix": ()}}, ["prefix", "pooling"]),
  "patch of nothing": ({"model": {"patch_size": (0, 8)}}, ["patch_size"]),
  "patch of one side": ({"model": {"patch_size": (8,)}}, ["patch_size"]),
  "stride of three sides": ({"model": {"stride": (8, 8, 8)}}, ["stride"]),
  "patch too large": (
    {"model": {"patch_size": (32, 32)}},
    ["32 mel bins x 32 frames", f"{MELS} mel bins x {FRAMES} frames"],
  ),
  "negative lr": ({"schedule": {"lr": -1.0}}, ["config.schedule", "lr", "-1"]),
  "lr of nothing": ({"schedule": {"lr": 0.0}}, ["config.schedule", "lr", "0"]),
  "lr not a number": ({"schedule": {"lr": NAN}}, ["config.schedule", "nan"]),
  "unknown decay": (
    {"schedule": {"decay": "linear"}},
    ["config.schedule", "decay='linear'", "'cosine'"],
  ),
  "decay every no epoch": (
    {"schedule": {"decay": "multistep", "decay_every": 0}},
    ["config.schedule", "decay_every"],
  ),
  "negative decay": (
    {"schedule": {"decay": "multistep", "decay_factor": -0.5}},
    ["config.schedule", "decay_factor"],
  ),
  "negative warm-up": (
    {"schedule": {"warmup": "linear", "warmup_steps": -3}},
    ["config.schedule", "warmup_steps", "-3"],
  ),
  "negative final lr": (
    {"schedule": {"decay": "cosine", "final_lr": -1.0}},
    ["config.schedule", "final_lr", "-1"],
  ),
  "unknown optimiser": (
    {"optim": {"name": "sgd"}},
    ["config.optim", "name='sgd'", "'adamw'"],
  ),
  "b1 above one": ({"optim": {"b1": 1.5}}, ["config.optim", "b1", "1.5"]),
  "b2 of one": ({"optim": {"b2": 1.0}}, ["config.optim", "b2", "1.0"]),
  "negative eps": ({"optim": {"eps": -1e-8}}, ["config.optim", "eps"]),
  "negative decay of weights": (
    {"optim": {"weight_decay": -0.1}},
    ["config.optim", "weight_decay", "-0.1"],
  ),
  "negative clip": (
    {"optim": {"clip_norm": -1.0}},
    ["config.optim", "clip_norm", "-1.0"],
  ),
  "bad expression": (
    {"optim": {"freeze": ("[",)}},
    ["config.optim", "'['", "not a regular expression"],
  ),
  "expression that fits nothing": (
    {"optim": {"freeze": ("bakcbone",)}},
    ["config.optim", "'bakcbone'", "fits no parameter", "backbone/"],
  ),
  "expression of a number": ({"optim": {"no_decay": (3,)}}, ["no_decay"]),
  "multiplier alone": (
    {"optim": {"lr_multipliers": (("head",),)}},
    ["config.optim: lr_multipliers=", "('head',)"],
  ),
  "multiplier of a word": (
    {"optim": {"lr_multipliers": (("head", "x"),)}},
    ["config.optim: lr_multipliers=", "'x'"],
  ),
  "no log": ({"log": {"every_steps": 0}}, ["config.log: every_steps=0"]),
  "keep nothing": ({"checkpoint": {"keep": 0}}, ["config.checkpoint: keep=0"]),
  "save every -1 steps": (
    {"checkpoint": {"every_steps": -1}},
    ["config.checkpoint", "every_steps", "-1"],
  ),
  "save every -1 epochs": (
    {"checkpoint": {"every_epochs": -1.0}},
    ["config.checkpoint", "every_epochs", "-1"],
  ),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_that_make_no_sense(case, one):
  given, parts = VALUES[case]
  _refused(_training_only(**given), one, *parts)


EVALS = {
  "evaluate every -1 steps": (
    {"evals": {"val": {"every_steps": -1}}},
    ["config.evals.val", "every_steps", "-1"],
  ),
  "evaluate every nan epochs": (
    {"evals": {"val": {"every_epochs": NAN}}},
    ["config.evals.val", "every_epochs", "nan"],
  ),
  "batch of an evaluation": (
    {"evals": {"val": {"batch_size": 0}}},
    ["config.evals.val.batch_size=0"],
  ),
  "best of no evaluation": (
    {"best": "test/mAP"},
    ["config.best='test/mAP'", "val"],
  ),
  "best of no metric": ({"best": "val"}, ["config.best='val'"]),
  "best of an unknown metric": (
    {"best": "val/maP"},
    ["config.best='val/maP'", "mAP"],
  ),
  "best without an evaluation": (
    {"best": "mAP"},
    ["config.best='mAP'", "val"],
  ),
  "another grid": (
    {"evals": {"val": {"on_device": f"to_float|fbank({RATE}, {2 * MELS})"}}},
    ["config.evals.val", "4 x 2", "2 x 2"],
  ),
  "no spectrogram": (
    {"evals": {"val": {"on_device": "to_float"}}},
    ["config.evals.val", "'fbank'"],
  ),
  "unknown op of an evaluation": (
    {"evals": {"val": {"on_device": "to_flaot"}}},
    ["config.evals.val.on_device", "unknown op 'to_flaot'", "'to_float'"],
  ),
  "another rate": (
    {"evals": {"val": {"source_kw": {"sample_rate": 2 * RATE}}}},
    ["config.evals.val", f"{2 * RATE} Hz", f"resample({RATE})"],
  ),
}


@pytest.mark.parametrize("case", EVALS)
def test_evaluations_that_make_no_sense(case, one):
  given, parts = EVALS[case]
  _refused(tiny_config(**given), one, *parts)


@pytest.mark.parametrize("batch_size", [2, 6, 9])
def test_a_batch_must_divide_over_the_devices(batch_size):
  mesh = sharding.make_mesh(jax.devices()[:4])
  given = {"batch_size": batch_size}
  _refused(
    _training_only(input=given),
    mesh,
    f"config.input.batch_size={batch_size}",
    "4 devices",
  )
  _refused(
    tiny_config(evals={"val": given}),
    mesh,
    f"config.evals.val.batch_size={batch_size}",
    "4 devices",
  )


# --- recipes ----------------------------------------------------------------

HOST = f"decode|fit({FRAMES}, {RATE})|quantise|multi_hot"
FBANK = f"fbank({RATE}, {MELS})"

RECIPES = {
  "unknown op": (
    {"on_host": "decode|fitt(20)"},
    ["config.input.on_host", "op 'fitt'. Did you mean 'fit'"],
  ),
  "unknown op of the device": (
    {"on_device": "to_float|fbnk"},
    ["config.input.on_device", "op 'fbnk'. Did you mean 'fbank'"],
  ),
  "op of the host on the device": (
    {"on_device": "decode|to_float"},
    ["config.input.on_device: unknown op 'decode'"],
  ),
  "unknown argument": (
    {"on_device": f"to_float|fbank({RATE}, mels=16)"},
    ["config.input.on_device", "'mels' in fbank", "num_mel_bins"],
  ),
  "wrong argument": (
    {"on_device": "to_float|fbank('16k')"},
    ["config.input.on_device: fbank", "sample_rate='16k'", "expected int"],
  ),
  "too many arguments": (
    {"on_device": "to_float(1, 2, 3)"},
    ["config.input.on_device: to_float"],
  ),
  "no recipe": (
    {"on_device": "to_float|"},
    ["config.input.on_device", "not a recipe"],
  ),
  "nothing on the host": ({"on_host": ""}, ["to_float", "'audio'"]),
  "nothing on the device": ({"on_device": ""}, ["'fbank'", "'patches'"]),
  "no fit": (
    {"on_host": "decode|quantise|multi_hot"},
    ["config.input.on_host", "fit(...)"],
  ),
  "no label": (
    {"on_host": f"{HOST}|keep('audio', 'num_samples')"},
    ["'label'", "multi_hot"],
  ),
  "no number of samples": (
    {"on_host": f"{HOST}|keep('audio', 'label')"},
    ["config.input.on_device", "center", "'num_samples'"],
  ),
  "integers to fbank": (
    {"on_device": FBANK},
    ["config.input.on_device", "to_float"],
  ),
  "integers to center": (
    {"on_device": f"center|{FBANK}"},
    ["config.input.on_device", "to_float"],
  ),
  "floats to to_float": (
    {"on_host": HOST.replace("|quantise", "")},
    ["config.input.on_device", "to_float"],
  ),
  "std of nothing": (
    {"on_device": f"to_float|{FBANK}|standardize(0.0, 0.0)"},
    ["config.input.on_device: standardize: std=0.0 must be pos"],
  ),
  "mask too wide": (
    {"on_device": on_device(f"freq_mask({MELS + 1})")},
    ["config.input.on_device", f"{MELS + 1}", f"{MELS} cells"],
  ),
  "other classes": (
    {"on_host": HOST.replace("multi_hot", "multi_hot(527)")},
    ["multi_hot(527)", "10 classes"],
  ),
  "another rate": (
    {"source_kw": {"sample_rate": 2 * RATE}},
    ["config.input", f"{2 * RATE} Hz", f"resample({RATE})"],
  ),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipes_that_cannot_work(case, one):
  given, parts = RECIPES[case]
  _refused(_training_only(input=given), one, *parts)


# --- data -------------------------------------------------------------------


def _on_files(data_dir, source="folder", **source_kw) -> ConfigDict:
  config = _training_only(input={"source": source, "data_dir": str(data_dir)})
  config.input.source_kw = ConfigDict(source_kw)
  config.input.split = ""
  return config


def _fill(folder: pathlib.Path, *names: str, sound: bool = True) -> None:
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if sound:
      soundfile.write(folder / name, np.zeros(RATE // 4), RATE)
    else:
      (folder / name).write_text("not a sound")


def test_data_that_is_not_there(tmp_path, one):
  _refused(_on_files(""), one, "no data directory", "data_dir=FOLDER")
  gone = tmp_path / "gone"
  _refused(_on_files(gone), one, f"no data directory {str(gone)!r}")
  _refused(_on_files(tmp_path), one, "no recordings", str(tmp_path), ".wav")


def test_data_of_which_nothing_can_be_read(tmp_path, one):
  _fill(tmp_path, "cat/a.wav", "dog/b.wav", sound=False)
  _refused(_on_files(tmp_path), one, "none of the 2 recordings", "cat/a.wav")


def test_a_label_that_is_not_listed(tmp_path, one):
  _fill(tmp_path, "cat/a.wav", "dgo/b.wav")
  classes = tmp_path / "classes.txt"
  classes.write_text("cat\ndog\n")
  _refused(
    _on_files(tmp_path, label_list=str(classes)),
    one,
    "'dgo' of dgo/b.wav",
    "Did you mean 'dog'",
  )


def test_an_evaluation_with_other_classes(tmp_path, one):
  """However many classes there are, the line can be read."""
  names = [f"class number {i}" for i in range(200)]
  _fill(tmp_path / "train", f"{names[0]}/a.wav")
  _fill(tmp_path / "train", *(f"{n}/a.wav" for n in names[1:]), sound=False)
  _fill(tmp_path / "test", f"{names[0]}/a.wav")
  _fill(tmp_path / "test", *(f"{n}/a.wav" for n in names[2:]), sound=False)
  config = _on_files(tmp_path / "train")
  config.evals = ConfigDict(
    {"test": {"data_dir": str(tmp_path / "test"), "on_device": on_device()}}
  )
  text = _refused(
    *(config, one, "config.evals.test", "label_list", "'class number 1'")
  )
  assert len(text) < 1000


# --- the work directory -----------------------------------------------------


def _train(config, path, mesh) -> list:
  return train.train_and_evaluate(config, path, mesh=mesh)


def _train_refused(config, path, mesh, *parts: str) -> str:
  with pytest.raises(UserError) as error:
    _train(config, path, mesh)
  return _said(error, *parts)


def test_a_work_directory_that_is_or_lies_below_a_file(tmp_path, one):
  file = tmp_path / "file"
  file.write_text("mine")
  for path in (file, file / "run"):
    _train_refused(tiny_config(), path, one, str(path), "expected a folder")
  assert file.read_text() == "mine"


def test_a_work_directory_that_cannot_be_written(tmp_path, one):
  path = tmp_path / "run"
  path.mkdir()
  path.chmod(0o500)
  if os.geteuid() == 0:  # root may write anywhere but here
    path = pathlib.Path("/proc/run")
  _train_refused(tiny_config(), path, one, "cannot write", str(path))


def test_no_work_directory(one):
  _train_refused(tiny_config(), "", one, "no work directory", "--workdir")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one):
  """The work directory of one step of training."""
  path = tmp_path_factory.mktemp("trained")
  _train(_training_only(steps=1), path, one)
  return path


def _files(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


@pytest.mark.parametrize(
  ("given", "parts"),
  [
    ({"model": {"depth": 2}}, ["config.model.depth was 1, is 2"]),
    (
      {"task_kw": {"pooling": "tokens"}},
      ["config.task_kw.pooling was None, is 'tokens'"],
    ),
    (
      {"input": {"batch_size": 4}},
      ["config.input.batch_size was 8, is 4"],
    ),
    (
      {"optim": {"name": "adamw"}},
      ["config.optim.name was 'adam', is 'adamw'"],
    ),
  ],
)
def test_a_work_directory_of_another_training(trained, one, given, parts):
  before = _files(trained)
  config = _training_only(steps=1, **given)
  text = _train_refused(config, trained, one, str(trained), *parts)
  assert "use a new --workdir" in text
  assert _files(trained) == before


def test_what_is_seen_of_a_training_may_change(trained, one, capsys):
  """With a notice each; the run goes on where it was."""
  config = tiny_config(
    steps=1,
    log={"every_steps": 7},
    checkpoint={"keep": 1},
    best="val/mAUC",
  )
  before = json.loads((trained / "metrics.jsonl").read_text().splitlines()[0])
  capsys.readouterr()
  history = _train(config, trained, one)
  said = capsys.readouterr().out
  for notice in (
    "config.log.every_steps was 1, is 7",
    "config.checkpoint.keep was 2, is 1",
    "config.evals.val.split was None, is 'val'",
    "config.best was '', is 'val/mAUC'",
  ):
    assert f"note: {notice}" in said
  assert "resumed at step 1" in said
  assert history[0] == before
  assert history[-1]["step"] == 1 and "val/mAUC" in history[-1]
  saved = json.loads((trained / "config.json").read_text())
  assert saved["config"]["best"] == "val/mAUC"


def test_a_checkpoint_of_another_model(trained, one, tmp_path):
  """Even where config.json says that all is well."""
  run = tmp_path / "run"
  state = TrainState(
    step=jnp.ones((), jnp.int32),
    params={"other": jnp.zeros(3)},
    opt_state=(),
    task_state={},
  )
  stored = Checkpoints(run, keep=1)
  stored.save(state, {})
  stored.close()
  (run / "config.json").write_bytes((trained / "config.json").read_bytes())
  config = ConfigDict(json.loads((run / "config.json").read_text())["config"])
  before = _files(run)
  text = _train_refused(
    config, run, one, str(run / "checkpoints" / "1"), "another model"
  )
  assert "backbone/cls_token" in text
  assert len(text) < 600
  assert _files(run) == before


DATA = {"fingerprint": "f" * 16, "num_examples": 24}


def _saved(folder: pathlib.Path, **overrides) -> None:
  workdir.write_config(folder, parse(tiny_config(**overrides)), DATA)
  (folder / "metrics.jsonl").touch()


def _compared(folder, data=DATA, **overrides) -> list[str]:
  return workdir.check_config(folder, parse(tiny_config(**overrides)), data)


@pytest.mark.parametrize(
  ("given", "parts"),
  [
    ({"seed": 1}, ["config.seed was 0, is 1"]),
    ({"task": "ssast"}, ["config.task was 'supervised', is 'ssast'"]),
    (
      {"model": {"patch_size": (4, 10)}},
      ["config.model.patch_size was [8, 10], is [4, 10]"],
    ),
    ({"model": {"dtype": "bfloat16"}}, ["config.model.dtype was None"]),
    ({"input": {"split": "all"}}, ["config.input.split was 'train'"]),
    ({"input": {"on_host": "decode"}}, ["config.input.on_host"]),
    ({"input": {"on_device": "to_float"}}, ["config.input.on_device"]),
    ({"schedule": {"lr": 1e-4}}, ["config.schedule.lr was 0.001, is 0.0001"]),
    ({"optim": {"freeze": ("head",)}}, ["config.optim.freeze"]),
  ],
)
def test_what_makes_another_training(tmp_path, given, parts):
  _saved(tmp_path)
  with pytest.raises(UserError) as error:
    _compared(tmp_path, **given)
  _said(error, "another training", str(tmp_path), "--workdir", *parts)


def test_many_changes_are_counted(tmp_path):
  _saved(tmp_path)
  with pytest.raises(UserError) as error:
    _compared(
      tmp_path,
      seed=1,
      task="x",
      model={"width": 1, "depth": 9},
      schedule={"lr": 2.0},
    )
  text = _said(error, "(and 2 more)")
  assert text.count(" was ") == 3


def test_a_run_that_left_nothing_leaves_its_folder(tmp_path):
  """It met a mistake after its config was written, such as of init_from."""
  _saved(tmp_path, init_from="nowhere")
  saved = tmp_path / "checkpoints" / "4"
  saved.mkdir(parents=True)
  (tmp_path / "metrics.jsonl").unlink()
  with pytest.raises(UserError, match="another training"):
    _compared(tmp_path)
  saved.rmdir()
  assert _compared(tmp_path) == []
  assert _compared(tmp_path, data=DATA | {"num_examples": 25}) == []


def test_other_data_makes_another_training(tmp_path):
  _saved(tmp_path)
  for other in ({"fingerprint": "0" * 16}, {"num_examples": 25}):
    with pytest.raises(UserError) as error:
      _compared(tmp_path, data=DATA | other)
    _said(error, "training data", str(tmp_path), *map(str, other.values()))


def test_the_same_config_is_the_same_training(tmp_path):
  """Tuples become lists in JSON, and the data may move."""
  given = {"optim": {"lr_multipliers": (("head", 10.0), ("x", 2))}}
  _saved(tmp_path, **given)
  assert _compared(tmp_path, **given) == []
  (notice,) = _compared(tmp_path, **given, input={"data_dir": "/elsewhere"})
  assert notice == "config.input.data_dir was '', is '/elsewhere'"


def test_the_length_may_change_unless_the_schedule_depends_on_it(tmp_path):
  _saved(tmp_path)
  assert _compared(tmp_path, steps=9) == ["config.steps was 4, is 9"]
  cosine = {"schedule": {"decay": "cosine"}}
  _saved(tmp_path, **cosine)
  with pytest.raises(UserError) as error:
    _compared(tmp_path, steps=9, **cosine)
  _said(error, "config.steps was 4, is 9")


def test_the_length_matters_where_the_task_says_so(tmp_path):
  _saved(tmp_path)
  now = parse(tiny_config(steps=9))
  with pytest.raises(UserError, match=r"config\.steps was 4, is 9"):
    workdir.check_config(tmp_path, now, DATA, length_matters=True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": {}}', "\x00\xff"])
def test_a_damaged_config_json(tmp_path, text):
  (tmp_path / "config.json").write_text(text, encoding="latin-1")
  with pytest.raises(UserError) as error:
    _compared(tmp_path)
  _said(error, "damaged", str(tmp_path / "config.json"), "--workdir")


def test_checkpoints_without_a_config_json(tmp_path):
  assert _compared(tmp_path) == []
  (tmp_path / "checkpoints").mkdir()
  assert _compared(tmp_path) == []  # killed before its first save
  (tmp_path / "checkpoints" / "3").mkdir()
  with pytest.raises(UserError) as error:
    _compared(tmp_path)
  _said(error, "no config.json", str(tmp_path), "--workdir")


# --- checkpoints ------------------------------------------------------------


def _state(**params) -> TrainState:
  params = {k: jnp.zeros(v) for k, v in params.items()}
  return TrainState(
    step=jnp.full((), 3, jnp.int32),
    params=params,
    opt_state=optax.adam(1e-3).init(params),
    task_state={},
  )


@pytest.mark.parametrize(
  ("params", "parts"),
  [
    ({"a": 3, "b": 4}, ["params/b is [[5], 'float32'] there, [[4], "]),
    ({"a": 3}, ["params/b is [[5], 'float32'] there, absent here"]),
    ({"a": 3, "b": 5, "c": 1}, ["params/c is absent there, [[1], "]),
  ],
)
def test_checkpoints_of_other_parameters(tmp_path, params, parts):
  stored = Checkpoints(tmp_path, keep=1)
  stored.save(_state(a=3, b=5), {})
  stored.wait()
  with pytest.raises(UserError) as error:
    stored.restore(_state(**params))
  _said(error, "another model", str(tmp_path / "checkpoints" / "3"), *parts)
  assert stored.restore(_state(a=3, b=5)) is not None  # it is still there
  stored.close()
