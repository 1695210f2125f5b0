"""The loop: resuming, damage, non-finite losses, several devices."""

import errno
import json
import pathlib
import re
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import soundfile

from astjax import errors, train
from astjax.data import pipeline
from astjax.engine import sharding
from astjax.engine import step as train_step_lib
from astjax.run import checkpoint, evaluation, job, processes
from tests.tiny import tiny_config


def one_device():
  return sharding.make_mesh(jax.devices()[:1])


def run(workdir, config=None, *, devices=1, **kwargs):
  config = tiny_config() if config is None else config
  mesh = sharding.make_mesh(jax.devices()[:devices])
  return train.train_and_evaluate(config, workdir, mesh=mesh, **kwargs)


def final_state(workdir, devices=1):
  """The newest checkpoint's arrays, flattened."""
  config = json.loads((pathlib.Path(workdir) / "config.json").read_text())
  mesh = sharding.make_mesh(jax.devices()[:devices])
  built = job.build(config["config"], mesh=mesh)
  _, template = job.abstract_state(built)
  store = checkpoint.Checkpoints(pathlib.Path(workdir))
  state, _ = store.restore(template)
  store.close()
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  return {jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves}


def assert_same_bits(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].tobytes() == b[name].tobytes(), name


def losses(history):
  return {h["step"]: h["train/loss"] for h in history if "train/loss" in h}


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
  """An uninterrupted run of 20 steps."""
  folder = tmp_path_factory.mktemp("twenty")
  history = run(folder, tiny_config(steps=20))
  return folder, history


def test_work_directory(twenty):
  folder, history = twenty
  names = {p.name for p in folder.iterdir()}
  assert names >= {
    "config.json",
    "versions.json",
    "parameters.txt",
    "metrics.jsonl",
    "checkpoints",
    "val_classes.csv",
  }
  lines = [
    json.loads(line)
    for line in (folder / "metrics.jsonl").read_text().splitlines()
  ]
  assert lines == history
  keys = {key for line in lines for key in line}
  assert keys >= {
    "step",
    "train/loss",
    "train/lr",
    "train/grad_norm",
    "perf/examples_per_s",
    "perf/data_wait",
    "val/mAP",
    "val/mAUC",
    "val/d_prime",
    "val/accuracy",
    "val/loss",
  }
  assert sorted(losses(history)) == list(range(1, 21))
  table = (folder / "val_classes.csv").read_text().splitlines()
  assert table[0] == "class,AP,AUC,num_positive"
  assert len(table) == 11
  total = (folder / "parameters.txt").read_text().splitlines()[-1]
  size = sum(
    v.size for k, v in final_state(folder).items() if k.startswith(".params")
  )
  assert total.split() == ["total", f"{size:,}"]


@pytest.mark.slow
def test_ten_and_ten_are_twenty(twenty, tmp_path):
  folder, history = twenty
  config = tiny_config(steps=20)
  run(tmp_path, config, stop_at=10)
  resumed = run(tmp_path, config)
  assert_same_bits(final_state(tmp_path), final_state(folder))
  assert losses(resumed) == losses(history)


@pytest.mark.slow
def test_it_learns(tmp_path):
  """Twelve epochs on eight clips: the loss falls well below chance."""
  config = tiny_config(
    steps=60,
    input={"source_kw": {"num_examples": 8}},
    schedule={"lr": 1e-2},
  )
  history = list(losses(run(tmp_path, config)).values())
  assert np.mean(history[-5:]) < 0.7 * history[0]


@pytest.mark.slow
def test_a_longer_run_goes_on(twenty, tmp_path):
  folder, _ = twenty
  run(tmp_path, tiny_config(steps=10))
  run(tmp_path, tiny_config(steps=20))
  assert_same_bits(final_state(tmp_path), final_state(folder))


def test_history_of_a_killed_run_is_cut(tmp_path):
  """Lines after the checkpoint come again; a torn last line is dropped."""
  config = tiny_config(steps=6)
  run(tmp_path, config, stop_at=3)
  with open(tmp_path / "metrics.jsonl", "a") as f:
    f.write('{"step": 4, "train/loss": 9.0}\n{"step": 5, "tra')
  history = run(tmp_path, config)
  assert sorted(losses(history)) == [1, 2, 3, 4, 5, 6]
  assert 9.0 not in losses(history).values()
  assert "tra\n" not in (tmp_path / "metrics.jsonl").read_text()


def flip_a_bit(folder):
  """Changes one bit of the largest array file of a checkpoint."""
  files = [p for p in (folder / "state").rglob("*") if p.is_file()]
  data = [p for p in files if "d" in p.parent.name.split("_")[0]]
  path = max(data, key=lambda p: p.stat().st_size)
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 1
  path.write_bytes(bytes(raw))


@pytest.mark.slow
@pytest.mark.parametrize(
  "damage",
  [
    "flip",
    pytest.param("truncate", marks=pytest.mark.rare),
    pytest.param("no_meta", marks=pytest.mark.rare),
  ],
)
def test_damaged_checkpoint_is_passed_over(damage, twenty, tmp_path, capsys):
  config = tiny_config(steps=20, checkpoint={"every_steps": 5, "keep": 5})
  run(tmp_path, config, stop_at=12)
  newest = tmp_path / "checkpoints" / "12"
  if damage == "flip":
    flip_a_bit(newest)
  elif damage == "truncate":
    for path in (newest / "state").rglob("*"):
      if path.is_file():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  else:
    for path in (newest / "meta").rglob("*"):
      if path.is_file():
        path.unlink()
  capsys.readouterr()
  run(tmp_path, config)
  captured = capsys.readouterr()
  assert "checkpoint 12 is damaged and passed over" in captured.err
  assert "resumed at step 10" in captured.out
  assert (tmp_path / "damaged_checkpoints" / "12").exists()
  assert_same_bits(final_state(tmp_path), final_state(twenty[0]))


def test_digest_catches_a_silent_flip(tmp_path, monkeypatch):
  """Even where the storage layer sees nothing wrong."""
  run(tmp_path, tiny_config(steps=2))
  built = job.build(tiny_config(steps=2), mesh=one_device())
  _, template = job.abstract_state(built)
  store = checkpoint.Checkpoints(tmp_path)
  honest = checkpoint.describe

  def other(state):
    bias = state.params["head"]["linear"]["bias"]
    state.params["head"]["linear"]["bias"] = bias.at[0].add(1e-7)
    return honest(state)

  monkeypatch.setattr(checkpoint, "describe", other)
  with pytest.raises(errors.UserError, match="none of the checkpoints"):
    store.restore(template)
  store.close()


def test_a_failed_save_is_known_before_the_next(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")

  def state(step):
    params = {"w": jax.numpy.full(3, step)}
    return train_step_lib.TrainState(
      step=jax.numpy.int32(step), params=params, opt_state={}, task_state={}
    )

  store = checkpoint.Checkpoints(tmp_path)
  store.save(state(1), {})
  store.wait()
  store.check()
  monkeypatch.setattr(ocp.StandardCheckpointHandler, "finalize", full)
  store.save(state(2), {})
  with pytest.raises(errors.Outage) as error:
    while True:  # until the background says so
      store.check()
      time.sleep(0.01)
  assert re.fullmatch(
    r"cannot save a checkpoint in .*checkpoints: No space left on device "
    r"\(\d+ MiB free\); the complete ones are of steps \[1\]",
    str(error.value),
  )
  store.close()


def test_each_log_line_asks_for_failed_saves(tmp_path, monkeypatch):
  def check(store):
    raise errors.Outage("no space left")

  monkeypatch.setattr(checkpoint.Checkpoints, "check", check)
  with pytest.raises(errors.Outage, match="no space left"):
    run(tmp_path, tiny_config(steps=2))


@pytest.mark.slow
def test_best_and_newest_are_kept(tmp_path):
  config = tiny_config(
    steps=8,
    evals={"val": {"every_steps": 1}},
    checkpoint={"every_steps": 1, "keep": 2},
  )
  history = run(tmp_path, config)
  scores = {h["step"]: h["val/mAP"] for h in history if "val/mAP" in h}
  best = max(scores, key=lambda step: (scores[step], -step))
  kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
  assert kept == {7, 8, best}
  assert len(scores) == 8


@pytest.mark.slow
def test_non_finite_loss_stops_with_the_last_good_state(tmp_path):
  config = tiny_config(steps=9, schedule={"lr": 1e38})
  with pytest.raises(errors.UserError) as error:
    run(tmp_path, config)
  text = str(error.value)
  assert "\n" not in text
  assert "not finite" in text and "Batch ids" in text and "train/" in text
  bad_step = int(text.split("step ")[1].split(":")[0])
  state = final_state(tmp_path)
  assert int(state[".step"]) == bad_step
  for name, value in state.items():
    if name.startswith(".params"):
      assert np.isfinite(value).all(), name


def test_a_step_on_the_wrong_state_changes_nothing():
  built = job.build(tiny_config(), mesh=one_device())
  tx, state = job.fresh_state(built)
  step = train_step_lib.make_train_step(
    built.task, tx, built.train.device_ops, built.mesh
  )
  batches = pipeline.train_batches(
    built.train.reader,
    built.train.host_ops,
    batch_size=8,
    seed=0,
    first_step=0,
    last_step=1,
  )
  batch = sharding.to_global(next(batches), built.mesh)
  batches.close()
  before = jax.tree.map(np.asarray, state)
  after, _ = step(state, batch, 3, train_step_lib.train_key(0))
  jax.tree.map(np.testing.assert_array_equal, before, after)


def test_one_and_four_devices_agree(twenty, tmp_path):
  """Losses to 1e-5, parameters too but for the key third of qkv/bias, whose
  true gradient is zero."""
  _, history = twenty
  other = run(tmp_path, tiny_config(steps=20), devices=4)
  one, four = losses(history), losses(other)
  assert one.keys() == four.keys()
  for step in one:
    assert abs(one[step] - four[step]) <= 1e-5 * max(1.0, abs(one[step]))
  for a, b in zip(history, other, strict=True):
    for key in a:
      if key.startswith("val/"):
        assert abs(a[key] - b[key]) <= 1e-5, key
  a, b = final_state(twenty[0]), final_state(tmp_path, devices=4)
  for name in a:
    if not name.startswith(".params"):
      continue
    x, y = a[name], b[name]
    if "qkv" in name and "bias" in name:
      width = x.size // 3
      x, y = (
        np.delete(x, np.s_[width : 2 * width]),
        np.delete(y, np.s_[width : 2 * width]),
      )
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5, err_msg=name)


def test_the_step_gathers_nothing():
  """Four devices add up gradients; no batch or spectrum is moved around."""
  built = job.build(tiny_config())
  assert built.mesh.size == 4
  tx, state = job.fresh_state(built)
  step = train_step_lib.make_train_step(
    built.task, tx, built.train.device_ops, built.mesh
  )
  batch = {
    name: jax.ShapeDtypeStruct((8, *shape), dtype)
    for name, (shape, dtype) in built.train.row_shapes.items()
  }
  key = train_step_lib.train_key(0)
  text = step.lower(state, batch, 0, key).compile().as_text()
  assert "all-reduce" in text
  for other in ("all-gather", "all-to-all", "collective-permute"):
    assert other not in text


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("batch_size", [4, 8, 12])
def test_evaluation_is_exact(devices, batch_size, tmp_path):
  """Ten clips in batches that do not divide them: as all at once, by hand."""
  config = tiny_config(evals={"val": {"batch_size": batch_size}})
  built = job.build(config, mesh=sharding.make_mesh(jax.devices()[:devices]))
  _, state = job.fresh_state(built)
  split = built.evals["val"]
  step = train_step_lib.make_eval_step(built.task, split.device_ops, built.mesh)
  batches = pipeline.eval_batches(
    split.reader, split.host_ops, batch_size=batch_size
  )
  out = evaluation.outputs(step, state, batches, built.mesh)
  assert out["id"].tolist() == list(range(10))
  metrics, per_class = evaluation.reduce(built.task, out)
  assert metrics["num_examples"] == 10

  logits, labels = out["logits"].astype(np.float64), out["label"]
  per_clip = np.mean(
    np.logaddexp(0, logits) - labels * logits, axis=-1
  )  # BCE on logits
  assert abs(metrics["loss"] - per_clip.mean()) < 1e-6
  assert per_class["num_positive"].sum() == labels.sum()
  reference = job.build(
    tiny_config(evals={"val": {"batch_size": 10}}), mesh=one_device()
  )
  whole = next(
    pipeline.eval_batches(
      reference.evals["val"].reader,
      reference.evals["val"].host_ops,
      batch_size=10,
    )
  )
  step = train_step_lib.make_eval_step(
    reference.task, reference.evals["val"].device_ops, reference.mesh
  )
  again = step(
    jax.tree.map(np.asarray, state.params),
    {},
    sharding.to_global(whole, reference.mesh),
    0,
  )
  np.testing.assert_allclose(out["logits"], again["logits"], atol=1e-5)


@pytest.mark.slow
def test_patches_train_like_spectrograms(tmp_path):
  """`patchify` at the end of the recipe: the same losses."""
  base = tiny_config()
  cut = "patchify(patch_size=(8, 10), stride=(8, 10))"
  patched = tiny_config(
    input={"on_device": base.input.on_device + "|" + cut},
    evals={"val": {"on_device": base.evals.val.on_device + "|" + cut}},
  )
  a = losses(run(tmp_path / "a", base))
  b = losses(run(tmp_path / "b", patched))
  for step in a:
    assert abs(a[step] - b[step]) <= 1e-5


@pytest.mark.slow
def test_front_end_on_the_host_trains_the_same(tmp_path):
  base = tiny_config()
  host = base.input.on_host.split("|keep")[0]
  moved = tiny_config(
    input={
      "on_host": f"{host}|{base.input.on_device}|keep('fbank', 'label')",
      "on_device": "",
    },
    evals={
      "val": {
        "on_host": f"{host}|{base.evals.val.on_device}|keep('fbank', 'label')",
        "on_device": "",
      }
    },
  )
  a = losses(run(tmp_path / "a", base))
  b = losses(run(tmp_path / "b", moved))
  for step in a:
    assert abs(a[step] - b[step]) <= 1e-5


@pytest.mark.slow
def test_load_run_takes_the_best(tmp_path):
  config = tiny_config(
    steps=6,
    evals={"val": {"every_steps": 1}},
    checkpoint={"every_steps": 1, "keep": 1},
    schedule={"lr": 0.05},
  )
  history = run(tmp_path, config)
  scores = {h["step"]: h["val/mAP"] for h in history if "val/mAP" in h}
  best = max(scores, key=lambda step: (scores[step], -step))
  loaded, state = job.load_run(tmp_path)
  assert int(state.step) == best
  assert loaded.total_steps == 6
  with pytest.raises(errors.UserError, match="not a work directory"):
    job.load_run(tmp_path / "nothing")


def test_a_finished_run_is_only_shown_again(tmp_path, capsys):
  config = tiny_config(steps=2)
  first = run(tmp_path, config)
  again = run(tmp_path, config)
  assert again == first
  assert "nothing to train" in capsys.readouterr().out
  more = tiny_config(steps=2, evals={"test": dict(config.evals.val)})
  third = run(tmp_path, more)
  assert len(third) == len(first) + 1
  assert third[-1]["test/mAP"] == third[-2]["val/mAP"]


def test_reading_a_run_changes_nothing(tmp_path):
  """Not even a save in flight, or a damaged checkpoint."""
  config = tiny_config(steps=4, checkpoint={"every_steps": 2, "keep": 3})
  run(tmp_path, config)
  flip_a_bit(tmp_path / "checkpoints" / "4")
  in_flight = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"
  in_flight.mkdir()
  before = sorted(tmp_path.rglob("*"))
  _, state = job.load_run(tmp_path)
  assert int(state.step) == 2
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_killed_before_the_first_save(tmp_path):
  """Nothing but the config and an empty folder: the same command starts."""
  config = tiny_config(steps=1)
  run(tmp_path / "whole", config)
  (tmp_path / "cut" / "checkpoints").mkdir(parents=True)
  saved = (tmp_path / "whole" / "config.json").read_text()
  (tmp_path / "cut" / "config.json").write_text(saved)
  run(tmp_path / "cut", config)
  assert_same_bits(
    final_state(tmp_path / "cut"), final_state(tmp_path / "whole")
  )


def test_damaged_checkpoints_are_never_forgotten(tmp_path):
  """A second try does not start from zero without a word."""
  config = tiny_config(steps=4)
  run(tmp_path, config, stop_at=2)
  flip_a_bit(tmp_path / "checkpoints" / "2")
  for _ in range(2):
    with pytest.raises(errors.UserError, match="none of the checkpoints"):
      run(tmp_path, config)


def test_an_evaluation_does_not_draw():
  """`on_host` is taken over from training: masks there would go unnoticed."""
  base = tiny_config()
  host = base.input.on_host.split("|keep")[0]
  config = tiny_config(
    input={
      "on_host": f"{host}|{base.input.on_device}|keep('fbank', 'label')",
      "on_device": "",
    },
    evals={"val": {"on_device": ""}},
  )
  with pytest.raises(errors.UserError, match=r"val draws .* \(freq_mask\)"):
    job.build(config)


def test_softmax_wants_one_label():
  config = tiny_config(task_kw={"loss": "softmax_xent"})
  with pytest.raises(errors.UserError, match="exactly one"):
    job.build(config)


@pytest.mark.slow
def test_broken_recordings_are_listed(tmp_path):
  """Replaced in training, left out of the evaluation, counted, and kept in
  the list over a resume."""
  data = tmp_path / "data"
  rate, wave = 8_000, np.zeros(2_000, np.float32)
  for i in range(12):
    for name in ("cat", "dog"):
      path = data / name / f"{i}.wav"
      path.parent.mkdir(parents=True, exist_ok=True)
      soundfile.write(path, wave + 0.01 * i, rate)
  (data / "cat" / "3.wav").write_bytes(b"")
  (data / "dog" / "4.wav").write_bytes(b"RIFF....WAVEjunk")
  config = tiny_config(
    steps=6,
    input={"source": "folder", "data_dir": str(data), "split": ""},
    evals={"val": {"split": ""}},
  )
  config.input.source_kw = {}
  config.evals.val.source_kw = {}
  history = run(tmp_path / "run", config, stop_at=3)
  history = run(tmp_path / "run", config)
  assert history[-1].get("val/num_examples", 22) == 22
  counts = [h["val/unreadable"] for h in history if "val/unreadable" in h]
  assert counts[-1] == 2
  listed = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
  assert {tuple(line.split("\t")[:2]) for line in listed} == {
    (split, name)
    for split in ("train", "val")
    for name in ("cat/3.wav", "dog/4.wav")
  }


@pytest.mark.slow
def test_a_test_set_is_looked_at_once(tmp_path, capsys):
  """`of_best`: at the end, on the checkpoint that is best by another set."""
  val = {"split": "val", "every_steps": 1}
  config = tiny_config(
    steps=6,
    evals={"val": val, "test": {**tiny_config().evals.val, "of_best": True}},
    schedule={"lr": 0.05},
    seed=2,
  )
  history = run(tmp_path, config)
  rated = [h for h in history if "test/mAP" in h]
  assert len(rated) == 1 and rated[0]["step"] == 6
  curve = {h["step"]: h["val/mAP"] for h in history if "val/mAP" in h}
  best = max(curve, key=curve.get)
  assert best != 6  # or it would prove nothing
  # The two are the same recordings here.
  assert rated[0]["test/mAP"] == pytest.approx(curve[best], abs=1e-6)
  assert f"step {best}, the best  test" in capsys.readouterr().out
  # Shown again, it is not evaluated again.
  assert run(tmp_path, config) == history


@pytest.mark.parametrize(
  "change", [{"best": ""}, {"best": "test/mAP"}, {"every": 1}]
)
def test_what_cannot_be_of_the_best(change, tmp_path):
  test = {**tiny_config().evals.val, "of_best": True}
  if change.pop("every", 0):
    test["every_steps"] = 1
  with pytest.raises(errors.UserError, match=r"of_best|no metric"):
    run(tmp_path, tiny_config(evals={"test": test}, **change))


@pytest.mark.slow
def test_a_lone_checkpoint_that_is_rated_later_is_kept(tmp_path):
  """Stopped before the evaluation of a step that stays the best."""
  test = {**tiny_config().evals.val, "of_best": True}
  config = tiny_config(
    steps=8,
    evals={"val": {"every_steps": 2}, "test": test},
    schedule={"lr": 0.05},
    best="val/loss",
    best_is_lowest=False,  # the loss falls: the first stays the best
    checkpoint={"every_steps": 2, "keep": 1},
  )
  original = processes.Signals.asked
  try:
    processes.Signals.asked = lambda self, step: (
      setattr(self, "received", 15) or step == 2
    )
    with pytest.raises(errors.Stopped):
      run(tmp_path, config)
  finally:
    processes.Signals.asked = original
  history = run(tmp_path, config)
  curve = {h["step"]: h["val/loss"] for h in history if "val/loss" in h}
  best = max(curve, key=curve.get)
  rated = next(h for h in history if "test/loss" in h)
  assert rated["test/loss"] == pytest.approx(curve[best], abs=1e-6)
  assert (tmp_path / "checkpoints" / str(best)).exists()


def test_the_test_is_made_up_for_after_a_kill(tmp_path):
  test = {**tiny_config().evals.val, "of_best": True}
  config = tiny_config(
    steps=6,
    evals={"val": {"every_steps": 3}, "test": test},
    average={"first_epoch": 1, "last_epoch": 2},
  )
  history = run(tmp_path, config)
  assert not any("test/average_mAP" in h for h in history)
  path = tmp_path / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  assert "test/mAP" in lines[-1]
  path.write_text("".join(lines[:-1]))
  again = run(tmp_path, config)
  assert again[-1]["test/mAP"] == history[-1]["test/mAP"]


@pytest.mark.slow
def test_a_best_checkpoint_that_is_gone_does_not_stop_the_run(tmp_path, capsys):
  test = {**tiny_config().evals.val, "of_best": True}
  config = tiny_config(
    steps=6,
    evals={"val": {"every_steps": 1}, "test": test},
    schedule={"lr": 0.05},
    seed=2,
    checkpoint={"keep": 1},
  )
  history = run(tmp_path, config)
  curve = {h["step"]: h["val/mAP"] for h in history if "val/mAP" in h}
  best = max(curve, key=curve.get)
  for file in (tmp_path / "checkpoints" / str(best)).rglob("*"):
    if file.is_file() and "state" in str(file):
      file.write_bytes(b"")
  path = tmp_path / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(lines[:-1]))
  again = run(tmp_path, config)
  assert "is of the last one instead" in capsys.readouterr().err
  assert again[-1]["test/mAP"] == pytest.approx(curve[6], abs=1e-6)
