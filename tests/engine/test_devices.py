"""FLOPs by hand, chips by name, traces of a few steps."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import pytest

from astjax import errors, tasks, train
from astjax.engine import devices, sharding
from astjax.engine.devices import CHIPS, Chip, chip_named, count_flops
from astjax.run import job, log
from tests.engine.test_fsdp import TASKS, config_of
from tests.test_train import one_device, run
from tests.tiny import tiny_config


def test_products_are_counted():
  a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))
  once = 2 * 3 * 4 * 5 * 6
  count = count_flops
  assert count(jnp.matmul, a, b) == once
  assert count(lambda a, b: jnp.sin(a) + 1, a, b) == 0
  assert count(jax.jit(jnp.matmul), a, b) == once
  # The loss, and the gradients of both: no product more for the first one's.
  loss = lambda a, b: jnp.sum(a @ b)
  assert count(jax.grad(loss, argnums=(0, 1)), a, b) == 3 * once
  assert count(jax.grad(jax.checkpoint(loss), argnums=0), a, b) <= 3 * once

  def loop(a, b):
    return jax.lax.scan(lambda c, _: (c + a @ b, None), 0 * a @ b, None, 7)

  assert count(loop, a, b) == 8 * once

  def choice(a, b):
    one, none = lambda: a @ b, lambda: jnp.zeros((3, 4, 6))
    return jax.lax.switch(jnp.int32(a[0, 0, 0]), [one, none])

  assert count(choice, a, b) == once / 2


def built_of(task):
  return job.build(config_of(task), mesh=one_device())


def test_a_classifier_by_hand():
  """Products of a transformer, three times for training."""
  built = job.build(tiny_config(), mesh=one_device())
  width, cells, classes = 16, 8 * 10, 10
  patches = 2 * 2
  tokens = patches + 2
  block = 2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width
  # No gradient goes on from the patches.
  embed = 2 * patches * cells * width
  expected = 3 * (block + 2 * width * classes) + 2 * embed
  assert built.flops_per_example() == expected


@pytest.mark.parametrize("task", TASKS)
def test_what_is_computed_again_does_not_count(task):
  built = built_of(task)
  backbone = built.task.backbone
  encoder = backbone.encoder.clone(remat=True, attention="per_head")
  backbone = backbone.clone(encoder=encoder)
  again = dataclasses.replace(
    built, task=dataclasses.replace(built.task, backbone=backbone)
  )
  count = built.flops_per_example()
  assert again.flops_per_example() == count > 0
  # At most what six FLOPs per parameter and token make of it, at least a third.
  params = jax.tree.leaves(jax.eval_shape(built.fresh_params))
  assert count > 2 * 4 * sum(p.size for p in params) / 3


def test_two_passes_are_twice_one():
  config = config_of("ssast")
  count = {}
  for passes in (1, 2):
    config.task_kw.passes = passes
    count[passes] = job.build(config, mesh=one_device()).flops_per_example()
  assert 1.8 * count[1] < count[2] < 2 * count[1]


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("TPU v5 lite", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v5p", "v5p"),
    ("TPU v4", "v4"),
    ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA H100 PCIe", "h100-pcie"),
    ("NVIDIA H200", "h200"),
    ("NVIDIA A100-SXM4-40GB", "a100"),
    ("Tesla V100-SXM2-16GB", "v100"),
    ("NVIDIA L4", "l4"),
    ("NVIDIA L40S", None),
    ("cpu", None),
  ],
)
def test_chips_by_name(kind, name):
  chip = chip_named(kind)
  assert (chip.name if chip else None) == name


def test_nothing_of_it_on_a_cpu(tmp_path):
  history = run(tmp_path, tiny_config(steps=2))
  names = {key for line in history for key in line}
  assert {"perf/examples_per_s", "perf/step_ms", "perf/data_wait"} <= names
  assert not {"perf/mfu", "perf/memory_gib"} & names


def test_a_chip_that_is_known(tmp_path, monkeypatch, capsys):
  """The share of the peak: of all devices, in all micro-batches."""
  monkeypatch.setitem(CHIPS, "cpu", Chip("cpu", 0, 1e8))
  monkeypatch.setattr(train, "peak_memory", lambda: 2.5)
  config = tiny_config(steps=3)
  work = job.build(config, mesh=one_device()).flops_per_example()
  parts = job.build(
    tiny_config(accumulate=2), mesh=sharding.make_mesh(jax.devices()[:4])
  )
  assert parts.share_of_peak() == pytest.approx(work / 4e8)
  history = run(tmp_path, config)
  lines = [line for line in history if "perf/mfu" in line]
  assert len(lines) == 3
  for line in lines:
    use = line["perf/examples_per_s"] * work / 1e8
    assert line["perf/mfu"] == pytest.approx(use)
    assert line["perf/memory_gib"] == 2.5
  out = capsys.readouterr().out
  assert "MFU" in out and "2.5 GiB" in out


@dataclasses.dataclass
class Device:
  """One that tells of its memory, or not."""

  stats: dict | None

  def memory_stats(self):
    return self.stats


def test_memory_is_that_of_the_fullest_device(monkeypatch):
  full, half = ({"peak_bytes_in_use": n << 30} for n in (4, 2))
  for stats, expected in (
    ([half, full], 4.0),
    ([None, None], None),
    ([{"bytes_in_use": 5}], None),
  ):
    local = [Device(s) for s in stats]
    monkeypatch.setattr(jax, "local_devices", lambda d=local: d)
    assert devices.peak_memory() == expected


@pytest.mark.parametrize(
  "text", ["", "10", "10:", ":5", "10:0", "-1:5", "a:b", "1:2:3"]
)
def test_windows_that_are_none(text):
  with pytest.raises(errors.UserError, match="START:COUNT, such as 10:5"):
    devices.parse_window(text)


def traces(folder):
  return list(pathlib.Path(folder, "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_trace_of_some_steps(tmp_path, monkeypatch, capsys):
  assert devices.parse_window("10:5") == (10, 5)
  started, steps = [], []
  start, stop = jax.profiler.start_trace, jax.profiler.stop_trace
  advance = log.Console.advance
  monkeypatch.setattr(
    log.Console,
    "advance",
    lambda self, step, *a: (steps.append(step), advance(self, step, *a)),
  )
  monkeypatch.setattr(
    jax.profiler,
    "start_trace",
    lambda folder: (started.append(len(steps)), start(folder)),
  )
  monkeypatch.setattr(
    jax.profiler, "stop_trace", lambda: (started.append(len(steps)), stop())
  )
  # Not a step is looked at within the window that is not due: a line each.
  config = tiny_config(steps=5)
  run(tmp_path, config, profile=(1, 2), stop_at=2)
  assert started == [1, 2] and len(traces(tmp_path)) == 1
  assert "profile/" not in capsys.readouterr().out  # the window was cut short
  run(tmp_path, config, profile=(1, 2))
  assert len(started) == 4
  assert "trace of the steps up to 2 in profile/" in capsys.readouterr().out
  run(tmp_path / "none", config)
  assert len(started) == 4 and not (tmp_path / "none" / "profile").exists()


def test_a_window_after_the_end(tmp_path):
  with pytest.raises(errors.UserError, match="begins with step 4, and the run"):
    run(tmp_path, tiny_config(steps=4), profile=(4, 1))


def test_all_tasks_have_a_count():
  assert set(TASKS) == set(tasks.TASKS)
