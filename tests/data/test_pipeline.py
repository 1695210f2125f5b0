"""Batches: a function of (seed, step), the same on the host as on the device.

Recordings come from memory; decoding files is the matter of test_audio.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astjax.data import pipeline
from astjax.data.audio import UnreadableAudio
from astjax.data.reader import Reader
from astjax.engine.step import train_key
from astjax.errors import UserError
from astjax.ops import frontend, host_ops, patches
from astjax.ops.recipe import apply_rows, parse, row_keys

RATE = 8000
# One frame of 25 ms at 8 kHz.
FRAME = 200


class Memory:
  """Recordings that are noise, or what is given; some cannot be read."""

  class_names = ("a", "b", "c")

  def __init__(self, size=10, *, rate=RATE, samples=400, bad=(), audio=None):
    self._size = size
    self._rate = rate
    self._samples = samples
    self._bad = set(bad)
    self._audio = audio

  def __len__(self):
    return self._size

  def name(self, index):
    return f"clip {index}"

  def labels(self, index):
    return (index % 3,) if index % 2 else (0, index % 3)

  def read(self, index):
    if index in self._bad:
      raise UnreadableAudio(f"reason {index}")
    if self._audio is not None:
      audio = self._audio
      if isinstance(audio, list):
        audio = audio[index]
      return np.asarray(audio, np.float32), self._rate
    rng = np.random.default_rng(index)
    audio = 0.1 * rng.standard_normal(self._samples + index)
    return audio.astype(np.float32), self._rate


def _ops(recipe, reader):
  where = "config.input.on_host"
  return parse(recipe, host_ops.OPS, where, reader=reader)


def _train(recipe, reader, first=0, last=1, batch_size=4, seed=0, **given):
  batches = pipeline.train_batches(
    reader,
    _ops(recipe, reader),
    batch_size=batch_size,
    seed=seed,
    first_step=first,
    last_step=last,
    **given,
  )
  return list(batches)


def _eval(recipe, reader, batch_size=4, **given):
  return list(
    pipeline.eval_batches(
      reader, _ops(recipe, reader), batch_size=batch_size, **given
    )
  )


def _on_device(recipe, batch, keys):
  ops = parse(recipe, frontend.OPS, "config.input.on_device")
  return jax.jit(lambda *given: apply_rows(ops, *given))(batch, keys)


def _assert_same(got, want):
  assert got.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    assert got[name].dtype == want[name].dtype, name


def _joined(parts):
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


SHORT = f"decode|fit(1, {RATE})|quantise|multi_hot"
# Few ops, since the tracing of their random keys takes most of a test's time.
MASKED = f"decode|fit(6, {RATE})|fbank({RATE}, 8)|freq_mask(8)"


# --- a function of (seed, step) ---------------------------------------------


def test_a_run_that_starts_late_gets_the_same_batches():
  """Masks, order and epochs (10 examples, batches of 4) go on as they were."""
  whole = _train(MASKED, Reader(Memory()), 0, 10)
  late = _train(MASKED, Reader(Memory()), 7, 10)
  assert len(whole) == 10 and len(late) == 3
  for got, want in zip(late, whole[7:], strict=True):
    _assert_same(got, want)
  assert len({batch["fbank"].tobytes() for batch in whole}) == 10
  assert (whole[0]["fbank"] == 0).any(), "nothing was masked"
  ids = np.concatenate([batch["id"] for batch in whole])
  for epoch in ids.reshape(4, 10):
    assert sorted(epoch) == list(range(10))


def test_another_seed_gives_other_batches():
  ids, masks = [], []
  for seed in (0, 0, 2**32 - 1):
    # All recordings sound the same, so that only the masks differ.
    reader = Reader(Memory(audio=np.linspace(-1, 1, 600)))
    (batch,) = _train(MASKED, reader, seed=seed, batch_size=8)
    ids.append(batch["id"].tobytes())
    masks.append(batch["fbank"].tobytes())
  assert ids[0] == ids[1] and masks[0] == masks[1]
  assert len(set(ids)) == len(set(masks)) == 2


@pytest.mark.parametrize("count", [4])
def test_the_slices_of_processes_make_up_the_batch(count):
  reader = Reader(Memory())
  whole = _train(MASKED, reader, 3, 6, batch_size=8)
  parts = [
    _train(*(MASKED, reader, 3, 6, 8), process_index=i, process_count=count)
    for i in range(count)
  ]
  for step, want in enumerate(whole):
    assert len(parts[0][step]["id"]) == 8 // count
    _assert_same(_joined([part[step] for part in parts]), want)


def test_a_mask_differs_from_row_to_row():
  reader = Reader(Memory(audio=np.linspace(-1, 1, 600)))
  (batch,) = _train(MASKED, reader, batch_size=16)
  assert len({row.tobytes() for row in batch["fbank"]}) > 8


def test_no_steps_no_batches():
  assert _train(SHORT, Reader(Memory()), 5, 5) == []


# --- host and device --------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_the_front_end_is_the_same_on_the_host_and_on_the_device(rate):
  """All of it, with the keys of step 2 of a run with this seed."""
  seed, step, batch_size, frames = 5, 2, 8, 20
  front_end = "|".join(
    [
      "to_float",
      "center",
      f"fbank({rate}, 16)",
      f"pad_frames({rate})",
      "freq_mask(8)",
      "time_mask(10)",
      "freq_mask(3)",
      "standardize(-4.2, 4.5)",
    ]
  )
  decode = f"decode|fit({frames}, {rate})|quantise"
  # Some recordings are shorter than 20 frames, some longer.
  size = frames * rate // 100
  reader = Reader(Memory(24, rate=rate, samples=size - 10))
  (on_host,) = _train(
    *(
      f"{decode}|{front_end}|keep('fbank')",
      reader,
      step,
      step + 1,
      batch_size,
    ),
    seed=seed,
  )
  (waves,) = _train(decode, reader, step, step + 1, batch_size, seed=seed)
  assert waves["audio"].dtype == np.int16
  key = jax.random.fold_in(train_key(seed), step)
  on_device = _on_device(front_end, waves, row_keys(key, batch_size))
  np.testing.assert_array_equal(on_host["id"], waves["id"])
  assert on_host["fbank"].shape == (batch_size, frames, 16)
  assert on_host["fbank"].dtype == np.float32
  np.testing.assert_allclose(
    on_host["fbank"], on_device["fbank"], rtol=0, atol=1e-5
  )
  empty = on_host["fbank"] == np.float32(4.2) * np.float32(0.5 / 4.5)
  assert 0.02 < empty.mean() < 0.9  # masks were drawn, and not everywhere


def test_masks_do_not_depend_on_the_side_of_the_ops_before_them():
  """An op draws the same whether those around it run on the host or not."""
  reader = Reader(Memory(audio=np.linspace(-1, 1, 600)))
  (here,) = _train(f"{MASKED}|time_mask(6)", reader)
  (half,) = _train(MASKED, reader)
  keys = row_keys(jax.random.fold_in(train_key(0), 0), 4)
  there = _on_device("time_mask(6)", half, keys)
  np.testing.assert_array_equal(here["fbank"], there["fbank"])
  assert (half["fbank"] != here["fbank"]).any()


def test_evaluation_draws_the_same_on_either_side():
  """`train_step` folds the id into the key of seed 0; so does the host."""
  reader = Reader(Memory(6, audio=np.linspace(-1, 1, 600)))
  batches = _eval(MASKED, reader)
  plain = MASKED.removesuffix("|freq_mask(8)")
  key = train_key(0)
  for got, batch in zip(batches, _eval(plain, reader), strict=True):
    ids = jnp.asarray(batch["id"])
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
    want = _on_device("freq_mask(8)", batch, keys)
    np.testing.assert_array_equal(got["fbank"], want["fbank"])


@pytest.mark.parametrize(
  ("patch_size", "stride"), [((8, 10), (8, 10)), ((4, 3), (2, 5))]
)
def test_patchify_on_the_host_cuts_as_patchify_does(patch_size, stride):
  front_end = f"decode|fit(20, {RATE})|fbank({RATE}, 16)"
  reader = Reader(Memory())
  (batch,) = _train(front_end, reader)
  (cut,) = _train(f"{front_end}|patchify({patch_size}, {stride})", reader)
  want = patches.patchify(batch["fbank"], patch_size=patch_size, stride=stride)
  np.testing.assert_array_equal(cut["patches"], want)
  assert "fbank" not in cut


# --- evaluation -------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "count"), [(4, 1), (4, 4), (12, 2)])
def test_evaluation_covers_each_example_once_in_order(batch_size, count):
  reader = Reader(Memory(10))
  parts = [
    _eval(
      *("decode|multi_hot|keep('label')", reader, batch_size),
      process_index=i,
      process_count=count,
    )
    for i in range(count)
  ]
  number = pipeline.num_eval_batches(reader, batch_size)
  assert [len(part) for part in parts] == [number] * count
  whole = _joined([_joined([p[i] for p in parts]) for i in range(number)])
  assert len(whole["id"]) == number * batch_size
  np.testing.assert_array_equal(
    whole["valid"], np.arange(len(whole["id"])) < 10
  )
  np.testing.assert_array_equal(whole["id"][whole["valid"]], np.arange(10))
  for index, label in zip(whole["id"], whole["label"], strict=True):
    np.testing.assert_array_equal(
      np.flatnonzero(label), sorted(set(reader.source.labels(int(index))))
    )


@pytest.mark.parametrize("batch_size", [1, 64])
def test_evaluation_takes_any_batch_size(batch_size):
  batches = _eval("decode|keep()", Reader(Memory(10)), batch_size)
  whole = _joined(batches)
  assert {len(batch["id"]) for batch in batches} == {batch_size}
  assert len(batches) == -(-10 // batch_size)
  np.testing.assert_array_equal(whole["id"][whole["valid"]], np.arange(10))


# --- unreadable recordings --------------------------------------------------


def test_in_training_the_next_readable_recording_stands_in():
  reader = Reader(Memory(10, bad=[2, 3, 9]))
  replaced = {2: 4, 3: 4, 9: 0}
  clean = Reader(Memory(10))
  recipe = f"decode|fit(3, {RATE})|multi_hot"
  got = _joined(_train(recipe, reader, 0, 5))
  want = _joined(_train(recipe, clean, 0, 5))
  assert len(got["id"]) == 20 and got["valid"].all()
  originals = {
    int(i): row for i, row in zip(want["id"], range(20), strict=True)
  }
  for row in range(20):
    index = int(want["id"][row])
    index = replaced.get(index, index)
    assert got["id"][row] == index
    for name in ("audio", "label", "num_samples"):
      np.testing.assert_array_equal(
        got[name][row], want[name][originals[index]]
      )


def test_in_evaluation_an_unreadable_recording_is_not_valid():
  bad = [0, 4, 9]
  reader = Reader(Memory(10, bad=bad))
  clean = _joined(_eval(SHORT, Reader(Memory(10))))
  got = _joined(_eval(SHORT, reader))
  good = [i for i in range(10) if i not in bad]
  np.testing.assert_array_equal(np.flatnonzero(got["valid"]), good)
  for name in got:
    np.testing.assert_array_equal(got[name][good], clean[name][good])
  assert not got["audio"][bad].any()
  np.testing.assert_array_equal(got["id"][:10], np.arange(10))


@pytest.mark.parametrize("to", [4000, 16_000])
def test_silence_for_an_unreadable_recording_goes_through_every_op(to):
  recipe = (
    f"decode|resample({to})|fit(4, {to})|quantise|multi_hot|to_float|center"
    f"|fbank({to}, 8)|pad_frames({to})|standardize(-4, 4)"
  )
  got = _joined(_eval(recipe, Reader(Memory(4, bad=[1]))))
  assert got["valid"].tolist() == [True, False, True, True]
  assert np.isfinite(got["fbank"]).all()


@pytest.mark.parametrize("run", [_train, _eval])
def test_unreadable_recordings_are_counted_and_listed(run):
  reader = Reader(Memory(10, bad=[7, 2]))
  assert reader.report() == []
  given = {"first": 0, "last": 5} if run is _train else {}
  for _ in range(2):  # a second pass does not count them again
    run("decode|keep()", reader, **given)
    assert reader.report() == [
      ("clip 2", "reason 2"),
      ("clip 7", "reason 7"),
    ]


def test_an_unreadable_recording_is_opened_once():
  source = Memory(3, bad=[1])
  seen = []
  read = source.read
  source.read = lambda index: seen.append(index) or read(index)
  reader = Reader(source)
  _train("decode|keep()", reader, 0, 3, batch_size=3)
  assert seen.count(1) == 1
  assert seen.count(2) == 6  # itself, and in the place of 1


def test_nothing_readable_is_one_line():
  reader = Reader(Memory(10, bad=range(10)))
  with pytest.raises(UserError) as error:
    _train("decode|keep()", reader)
  text = str(error.value)
  assert text == (
    "none of the 10 recordings can be read; the first, clip 0: reason 0"
  )
  with pytest.raises(UserError, match="none of the 10 recordings"):
    Reader(Memory(10, bad=range(10))).read_or_next(0)
  assert Reader(Memory(10, bad=range(9))).read_or_next(0)[2] == 9


# --- the ops ----------------------------------------------------------------


def test_fit_cuts_or_pads_to_whole_frames():
  sizes = [1, 150, 199, 200, 201, 279, 280, 281, 999]
  audio = [np.arange(1, size + 1) / 1000 for size in sizes]
  reader = Reader(Memory(len(sizes), audio=audio))
  (batch,) = _eval(f"decode|fit(2, {RATE})", reader, len(sizes))
  length = FRAME + 80  # two frames, 10 ms apart
  assert batch["audio"].shape == (len(sizes), length)
  for row, size in enumerate(sizes):
    kept = min(size, length)
    want = np.zeros(length, np.float32)
    want[:kept] = audio[row][:kept]
    np.testing.assert_array_equal(batch["audio"][row], want)
    assert batch["num_samples"][row] == kept


def test_num_samples_follows_resampling():
  reader = Reader(Memory(4, rate=16_000, audio=np.zeros(320)))
  (batch,) = _train(f"decode|resample({RATE})|fit(4, {RATE})", reader)
  np.testing.assert_array_equal(batch["num_samples"], [160] * 4)


def test_quantise_is_exact_for_16_bit_samples():
  every = np.arange(-(2**15), 2**15)
  reader = Reader(Memory(2, audio=every / 2**15))
  frames = 1 + (len(every) - FRAME) // 80
  recipe = f"decode|fit({frames}, {RATE})|quantise"
  (batch,) = _train(recipe, reader, batch_size=2)
  assert batch["audio"].dtype == np.int16
  assert batch["audio"].shape[1] > 2**16 - 80
  for row in batch["audio"]:
    np.testing.assert_array_equal(row, every[: len(row)])


def test_quantise_and_to_float_undo_each_other():
  audio = np.arange(-100, 100) / 2**15
  reader = Reader(Memory(1, audio=audio))
  recipe = f"decode|fit(1, {RATE})"
  (before,) = _train(recipe, reader, batch_size=1)
  (after,) = _train(f"{recipe}|quantise|to_float", reader, batch_size=1)
  np.testing.assert_array_equal(after["audio"], before["audio"])


@pytest.mark.parametrize("channel", ["mean", "first", None])
def test_decode_mixes_or_picks_channels(channel):
  stereo = np.array([[0.5, 0.25], [-0.5, 1.0], [0.0, -0.75]])
  reader = Reader(Memory(2, audio=stereo))
  decode = "decode" if channel is None else f"decode({channel!r})"
  (batch,) = _train(f"{decode}|fit(1, {RATE})", reader, batch_size=2)
  want = stereo[:, 0] if channel == "first" else stereo.mean(1)
  np.testing.assert_array_equal(batch["audio"][:, :3], np.tile(want, (2, 1)))
  np.testing.assert_array_equal(batch["num_samples"], [3, 3])


@pytest.mark.parametrize("argument", ["", "3"])
def test_multi_hot_is_one_at_every_label(argument):
  reader = Reader(Memory(10))
  whole = _joined(_eval(f"decode|multi_hot({argument})|keep('label')", reader))
  want = np.zeros((12, 3), np.float32)
  for row in range(12):
    want[row, list(reader.source.labels(min(row, 9)))] = 1
  np.testing.assert_array_equal(whole["label"], want)
  assert whole["label"].dtype == np.float32
  assert set(whole["label"].sum(1)) == {1, 2}


def test_keep_drops_all_but_what_is_named():
  reader = Reader(Memory(4))
  recipe = f"decode|fit(2, {RATE})|multi_hot"
  everything = {"audio", "num_samples", "label", "id", "valid"}
  assert set(_train(recipe, reader)[0]) == everything
  for names in [("label",), ("audio", "num_samples")]:
    listed = ", ".join(map(repr, names))
    (batch,) = _train(f"{recipe}|keep({listed})", reader)
    assert set(batch) == {*names, "id", "valid"}


def test_row_shapes_are_those_of_the_batches():
  reader = Reader(Memory(8))
  for recipe in (SHORT, f"decode|fit(6, {RATE})|fbank({RATE}, 8)"):
    shapes = pipeline.row_shapes(reader, _ops(recipe, reader))
    for batches in (_train(recipe, reader), _eval(recipe, reader)):
      got = {k: (v.shape[1:], v.dtype) for k, v in batches[0].items()}
      assert got == shapes


FIT = f"decode|fit(10, {RATE})"

# Recipes that cannot work, and what the line must say.
WRONG = {
  "fit first": (f"fit(10, {RATE})|decode", ["fit", "no op before"]),
  "resample first": ("resample(8000)|decode", ["resample", "'audio'"]),
  "quantise first": ("quantise|decode", ["quantise", "'audio'"]),
  "label before decode": ("multi_hot|decode", ["multi_hot", "'id'"]),
  "fit after fbank": (
    f"{FIT}|fbank({RATE}, 8)|fit(10, {RATE})",
    ["fit", "'audio'", "fbank"],
  ),
  "fbank of integers": (f"{FIT}|quantise|fbank({RATE}, 8)", ["to_float"]),
  "no fit": ("decode|quantise|multi_hot", ["'audio'", "fit(...)"]),
  "no fit before fbank": (f"decode|fbank({RATE}, 8)", ["fbank", "fit"]),
  "no fit before a mask": (
    f"decode|fbank({RATE}, 8)|time_mask(2)",
    ["mask of up to 2", "fit(...)"],
  ),
  "resample integers": (
    "decode|quantise|resample(4000)|fit(10, 4000)",
    ["resample", "quantise"],
  ),
  "quantise twice": (f"{FIT}|quantise|quantise", ["quantise"]),
  "keep the unknown": (
    f"{FIT}|keep('lable')",
    ["keep needs 'lable'", "audio, id"],
  ),
  "no such entry": (f"{FIT}|quantise('sound')", ["quantise", "'sound'"]),
  "no such op": ("decode|reed", ["unknown op 'reed'", "config.input.on_host"]),
  "other classes": ("decode|multi_hot(4)", ["multi_hot(4)", "3 classes"]),
  "not a recipe": ("decode|fit(10", ["config.input.on_host", "not a recipe"]),
  "mask too wide": (
    f"{FIT}|fbank({RATE}, 8)|freq_mask(9)",
    ["mask of up to 9", "8 cells"],
  ),
  "patch too large": (
    f"{FIT}|fbank({RATE}, 8)|patchify((16, 16), (10, 10))",
    ["16 mel bins x 16 frames", "8 mel bins x 10 frames"],
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_recipe_that_cannot_work_is_refused(case):
  recipe, parts = WRONG[case]
  reader = Reader(Memory(4))
  with pytest.raises(UserError) as error:
    pipeline.row_shapes(reader, _ops(recipe, reader))
  text = str(error.value)
  assert "\n" not in text and "0x" not in text
  for part in parts:
    assert part in text


@pytest.mark.parametrize("run", [_train, _eval])
def test_fit_refuses_a_recording_of_another_rate(run):
  reader = Reader(Memory(4, rate=44_100))
  with pytest.raises(UserError) as error:
    run(f"decode|fit(10, {RATE})", reader)
  text = str(error.value)
  assert "\n" not in text
  assert "44100 Hz" in text and f"resample({RATE})" in text
  run(f"decode|resample({RATE})|fit(10, {RATE})", reader)


def test_an_error_of_a_reader_that_is_a_bug_is_not_hidden():
  """Only mistakes of the user's become one line."""
  source = Memory(4)

  def read(index):
    raise RuntimeError("a bug")

  source.read = read
  with pytest.raises(RuntimeError, match="a bug"):
    _train("decode|keep()", Reader(source))


def test_an_error_in_the_middle_of_a_pass_comes_as_it_is():
  source = Memory(12)
  read = source.read

  def fail(index):
    if index == 9:
      raise RuntimeError("a bug")
    return read(index)

  source.read = fail
  with pytest.raises(RuntimeError, match="a bug"):
    _eval("decode|keep()", Reader(source))


def test_a_length_that_only_some_recordings_have():
  """The first one is too short to show it."""
  reader = Reader(Memory(3, audio=[np.zeros(90), np.zeros(90), np.zeros(80)]))
  with pytest.raises(UserError, match="'audio' has no fixed length"):
    _eval("decode", reader, 1)
