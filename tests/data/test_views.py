"""Views of a recording: where they lie, and ASiT's recipes from end to end."""

import pathlib
import re

import jax
import numpy as np
import pytest
from scipy import stats

from astjax.data.reader import Reader
from astjax.engine.step import train_key
from astjax.errors import UserError
from astjax.ops import frontend, xp
from astjax.ops.recipe import draws, parse, row_keys
from astjax.serving import recording
from astjax.weights.front_end import inference_recipe
from tests.data.test_pipeline import (
  RATE,
  Memory,
  _eval,
  _on_device,
  _ops,
  _train,
)

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "data.md"
GLOBAL, LOCAL = 200, 80  # samples: 25 and 10 ms
VIEWS = f"views(2, 0.025, local_count=3, local_seconds=0.01, sample_rate={RATE}"


def ramps(*lengths):
  return Memory(len(lengths), audio=[np.arange(n) / 2**15 for n in lengths])


def rows(recipe, source, steps=8, **given):
  batches = _train(f"decode|{recipe}", Reader(source), last=steps, **given)
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def starts_of(crops):
  """Of crops [n, V, S] of a ramp, which have to be whole pieces of it."""
  starts = np.round(crops[..., 0] * 2**15).astype(int)
  pieces = (starts[..., None] + np.arange(crops.shape[-1])) / 2**15
  np.testing.assert_array_equal(crops, pieces.astype(np.float32))
  return starts


def test_crops_from_anywhere():
  out = rows(f"{VIEWS})", ramps(*[600] * 4), steps=150)
  assert out["audio"].shape == (600, 2, GLOBAL)
  assert out["audio_local"].shape == (600, 3, LOCAL)
  assert (out["num_samples"] == GLOBAL).all()
  wide, narrow = starts_of(out["audio"]), starts_of(out["audio_local"])
  for starts, last in ((wide, 400), (narrow, 520)):
    assert starts.min() >= 0 and starts.max() <= last
    for column in starts.T:
      assert stats.kstest(column, stats.uniform(0, last).cdf).pvalue > 1e-3
  # Each has a place of its own, and local ones need not lie in global ones.
  every = np.concatenate([wide, narrow], axis=1)
  together = np.corrcoef(every.T) - np.eye(5)
  assert np.abs(together).max() < 0.15


def test_every_place_is_possible():
  source = ramps(*[GLOBAL + 2] * 4)
  out = rows(f"views(2, 0.025, sample_rate={RATE})", source, steps=50)
  assert set(starts_of(out["audio"]).ravel()) == {0, 1, 2}
  assert "audio_local" not in out


def test_the_formula_of_a_place():
  """Any platform has to draw these."""
  recipe = f"{VIEWS})"
  (named,) = _ops(f"decode|{recipe}", Reader(Memory()))[1:]
  step, row = 3, 1
  out = rows(recipe, ramps(*[600] * 4), first=step, steps=step + 1, seed=7)
  key = xp.random_key(7)
  for number in (step, row, named.fold):
    key = xp.NUMPY.fold_in(key, number)
  u = xp.NUMPY.uniform(key, 5).astype(np.float64)
  places = np.floor(u * [401, 401, 521, 521, 521])
  assert starts_of(out["audio"])[row].tolist() == places[:2].tolist()
  assert starts_of(out["audio_local"])[row].tolist() == places[2:].tolist()


@pytest.mark.parametrize("length", [1, 70, GLOBAL - 1, GLOBAL])
def test_shorter_ones_are_padded_at_the_end(length):
  out = rows(f"{VIEWS})", ramps(*[length] * 4), steps=20)
  padded = np.pad(np.arange(length), (0, GLOBAL - length)) / 2**15
  padded = padded.astype(np.float32)
  for crop in out["audio"].reshape(-1, GLOBAL):
    np.testing.assert_array_equal(crop, padded)
  pieces = {padded[i : i + LOCAL].tobytes() for i in range(GLOBAL - LOCAL + 1)}
  crops = out["audio_local"].reshape(-1, LOCAL)
  assert {crop.tobytes() for crop in crops} <= pieces
  assert len({crop.tobytes() for crop in crops}) > 1 or length == 1


def test_at_fixed_places_for_evaluations():
  recipe = f"decode|{VIEWS}, random=False)"
  reader = Reader(ramps(*[600] * 3))
  assert not draws(_ops(recipe, reader)[1])
  (batch,) = _eval(recipe, reader)
  whole = {k: v[batch["valid"]] for k, v in batch.items()}
  assert starts_of(whole["audio"]).tolist() == [[0, 400]] * 3
  assert starts_of(whole["audio_local"]).tolist() == [[0, 260, 520]] * 3
  one = f"views(1, 0.025, sample_rate={RATE}, random=False)"
  (batch,) = _eval(f"decode|{one}", reader)
  assert starts_of(batch["audio"]).tolist() == [[0]] * 4


def test_a_function_of_seed_and_position():
  recipe, source = f"roll_waveform|{VIEWS})", Memory(10)
  first, again = rows(recipe, source), rows(recipe, source)
  late = rows(recipe, source, steps=8, first=5)
  other = rows(recipe, source, seed=1)
  for name in ("audio", "audio_local"):
    np.testing.assert_array_equal(first[name], again[name])
    np.testing.assert_array_equal(first[name][20:], late[name])
    assert (first[name] != other[name]).any()


def test_unreadable_recordings_are_silence_in_evaluations():
  reader = Reader(Memory(2, bad=[1]))
  (batch,) = _eval(f"decode|{VIEWS}, random=False)|quantise", reader, 2)
  assert batch["valid"].tolist() == [True, False]
  assert not batch["audio"][1].any() and batch["audio"].dtype == np.int16


@pytest.mark.parametrize(
  ("recipe", "told"),
  [
    (
      "views(2, 1.0, local_count=1)",
      "local crops longer than global ones: 2.0 s",
    ),
    ("views(2, 0.025)", "met a recording of 8000 Hz: put resample"),
    (f"{VIEWS})|fit(1, {RATE})", "fit works on one waveform"),
    (f"{VIEWS})|random_crop(9)", "random_crop works on one waveform"),
    (f"{VIEWS})|roll_waveform", "roll_waveform works on one waveform"),
    (f"{VIEWS})|mix(0.5)", "mix works on one waveform"),
    (f"{VIEWS})|{VIEWS})", "views works on one waveform"),
  ],
)
def test_mistakes(recipe, told):
  with pytest.raises(UserError, match=told) as error:
    rows(recipe, Memory(), steps=1)
  assert "\n" not in str(error.value)


def rolled(rate, steps=100):
  length = 600
  recipe = f"roll_waveform({rate})|fit(6, {RATE})"
  audio = rows(recipe, ramps(*[length] * 4), steps=steps)["audio"]
  ramp = (np.arange(length) / 2**15).astype(np.float32)
  shifts = np.argmin(audio, axis=1)
  for row, shift in zip(audio, shifts, strict=True):
    np.testing.assert_array_equal(row, np.roll(ramp, shift))
  return shifts


def test_roll_waveform():
  always = rolled(1.0)
  assert stats.kstest(always, stats.uniform(0, 600).cdf).pvalue > 1e-3
  assert not rolled(0.0, steps=20).any()
  share = (rolled(0.5) > 0).mean()
  assert abs(share - 0.5) < 0.1
  assert draws(_ops("decode|roll_waveform", Reader(Memory()))[1])


# --- the recipes of the two releases ----------------------------------------


def documented():
  """{name: (on_host, on_device)}, as docs/data.md has them."""
  found = {}
  pattern = r"```python\n# (asit_r\d).*?\n(.*?)```"
  for name, code in re.findall(pattern, DOCS.read_text(), re.S):
    values = {}
    exec(code, values)
    found[name] = values["on_host"], values["on_device"]
  return found


RECIPES = documented()
SHAPES = {
  "asit_r1": (32_000, {"fbank": (2, 592, 128)}),
  "asit_r2": (
    16_000,
    {"fbank": (2, 592, 128), "fbank_local": (4, 192, 128)},
  ),
}


def test_both_are_documented():
  assert set(RECIPES) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_on_the_host_and_on_the_device(name):
  on_host, on_device = RECIPES[name]
  rate, shapes = SHAPES[name]
  rng = np.random.default_rng(0)
  clips = [0.1 * rng.standard_normal(n) + 0.02 for n in (7 * rate, rate, 1000)]
  reader = Reader(Memory(3, rate=rate, audio=clips))
  seed, batch_size = 3, 3
  (here,) = _train(f"{on_host}|{on_device}", reader, 0, 1, batch_size, seed)
  (waves,) = _train(on_host, reader, 0, 1, batch_size, seed)
  assert {v.dtype for k, v in waves.items() if "audio" in k} == {
    np.dtype(np.int16)
  }
  key = jax.random.fold_in(train_key(seed), 0)
  keys = row_keys(key, batch_size)
  there = _on_device(on_device, waves, keys)
  for entry, shape in shapes.items():
    assert here[entry].shape == (batch_size, *shape)
    np.testing.assert_allclose(here[entry], there[entry], rtol=0, atol=1e-5)
  assert set(here) == {*shapes, "id", "valid"} == set(there)
  # A second of sound, then silence: the floor, not the mean of the corpus.
  (short,) = here["fbank"][here["id"] == 1]
  if name == "asit_r2":
    np.testing.assert_allclose(short[:, 100:], -1.277594, atol=1e-6)
  # Views differ from each other where there is enough sound for it.
  (long,) = here["fbank"][here["id"] == 0]
  assert (long[0] != long[1]).mean() > 0.9


def test_another_rate_is_resampled():
  on_host, _ = RECIPES["asit_r2"]
  reader = Reader(Memory(1, rate=44_100, samples=44_100 * 7))
  (batch,) = _train(on_host, reader, 0, 1, 1)
  assert batch["audio"].shape == (1, 2, 96_000)
  assert batch["audio_local"].shape == (1, 4, 32_000)


# What a saved model hears instead.
END = "center(num_samples='')|fbank%s|standardize(-4.2677393, 4.5689974)"
INFERENCE = {
  "asit_r1": "decode('first')|resample(32000)"
  "|fit(num_frames=592, sample_rate=32000)|quantise|to_float|"
  + END
  % "(sample_rate=32000)",
  "asit_r2": "decode('first')|resample(16000)|fit(num_frames=592)|quantise"
  "|to_float|" + END % "",
}


def inference(on_host, on_device):
  of_device = parse(on_device, frontend.OPS, "on_device")
  ops = (*_ops(on_host, Reader(Memory())), *of_device)
  return inference_recipe(ops, (on_host, on_device))


@pytest.mark.parametrize("name", SHAPES)
def test_inference_hears_one_clip(name):
  on_host, on_device = RECIPES[name]
  assert inference(on_host, on_device) == INFERENCE[name]
  assert inference(f"{on_host}|{on_device}", "") == INFERENCE[name]
  fixed = on_host.replace("views(2, 6.0", "views(2, 6.0, random=False")
  assert "random=False" in fixed
  assert inference(fixed, on_device) == INFERENCE[name]
  parsed = recording.parse(INFERENCE[name])
  assert parsed.num_frames == 592


def test_the_length_of_inference():
  front_end = "to_float|center(num_samples='')|fbank(frame_shift_ms=20.0)"
  host = "decode|views(3, 1.0)|quantise|keep('audio')"
  fit = "fit(num_frames=49, frame_shift_ms=20.0)"
  assert inference(host, front_end) == f"decode|{fit}|quantise|{front_end}"
  cut = fit.replace("49", "32")
  want = f"decode|{cut}|quantise|{front_end}"
  assert inference(host, f"{front_end}|cut_frames(32)") == want
  host = host.replace("views(3, 1.0)", fit)
  assert inference(host, f"{front_end}|cut_frames(32)") == want
  # Without views and cuts a recipe stays as it is written.
  assert inference(host, front_end) == f"decode|{fit}|quantise|{front_end}"
