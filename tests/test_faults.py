"""What goes wrong on real machines, done on purpose: `make fault-test`.

Real processes are killed, frozen and signalled, files are damaged, disks are
full. Each test tells what it measured; docs/reliability.md has the table.
"""

import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from subprocess import PIPE

import numpy as np
import pytest

from astjax.weights import orbax_params
from tests.run.test_processes import (
  ROOT,
  SAFETY,
  finish,
  free_port,
  nobody_is_left,  # noqa: F401
  read,
  start,
  start_command,
  start_group,
  start_python,
  wait_for_save,
  wait_for_step,
  with_a_gradient,
)
from tests.run.test_record import log
from tests.test_train import assert_same_bits, final_state, flip_a_bit

pytestmark = pytest.mark.fault

CONFIG = """
import os
from tests.tiny import on_device, tiny_config

def get_config():
  if os.environ.get("BROKEN"):  # a mistake in the program, met by one process
    from astjax import train
    from astjax.run import evaluation as evaluations
    def broken(*args):
      if os.environ["BROKEN"] == "memory":
        raise MemoryError  # without a word
      raise KeyError("a mistake")
    if os.environ["BROKEN"] == "end":
      evaluations.Evaluations.say_results = broken
    else:
      train._Loop._log = broken
  if os.environ.get("UNREADABLE"):  # a disk that only one of them cannot reach
    from astjax.weights import orbax_params
    def stale(store, step, args):
      raise OSError(116, "Stale file handle")
    orbax_params.Reader.read = stale
  if os.environ.get("SLOW"):
    import time
    from astjax.engine import sharding
    real = sharding.to_global
    def slow(batch, mesh):
      time.sleep(float(os.environ["SLOW"]))
      return real(batch, mesh)
    sharding.to_global = slow
  return tiny_config(
    steps=200, checkpoint={"every_steps": 1, "keep": 3},
    model={"width": 64, "depth": 2}, evals={"val": {"every_steps": 50}},
  )
"""
# Seconds for each step, so that a signal comes in the middle of one.
SLOW = {"SLOW": "0.25"}


# Of runs by two processes.
@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("config") / "config.py"
  path.write_text(CONFIG)
  return path


@pytest.fixture
def measured(request):
  """Tells a figure, whether the test passes or not."""
  capture = request.config.pluginmanager.getplugin("capturemanager")
  name = request.node.name.removeprefix("test_")

  def tell(text):
    with capture.global_and_fixture_disabled():
      print(f"\n  measured: {name}: {text}", flush=True)

  return tell


def straight_run(folder, config_file, *flags, count=1, devices=1):
  group = start_group(config_file, folder, *flags, count=count, devices=devices)
  out = [finish(p) for p in group]
  assert [p.returncode for p in group] == [0] * count, out
  return folder


@pytest.fixture(scope="module")
def straight(config_file, tmp_path_factory):
  """One process, not disturbed."""
  return straight_run(tmp_path_factory.mktemp("one") / "run", config_file)


SHORT = "--config.steps=40"


@pytest.fixture(scope="module")
def two(config_file, tmp_path_factory):
  """Two processes with two devices each, not disturbed."""
  folder = tmp_path_factory.mktemp("two") / "run"
  return straight_run(folder, config_file, SHORT, count=2, devices=2)


def complete(config_file, workdir, *flags, count=1, devices=1):
  """The same command again; what it printed."""
  group = start_group(
    config_file, workdir, *flags, count=count, devices=devices
  )
  out = [finish(p) for p in group]
  assert [p.returncode for p in group] == [0] * count, out
  return out


def fail(process):
  """Standard error of a process that should end by itself, and its code."""
  _, err = process.communicate(timeout=SAFETY)
  return err, process.returncode


def assert_one_line(text, *words):
  """The only one, but for warnings and, with several processes, JAX's dump."""
  lines = [x for x in text.splitlines() if x.startswith("astjax: error: ")]
  assert len(lines) == 1, text
  for word in words:
    assert word in lines[0], lines[0]


def assert_lost(code):
  """Whoever loses another exits so that a launcher begins again."""
  assert code not in (0, 2)


def test_twenty_kills(straight, config_file, tmp_path, measured):
  """SIGKILL at random moments, every second one while a save is written."""
  workdir, chance = tmp_path / "run", random.Random(0)
  during_save = before_first_step = 0
  halves = set()
  for attempt in range(20):
    process = start(config_file, workdir)
    if attempt % 5 == 4:  # at any moment: imports, restoring, compiling
      time.sleep(chance.uniform(0, 8))
    else:
      wait_for_step(workdir, process, 9 * attempt + 3)
      if attempt % 2:
        wait_for_save(workdir, process)
        time.sleep(chance.uniform(0, 0.02))
      else:
        time.sleep(chance.uniform(0, 0.3))
    process.kill()
    out = finish(process)
    assert process.returncode == -signal.SIGKILL, out
    before_first_step += "\nstep " not in out
    folder = workdir / "checkpoints"
    before, halves = halves, set()
    if folder.exists():
      halves = {p.name for p in folder.iterdir() if "tmp" in p.name}
    during_save += bool(halves - before)
  complete(config_file, workdir)
  assert_same_bits(final_state(workdir), final_state(straight))
  assert log(workdir) == log(straight)
  assert during_save >= 5
  measured(
    f"20 kills, {during_save} left a half-written save, {before_first_step} "
    "came before the first step; same bits"
  )


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", ["step", "save"])
def test_one_of_two_is_killed(
  victim, moment, two, config_file, tmp_path, measured
):
  workdir = tmp_path / "run"
  pair = start_group(config_file, workdir, SHORT, devices=2, stderr=PIPE)
  wait_for_step(workdir, pair[0], 8)
  if moment == "save":
    wait_for_save(workdir, pair[0])
  pair[victim].kill()
  killed = time.monotonic()
  _, code = fail(pair[1 - victim])
  seconds = time.monotonic() - killed
  finish(pair[victim])
  assert_lost(code)
  complete(config_file, workdir, SHORT, count=2, devices=2)
  assert_same_bits(final_state(workdir), final_state(two))
  measured(f"the other exits with {code} after {seconds:.1f} s")


def test_one_of_two_freezes(config_file, tmp_path, measured):
  """No connection breaks, as with a machine that loses its power."""
  pair = start_group(
    config_file, tmp_path / "run", SHORT, devices=2, stderr=PIPE
  )
  wait_for_step(tmp_path / "run", pair[0], 8)
  pair[1].send_signal(signal.SIGSTOP)
  stopped = time.monotonic()
  _, code = fail(pair[0])
  seconds = time.monotonic() - stopped
  assert_lost(code)
  measured(f"the other exits with {code} after {seconds:.1f} s")


@pytest.mark.parametrize("culprit", [0, 1])
def test_one_of_two_has_a_mistake(culprit, config_file, tmp_path, measured):
  """A mistake of the user, in what only one of them was given."""
  bad = "--config.input.batch_size=7"
  pair = start_group(
    config_file,
    tmp_path / "run",
    SHORT,
    devices=2,
    own={culprit: [bad]},
    stderr=PIPE,
  )
  started = time.monotonic()
  err, codes = zip(*map(fail, pair), strict=True)
  seconds = time.monotonic() - started
  assert codes[culprit] == 2, err
  assert_one_line(err[culprit], "batch_size=7")
  assert_lost(codes[1 - culprit])
  measured(f"both exit {seconds:.1f} s after the start, with {codes}")


def test_both_have_the_same_mistake(config_file, tmp_path, measured):
  """The usual case: no launcher is to begin again, on any machine."""
  flags = (SHORT, "--config.input.batch_size=7")
  pair = start_group(
    config_file, tmp_path / "run", *flags, devices=2, stderr=PIPE
  )
  err, codes = zip(*map(fail, pair), strict=True)
  assert codes == (2, 2), err
  for text in err:
    assert_one_line(text, "batch_size=7")


@pytest.mark.parametrize(
  ("culprit", "bug", "said"),
  [
    (0, "key", "a mistake"),
    (1, "key", "a mistake"),
    (1, "memory", "Memory"),
    (0, "end", "a mistake"),
    (1, "end", "a mistake"),
  ],
)
def test_one_of_two_has_a_bug(
  culprit, bug, said, config_file, tmp_path, measured
):
  """The traceback where it is; the other one ends, too."""
  pair = start_group(
    config_file,
    tmp_path / "run",
    SHORT,
    devices=2,
    env={culprit: {"BROKEN": bug}},
    stderr=PIPE,
  )
  started = time.monotonic()
  err, codes = zip(*map(fail, pair), strict=True)
  seconds = time.monotonic() - started
  assert codes[culprit] == 1, err
  assert "Traceback" in err[culprit] and said in err[culprit]
  if bug != "end":  # there the other one has nothing left to do
    assert_lost(codes[1 - culprit])
  measured(f"both exit {seconds:.1f} s after the start, with {codes}")


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_one_of_two_is_told_to_stop(
  signum, target, two, config_file, tmp_path, measured
):
  """A preemption notice to one of them: both save the same step and exit."""
  workdir = tmp_path / "run"
  flags = (SHORT, "--config.checkpoint.every_steps=1000")
  pair = start_group(
    config_file, workdir, *flags, devices=2, env={0: SLOW, 1: SLOW}
  )
  wait_for_step(workdir, pair[0], 5)
  pair[target].send_signal(signum)
  sent = time.monotonic()
  out = [finish(p) for p in pair]
  seconds = time.monotonic() - sent
  assert [p.returncode for p in pair] == [128 + signum] * 2, out
  saved = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
  assert len(saved) == 1 and 5 <= saved[0] < 40, out
  for text in out:
    assert f"saved at step {saved[0]}" in text and "Traceback" not in text
  complete(config_file, workdir, *flags, count=2, devices=2)
  assert_same_bits(final_state(workdir), final_state(two))
  measured(f"both exit after {seconds:.1f} s, saved at step {saved[0]}")


def test_stopped_in_the_middle_of_a_step(
  straight, config_file, tmp_path, measured
):
  """SIGTERM at random moments of steps that last long."""
  workdir, chance = tmp_path / "run", random.Random(1)
  waits = []
  for attempt in range(4):
    process = start(config_file, workdir, **SLOW)
    wait_for_step(workdir, process, 5 + 10 * attempt)
    time.sleep(chance.uniform(0, 0.25))
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    out = finish(process)
    waits.append(time.monotonic() - sent)
    assert process.returncode == 128 + signal.SIGTERM, out
    assert "saved at step" in out
  complete(config_file, workdir)
  assert_same_bits(final_state(workdir), final_state(straight))
  measured(f"exits after {min(waits):.1f} to {max(waits):.1f} s; same bits")


@pytest.mark.parametrize("damage", ["flip", "truncate"])
@pytest.mark.parametrize("count", [1, 2])
def test_newest_checkpoint_is_damaged(
  damage, count, straight, two, config_file, tmp_path
):
  whole = straight if count == 1 else two
  flags = () if count == 1 else (SHORT,)
  workdir = tmp_path / "run"
  group = start_group(config_file, workdir, *flags, count=count, devices=count)
  wait_for_step(workdir, group[0], 12)
  for process in group:
    process.kill()
    finish(process)
  steps = sorted(
    int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()
  )
  newest = workdir / "checkpoints" / str(steps[-1])
  if damage == "flip":
    flip_a_bit(newest)
  else:
    for path in (newest / "state").rglob("*"):
      if path.is_file():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  out = complete(config_file, workdir, *flags, count=count, devices=count)
  assert f"checkpoint {steps[-1]} is damaged and passed over" in out[0]
  assert f"resumed at step {steps[-2]}" in out[0]
  assert_same_bits(
    final_state(workdir, devices=count), final_state(whole, devices=count)
  )


def start_with_parts(config_file, workdir, **how):
  """Two processes with two devices each, of which each has half the arrays."""
  wide = ("--config.fsdp=4", "--config.model.width=128")
  return start_group(config_file, workdir, SHORT, *wide, devices=2, **how)


def test_one_of_two_finds_its_part_damaged(config_file, tmp_path, measured):
  """Which the other does not read: both pass over the same checkpoint."""
  workdir = tmp_path / "run"
  group = start_with_parts(config_file, workdir)
  wait_for_step(workdir, group[0], 12)
  for process in group:
    process.kill()
    finish(process)
  shutil.copytree(workdir, tmp_path / "whole")
  steps = sorted(
    int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()
  )
  state = workdir / "checkpoints" / str(steps[-1]) / "state"
  files = [p for p in (state / "ocdbt.process_1").rglob("*") if p.is_file()]
  for path in files:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  out = {}
  for folder in (workdir, tmp_path / "whole"):
    group = start_with_parts(config_file, folder)
    out[folder] = [finish(p) for p in group]
    assert [p.returncode for p in group] == [0, 0], out
  said = out[workdir][0]
  assert f"checkpoint {steps[-1]} is damaged and passed over" in said
  assert f"resumed at step {steps[-2]}" in said
  assert read(workdir) == read(tmp_path / "whole")
  measured(f"{len(files)} files cut; same losses")


@pytest.mark.parametrize("culprit", [0, 1])
def test_one_of_two_cannot_read(culprit, two, config_file, tmp_path, measured):
  """Not damage: nothing is set aside, and a restart may go well."""
  workdir = tmp_path / "run"
  stop = "--config.steps=6"
  complete(config_file, workdir, stop, count=2, devices=2)
  pair = start_group(
    config_file,
    workdir,
    SHORT,
    devices=2,
    env={culprit: {"UNREADABLE": "1"}},
    stderr=PIPE,
  )
  err, codes = zip(*map(fail, pair), strict=True)
  for code in codes:
    assert_lost(code)
  assert_one_line(err[culprit], "cannot read")
  assert not (workdir / "damaged_checkpoints").exists()
  complete(config_file, workdir, SHORT, count=2, devices=2)
  assert_same_bits(final_state(workdir), final_state(two))
  measured(f"both exit, with {codes}")


def test_two_folders_under_one_name(config_file, tmp_path, measured):
  """As on two machines without a shared disk."""
  pair = start_group(
    config_file,
    tmp_path / "a",
    SHORT,
    own={1: [f"--workdir={tmp_path / 'b'}"]},
    stderr=PIPE,
  )
  err, codes = zip(*map(fail, pair), strict=True)
  assert codes == (2, 2), err
  for text in err:
    assert_one_line(text, "of process 1 is another folder")
  measured(err[0].strip())


def kill_python(*words):
  """SIGKILL to the Python whose command line ends with such words."""
  for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    with contextlib.suppress(OSError):  # it ends just now
      line = path.read_bytes().decode().split("\0")
      if line[0] == sys.executable and all(
        any(x.endswith(word) for x in line) for word in words
      ):
        os.kill(int(path.parent.name), signal.SIGKILL)


@pytest.mark.parametrize("victim", [0, 1])
def test_each_has_a_supervisor(victim, two, config_file, tmp_path, measured):
  """As on the hosts of a TPU slice: one is killed, all begin again."""
  workdir, port = tmp_path / "run", free_port()
  group = []
  for i in range(2):
    trainer = [sys.executable, "-m", "astjax.main", f"--config={config_file}"]
    trainer += [f"--workdir={workdir}", SHORT, "--num_processes=2"]
    trainer += [f"--coordinator=127.0.0.1:{port}", f"--process_id={i}"]
    group.append(
      start_command(ROOT / "launch" / "supervise.sh", "--", *trainer, devices=2)
    )
  wait_for_step(workdir, group[0], 8)
  kill_python(f":{port}", f"--process_id={victim}")
  out = [finish(p) for p in group]
  assert [p.returncode for p in group] == [0, 0], out
  assert_same_bits(final_state(workdir), final_state(two))
  restarts = [text.count("; restart ") for text in out]
  measured(f"same bits after {restarts} restarts")


@contextlib.contextmanager
def small_disk(folder, size):
  """A file system of its own in memory."""
  folder.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
  try:
    subprocess.run(command, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("mounting a tmpfs needs root")
  try:
    yield folder
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("count", [1, 2])
def test_disk_is_full(count, straight, two, config_file, tmp_path, measured):
  """In the middle of a save; with more room the run goes on."""
  flags = () if count == 1 else (SHORT,)
  with small_disk(tmp_path / "disk", "24m") as disk:
    workdir = disk / "run"
    group = start_group(
      config_file, workdir, *flags, count=count, devices=count, stderr=PIPE
    )
    wait_for_step(workdir, group[0], 8)
    with contextlib.suppress(OSError), open(disk / "other", "wb") as f:
      while True:
        f.write(bytes(4096))
        f.flush()
    filled = time.monotonic()
    err, codes = zip(*map(fail, group), strict=True)
    seconds = time.monotonic() - filled
    for code in codes:
      assert_lost(code)
    assert any("o space left on" in text for text in err), err
    (disk / "other").unlink()
    saved = [p for p in (workdir / "checkpoints").iterdir()]
    assert any(p.name.isdigit() for p in saved)
    complete(config_file, workdir, *flags, count=count, devices=count)
    shutil.copytree(workdir, tmp_path / "copy")
  assert_same_bits(
    final_state(tmp_path / "copy", devices=count),
    final_state(straight if count == 1 else two, devices=count),
  )
  measured(f"exits with {codes} after {seconds:.1f} s")


def test_work_directory_is_read_only(config_file, tmp_path, measured):
  with small_disk(tmp_path / "disk", "24m") as disk:
    (disk / "run").mkdir()
    command = ["mount", "-o", "remount,ro", str(disk)]
    subprocess.run(command, check=True)
    err, code = fail(start(config_file, disk / "run", stderr=PIPE))
    assert code == 2
    assert_one_line(err, "cannot write to the work directory", "ead-only")
    measured(err.strip())


PLANS = {
  "devices": [(1, 4), (1, 2), (1, 8)],
  "processes": [(2, 2), (1, 2), (4, 2)],
}


@pytest.mark.parametrize("plan", PLANS)
def test_resumed_on_other_devices(plan, config_file, tmp_path, measured):
  """4, then 2, then 8 devices: losses and parameters to 1e-5."""
  one = straight_run(
    tmp_path / "one", config_file, "--config.steps=24", devices=1
  )
  workdir = tmp_path / "run"
  for i, (count, devices) in enumerate(PLANS[plan]):
    flag = f"--config.steps={8 * (i + 1)}"
    out = complete(config_file, workdir, flag, count=count, devices=devices)
    assert f"{count * devices} x cpu, {count} process(es)" in out[0]
  a, b = read(one), read(workdir)
  assert a.keys() == b.keys() and len(a) == 24
  worst = max(abs(a[s] - b[s]) / max(1.0, abs(a[s])) for s in a)
  assert worst <= 1e-5
  a, b = final_state(one), final_state(workdir)
  for name in a:
    if name.startswith(".params"):
      x, y = with_a_gradient(name, a[name]), with_a_gradient(name, b[name])
      np.testing.assert_allclose(x, y, rtol=0, atol=1e-5, err_msg=name)
  measured(f"losses differ by at most {worst:.1g}")


RIGHT_AFTER = """
import os, pathlib, signal, sys, time
import jax.numpy as jnp
from astjax.engine import step as train_step
from astjax.run import checkpoint
folder, size = pathlib.Path(sys.argv[1]), int(sys.argv[2])
store = checkpoint.Checkpoints(folder)
def state(step):
  params = {f"w{i}": jnp.full((1024, 1024), step + i, jnp.float32)
            for i in range(size)}
  return train_step.TrainState(
    step=jnp.int32(step), params=params, opt_state={}, task_state={})
store.save(state(1), {})
store.wait()
second = state(2)
started = time.monotonic()
store.save(second, {})
returned = time.monotonic()
print("RETURNED", returned - started, flush=True)
if sys.argv[3] == "kill":
  os.kill(os.getpid(), signal.SIGKILL)
store.wait()
print("COMPLETE", time.monotonic() - started, flush=True)
"""


def test_killed_right_after_a_save_began(tmp_path, measured):
  """Complete or absent; the one before is still there."""

  process = start_python("-c", RIGHT_AFTER, str(tmp_path / "a"), "96", "wait")
  out = finish(process)
  assert process.returncode == 0, out
  returned, done = (
    float(re.search(f"{word} (.*)", out)[1])
    for word in ("RETURNED", "COMPLETE")
  )
  assert returned < done  # it goes on behind the caller's back
  process = start_python("-c", RIGHT_AFTER, str(tmp_path / "b"), "96", "kill")
  finish(process)
  assert process.returncode == -signal.SIGKILL
  step, params = orbax_params.read_params(tmp_path / "b")
  assert step in (1, 2) and params["w3"][0, 0] == step + 3
  measured(
    f"384 MiB: the call returns after {returned:.1f} s of {done:.1f} s; killed "
    f"then, step {step} is there and whole"
  )
