"""The step compiled without its data; what is read from its text."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from astjax.engine import sharding
from astjax.engine.devices import count_flops
from astjax.errors import UserError
from astjax.models import vit
from astjax.ops import platform
from astjax.run import job as jobs
from astjax.tools import aot
from tests.tiny import tiny_config

ROOT = pathlib.Path(__file__).parent.parent.parent

HLO = """\
HloModule jit_train_step, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x, %y)
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %v = f32[8,4]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %r = f32[8,4]{1,0} all-reduce(%v), channel_id=1, \
replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %r)
}

%condition (p.1: (s32[], f32[8,4])) -> pred[] {
  %p.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%a, %b), direction=LT
}

%wrapped (q: bf16[16]) -> bf16[4] {
  %q = bf16[16]{0} parameter(0)
  ROOT %rs = bf16[4]{0} reduce-scatter(%q), dimensions={0}, to_apply=%add
}

ENTRY %main (a: f32[8,4], b: bf16[16], c: f32[2,4]) -> f32[] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = bf16[16]{0} parameter(1), metadata={op_name="all-reduce(no)"}
  %c = f32[2,4]{1,0} parameter(2)
  %start = (f32[8,4]{1,0}, /*index=1*/bf16[16]{0}) all-reduce-start(%a, %b), \
channel_id=2, to_apply=%add
  %done = (f32[8,4]{1,0}, bf16[16]{0}) all-reduce-done(%start)
  %g = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%c), dimensions={0}
  %gd = f32[8,4]{1,0} all-gather-done(%g)
  %g2 = f32[8,4]{1,0} all-gather(%c), dimensions={0}
  %as = ((bf16[16]), bf16[4], s32[]) async-start(%b), calls=%wrapped
  %au = ((bf16[16]), bf16[4], s32[]) async-update(%as), calls=%wrapped
  %ad = bf16[4]{0} async-done(%au), calls=%wrapped
  %w = (s32[], f32[8,4]{1,0}) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"12"}}
  %p = f32[8,4]{1,0} collective-permute(%a), source_target_pairs={{0,1}}
  ROOT %out = f32[] constant(0)
}
"""


def test_collectives_of_a_text():
  assert aot.read_traffic(HLO) == {
    "all-reduce": 12 * 128 + 128 + 32,
    "all-gather": 2 * 128,
    "reduce-scatter": 32,
    "collective-permute": 128,
  }


def test_a_loop_of_unknown_length_is_counted_once():
  text = HLO.replace("known_trip_count", "other")
  assert aot.read_traffic(text)["all-reduce"] == 128 + 128 + 32


def test_pieces_of_one_are_one():
  """A TPU does one piece by piece, in the turns of a loop that is busy."""
  text = HLO.replace("channel_id=1", "channel_id=2")
  assert aot.read_traffic(text)["all-reduce"] == 128 + 32


def test_of_a_choice_each_branch_counts_its_share():
  """Rounded up; in a loop over the choice that is its turns."""
  text = HLO.replace(
    "while(%init), condition=%condition, body=%body",
    "conditional(%i), branch_computations={%body, %condition}",
  )
  assert aot.read_traffic(text)["all-reduce"] == 128 + 128 + 32


def test_collectives_of_a_real_program():
  mesh = sharding.make_mesh(jax.devices()[:4])
  rows = NamedSharding(mesh, PartitionSpec("data"))

  def fn(x, w):  # [8, 16], [16, 3]
    def turn(w, _):
      return w - jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w), None

    return jax.lax.scan(turn, w, length=5)[0]

  whole = sharding.replicated(mesh)
  program = (
    jax.jit(fn, in_shardings=(rows, whole), out_shardings=whole)
    .lower(jnp.ones((8, 16)), jnp.ones((16, 3)))
    .compile()
  )
  found = aot.read_traffic(program.as_text())
  assert found == {"all-reduce": 5 * 16 * 3 * 4}


def test_flops_multiply_loops_and_devices():
  x, w = jnp.ones((8, 16)), jnp.ones((16, 16))
  once = 2 * 8 * 16 * 16
  assert count_flops(lambda x, w: x @ w, x, w) == once

  def loop(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

  assert count_flops(loop, x, w) == 7 * once
  assert count_flops(jax.jit(jax.grad(lambda w: jnp.sum((x @ w) ** 2))), w) == (
    2 * once
  )
  mesh = sharding.make_mesh(jax.devices()[:4])
  each = sharding.per_device(lambda x: x @ w, mesh)
  assert count_flops(each, x) == once
  image, kernel = jnp.ones((1, 4, 10, 10)), jnp.ones((6, 4, 3, 3))
  assert count_flops(
    lambda x, k: jax.lax.conv(x, k, (1, 1), "VALID"), image, kernel
  ) == 2 * 6 * 8 * 8 * (4 * 3 * 3)


def test_the_platform_decides_while_tracing():
  x = jax.ShapeDtypeStruct((1, 4, 2, 8), jnp.float32)

  def loops():
    text = str(jax.make_jaxpr(lambda q: vit.ATTENTION["auto"](q, q, q))(x))
    return "scan" in text

  assert platform.platform() == "cpu"
  assert loops()
  with platform.compiling_for("tpu"):
    assert not loops()
  assert loops()


def without_data(**overrides):
  """The tiny config, with a source that needs a folder."""
  source = {"source": "folder", "source_kw": {"holdout": 0.1}}
  evals = {"val": {"source_kw": {"holdout": 0.1}}}
  config = tiny_config(input=source, evals=evals, **overrides)
  config.input.source_kw = {"holdout": 0.1}
  config.evals.val.source_kw = {"holdout": 0.1}
  return config


def test_the_same_step_as_with_the_data():
  devices = jax.devices()[:4]
  real = aot.report(aot.build(tiny_config(), devices))
  bare = aot.report(aot.build(without_data(), devices, num_classes=10))
  for found in (real, bare):
    assert found.pop("seconds") > 0
  assert real == bare
  job = jobs.build(tiny_config(), mesh=sharding.make_mesh(devices))
  params = jax.eval_shape(job.fresh_params)
  nbytes = 4 * sum(x.size for x in jax.tree.leaves(params))
  assert real["parameters"] == nbytes // 4
  # The gradients and the loss. Of prefix tokens and their positions they are
  # the same, and sent once.
  tokens = 4 * params["backbone"]["pos_embed"]["prefix"].size
  assert real["traffic"] == {"all-reduce": nbytes - tokens + 4}
  memory = real["memory"]
  # Weights and Adam's two moments stay where they are.
  assert 3 * nbytes <= memory["aliased"] < 3 * nbytes + 100
  assert memory["peak"] == (
    memory["arguments"]
    + memory["outputs"]
    - memory["aliased"]
    + memory["temporaries"]
    + memory["program"]
  )
  assert real["fits"] is None and real["device_memory"] == 0


def test_a_larger_batch_needs_more_memory_and_as_much_traffic():
  small, large = (
    aot.report(
      aot.build(tiny_config(input={"batch_size": size}), jax.devices()[:4])
    )
    for size in (8, 64)
  )
  assert large["memory"]["temporaries"] > 2 * small["memory"]["temporaries"]
  assert large["traffic"] == small["traffic"]


def test_the_number_of_classes_has_to_be_known():
  with pytest.raises(UserError, match="--num_classes=N"):
    aot.build(without_data(), jax.devices()[:1])
  config = without_data()
  config.input.on_host = config.input.on_host.replace("hot", "hot(7)")
  job = aot.build(config, jax.devices()[:1])
  assert len(job.train.class_names) == 7


def test_a_step_that_does_not_fit():
  told = "RESOURCE_EXHAUSTED: Ran out of memory. Used 20.50G of 15.75G hbm."

  class Step:
    def lower(self):
      raise jax.errors.JaxRuntimeError(f"{told}\nAnd more.")

  found = aot._compile(Step(), (), 2**34)
  assert found["fits"] is False and found["refusal"] == told


def test_no_topology(monkeypatch):
  def refuse(**given):
    raise RuntimeError("Unknown TPU")

  monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
  monkeypatch.setattr(aot.topologies, "get_topology_desc", refuse)
  with pytest.raises(UserError, match=r"neither local.*v5e:4x4.*Unknown TPU"):
    aot.find_devices("v5e:4y4")


def test_libtpu_is_missing(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'astjax\[tpu\]'"):
    aot.find_devices("v5e:4x4")


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / "tiny.py"
  path.write_text(
    "from tests.tiny import tiny_config\n\n"
    "def get_config():\n  return tiny_config()\n"
  )
  return path


@pytest.mark.slow
def test_command_line(config_file, capsys):
  command = [f"--config={config_file}", "--config.input.batch_size=4"]
  # Of the command line of a run; it does nothing here.
  assert aot.main([*command, "--workdir=runs/x", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["devices"], found["batch_size"]) == (4, 4)
  assert found["traffic"]["all-reduce"] > 0
  aot._show(found)
  text = capsys.readouterr().out
  assert f"{found['parameters']:,}" in text
  assert "all-reduce" in text and "temporaries" in text


@pytest.mark.parametrize(
  ("flag", "told"),
  [
    ("--topologi=v5e:4x4", "Did you mean 'topology'"),
  ],
)
def test_mistakes_end_in_one_line(flag, told, config_file, mistake):
  mistake(aot.main([f"--config={config_file}", flag]), told)


@pytest.mark.slow
def test_a_tpu_that_is_not_there(config_file):
  pytest.importorskip("libtpu")
  # In a process of its own: libtpu stays where it was loaded.
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "astjax.tools.aot",
      f"--config={config_file}",
      "--topology=v5e:2x2",
      "--config.evals.val.batch_size=8",
      "--json",
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert (found["devices"], found["device_kind"]) == (4, "TPU v5 lite")
  assert found["fits"] and found["device_memory"] == 16 * 2**30
  # As on a CPU: see above.
  assert found["traffic"]["all-reduce"] == 4 * (
    found["parameters"] - 2 * 16 + 1
  )
