"""The front-end ops, each alone and in a recipe, in every backend."""

import functools

import jax
import numpy as np
import pytest

from astjax.errors import UserError
from astjax.ops import fbank, host_ops, patches, recipe, xp
from astjax.ops.recipe import apply, apply_rows, row_keys
from tests.ops.common import noise, parse, run_ops, signal_a

# JAX in the precision that the training loop uses on this machine.
NAMES = ("numpy", "jax")
EVERY = pytest.mark.parametrize("name", NAMES)
FLOOR = -15.942385
STATS = {
  # mean, std, a padded or masked cell, a cell at the floor
  "audioset": (-4.2677393, 4.5689974, 0.467032, -1.277594),
  "esc50": (-6.6268077, 5.358466, 0.618349, -0.869239),
  "speech_commands": (-6.845978, 5.5654526, 0.615042, -0.817221),
}


def random_keys(count, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 2**32, (count, 2), dtype=np.uint32)


def wrap(words):
  return jax.random.wrap_key_data(words, impl="threefry2x32")


# Random numbers


def test_fold_in_is_that_of_jax():
  keys = random_keys(2_000)
  data = np.random.default_rng(1).integers(0, 2**32, 2_000, dtype=np.uint32)
  data[:4] = (0, 1, 2**31, 2**32 - 1)
  folded = jax.jit(jax.vmap(jax.random.fold_in))(wrap(keys), data)
  np.testing.assert_array_equal(
    xp.NUMPY.fold_in(keys, data), jax.random.key_data(folded)
  )
  # One key with one number, as the ops call it.
  for key, n in zip(keys[:20], data[:20], strict=True):
    np.testing.assert_array_equal(
      xp.NUMPY.fold_in(key, int(n)),
      xp.NUMPY.fold_in(keys, data)[list(data).index(n)],
    )


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1])
def test_random_key_is_that_of_jax(seed):
  key = jax.random.key(seed, impl="threefry2x32")
  words = xp.random_key(seed)
  assert words.dtype == np.uint32
  np.testing.assert_array_equal(words, jax.random.key_data(key))


def test_uniform_numbers():
  keys = random_keys(2_000)
  drawn = np.stack([xp.NUMPY.uniform(k, 2) for k in keys], axis=1)
  assert drawn.dtype == np.float32
  assert drawn.min() >= 0.0
  assert drawn.max() < 1.0
  for column in drawn:
    expected = (np.arange(2_000) + 0.5) / 2_000
    assert np.abs(np.sort(column) - expected).max() < 0.04
  assert abs(np.corrcoef(drawn)[0, 1]) < 0.08
  of_jax = jax.vmap(lambda k: xp.JAX.uniform(k, 2))(wrap(keys))
  np.testing.assert_array_equal(drawn, np.transpose(of_jax))


# Waveform ops


@EVERY
def test_to_float(name):
  pcm = np.array([-32_768, -1, 0, 1, 32_767], np.int16)
  out = run_ops("to_float", {"audio": pcm, "other": pcm}, name=name)
  assert out["audio"].dtype == np.float32
  np.testing.assert_array_equal(out["audio"], pcm / 32_768)
  np.testing.assert_array_equal(out["other"], pcm)


@EVERY
@pytest.mark.parametrize("count", [1, 600, 1_000])
def test_center(name, count):
  rng = np.random.default_rng(0)
  pcm = rng.integers(-3_000, 20_000, 1_000).astype(np.int16)
  pcm[count:] = 0
  example = {"audio": pcm, "num_samples": np.int32(count)}
  out = run_ops("to_float|center", example, name=name)["audio"]
  assert out.dtype == np.float32
  # Zero to half a step of 16 bits, on the grid of 16 bits; padding untouched.
  assert abs(out[:count].mean(dtype=np.float64)) <= 2**-16 + 1e-7
  np.testing.assert_array_equal(out * 32_768, np.round(out * 32_768))
  np.testing.assert_array_equal(out[count:], 0.0)
  shift = out[:count] - pcm[:count] / 32_768
  assert np.ptp(shift) == 0.0


@EVERY
def test_center_of_nothing(name):
  example = {"audio": np.zeros(500, np.float32), "num_samples": np.int32(0)}
  out = run_ops("center", example, name=name)["audio"]
  np.testing.assert_array_equal(out, 0.0)


@EVERY
def test_center_by_all_samples(name):
  """Each view loses its own mean; how many samples are real does not matter."""
  rng = np.random.default_rng(0)
  pcm = rng.integers(-3_000, 20_000, (3, 1_000)).astype(np.int16)
  pcm[2, 400:] = 0
  example = {"audio_local": pcm, "num_samples": np.int32(7)}
  recipe = "to_float('audio_local')|center('audio_local', num_samples='')"
  out = run_ops(recipe, example, name=name)["audio_local"]
  x = pcm / 32_768
  mean = np.round(x.mean(-1, keepdims=True) * 32_768) / 32_768
  np.testing.assert_allclose(out, x - mean, rtol=0, atol=2**-15)
  assert np.abs(out.mean(-1)).max() <= 2**-15 and (out[2, 400:] < 0).all()


def test_center_ignores_what_stands_in_the_padding():
  x = noise(1_000)
  junk = np.concatenate([x[:700], np.full(300, 5.0, np.float32)])
  outs = [
    run_ops("center", {"audio": a, "num_samples": np.int32(700)})["audio"]
    for a in (x, junk)
  ]
  np.testing.assert_array_equal(*outs)


# Log-mels


@EVERY
def test_fbank_replaces_the_waveform(name):
  x = noise(2_000)
  out = run_ops(
    "fbank(num_mel_bins=32)", {"audio": x, "id": np.int32(3)}, name=name
  )
  assert set(out) == {"fbank", "id"}
  assert out["fbank"].dtype == np.float32
  expected = fbank.fbank(x, fbank.FbankSpec(num_mel_bins=32))
  np.testing.assert_allclose(out["fbank"], expected, atol=2e-6)


def test_fbank_takes_every_setting():
  x = noise(2_000)
  given = {
    "sample_rate": 8_000,
    "num_mel_bins": 20,
    "frame_length_ms": 30.0,
    "frame_shift_ms": 12.5,
    "low_freq": 50.0,
    "high_freq": 3_500.0,
    "preemphasis": 0.5,
  }
  arguments = ", ".join(f"{k}={v}" for k, v in given.items())
  out = run_ops(f"fbank({arguments}, out='mels')", {"audio": x})["mels"]
  np.testing.assert_array_equal(out, fbank.fbank(x, fbank.FbankSpec(**given)))


@EVERY
def test_fbank_of_integers(name):
  with pytest.raises(UserError, match="put to_float before it"):
    run_ops("fbank", {"audio": np.zeros(800, np.int16)}, name=name)


@EVERY
@pytest.mark.parametrize(
  ("count", "real"), [(0, 1), (399, 1), (559, 1), (560, 2), (1_999, 10)]
)
def test_pad_frames(name, count, real):
  x = noise((12, 5)) + 20.0
  example = {"fbank": x, "num_samples": np.int32(count)}
  out = run_ops("pad_frames", example, name=name)["fbank"]
  assert out.dtype == np.float32
  np.testing.assert_array_equal(out[:real], x[:real])
  np.testing.assert_array_equal(out[real:], 0.0)


def test_pad_frames_at_another_rate():
  spec = {"sample_rate": 8_000, "frame_length_ms": 30.0, "frame_shift_ms": 5.0}
  arguments = ", ".join(f"{k}={v}" for k, v in spec.items())
  example = {"fbank": np.ones((9, 2), np.float32), "num_samples": np.int32(320)}
  out = run_ops(f"pad_frames({arguments})", example)["fbank"]
  assert out[:, 0].tolist() == [1.0] * 3 + [0.0] * 6  # 240, 280, 320


@EVERY
@pytest.mark.parametrize("count", [100, 400, 1_000, 2_639, 2_640])
def test_padding_the_waveform_is_padding_the_log_mels(name, count):
  # The original cuts frames from the real samples, then appends rows of zeros.
  x = noise(count, scale=0.1)
  spec = fbank.FbankSpec(num_mel_bins=24)
  real = fbank.fbank(x, spec)
  expected = np.pad(real, ((0, 15 - len(real)), (0, 0)))
  example = {
    "audio": np.pad(x, (0, spec.num_samples(15) - count)),
    "num_samples": np.int32(count),
  }
  out = run_ops("fbank(num_mel_bins=24)|pad_frames", example, name=name)
  np.testing.assert_allclose(out["fbank"], expected, atol=2e-6)


@EVERY
@pytest.mark.parametrize("corpus", STATS)
def test_standardize(name, corpus):
  mean, std, padded, floor = STATS[corpus]
  x = np.array([[0.0, FLOOR, mean, mean + std, mean - 2 * std]], np.float32)
  out = run_ops(f"standardize({mean}, {std})", {"fbank": x}, name=name)
  assert out["fbank"].dtype == np.float32
  np.testing.assert_allclose(
    out["fbank"][0], [padded, floor, 0.0, 0.5, -1.0], atol=1e-6
  )


@EVERY
def test_patchify(name):
  x = noise((30, 20))
  out = run_ops(
    "patchify(patch_size=(8, 4), stride=(4, 3))",
    {"fbank": x, "id": np.int32(1)},
    name=name,
  )
  assert set(out) == {"patches", "id"}
  np.testing.assert_array_equal(
    out["patches"], patches.patchify(x, patch_size=(8, 4), stride=(4, 3))
  )


@EVERY
def test_golden_recipe(name):
  mean, std, padded, _ = STATS["speech_commands"]
  example = {
    "audio": np.pad(signal_a(), (0, 4_720)),
    "num_samples": np.int32(16_000),
  }
  recipe = f"center|fbank|pad_frames|standardize({mean}, {std})"
  out = run_ops(recipe, example, name=name)["fbank"]
  assert out.shape == (128, 128)
  assert out.mean() == pytest.approx(0.5037482, abs=1e-5)
  assert out.std(ddof=1) == pytest.approx(0.2768602, abs=1e-5)
  np.testing.assert_allclose(out[98:], padded, atol=1e-6)


@EVERY
@pytest.mark.parametrize("views", [(), (3,)])
@pytest.mark.parametrize("frames", [1, 5, 12, 20])
def test_cut_frames(name, frames, views):
  x = noise((*views, 12, 6)) + 1.0
  example = {"fbank_local": x, "fbank": x}
  recipe = f"cut_frames({frames}, 'fbank_local')"
  out = run_ops(recipe, example, name=name)
  cut = out["fbank_local"]
  assert cut.shape == (*views, frames, 6) and cut.dtype == np.float32
  kept = min(frames, 12)
  np.testing.assert_array_equal(cut[..., :kept, :], x[..., :kept, :])
  np.testing.assert_array_equal(cut[..., kept:, :], 0.0)
  np.testing.assert_array_equal(out["fbank"], x)


@functools.cache
def asit_signal(rate, seconds):
  t = np.arange(rate * seconds) / rate
  x = 0.4 * np.sin(2 * np.pi * 440 * t)
  x += 0.2 * np.sin(2 * np.pi * 3000 * t + 0.5)
  x += 0.05 * np.sin(2 * np.pi * (100 + 50 * t) * t)
  return x.astype(np.float32)


# Log-mels of the reference implementation in float32: mean, standard deviation
# and maximum, some cells; mean and deviation of what is cut and standardised.
ASIT = {
  (16_000, 6): (
    (-11.64021, 5.80952, 6.38504),
    (-8.40263, -9.84191, -0.80581, -3.73339, -15.94238, -10.60902),
    (-0.807151, 0.635533),
  ),
  (32_000, 6): (
    (-12.27371, 5.62933, 6.61506),
    (-7.50127, -8.62007, 0.37417, -12.32414, -4.74030, -15.94238),
    (-0.876368, 0.615844),
  ),
  (16_000, 2): (
    (-11.48175, 5.86097, 6.38504),
    (-8.40263, -9.84190, -0.80581, -3.73339, -15.94238, -10.60917),
    (-0.788910, 0.641432),
  ),
}
CELLS = ((0, 0), (0, 10), (0, 20), (50, 27), (100, 64), (150, 90))


@EVERY
@pytest.mark.parametrize(("rate", "seconds"), ASIT)
def test_golden_views(name, rate, seconds):
  """As two views of one waveform, under names of their own."""
  whole, cells, standardised = ASIT[rate, seconds]
  x = asit_signal(rate, seconds)
  recipe = (
    "center('audio_local', num_samples='')"
    f"|fbank(sample_rate={rate}, audio='audio_local', out='fbank_local')"
  )
  example = {"audio_local": np.stack([x, -x])}
  out = run_ops(recipe, example, name=name)["fbank_local"]
  num_frames = 100 * seconds - 2
  assert out.shape == (2, num_frames, 128)
  np.testing.assert_allclose(out[0], out[1], atol=1e-5)
  found = out[0].mean(), out[0].std(ddof=1), out[0].max()
  np.testing.assert_allclose(found, whole, rtol=0, atol=1e-4)
  for (t, f), value in zip(CELLS, cells, strict=True):
    near_floor = value < -10  # where float32 transforms are noise
    tolerance = 1e-2 if near_floor else 1e-4
    assert out[0, t, f] == pytest.approx(value, abs=tolerance), (t, f)
  cut = (
    f"cut_frames({num_frames - 6}, 'fbank_local')"
    "|standardize(-4.2677393, 4.5689974, 'fbank_local')"
  )
  out = run_ops(cut, {"fbank_local": out}, name=name)["fbank_local"][0]
  assert len(out) == num_frames - 6
  found = out.mean(), out.std(ddof=1)
  np.testing.assert_allclose(found, standardised, rtol=0, atol=1e-5)


# Masks


@functools.cache
def masks(recipe, frames=160, bins=128, count=6_000):
  """[count, T, F] bool of the cells that a recipe sets to zero."""
  ops = parse(recipe)
  ones = np.ones((count, frames, bins), np.float32)
  run = jax.jit(lambda e, k: apply_rows(ops, e, k))
  out = run({"fbank": ones}, wrap(random_keys(count)))["fbank"]
  assert set(np.unique(out)) <= {0.0, 1.0}
  return np.asarray(out) == 0.0


def runs(recipe, axis, max_width):
  """(width, start) of each example's mask, one straight band."""
  across = 3 - axis
  cells = masks(recipe, *((160, 2) if axis == 1 else (2, 128)))
  line = cells.any(across)
  np.testing.assert_array_equal(line, cells.all(across))
  width = line.sum(1)
  edges = np.abs(np.diff(line.astype(int), axis=1, prepend=0, append=0)).sum(1)
  np.testing.assert_array_equal(edges, np.where(width > 0, 2, 0))
  assert width.max() < max_width
  return width, line.argmax(1), line.shape[1]


# Of a batch [B, T, F], time is axis 1 and frequency axis 2.
MASKS = pytest.mark.parametrize(
  ("op", "axis", "max_width"),
  [("freq_mask", 2, 48), ("freq_mask", 2, 128), ("time_mask", 1, 64)],
)


@MASKS
def test_mask_is_one_run(op, axis, max_width):
  width, start, length = runs(f"{op}({max_width})", axis, max_width)
  assert width.min() == 0
  assert width.max() == max_width - 1
  assert start[width > 0].min() == 0
  # floor(s) + floor(v) <= s + v < length: the last cell is never masked.
  assert (start + width)[width > 0].max() == length - 1


@MASKS
def test_mask_widths(op, axis, max_width):
  # floor(U * P): each of 0 ... P - 1 equally often.
  width, _, _ = runs(f"{op}({max_width})", axis, max_width)
  seen = np.bincount(width, minlength=max_width)
  expected = len(width) / max_width
  chi2 = np.sum((seen - expected) ** 2 / expected)
  dof = max_width - 1
  assert abs(chi2 - dof) < 4 * np.sqrt(2 * dof)


@MASKS
def test_mask_starts(op, axis, max_width):
  # Against the original's formula, drawn in double precision: width and start
  # together, as the start's range depends on the width.
  width, start, length = runs(f"{op}({max_width})", axis, max_width)
  rng = np.random.default_rng(1)
  v = rng.random(400_000) * max_width
  s = rng.random(400_000) * (length - v)
  edges = [np.linspace(1, max_width, 6), np.linspace(0, length, 9)]
  some = width > 0
  seen, _, _ = np.histogram2d(width[some], start[some], edges)
  some = np.floor(v) > 0
  wanted, _, _ = np.histogram2d(np.floor(v)[some], np.floor(s)[some], edges)
  wanted *= len(width) / len(v)
  some = wanted >= 5
  assert some.sum() >= 20
  chi2 = np.sum((seen - wanted)[some] ** 2 / wanted[some])
  assert abs(chi2 - some.sum()) < 4 * np.sqrt(2 * some.sum())


@pytest.mark.parametrize(
  ("op", "axis", "max_width"), [("freq_mask", 1, 30), ("time_mask", 0, 64)]
)
def test_mask_formula(op, axis, max_width):
  # v = U * P, s = U' * (L - v), cells floor(s) ... floor(s) + floor(v) - 1.
  (named,) = parse(f"{op}({max_width})")
  for key in random_keys(200):
    own = xp.NUMPY.fold_in(key, named.fold)
    u, w = map(float, xp.NUMPY.uniform(own, 2))
    v = u * max_width
    s = w * (64 - v)
    out = apply(
      (named,), {"fbank": np.ones((64, 64), np.float32)}, key, xp.NUMPY
    )["fbank"]
    cells = np.flatnonzero(np.all(out == 0.0, axis=1 - axis))
    assert cells.tolist() == list(range(int(s), int(s) + int(v)))


def test_masks_are_independent():
  both = masks("freq_mask(20)|time_mask(30)", 60, 40, 1_500)
  frames, bins = both.all(2), both.all(1)
  np.testing.assert_array_equal(both, frames[:, :, None] | bins[:, None, :])
  assert abs(np.corrcoef(frames.sum(1), bins.sum(1))[0, 1]) < 0.1
  some = frames.any(1) & bins.any(1)
  starts = frames.argmax(1)[some], bins.argmax(1)[some]
  assert abs(np.corrcoef(*starts)[0, 1]) < 0.1


@pytest.mark.parametrize("max_width", [0, 1])
@pytest.mark.parametrize("op", ["freq_mask", "time_mask"])
def test_no_mask(op, max_width):
  assert not masks(f"{op}({max_width})", 4, 6, 200).any()


@EVERY
@pytest.mark.parametrize(
  ("op", "length"), [("freq_mask", 20), ("time_mask", 30)]
)
def test_mask_fits_the_axis(name, op, length):
  example = {"fbank": noise((30, 20))}
  run_ops(f"{op}({length})", example, name=name)
  with pytest.raises(UserError, match=f"axis of {length} cells"):
    run_ops(f"{op}({length + 1})", example, name=name)


@EVERY
def test_masks_are_written_before_standardising(name):
  mean, std, padded, _ = STATS["audioset"]
  recipe = "freq_mask(20)|time_mask(20)"
  x = noise((40, 32)) - 5.0
  mask = lambda key: run_ops(recipe, {"fbank": x}, key)["fbank"] == 0.0
  key = next(  # draws both masks
    key
    for key in random_keys(50)
    if mask(key).all(0).any() and mask(key).all(1).any()
  )
  whole = f"{recipe}|standardize({mean}, {std})"
  out = run_ops(whole, {"fbank": x}, key, name)["fbank"]
  expected = np.where(mask(key), padded, (x - mean) / (2 * std))
  np.testing.assert_allclose(out, expected, atol=1e-6)


def test_backends_draw_the_same_masks():
  recipe = "freq_mask(24)|time_mask(48)"
  ops = parse(recipe)
  ones = np.ones((96, 64), np.float32)
  of_jax = masks(recipe, 96, 64, 150)
  assert 0.2 < of_jax.mean() < 0.6
  for i, key in enumerate(random_keys(150)):
    of_numpy = apply(ops, {"fbank": ones}, key, xp.NUMPY)["fbank"]
    np.testing.assert_array_equal(of_numpy == 0.0, of_jax[i])


def test_moving_an_op_does_not_change_its_draws():
  here = masks("freq_mask(20)|time_mask(20)", 60, 40, 100)
  there = masks(
    "time_mask(20)|standardize(0.0, 0.5)|freq_mask(20)", 60, 40, 100
  )
  np.testing.assert_array_equal(here, there)
  # Neither does moving it to the other side.
  text = "to_float|freq_mask(20)|time_mask(20)|freq_mask(20)"
  on_device = parse(text)
  on_host = recipe.parse(text, host_ops.OPS, "on_host", reader=None)
  assert [(op.name, op.fold) for op in on_device] == [
    (op.name, op.fold) for op in on_host
  ]
  assert len({op.fold for op in on_device}) == 4


def test_the_same_op_twice_draws_twice():
  once = masks("time_mask(20)", 60, 4, 100)
  twice = masks("time_mask(20)|time_mask(20)", 60, 4, 100)
  assert np.all(twice[once])
  assert np.mean(twice.sum((1, 2)) > once.sum((1, 2))) > 0.7


def test_examples_draw_apart():
  ops = parse("time_mask(40)")
  batch = {"fbank": np.ones((64, 80, 2), np.float32)}
  keys = row_keys(wrap(random_keys(1)[0]), 64)
  run = jax.jit(lambda batch, keys: apply_rows(ops, batch, keys)["fbank"])
  out = run(batch, keys)
  assert len(np.unique(np.asarray(out), axis=0)) > 40
  # A row's draw depends on its place only, not on how many rows there are.
  few = run({"fbank": batch["fbank"][:5]}, keys[:5])
  np.testing.assert_array_equal(few, out[:5])
  again = row_keys(wrap(random_keys(1)[0]), 5)
  np.testing.assert_array_equal(
    jax.random.key_data(again), jax.random.key_data(keys[:5])
  )


def test_an_op_without_its_input():
  with pytest.raises(UserError, match=r"time_mask needs 'fbank'.*audio"):
    run_ops("to_float|time_mask(3)", {"audio": np.zeros(8, np.int16)})
