"""A model in use: the same numbers as in training, at any length and rate."""

from __future__ import annotations

import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
import soundfile

import astjax
from astjax.data.audio import read
from astjax.errors import UserError
from astjax.models import ast
from astjax.models.heads import Head
from astjax.ops import fbank
from astjax.ops.waveform import resample, to_mono
from astjax.serving import recording
from astjax.serving.bundle import Bundle
from astjax.weights import adapt, load
from astjax.weights import info as model_info
from astjax.weights.front_end import FrontEnd
from astjax.weights.info import ModelInfo
from tests.serving import sounds
from tests.serving.sounds import noise
from tests.tiny import RATE, SAMPLES
from tests.weights.test_info import INFO, random_params

pytestmark = pytest.mark.usefixtures("one_device")

# A trained length of 36 frames and 3 columns: 6,000 samples at 16 kHz.
LENGTH = 6_000
HOP, COLUMN, PACE = 160, 10, 30  # samples; frames; frames


@pytest.fixture(scope="module")
def model():
  return Bundle(INFO, random_params(), batch_size=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  return sounds.trained(sounds.write(folder / "sounds"), folder / "workdir")


# The same as in training.


@pytest.mark.slow
def test_a_run_s_own_evaluation(run):
  names, out, _ = sounds.evaluation(run)
  assert set(names) == set(sounds.RECORDINGS)
  assert np.ptp(out["logits"], axis=0).min() > 0.01  # clips do differ
  bundle = astjax.load(run)
  assert bundle.class_names == ("a", "b")
  assert bundle.seconds == SAMPLES / RATE
  root = run.parent / "sounds"
  paths = [root / name for name in names]
  got = bundle.logits(paths, whole=False)
  np.testing.assert_allclose(got, out["logits"], atol=1e-5)
  # One by one, as arrays; and whole, where the trained length holds it.
  for name, path, want in zip(names, paths, out["logits"], strict=True):
    audio, rate = read(path)
    got = bundle.logits(audio, rate, whole=False)
    np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)
    if "long" not in name and "fast" not in name:
      got = bundle.logits(path)
      np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)
  saved = load.load(run)
  assert bundle.digest == saved.digest


def test_integers_and_floats_of_one_recording(model):
  """16-bit samples come through exactly, whatever type holds them."""
  integers = np.round(noise(5_000)[:, 0] * 2**15).astype(np.int16)
  want = model.logits(integers, 16_000)
  floats = integers.astype(np.float64) / 2**15
  for audio in (
    floats,
    floats.astype(np.float32),
    integers.astype(np.int32) * 2**16,
    np.stack([floats, floats], axis=1),
    floats[:, None],
  ):
    np.testing.assert_array_equal(model.logits(audio, 16_000), want)


def test_scores_are_as_the_classifier_says():
  """Sigmoid for tags, softmax for one class."""
  audio = noise(5_000)
  for scores in ("sigmoid", "softmax"):
    head = Head(num_classes=3, scores=scores)
    info = ModelInfo(model=INFO.model, head=head, recipe=INFO.recipe)
    params = jax.tree.map(lambda x: 0.1 * x, random_params())
    found = Bundle(info, params).predict(audio, 16_000)
    e = np.exp(found.logits)
    want = e / (1 + e) if scores == "sigmoid" else e / e.sum()
    np.testing.assert_allclose(found.scores, want, rtol=1e-5)
    assert found.class_names == ("0", "1", "2")
    (first, high), (_, low) = found.top(2)
    assert high == found.scores.max() == found.scores[int(first)] > low


@pytest.mark.slow
def test_batches_do_not_matter(model):
  rng = np.random.default_rng(1)
  clips = [noise(n, seed=n)[:, 0] for n in rng.integers(1, 30_000, 13)]
  many = model.predict(clips, 16_000)
  for clip, found in zip(clips, many, strict=True):
    alone = model.predict(clip, 16_000)
    np.testing.assert_allclose(alone.logits, found.logits, atol=1e-5)
    np.testing.assert_array_equal(alone.window_times, found.window_times)
    assert found.seconds == len(clip) / 16_000
  assert model.predict([]) == [] and model.logits([]).shape == (0, 3)


def test_files_and_arrays_in_one_list(model, tmp_path):
  audio = noise(4_000, 2)
  soundfile.write(tmp_path / "x.wav", audio, 22_050, subtype="FLOAT")
  found = model.logits(
    [tmp_path / "x.wav", audio, str(tmp_path / "x.wav")], sample_rate=22_050
  )
  np.testing.assert_allclose(found[0], found[1], atol=1e-5)
  np.testing.assert_allclose(found[0], found[2], atol=1e-5)
  rates = model.logits([audio, audio], [22_050, 44_100])
  np.testing.assert_allclose(rates[0], found[0], atol=1e-5)
  assert np.abs(rates[1] - found[0]).max() > 1e-3


# Any duration.


@pytest.mark.parametrize("count", [LENGTH, LENGTH + HOP - 1])
def test_up_to_the_trained_length_nothing_is_adapted(model, count):
  """Less than one further frame is cut, as in training."""
  audio = noise(count)[:, 0]
  want = model.logits(audio[:LENGTH], 16_000)
  np.testing.assert_array_equal(model.logits(audio, 16_000), want)
  np.testing.assert_array_equal(model.logits(audio, 16_000, whole=False), want)


@pytest.mark.parametrize(
  ("frames", "length"), [(37, 41), (41, 41), (42, 45), (50, 50), (54, 54)]
)
def test_longer_clips_have_adapted_positions(model, frames, length):
  """The same as of a model that is made for the next of the four lengths."""
  params = random_params()
  positions = params["backbone"]["pos_embed"]
  columns = (length - 16) // 10 + 1
  positions["grid"] = adapt.resize_grid(positions["grid"], (3, columns))
  recipe = FrontEnd(16_000, length, 36, (-4.0, 4.5)).recipe()
  info = ModelInfo(model=INFO.model, head=INFO.head, recipe=recipe)
  other = Bundle(info, params)
  audio = noise(LENGTH + (frames - 36) * HOP)[:, 0]
  found = model.predict(audio, 16_000)
  np.testing.assert_allclose(
    found.logits, other.logits(audio, 16_000), atol=1e-5
  )
  assert found.window_times.tolist() == [[0, len(audio) / 16_000]]


@pytest.mark.slow
def test_new_lengths_compile_nothing():
  model = Bundle(INFO, random_params(), batch_size=2)
  for count in range(1, 30_000, 373):
    model.logits(noise(count), 16_000)
  # One for each of five lengths, and one for two windows at once.
  assert model._apply._cache_size() <= 6
  model.embed([noise(count) for count in range(1, 30_000, 373)], 16_000)
  assert model._apply._cache_size() <= 2 * 5


@pytest.mark.parametrize("frames", [55, 66, 67, 200])
def test_windows_by_hand(model, frames):
  audio = noise(LENGTH + (frames - 36) * HOP + 7)[:, 0]
  found = model.predict(audio, 16_000)
  # Every 30 frames; the last one as early as it can be on the grid of columns.
  starts = list(range(0, frames - 36, PACE))
  starts.append(-(-(frames - 36) // COLUMN) * COLUMN)
  parts = [audio[s * HOP :][:LENGTH] for s in starts]
  want = np.stack([model.predict(p, 16_000).scores for p in parts])
  np.testing.assert_allclose(found.window_scores, want, atol=1e-5)
  np.testing.assert_allclose(found.scores, want.mean(0), atol=1e-5)
  ends = [
    s * 0.01 + len(p) / 16_000 for s, p in zip(starts, parts, strict=True)
  ]
  times = np.transpose([np.array(starts) * 0.01, ends])
  np.testing.assert_allclose(found.window_times, times, atol=1e-9)
  # Nothing is left out but less than a frame.
  assert len(audio) / 16_000 - found.window_times[-1, 1] < 0.01
  assert np.diff(found.window_times[:, 0]).max() <= 0.3 + 1e-9
  top = found.top(1, window=1)[0]
  assert top[1] == found.window_scores[1].max()


def test_a_file_in_blocks_is_the_whole_file(model, tmp_path, monkeypatch):
  audio = noise(90_000, 2)
  soundfile.write(tmp_path / "x.wav", audio, 44_100, subtype="FLOAT")
  want = model.predict(tmp_path / "x.wav")
  assert len(want.window_times) > 4
  array = model.predict(audio, 44_100)
  np.testing.assert_array_equal(want.window_scores, array.window_scores)
  monkeypatch.setattr("astjax.data.audio._BLOCK", 1009)
  monkeypatch.setattr(recording, "_BLOCK", 997)
  found = model.predict(tmp_path / "x.wav")
  np.testing.assert_array_equal(found.window_scores, want.window_scores)
  assert found.seconds == pytest.approx(90_000 / 44_100)
  # And resampled at once.
  mono = to_mono(audio, "mean")
  whole = resample(mono, 44_100, 16_000)
  found = model.predict(whole, 16_000)
  np.testing.assert_array_equal(found.window_scores, want.window_scores)


@pytest.mark.slow
def test_long_files_are_not_held(model, tmp_path):
  """Ten minutes in stereo at 48 kHz are 230 MB; the reading holds a tenth."""
  import tracemalloc

  path = tmp_path / "x.flac"
  with soundfile.SoundFile(path, "w", 48_000, 2) as file:
    for seed in range(60):
      file.write(noise(480_000, 2, seed % 4))
  one = recording.Recording(path)
  tracemalloc.start()
  windows = sum(1 for _ in one.rows(model._cutting))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert windows == 2000 and one.seconds == pytest.approx(600)
  assert peak < 40e6


def test_a_recipe_without_resample(tmp_path):
  recipe = INFO.recipe.replace("resample(16000)|", "")
  assert recipe != INFO.recipe
  info = ModelInfo(model=INFO.model, head=INFO.head, recipe=recipe)
  audio = noise(5_000, 2)
  params = random_params()
  np.testing.assert_array_equal(
    Bundle(info, params).logits(audio, 22_050),
    Bundle(INFO, params).logits(audio, 22_050),
  )


def test_a_config_s_recipes_serve_as_they_are():
  recipe = INFO.recipe.replace("quantise", "quantise|multi_hot|keep('audio')")
  patches = f"{recipe}|patchify((16, 16), (10, 10))"
  audio, params = noise(5_000), random_params()
  want = Bundle(INFO, params).logits(audio, 16_000)
  for text in (recipe, patches):
    info = ModelInfo(model=INFO.model, head=INFO.head, recipe=text)
    got = Bundle(info, params).logits(audio, 16_000)
    np.testing.assert_allclose(got, want, atol=1e-5)


# Embeddings.


def test_embeddings_by_hand(model):
  """Another front-end (NumPy) and the backbone itself."""
  audio = np.round(noise(5_000)[:, 0] * 2**15) / 2**15
  spec = fbank.FbankSpec(num_mel_bins=36)
  mels = np.zeros((36, 36))
  real = fbank.fbank(audio, spec)
  mels[: len(real)] = real
  mels = ((mels + 4.0) / 9.0).astype(np.float32)[None]
  backbone = ast.make_backbone(**INFO.model)
  tokens = backbone.apply({"params": random_params()["backbone"]}, mels)
  found = model.embed(audio, 16_000)
  np.testing.assert_allclose(found.clip, tokens["prefix"][0].mean(0), atol=1e-4)
  frames = np.asarray(tokens["tokens"][0]).reshape(3, 3, 32).mean(0)
  # Middles: 16 frames of 25 ms every 10 ms are 175 ms; 312.5 ms of sound.
  np.testing.assert_allclose(found.times, [0.0875, 0.1875, 0.2875])
  np.testing.assert_allclose(found.frames, frames, atol=1e-4)
  assert found.seconds == 5_000 / 16_000
  short = model.embed(audio[:3_100], 16_000)  # 193.75 ms
  np.testing.assert_allclose(short.times, [0.0875, 0.1875])
  assert len(model.embed(audio[:10], 16_000).times) == 1


@pytest.mark.parametrize("count", [8_000, 8_880, 9_100, 20_000, 47_123])
def test_embeddings_of_long_recordings(model, count):
  audio = noise(count)[:, 0]
  found = model.embed(audio, 16_000)
  np.testing.assert_allclose(np.diff(found.times), 0.1)
  assert found.times[0] == 0.0875
  assert 0 <= count / 16_000 - found.times[-1] < 0.1 + 0.0875
  assert found.frames.shape == (len(found.times), 32)
  times = model.predict(audio, 16_000).window_times
  starts = np.round(times[:, 0] * 16_000).astype(int)
  parts = [audio[s:][:LENGTH] for s in starts]
  if len(parts) > 1:
    each = model.embed(parts, 16_000)
    want = np.mean([e.clip for e in each], axis=0)
    np.testing.assert_allclose(found.clip, want, atol=1e-5)
    if len(parts) > 2:
      np.testing.assert_allclose(found.frames[3:6], each[1].frames, atol=1e-5)
    np.testing.assert_allclose(found.frames[-1], each[-1].frames[-1], atol=1e-5)


def test_a_backbone_alone_embeds():
  params = {"backbone": random_params()["backbone"]}
  info = ModelInfo(model=INFO.model, recipe=INFO.recipe, origin="a backbone")
  alone = Bundle(info, params)
  audio = noise(5_000)
  want = Bundle(INFO, random_params()).embed(audio, 16_000)
  np.testing.assert_allclose(alone.embed(audio, 16_000).clip, want.clip)
  with pytest.raises(UserError, match=r"a backbone.* has no classifier"):
    alone.predict(audio, 16_000)


# What is said if something is wrong.

X = np.ones(1_000, np.float32) / 2


def changed(value, at=500):
  audio = X.copy()
  audio[at] = value
  return audio


@pytest.mark.parametrize(
  ("clip", "rate", "told"),
  [
    (X, None, "the array: an array needs its sampling rate"),
    (
      X,
      0,
      "a rate of 0 Hz; expected 1000 to 768000",
    ),
    (X, -16_000, "rate of -16000"),
    (X, 44.1, "a rate of 44.1 Hz; expected 1000 to 768000"),
    (np.zeros(5_000, np.float32), 16_000, "it is silent"),
    (X, 768_001, "rate of 768001"),
    (X, float("nan"), "rate of nan"),
    (X, float("inf"), "rate of inf"),
    (X, "16k", "rate of '16k'"),
    (X, True, "rate of True"),
    (X, 1j, "rate of 1j"),
    ([X, X], [16_000], "1 sample rates for 2 clips"),
    (changed(np.nan), 16_000, "not finite"),
    (changed(-np.inf), 16_000, "not finite"),
    (changed(1).astype(np.float64) * 1e300, 16_000, "not finite"),
    (X[:0], 16_000, r"shape \(0,\); expected"),
    (np.zeros((0, 2)), 16_000, r"shape \(0, 2\); expected"),
    (np.float32(0.5), 16_000, r"shape \(\)"),
    (X.reshape(10, 10, 10), 16_000, r"shape \(10, 10, 10\); expected"),
    (X.reshape(2, 500), 16_000, "of at most 64 channels"),
    (X.astype(np.int64), 16_000, "type int64; expected floats"),
    (X.astype(np.uint8), 16_000, "type uint8"),
    (X.astype(bool), 16_000, "type bool"),
    (X.astype(complex), 16_000, "type complex128"),
    (X.astype(str), 16_000, "type <U"),
    (X.astype(object), 16_000, "type object"),
    ([0.5, 0.25], 16_000, r"clip 0: .* shape \(\); expected a path"),
    ([X, None], 16_000, "clip 1: samples of type object"),
    ({}, 16_000, "type object"),
    ("nowhere.wav", None, "nowhere.wav: No such file"),
    ("nowhere.wav", 16_000, "a file knows its own"),
    (b"nowhere.wav", 16_000, r"type \|S"),
  ],
)
def test_what_is_no_recording(model, clip, rate, told):
  with pytest.raises(UserError, match=told) as e:
    model.predict(clip, rate)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["empty", "text", "nan", "no samples"])
def test_broken_files(model, kind, tmp_path):
  path = tmp_path / "x.wav"
  write = lambda x: soundfile.write(path, x, 16_000, subtype="FLOAT")
  match kind:
    case "empty":
      path.touch()
    case "text":
      path.write_text("not a sound" * 50)
    case "nan":
      write(changed(np.nan))
    case _:
      write(X[:0])
  with pytest.raises(UserError, match=r"x\.wav: "):
    model.predict(path)
  # In a stream the others are heard.
  found = list(model.stream([tmp_path / "y.wav", X, path, X], 16_000))
  assert [isinstance(f, UserError) for f in found] == [True, False, True, False]


def test_a_file_that_breaks_after_some_windows(model, tmp_path, monkeypatch):
  audio = noise(60_000)[:, 0]
  audio[50_000] = np.nan
  soundfile.write(tmp_path / "x.wav", audio, 16_000, subtype="FLOAT")
  monkeypatch.setattr("astjax.data.audio._BLOCK", 10_000)
  good = noise(5_000)
  found = list(model.stream([good, tmp_path / "x.wav", good], 16_000))
  assert isinstance(found[1], UserError)
  np.testing.assert_allclose(found[0].logits, found[2].logits, atol=1e-5)


@pytest.mark.parametrize("rate", [1_000, 22_050.5, np.float32(8000), 768_000])
def test_odd_rates_that_can_be(model, rate):
  found = model.predict(noise(300), rate)
  assert np.isfinite(found.scores).all()
  assert found.seconds == pytest.approx(300 / rate)


def test_silence_among_others():
  """It is refused; what is loud beyond measure is heard and warned of once."""
  model = Bundle(INFO, random_params())
  silence = np.zeros(5_000, np.float32)
  found = list(model.stream([X, silence, X], 16_000))
  assert "it is silent" in str(found[1]) and isinstance(found[1], UserError)
  np.testing.assert_array_equal(found[0].scores, found[2].scores)
  heard = model.predict(silence, 16_000, whole=False)  # as evaluations do
  assert np.isfinite(heard.scores).all()
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    model.predict(X * 2.1, 16_000)
  with pytest.warns(UserWarning, match="samples up to 16384; full scale is 1"):
    model.predict(X * 2**15, 16_000)


def test_models_that_cannot_be_used(tmp_path):
  params = random_params()
  bare = ModelInfo(model=INFO.model, head=INFO.head)
  model_info.save_model(tmp_path / "bare", bare, params)
  with pytest.raises(UserError, match=r"front-end .* give its recipe, such as"):
    astjax.load(tmp_path / "bare")
  loaded = astjax.load(
    tmp_path / "bare", recipe=INFO.recipe, class_names=INFO.class_names
  )
  want = Bundle(INFO, params).predict(noise(5_000), 16_000)
  found = loaded.predict(noise(5_000), 16_000)
  assert found.top() == want.top()
  with pytest.raises(UserError, match="2 class names for 3 classes"):
    astjax.load(tmp_path / "bare", recipe=INFO.recipe, class_names=("a", "b"))
  model_info.save_model(tmp_path / "m", INFO, params)
  with pytest.raises(
    UserError, match="of its own, and was given 'cow' for 'cat'"
  ):
    astjax.load(tmp_path / "m", class_names=("dog", "cow", "Glocke, groß"))
  half = astjax.load(tmp_path / "m", dtype="bfloat16")
  error = np.abs(half.logits(noise(5_000), 16_000) - want.logits).max()
  assert 0 < error < 0.1 * np.abs(want.logits).max()
  with pytest.raises(UserError, match="batch_size=0"):
    astjax.load(tmp_path / "m", batch_size=0)
  with pytest.raises(UserError, match="dtype='int8'"):
    astjax.load(tmp_path / "m", dtype="int8")


@pytest.mark.parametrize(
  ("old", "new", "told"),
  [
    ("num_mel_bins=36", "num_mel_bins=46", "does not fit the model.* 4 x 3"),
    ("num_frames=36", "num_frames=99", "does not fit the model.* 3 x 9"),
    ("fit(num_frames=36, sample_rate=16000)|", "", "needs fit"),
    ("num_frames=36", "num_frames=0", "num_frames=0 must be at least 1"),
    ("num_frames=36", "num_frames='x'", "num_frames='x' is str"),
    ("resample(16000)", "resample(8000)", "resamples to 8000 Hz and fits at"),
    (
      "resample(16000)",
      "resample(16000)|decode",
      "begins with decode",
    ),
    ("quantise", "quantise|freq_mask(3)", r"draws at random \(freq_mask\)"),
    ("quantise|", "", "to_float reads int16"),
    ("center", "centre", "unknown op 'centre'"),
    ("|fbank", "|fbank|fbank", "fbank"),
    ("decode", "decode('last')", "'last' is str, expected one of"),
    ("decode", "decode(", "is not a recipe"),
  ],
)
def test_recipes_that_do_not_work(old, new, told):
  recipe = INFO.recipe.replace(old, new)
  assert recipe != INFO.recipe
  info = ModelInfo(model=INFO.model, head=INFO.head, recipe=recipe)
  with pytest.raises(UserError, match=told) as e:
    Bundle(info, random_params())
  assert "\n" not in str(e.value)


def test_prediction_needs_no_tensorflow(tmp_path):
  model_info.save_model(tmp_path / "m", INFO, random_params())
  soundfile.write(tmp_path / "x.flac", noise(50_000, 2), 44_100)
  code = """
import sys, astjax
assert "jax" not in sys.modules and "numpy" not in sys.modules
model = astjax.load(sys.argv[1])
print(model.predict(sys.argv[2]), model.embed(sys.argv[2]))
heavy = ("tensorflow", "torch", "librosa", "ml_collections", "matplotlib")
assert not [m for m in heavy if m in sys.modules]
"""
  out = subprocess.run(
    [sys.executable, "-c", code, tmp_path / "m", tmp_path / "x.flac"],
    capture_output=True,
    text=True,
    check=True,
  )
  assert out.stdout.startswith("<Prediction of 1.13 s: ")
