"""Arrays split over devices: the same training with less memory on each."""

import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from astjax import errors
from astjax.engine import sharding
from astjax.engine.step import train_key
from astjax.run import config as run_config
from astjax.run import job, log
from astjax.tools import average_checkpoints
from astjax.weights import info as model_info
from tests.run.test_processes import (
  finish,
  free_port,
  nobody_is_left,  # noqa: F401
  start_python,
)
from tests.test_train import assert_same_bits, final_state, losses, run
from tests.tiny import tiny_asit, tiny_config, tiny_ssast

ROOT = pathlib.Path(__file__).parent.parent.parent
TASKS = ("supervised", "ssast", "asit")
# Where one of them shows it in small.
SOME = [
  pytest.param(task, marks=[pytest.mark.rare] * (task != "supervised"))
  for task in TASKS
]
# Wide enough that the larger arrays are above `sharding.MIN_SIZE`.
WIDTH = 128


def config_of(task, **kw):
  """A run of one of the tasks."""
  model = {"width": WIDTH, "num_heads": 2}
  if task == "asit":
    sizes = {"hidden": 128, "bottleneck": 64, "outputs": (256,)}
    return tiny_asit(model=model, task_kw=sizes, **kw)
  model["prefix"] = ("cls", "dist")
  make = {"supervised": tiny_config, "ssast": tiny_ssast}[task]
  return make(model=model, **kw)


def close(one, other, names=None):
  """All logged numbers of two histories but the speed, to 1e-5."""
  assert len(one) == len(other)
  for a, b in zip(one, other, strict=True):
    assert a.keys() == b.keys()
    for key in names or a:
      if key in a and not key.startswith(("perf/", "time")):
        scale = max(1.0, abs(a[key]))
        assert abs(a[key] - b[key]) <= 1e-5 * scale, (a["step"], key)


def assert_close(a, b):
  """Parameters to 1e-5, less the key third of qkv/bias (gradient zero)."""
  assert a.keys() == b.keys()
  for name in a:
    x, y = a[name], b[name]
    if "qkv" in name and "bias" in name:
      x, y = (v.reshape(3, -1)[[0, 2]] for v in (x, y))
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5, err_msg=name)


def of_params(state):
  return {k: v for k, v in state.items() if k.startswith(".params")}


@functools.cache
def compiled(task, fsdp, *, devices=4, depth=1, remat=False, accumulate=1):
  """(the job, the state's shapes, its places, the compiled step)."""
  config = config_of(task, fsdp=fsdp, accumulate=accumulate)
  config.model.depth, config.model.remat = depth, remat
  config.input.batch_size = 16
  mesh = sharding.make_mesh(jax.devices()[:devices])
  built = job.build(config, mesh=mesh)
  tx, state = job.abstract_state(built)
  shardings = sharding.of_state(state, built.mesh)
  step = built.train_step(tx, shardings)
  batch = {
    name: jax.ShapeDtypeStruct((16, *shape), dtype)
    for name, (shape, dtype) in built.train.row_shapes.items()
  }
  key = train_key(0)
  return built, state, shardings, step.lower(state, batch, 0, key).compile()


def collectives(text):
  """{kind: [shapes of the arrays that it gives]} of a program's text."""
  kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
  found = {}
  for line in text.splitlines():
    match = re.search(rf"= (.*?) ({kinds})(-start)?\(", line)
    if match:
      shapes = [
        tuple(int(n) for n in dims.split(",") if n)
        for dims in re.findall(r"\w\d+\[([\d,]*)\]", match[1])
      ]
      found.setdefault(match[2], []).extend(shapes)
  return found


@pytest.mark.parametrize(
  ("shape", "spec"),
  [
    ((768, 3072), (None, "fsdp")),
    ((3072, 768), ("fsdp",)),
    ((768, 768), ("fsdp",)),  # the first of equals
    ((12, 101, 768), (None, None, "fsdp")),  # the longest that divides
    ((768, 3073), ("fsdp",)),
    ((101, 1001), ()),  # none divides: whole
    ((3072,), ()),  # small
    ((2**14 - 4,), ()),
    ((2**14,), ("fsdp",)),
    ((), ()),
  ],
)
def test_where_an_array_is_split(shape, spec):
  x = jax.ShapeDtypeStruct(shape, np.float32)
  for fsdp in (1, 2, 4):
    mesh = sharding.make_mesh(fsdp=fsdp)
    assert dict(mesh.shape) == {"data": 4 // fsdp, "fsdp": fsdp}
    found = sharding.of_state({"x": x}, mesh)["x"].spec
    assert tuple(found) == (spec if fsdp > 1 else ())


def test_rows_stay_in_the_order_of_the_devices():
  """As in the data: whatever the grid and the order of what is given."""
  rows = np.arange(8)
  for fsdp in (1, 2, 4):
    mesh = sharding.make_mesh(jax.devices()[::-1], fsdp=fsdp)
    assert [d.id for d in mesh.devices.flat] == [0, 1, 2, 3]
    array = sharding.to_global({"x": rows}, mesh)["x"]
    for shard in array.addressable_shards:
      first = 2 * shard.device.id
      assert np.asarray(shard.data).tolist() == [first, first + 1]


@pytest.mark.parametrize("fsdp", [3, 8, 0])
def test_a_number_that_does_not_divide_the_devices(fsdp):
  with pytest.raises(errors.UserError) as error:
    job.build(tiny_config(fsdp=fsdp))
  assert str(error.value) == (
    f"config.fsdp={fsdp} does not divide the 4 device(s); it can be 1, 2, 4"
  )


@pytest.mark.slow
@pytest.mark.rare
@pytest.mark.parametrize("task", SOME)
def test_memory_of_a_device(task):
  """By the compiler: its part of the large arrays, and the small ones."""
  bytes_of = {}
  for fsdp in (1, 4):
    built, state, shardings, program = compiled(task, fsdp)
    own = jax.tree.map(
      lambda x, s: int(np.prod(s.shard_shape(x.shape))) * x.dtype.itemsize,
      state,
      shardings,
    )
    rows = sum(
      4 * int(np.prod(shape)) * np.dtype(dtype).itemsize
      for shape, dtype in built.train.row_shapes.values()
    )
    bytes_of[fsdp] = program.memory_analysis().argument_size_in_bytes
    expected = sum(jax.tree.leaves(own)) + rows
    assert bytes_of[fsdp] == pytest.approx(expected, abs=4096)
  assert bytes_of[4] < 0.45 * bytes_of[1]


@pytest.mark.parametrize("task", TASKS)
def test_moments_and_teacher_lie_as_their_parameters(task):
  _, state, shardings, _ = compiled(task, 4)
  by_shape = {}
  is_split = 0
  for x, s in zip(
    jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True
  ):
    assert by_shape.setdefault(x.shape, s) == s and x.sharding == s
    is_split += not s.is_fully_replicated
  copies = 4 if task == "asit" else 3  # a teacher; two moments
  params = jax.tree.leaves(shardings.params)
  mine = sum(not s.is_fully_replicated for s in params)
  assert mine > 3 and is_split == copies * mine


@pytest.mark.parametrize(
  "accumulate", [1, pytest.param(2, marks=pytest.mark.rare)]
)
@pytest.mark.parametrize("task", TASKS)
def test_what_moves_between_devices(task, accumulate):
  """Parameters come and gradients go, rows of the batch stay."""
  built, state, shardings, program = compiled(task, 4, accumulate=accumulate)
  found = collectives(program.as_text())
  # A CPU has no reduce-scatter: it adds up and cuts.
  assert set(found) <= {"all-gather", "all-reduce", "reduce-scatter"}
  row = built.train.one_row()["fbank"].shape[1:]
  donors = [(16, *row)] if task == "asit" else []
  known = {x.size for x in jax.tree.leaves(state.params)}
  for shape in (x for shapes in found.values() for x in shapes):
    if shape not in donors:
      assert math.prod(shape) in known or math.prod(shape) < 1024, shape
  fetched = sorted(math.prod(x) for x in found["all-gather"] if x not in donors)
  parts = zip(
    jax.tree.leaves(state.params),
    jax.tree.leaves(shardings.params),
    strict=True,
  )
  split = sorted(x.size for x, s in parts if not s.is_fully_replicated)
  assert {*split} <= {*fetched} and len(split) > 1
  if task != "asit":  # whose teacher has the same shapes
    assert split == fetched


@pytest.mark.slow
@pytest.mark.rare
@pytest.mark.parametrize("task", SOME)
def test_remat(task):
  """The same step; what it saves is tested with the model."""
  metrics = {}
  for remat in (False, True):
    built, _, _, program = compiled(task, 1, devices=1, depth=2, remat=remat)
    _, state = job.fresh_state(built)
    rng = np.random.default_rng(0)
    batch = {
      name: rng.uniform(0, 100, (16, *shape)).astype(dtype)
      for name, (shape, dtype) in built.train.row_shapes.items()
    }
    batch = sharding.to_global(batch, built.mesh)
    _, found = program(state, batch, 0, train_key(0))
    metrics[remat] = {k: float(v) for k, v in found.items()}
  assert metrics[True] == pytest.approx(metrics[False], rel=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run with all arrays whole on each of four devices."""
  folder = tmp_path_factory.mktemp("whole")
  return folder, run(folder, remembering(), devices=4)


def remembering(**kw):
  """With all that reads parameters: evaluations, average, best."""
  return config_of(
    "supervised",
    **{"steps": 9, "average": {"first_epoch": 1, "last_epoch": 3}} | kw,
    evals={"val": {"every_steps": 3, "batch_size": 8}},
    checkpoint={"every_steps": 3, "keep": 3},
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "between", [[], pytest.param([2], marks=pytest.mark.rare)]
)
def test_a_run_goes_on_elsewhere(between, whole, tmp_path, capsys):
  """Split over four devices, maybe then over two, then whole on one."""
  folder, history = whole
  run(tmp_path, remembering(fsdp=4), devices=4, stop_at=3)
  for count in between:
    run(tmp_path, remembering(fsdp=count), devices=count, stop_at=5)
    assert "config.fsdp was 4, is 2" in capsys.readouterr().out
  close(history, run(tmp_path, remembering(), devices=1))
  assert_close(of_params(final_state(folder)), of_params(final_state(tmp_path)))
  (info, a), (_, b) = (
    model_info.read_model(path / "average") for path in (folder, tmp_path)
  )
  assert "averaged over the epochs 1 to 3" in info.origin
  assert_close(a, b)


@pytest.mark.slow
@pytest.mark.rare
def test_a_checkpoint_keeps_its_bits_anywhere(tmp_path):
  """Written in parts; read in parts, in others, whole, and by the tools."""
  run(tmp_path, remembering(fsdp=4), devices=4)
  path = tmp_path / "config.json"
  saved = json.loads(path.read_text())
  states = []
  for fsdp, devices in ((4, 4), (1, 4), (2, 2), (1, 1)):
    saved["config"]["fsdp"] = fsdp
    path.write_text(json.dumps(saved))
    states.append(final_state(tmp_path, devices))
  for other in states[1:]:
    assert_same_bits(states[0], other)
  saved["config"]["fsdp"] = 64  # of another machine: tools do not need it
  path.write_text(json.dumps(saved))
  _, state = job.load_run(tmp_path)
  assert all(x.is_fully_replicated for x in jax.tree.leaves(state))
  args = [f"--workdir={tmp_path}", "--last=1", str(tmp_path / "mean")]
  assert average_checkpoints.main(args) == 0
  _, params = model_info.read_model(tmp_path / "mean")
  for name, value in params.items():
    key = ".params" + "".join(f"['{part}']" for part in name.split("/"))
    np.testing.assert_array_equal(value, states[0][key])


def test_the_start_has_the_same_bits_anywhere():
  states = []
  for fsdp in (1, 4):
    built = job.build(config_of("asit", fsdp=fsdp))
    _, state = job.fresh_state(built)
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    states.append({jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves})
  assert_same_bits(*states)


EIGHT = """
import json, sys, tempfile
from tests.engine.test_fsdp import config_of, run
for task in ("supervised", "ssast", "asit"):
  for fsdp in (1, 2, 8):
    config = config_of(task, steps=20, fsdp=fsdp)
    config.model.depth = 2
    with tempfile.TemporaryDirectory() as folder:
      history = run(folder, config, devices=8)
    print("LOG", json.dumps([task, fsdp, history]))
"""


@pytest.mark.slow
@pytest.mark.rare
def test_eight_devices_train_as_one_would():
  """All tasks, 20 steps: data parallel, 4 x 2 and 1 x 8 devices."""
  devices = "--xla_force_host_platform_device_count=8"
  env = dict(
    os.environ,
    XLA_FLAGS=f"{os.environ['XLA_FLAGS']} {devices}",
    PYTHONPATH=str(ROOT),
  )
  out = subprocess.run(
    [sys.executable, "-c", EIGHT],
    env=env,
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert out.returncode == 0, out.stderr
  found = {}
  for line in out.stdout.splitlines():
    if line.startswith("LOG "):
      task, fsdp, history = json.loads(line[4:])
      found[task, fsdp] = history
  assert len(found) == 9
  for task in TASKS:
    assert len(losses(found[task, 1])) == 20
    for fsdp in (2, 8):
      close(found[task, 1], found[task, fsdp])


def test_batches_per_device(tmp_path):
  """Two rows on each of four devices are a batch of eight."""
  config = tiny_config(input={"batch_size": 0, "batch_per_device": 2})
  config.evals.val.batch_per_device = 1
  built = job.build(config)
  assert built.config.input.batch_size == 8
  assert built.evals["val"].config.batch_size == 4
  history = run(tmp_path, config, devices=4)
  written = json.loads((tmp_path / "config.json").read_text())["config"]
  assert written["input"]["batch_size"] == 8
  assert "batch_per_device" not in written["input"]
  # The batch belongs to the training, the number of devices does not.
  with pytest.raises(errors.UserError, match="batch_size was 8, is 4"):
    run(tmp_path, config, devices=2)
  same = tiny_config(evals={"val": {"batch_size": 4}})
  assert run(tmp_path, same, devices=2) == history


def test_an_evaluation_has_its_own_batch():
  config = tiny_config(
    input={"batch_size": 0, "batch_per_device": 4},
    evals={"val": {"batch_size": 12}, "same": {"on_device": "to_float"}},
  )
  run = run_config.parse(config, num_devices=2)
  sizes = {k: v.input(run.input).batch_size for k, v in run.evals.items()}
  assert sizes == {"val": 12, "same": 8}


@pytest.mark.parametrize(
  ("section", "told"),
  [
    (
      {"input": {"batch_per_device": 2}},
      "config.input.batch_size=8 and config.input.batch_per_device=2: give one",
    ),
    (
      {"input": {"batch_size": 0}},
      "config.input.batch_size=0 and config.input.batch_per_device=0: give one",
    ),
    (
      {"input": {"batch_size": 0, "batch_per_device": -1}},
      "config.input: batch_per_device=-1 must be at least 0",
    ),
    (
      {"evals": {"val": {"batch_size": 4, "batch_per_device": 2}}},
      "config.evals.val.batch_size=4 and config.evals.val.batch_per_device=2: "
      "give one",
    ),
    (
      {"input": {"batch_per_devise": 2}},
      "unknown argument 'batch_per_devise' in config.input. Did you mean "
      "'batch_per_device'?",
    ),
  ],
)
def test_batches_that_are_not_clear(section, told):
  with pytest.raises(errors.UserError) as error:
    job.build(tiny_config(**section))
  assert str(error.value).startswith(told)


TWO = """
import sys
from astjax.run import processes
address, index, folder = sys.argv[1:]
processes.join(processes.find(
  {}, coordinator=address, num_processes=2, process_id=int(index)))
from tests.engine.test_fsdp import remembering
from astjax import train
for stop in (4, None):
  train.train_and_evaluate(remembering(fsdp=4), folder, stop_at=stop)
"""


@pytest.mark.slow
@pytest.mark.rare
def test_two_processes_hold_half_of_it_each(whole, tmp_path):
  """Saved, digested, averaged and restored where nobody has all of it."""
  address = f"127.0.0.1:{free_port()}"
  pair = [
    start_python("-c", TWO, address, str(i), str(tmp_path), devices=2)
    for i in range(2)
  ]
  out = [finish(process) for process in pair]
  assert [process.returncode for process in pair] == [0, 0], out
  folder, history = whole
  close(history, log.read(tmp_path / "metrics.jsonl"))
  (_, a), (_, b) = (
    model_info.read_model(path / "average") for path in (folder, tmp_path)
  )
  assert_close(a, b)
