"""Filter banks: golden numbers, and what must hold for any signal and rate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astjax.errors import UserError
from astjax.ops import fbank
from tests.ops.common import BACKENDS, noise, signal_a

AST = fbank.FbankSpec()
FLOOR = -15.942385

# torchaudio on signal A minus its mean, in float32.
GOLDEN = {
  (0, 0): (-7.540866, -10.381897, -6.938496, -15.942385, -9.184420, -12.163143),
  (50, 0): (-7.287918, -10.071921, -6.628521, -15.942385, -6.419866, -9.398590),
  (97, 122): (2.523584, 2.508538, 2.330369, 2.623304, 3.005008, 2.535213),
}


@functools.cache
def compute(spec, name):
  fn = functools.partial(fbank.fbank, spec=spec, xp=BACKENDS[name])
  return jax.jit(fn) if name.startswith("jax") else fn


def run(audio, spec=AST, name="numpy"):
  return np.asarray(compute(spec, name)(audio))


def tone(freq, rate, seconds=0.1):
  t = np.arange(int(rate * seconds)) / rate
  return (0.5 * np.sin(2 * np.pi * freq * t)).astype(np.float32)


def mel(freq):
  return 1127.0 * np.log(1.0 + np.asarray(freq, np.float64) / 700.0)


def test_signal_a_is_the_golden_one():
  np.testing.assert_allclose(
    signal_a()[:3], [0.0027740, -0.0132730, 0.0633517], atol=5e-8
  )
  assert np.mean(signal_a(), dtype=np.float64) == pytest.approx(
    4.4206e-4, abs=1e-8
  )


@pytest.mark.parametrize("name", BACKENDS)
def test_golden_log_mels(name):
  x = signal_a()
  out = run(x - x.mean(), name=name)
  assert out.shape == (98, 128)
  assert out.dtype == np.float32
  for (frame, first), expected in GOLDEN.items():
    np.testing.assert_allclose(
      out[frame, first : first + 6], expected, atol=1e-3
    )
  assert out.mean() == pytest.approx(-1.6180309, abs=2e-5)
  assert out.std(ddof=1) == pytest.approx(3.4337590, abs=2e-5)
  assert out.min() == pytest.approx(FLOOR, abs=2e-6)
  assert out.max() == pytest.approx(3.5387487, abs=2e-5)


def test_golden_mel_matrix():
  matrix = fbank.mel_matrix(AST)
  assert matrix.shape == (128, 257)
  assert matrix.dtype == np.float32
  assert np.flatnonzero(matrix[1]).tolist() == [2]
  assert matrix[1, 2] == pytest.approx(0.03096626, abs=1e-6)
  expected = np.array(
    [
      *(0.106259, 0.298781, 0.490585, 0.681683, 0.872086),
      *(0.938218, 0.749218, 0.560890, 0.373258, 0.186287),
    ]
  )
  assert np.flatnonzero(matrix[127]).tolist() == list(range(246, 256))
  np.testing.assert_allclose(matrix[127, 246:256], expected, atol=3e-5)
  np.testing.assert_allclose(
    matrix.sum(1)[:6],
    [0.80263728, 0.03096626, 0.96903372, 0.0, 0.95160365, 0.04839637],
    atol=5e-6,  # the golden numbers are those of a float32 computation
  )
  assert matrix.sum() == pytest.approx(252.6105, abs=2e-4)
  assert np.count_nonzero(matrix) == 504
  assert np.sum(np.count_nonzero(matrix, axis=1) == 1) == 24


def test_golden_band_centres():
  # A long window shows where the triangles peak, to half a bin (0.5 Hz).
  fine = fbank.FbankSpec(frame_length_ms=1000.0)
  peaks = fbank.mel_matrix(fine).argmax(1) * fine.sample_rate / fine.n_fft
  np.testing.assert_allclose(
    peaks[[0, 1, 2, 3, 4, 5, 127]],
    [34.0431, 48.3600, 62.9562, 77.8371, 93.0083, 108.4754, 7833.5586],
    atol=0.5,
  )


def test_triangles_share_each_bin():
  # Linear in mel and half overlapping: between the outer centres they add up
  # to one.
  spec = fbank.FbankSpec(sample_rate=44_100, num_mel_bins=40)
  matrix = fbank.mel_matrix(spec)
  centres = np.linspace(mel(spec.low_freq), mel(spec.top_freq), 42)[1:-1]
  bins = mel(np.arange(matrix.shape[1]) * spec.sample_rate / spec.n_fft)
  inside = (bins >= centres[0]) & (bins <= centres[-1])
  assert inside.sum() > 500
  np.testing.assert_allclose(matrix.sum(0)[inside], 1.0, atol=1e-5)
  assert np.all(matrix.sum(0)[~inside] < 1.0)
  assert np.all(matrix >= 0)


def test_edge_frequencies_bound_the_filters():
  spec = fbank.FbankSpec(low_freq=300.0, high_freq=-1000.0, num_mel_bins=20)
  assert spec.top_freq == 7000.0
  used = np.flatnonzero(fbank.mel_matrix(spec).sum(0)) * 31.25
  assert 300.0 < used.min() < 340.0
  assert 6960.0 < used.max() < 7000.0


def test_golden_window():
  w = fbank.window(AST)
  assert w.shape == (400,)
  assert w[0] == 0.0
  # The golden number is a float32 difference of near-equal numbers.
  assert w[1] == pytest.approx(6.19888e-5, abs=1e-8)
  np.testing.assert_allclose(w[199:201], 0.99998450, atol=1e-7)
  np.testing.assert_allclose(w, w[::-1], atol=1e-7)


@pytest.mark.parametrize(
  ("samples", "frames"),
  [
    (400, 1),
    (559, 1),
    (560, 2),
    (16_000, 98),
    (80_000, 498),
    (160_000, 998),
    (164_080, 1024),
  ],
)
def test_frame_counts(samples, frames):
  assert AST.num_frames(samples) == frames
  # Small filter banks, as the count does not depend on them.
  out = run(np.zeros(samples, np.float32), fbank.FbankSpec(num_mel_bins=2))
  assert out.shape == (frames, 2)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
def test_num_samples_is_the_fewest(rate):
  spec = fbank.FbankSpec(sample_rate=rate)
  for frames in (1, 2, 98, 1024):
    samples = spec.num_samples(frames)
    assert spec.num_frames(samples) == frames
    assert frames == 1 or spec.num_frames(samples - 1) == frames - 1
  assert AST.num_samples(1024) == 164_080


@pytest.mark.parametrize("name", BACKENDS)
def test_band_three_is_empty(name):
  out = run(noise(8_000), name=name)
  np.testing.assert_allclose(out[:, 3], FLOOR, atol=2e-6)
  assert np.all(out[:, [0, 1, 2, 4, 5]] > FLOOR + 0.1)


@pytest.mark.parametrize("bins", [64, 80, 96])
def test_fewer_bands_are_never_empty(bins):
  matrix = fbank.mel_matrix(fbank.FbankSpec(num_mel_bins=bins))
  assert np.all(matrix.sum(1) > 0)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("level", [0.0, 0.25])
def test_silence_is_the_floor(name, level):
  # A constant too, since every frame loses its mean.
  out = run(np.full(2_000, level, np.float32), name=name)
  np.testing.assert_allclose(out, FLOOR, atol=2e-6)


@pytest.mark.parametrize(
  ("rate", "window", "hop", "n_fft"),
  [
    (8_000, 200, 80, 256),
    (16_000, 400, 160, 512),
    (22_050, 551, 220, 1024),
    (32_000, 800, 320, 1024),
    (44_100, 1102, 441, 2048),
    (48_000, 1200, 480, 2048),
  ],
)
def test_any_rate(rate, window, hop, n_fft):
  spec = fbank.FbankSpec(sample_rate=rate, num_mel_bins=32)
  assert (spec.window_size, spec.hop_size, spec.n_fft) == (window, hop, n_fft)
  centres = np.linspace(mel(20.0), mel(rate / 2), 34)[1:-1]
  for freq in (400.0, 1_000.0, 3_000.0):
    out = run(tone(freq, rate), spec)
    assert out.shape == (1 + (rate // 10 - window) // hop, 32)
    nearest = np.abs(centres - mel(freq)).argmin()
    assert np.all(np.abs(out.argmax(-1) - nearest) <= 1)


def test_power_of_two_window_is_not_doubled():
  spec = fbank.FbankSpec(sample_rate=10_000, frame_length_ms=25.6)
  assert (spec.window_size, spec.n_fft) == (256, 256)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("samples", [1, 160, 399])
def test_shorter_than_a_frame(name, samples):
  x = noise(samples)
  short, padded = run(x, name=name), run(np.pad(x, (0, 400 - samples)))
  assert short.shape == (1, 128)
  np.testing.assert_allclose(
    short, padded, atol=1e-2 if name == "jax_float32" else 2e-6
  )
  assert AST.num_frames(samples) == 1


def test_gain_adds_its_logarithm():
  x = noise(4_000)
  loud, quiet = run(x), run(x * np.float32(0.5))
  above = quiet > FLOOR + 1e-3
  assert above.mean() > 0.9
  np.testing.assert_allclose((loud - quiet)[above], 2 * np.log(2.0), atol=1e-5)


def test_offset_is_removed():
  x = noise(4_000, scale=0.1)
  np.testing.assert_allclose(run(x + np.float64(0.3)), run(x), atol=1e-5)


def test_frames_are_local():
  x = noise(4_000)
  out = run(x)
  np.testing.assert_allclose(run(x[160:]), out[1:], atol=1e-6)
  changed = x.copy()
  changed[1_600:1_610] += 1.0  # in the frames that start at 1201 ... 1609
  moved = np.flatnonzero(np.any(run(changed) != out, axis=1))
  assert moved.tolist() == [8, 9, 10]


def test_preemphasis_tilts_the_spectrum():
  x = noise(4_000)
  tilt = run(x) - run(x, fbank.FbankSpec(preemphasis=0.0))
  # |1 - 0.97 exp(-i w)|^2 is 3.88 at Nyquist and 0.94 at a third of it.
  assert np.median(tilt[:, 127]) == pytest.approx(np.log(3.87), abs=0.05)
  assert np.median(tilt[:, 10]) < -3.0


@pytest.mark.parametrize("name", BACKENDS)
def test_leading_axes_are_kept(name):
  x = noise((2, 3, 800))
  out = run(x, name=name)
  assert out.shape == (2, 3, 3, 128)
  one = run(x[1, 2], name=name)
  np.testing.assert_allclose(out[1, 2], one, atol=1e-4)


@pytest.mark.parametrize(
  ("name", "worst", "mean"),
  [("jax", 2e-6, 1e-6), ("jax_float32", 1e-2, 1e-4)],
)
def test_backends_agree_with_numpy(name, worst, mean):
  # Noise, and a tone between whose harmonics there is next to nothing.
  for x in (noise(8_000, scale=0.1), tone(1_000.0, 16_000, 0.5)):
    out = run(x, name=name)
    assert out.dtype == np.float32
    error = np.abs(out - run(x))
    assert error.max() <= worst
    assert error.mean() <= mean
  assert jnp.ones(()).dtype == jnp.float32  # double precision is left again


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"sample_rate": 0}, "at 0 Hz"),
    ({"sample_rate": -16_000}, "at -16000 Hz"),
    ({"frame_length_ms": 0.1}, "0.1 ms"),
    ({"frame_length_ms": -25.0}, "-25.0 ms"),
    ({"frame_shift_ms": 0.0}, "0.0 ms"),
    ({"low_freq": -1.0}, "low_freq=-1.0"),
    ({"low_freq": 8_000.0}, "8000.0 Hz"),
    ({"high_freq": 9_000.0}, "high_freq=9000.0"),
    ({"high_freq": -8_000.0}, "high_freq"),
    ({"low_freq": 500.0, "high_freq": 400.0}, "high_freq=400.0"),
  ],
)
def test_invalid_specs(wrong, message):
  with pytest.raises(UserError, match=message):
    fbank.FbankSpec(**wrong)
