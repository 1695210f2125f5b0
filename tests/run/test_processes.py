"""Real processes: kills, signals, and two that train together.

What takes minutes is marked as rare or as a fault.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from astjax.weights import info
from tests import together
from tests.run.test_record import assert_same_run, log
from tests.test_train import assert_same_bits, final_state, losses, run
from tests.tiny import tiny_config

ROOT = pathlib.Path(__file__).parent.parent.parent
pytestmark = pytest.mark.slow

CONFIG = """
from tests.tiny import on_device, tiny_config

def get_config():
  return tiny_config(
    steps=24, checkpoint={"every_steps": 1, "keep": 2},
    evals={},
  )
"""
KNN = """{"knn": {"probe": "knn", "split": "val", "on_device": on_device(),
                 "train": {"split": "train"}}}"""


# The teacher, its centers and two counts of Adam's steps must survive as well.
ASIT = """
from tests.tiny import tiny_asit

def get_config():
  return tiny_asit(steps=30, checkpoint={"every_steps": 1, "keep": 2})
"""


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(CONFIG)
  return path


def start(config_file, workdir, *flags, **how):
  return start_python(
    "-m",
    "astjax.main",
    f"--config={config_file}",
    f"--workdir={workdir}",
    *flags,
    **how,
  )


STARTED = []


@pytest.fixture(autouse=True)
def nobody_is_left():
  """Whatever a test that fails has left running."""
  STARTED.clear()
  yield
  for process in STARTED:
    if process.poll() is None:
      process.kill()
      process.communicate()


def start_python(*words, **how):
  return start_command(sys.executable, *words, **how)


def start_command(*words, devices=1, stderr=subprocess.STDOUT, **env):
  flag = f" --xla_force_host_platform_device_count={devices}"
  env = {
    "XLA_FLAGS": os.environ["XLA_FLAGS"] + flag,
    "PYTHONPATH": str(ROOT),
    **env,
  }
  process = subprocess.Popen(
    words,
    env=os.environ | env,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=stderr,
    text=True,
  )
  STARTED.append(process)
  return process


SAFETY = 24 * 3600  # seconds: no machine is so busy


def finish(process):
  out, _ = process.communicate(timeout=SAFETY)
  return out


def wait_until(process, holds):
  """Until `holds()`, or the process ends."""
  end = time.monotonic() + SAFETY
  while process.poll() is None and not holds():
    assert time.monotonic() < end
    time.sleep(0.001)


def wait_for_step(workdir, process, step):
  """Until the log has a line of this step."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  line = f'"step": {step},'
  wait_until(process, lambda: path.exists() and line in path.read_text())


def wait_for_save(workdir, process):
  """Until a save is being written: orbax's temporary folder is there."""
  folder = pathlib.Path(workdir) / "checkpoints"
  wait_until(
    process,
    lambda: folder.exists() and any("tmp" in p.name for p in folder.iterdir()),
  )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """The same training without an interruption."""
  folder = tmp_path_factory.mktemp("straight")
  config = folder / "config.py"
  config.write_text(CONFIG)
  process = start(config, folder / "run")
  out = finish(process)
  assert process.returncode == 0, out
  return folder / "run"


ENDLESS = "--config.steps=1000000"  # whoever interrupts it may be late
SELDOM = "--config.checkpoint.every_steps=1000000"


def saves(workdir):
  folder = workdir / "checkpoints"
  return [p.name for p in folder.iterdir()] if folder.exists() else []


def saved_steps(workdir):
  """Of all that is complete."""
  return sorted(int(name) for name in saves(workdir) if name.isdigit())


def parts_of_saves(workdir):
  """Of those that are being written, orbax's temporary folders."""
  return {name for name in saves(workdir) if "tmp" in name}


def config_of(text, **overrides):
  """What the config file gives."""
  names: dict = {}
  exec(text, names)
  config = names["get_config"]()
  config.update(overrides)
  return config


def test_kills_and_a_signal(config_file, tmp_path):
  """Between saves, during one, and with a notice; then on, bit for bit."""
  workdir, step = tmp_path / "run", 2
  for during_a_save in (False, True):
    # What a kill left of a save is not one that is being written.
    old = parts_of_saves(workdir)
    process = start(config_file, workdir, ENDLESS)
    wait_until(process, lambda s=step: saved_steps(workdir)[-1:] > [s])
    if during_a_save:
      wait_until(process, lambda o=old: parts_of_saves(workdir) - o)
    process.kill()
    finish(process)
    assert process.returncode == -signal.SIGKILL
    step = saved_steps(workdir)[-1]
  logged = log(workdir)[-1]["step"]
  process = start(config_file, workdir, SELDOM, ENDLESS)
  wait_for_step(workdir, process, logged + 1)
  process.terminate()
  out = finish(process)
  assert process.returncode == 128 + signal.SIGTERM, out
  assert f"resumed at step {step}" in out and "Traceback" not in out
  step = saved_steps(workdir)[-1]
  assert f"saved at step {step}" in out and step > logged
  history = run(workdir, config_of(CONFIG, steps=step + 3))
  run(tmp_path / "straight", tiny_config(steps=step + 3))
  assert_same_bits(final_state(workdir), final_state(tmp_path / "straight"))
  assert losses(history) == read(tmp_path / "straight")


@pytest.mark.fault
def test_kill_9_of_a_student_and_its_teacher(tmp_path):
  config = tmp_path / "asit.py"
  config.write_text(ASIT)
  process = start(config, tmp_path / "straight")
  out = finish(process)
  assert process.returncode == 0, out
  for step in (2, 11):  # before and after the output layer has thawed
    process = start(config, tmp_path / "run")
    wait_for_step(tmp_path / "run", process, step)
    process.kill()
    finish(process)
    assert process.returncode == -signal.SIGKILL
  process = start(config, tmp_path / "run")
  out = finish(process)
  assert process.returncode == 0 and "resumed at step" in out, out
  state = final_state(tmp_path / "straight")
  assert sum("teacher" in name or "center" in name for name in state) > 10
  assert_same_bits(final_state(tmp_path / "run"), state)


@pytest.mark.fault
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_exits(signum, config_file, tmp_path):
  workdir = tmp_path / "run"
  process = start(config_file, workdir, SELDOM, ENDLESS)
  wait_for_step(workdir, process, 7)
  process.send_signal(signum)
  out = finish(process)
  assert process.returncode == 128 + signum, out
  assert "saved at step" in out and "Traceback" not in out
  (step,) = saved_steps(workdir)
  assert step >= 7
  process = start(config_file, workdir, f"--config.steps={step + 1}")
  out = finish(process)
  assert process.returncode == 0, out
  assert f"resumed at step {step}" in out


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def start_group(
  config_file, workdir, *flags, count=2, own=None, env=None, **how
):
  """Processes that train together.

  `own` has further flags of single ones and `env` their variables.
  """
  if count > 1:
    address = f"--coordinator=127.0.0.1:{free_port()}"
    flags += (address, f"--num_processes={count}")
  own, env = own or {}, env or {}
  return [
    start(
      config_file,
      workdir,
      *flags,
      *([f"--process_id={i}"] if count > 1 else []),
      *own.get(i, ()),
      **how,
      **env.get(i, {}),
    )
    for i in range(count)
  ]


def train_together(config_file, workdir, *flags):
  """Two processes to the end; what they printed."""
  pair = start_group(config_file, workdir, *flags)
  out = [finish(p) for p in pair]
  assert [p.returncode for p in pair] == [0, 0], out
  return out


def read(folder):
  text = (folder / "metrics.jsonl").read_text()
  return losses([json.loads(line) for line in text.splitlines()])


@pytest.mark.rare
def test_two_processes_start_from_weights(straight, config_file, tmp_path):
  flags = (f"--config.init_from={straight}", "--config.steps=3")
  out = train_together(config_file, tmp_path / "two", *flags)
  assert "start from" in out[0] and "start from" not in out[1]
  process = start(config_file, tmp_path / "one", *flags)
  assert "start from" in finish(process)
  one, two = read(tmp_path / "one"), read(tmp_path / "two")
  assert one.keys() == two.keys() and len(one) == 3
  for step in one:
    assert abs(one[step] - two[step]) <= 1e-5 * max(1.0, abs(one[step]))


@pytest.mark.rare
def test_two_processes_train_as_one(tmp_path):
  """Also what a probe finds in the features of both."""
  config_file = tmp_path / "config.py"
  config_file.write_text(CONFIG.replace("evals={}", f"evals={KNN}"))
  workdir, straight = tmp_path / "run", tmp_path / "straight"
  out = train_together(config_file, workdir)
  assert "resumed" not in finish(start(config_file, straight))
  assert "2 process(es)" in out[0] and "step" not in out[1]
  one, two = read(straight), read(workdir)
  assert one.keys() == two.keys() and len(one) == 24
  for step in one:
    assert abs(one[step] - two[step]) <= 1e-5 * max(1.0, abs(one[step]))
  lines = [
    json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    for folder in (straight, workdir)
  ]
  assert abs(lines[0]["val/mAP"] - lines[1]["val/mAP"]) <= 1e-5
  # A neighbour may be another one by a rounding.
  assert abs(lines[0]["knn/mAP"] - lines[1]["knn/mAP"]) <= 1e-2


REMEMBERING = (
  CONFIG.replace("steps=24", "steps=60")
  .replace("evals={}", 'evals={"val": {"every_steps": 7}}')
  .replace(
    "  return tiny_config(",
    """  return tiny_config(
    plateau={"metric": "val/mAP", "patience": 0},
    average={"first_epoch": 5, "last_epoch": 19}, ensemble_predictions=True,
    best="", schedule={"lr": 0.01},""",
  )
)


@pytest.fixture(scope="module")
def remembered(tmp_path_factory):
  """A run with a plateau, averaged weights and an ensemble, uninterrupted."""
  folder = tmp_path_factory.mktemp("remembered")
  config = folder / "config.py"
  config.write_text(REMEMBERING)
  process = start(config, folder / "run")
  out = finish(process)
  assert process.returncode == 0, out
  rates = {x["train/lr"] for x in log(folder / "run") if "train/lr" in x}
  assert len(rates) > 2
  return config, folder / "run"


@pytest.mark.fault
def test_kill_9_forgets_nothing(remembered, tmp_path):
  config, expected = remembered
  workdir = tmp_path / "run"
  flags = ("--config.checkpoint.every_steps=4",)  # some evaluations come again
  for step in (6, 22, 36, 50):
    process = start(config, workdir, *flags)
    wait_for_step(workdir, process, step)
    process.kill()
    finish(process)
    assert process.returncode == -signal.SIGKILL
  process = start(config, workdir)
  out = finish(process)
  assert process.returncode == 0, out
  assert_same_run(workdir, expected)


@pytest.mark.rare
def test_two_processes_remember_as_one(remembered, tmp_path):
  """Also when they were stopped in between: each restores the same record."""
  config, expected = remembered
  train_together(config, tmp_path / "run", "--config.steps=57")
  train_together(config, tmp_path / "run", "--config.steps=60")
  one, two = log(expected), log(tmp_path / "run")
  ends = [x for x in two if x["step"] == 57 and "val/mAP" in x]
  assert ends
  for a, b in zip(
    [x for x in one if x["step"] < 57],
    [x for x in two if x["step"] < 57],
    strict=True,
  ):
    assert a.keys() == b.keys()
    for key in a:
      if key.startswith("val/ensemble") or key == "train/lr":
        assert abs(a[key] - b[key]) <= 1e-4, (a["step"], key)
  (_, a), (_, b) = (
    info.read_model(folder / "average")
    for folder in (expected, tmp_path / "run")
  )
  for name in a:
    if "qkv/bias" not in name:  # the gradient of its key third is zero
      np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-4)


def train_in_several(task, folder, count):
  """Four devices, shared by so many processes: the ids, [steps, 8]."""
  port = str(free_port())
  group = [
    start_python(
      *("-m", "tests.together", task, str(folder), str(count), str(i), port),
      devices=4 // count,
    )
    for i in range(count)
  ]
  out = [finish(p) for p in group]
  assert [p.returncode for p in group] == [0] * count, out
  rows = [json.loads(text.split("ROWS ")[1].splitlines()[0]) for text in out]
  return np.concatenate(rows, axis=1)


RARE = pytest.mark.rare


@pytest.mark.parametrize(
  ("task", "count"),
  [
    ("supervised", 2),
    pytest.param("ssast", 2, marks=RARE),
    pytest.param("asit", 2, marks=RARE),
    pytest.param("asit", 4, marks=RARE),
  ],
)
def test_several_processes_train_a_task(task, count, tmp_path):
  """Losses, parameters, teacher, centers as of one; and the rows."""
  one, many = tmp_path / "one", tmp_path / "many"
  ids = train_in_several(task, many, count)
  np.testing.assert_array_equal(ids, together.train(task, one))
  for epoch in ids.reshape(2, 20):
    assert sorted(epoch.tolist()) == list(range(20))
  a, b = log(one), log(many)
  assert len(a) == len(b) and "train/loss" in a[0]
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for key in x:
      if key.startswith(("train/", "val/")):
        close = 1e-5 * max(1.0, abs(x[key]))
        assert abs(x[key] - y[key]) <= close, (x["step"], key)
  a, b = final_state(one), final_state(many)
  assert a.keys() == b.keys()
  for name in a:
    if ".params" in name or "task_state" in name:
      x, y = with_a_gradient(name, a[name]), with_a_gradient(name, b[name])
      np.testing.assert_allclose(x, y, rtol=0, atol=1e-5, err_msg=name)


def with_a_gradient(name, x):
  """Less what only rounding gives one, from which Adam makes whole steps.

  A bias of keys adds the same to all scores of a query; one of SSAST's head
  that tells patches apart, to all patches.
  """
  if "qkv" in name and "bias" in name:
    third = x.size // 3
    x = np.delete(x, np.s_[third : 2 * third])
  if "discriminative" in name and "bias" in name:
    x = np.zeros(0)
  return x
