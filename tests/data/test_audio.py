"""Decoding: every format comes through, and broken files say why not."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import soundfile

from astjax.data.audio import SUFFIXES, UnreadableAudio, read
from astjax.ops.waveform import (
  fit,
  quantise,
  resample,
  resample_blocks,
  to_mono,
)

# What a sample may be off by: half a step of the quantiser, and of float32.
LOSSLESS = {
  ("wav", "PCM_U8"): 2**-7,
  ("wav", "PCM_16"): 2**-15,
  ("wav", "PCM_24"): 2**-23,
  ("wav", "PCM_32"): 2**-24,
  ("wav", "FLOAT"): 2**-24,
  ("wav", "DOUBLE"): 2**-24,
  ("flac", "PCM_S8"): 2**-7,
  ("flac", "PCM_16"): 2**-15,
  ("flac", "PCM_24"): 2**-23,
  ("aiff", "PCM_16"): 2**-15,
  ("au", "PCM_16"): 2**-15,
  ("w64", "PCM_16"): 2**-15,
}


def _melody(rate: int, seconds: float = 0.5, channels: int = 1) -> np.ndarray:
  """A few partials below 1 kHz, another chord on each channel."""
  t = np.arange(round(rate * seconds)) / rate
  chords = [
    sum(0.2 * np.sin(2 * np.pi * f * (c + 1) * t + f) for f in (123, 211, 397))
    for c in range(channels)
  ]
  return chords[0] if channels == 1 else np.stack(chords, axis=1)


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_lossless_formats_keep_every_sample(tmp_path, rate, channels):
  audio = _melody(rate, 0.1, channels)
  for (suffix, subtype), step in LOSSLESS.items():
    path = tmp_path / f"{subtype}.{suffix}"
    soundfile.write(path, audio, rate, subtype=subtype)
    got, got_rate = read(path)
    assert got_rate == rate
    assert got.dtype == np.float32
    assert got.shape == audio.shape
    assert np.abs(got - audio).max() <= step, path.name


@pytest.mark.parametrize(
  ("suffix", "subtype", "rate"),
  [
    ("ogg", "VORBIS", 8000),
    ("ogg", "VORBIS", 44_100),
    ("opus", "OPUS", 16_000),
    ("opus", "OPUS", 48_000),
    ("mp3", "MPEG_LAYER_III", 16_000),
    ("mp3", "MPEG_LAYER_III", 44_100),
  ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_lossy_formats_keep_the_sound(
  tmp_path, suffix, subtype, rate, channels
):
  audio = _melody(rate, 1.0, channels)
  path = tmp_path / f"x.{suffix}"
  container = "OGG" if suffix == "opus" else None
  soundfile.write(path, audio, rate, format=container, subtype=subtype)
  got, got_rate = read(path)
  assert got_rate == rate
  assert got.dtype == np.float32
  assert got.shape == audio.shape
  # No delay, no swapped channels, no other level; the ends are the codec's.
  middle = slice(rate // 4, -rate // 4)
  error = np.linalg.norm(got[middle] - audio[middle], axis=0)
  assert (error < 0.25 * np.linalg.norm(audio[middle], axis=0)).all()


def test_16_bit_samples_come_through_exactly(tmp_path):
  every = np.arange(-(2**15), 2**15).astype(np.int16)
  for suffix in ("wav", "flac", "aiff"):
    soundfile.write(tmp_path / f"x.{suffix}", every, 16_000, subtype="PCM_16")
    audio, _ = read(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(audio * 2**15, every)
    assert audio.min() == -1.0 and audio.max() < 1.0


def test_suffixes_name_formats_that_can_be_read(tmp_path):
  for suffix in SUFFIXES:
    kind = {".aif": "AIFF", ".opus": "OGG"}.get(suffix)
    subtype = "OPUS" if suffix == ".opus" else None
    path = tmp_path / f"x{suffix}"
    soundfile.write(path, _melody(16_000), 16_000, format=kind, subtype=subtype)
    assert len(read(str(path))[0]) == 8000


def test_mono_takes_the_mean_or_the_first_channel():
  stereo = np.array([[0.5, 0.25], [-1.0, 0.5], [0.0, 1.0]], np.float32)
  for channel, want in {
    "mean": [0.375, -0.25, 0.5],
    "first": [0.5, -1.0, 0.0],
  }.items():
    mono = to_mono(stereo, channel)
    np.testing.assert_array_equal(mono, np.array(want, np.float32))
    assert mono.dtype == np.float32 and mono.flags.c_contiguous
    np.testing.assert_array_equal(to_mono(mono, channel), mono)
  five = np.arange(10, dtype=np.float32).reshape(2, 5)
  np.testing.assert_array_equal(to_mono(five, "mean"), [2, 7])


TONES = (61.0, 440.0, 1234.5, 2500.0, 3100.0)


def _tones(times: np.ndarray, count: int) -> np.ndarray:
  return sum(
    0.15 * np.sin(2 * np.pi * f * times + f) for f in TONES[:count]
  ).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 22_050, 32_000, 44_100, 48_000])
def test_resampling_agrees_with_the_signal_itself(rate):
  """A sum of sines is known at any time, so no resampler is the judge."""
  audio = _tones(np.arange(rate) / rate, len(TONES))
  got = resample(audio, rate, 16_000)
  assert got.dtype == np.float32
  assert got.shape == (16_000,)
  want = _tones(np.arange(16_000) / 16_000, len(TONES))
  middle = slice(1600, -1600)  # the filter rings at the ends
  np.testing.assert_allclose(got[middle], want[middle], atol=2e-4)


@pytest.mark.parametrize("rate", [8000, 22_050, 32_000, 44_100, 48_000])
def test_resampling_agrees_with_scipy(rate):
  """Noise band-limited to 3 kHz against a long polyphase filter."""
  noise = np.random.default_rng(0).standard_normal(rate)
  low_pass = scipy.signal.firwin(rate // 40 * 2 + 1, 2800, fs=rate)
  audio = 0.3 * scipy.signal.fftconvolve(noise, low_pass, "same")
  common = np.gcd(rate, 16_000)
  up, down = 16_000 // common, rate // common
  half = 64 * max(up, down)
  taps = scipy.signal.firwin(
    2 * half + 1, 0.94 / max(up, down), window=("kaiser", 12)
  )
  want = scipy.signal.resample_poly(audio, up, down, window=taps)
  got = resample(audio.astype(np.float32), rate, 16_000)
  middle = slice(1600, -1600)
  scale = np.abs(want).max()
  assert scale > 0.02
  np.testing.assert_allclose(got[middle], want[middle], atol=1e-3 * scale)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # librosa's own imports
def test_resampling_is_librosa_s_default():
  """Recordings prepared with librosa and those read here are the same."""
  import librosa

  audio = _melody(44_100).astype(np.float32)
  got = resample(audio, 44_100, 16_000)
  want = librosa.resample(audio, orig_sr=44_100, target_sr=16_000)
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_resampling_does_not_alias():
  t = np.arange(44_100) / 44_100
  high = np.sin(2 * np.pi * 11_000 * t).astype(np.float32)
  low = np.sin(2 * np.pi * 5000 * t).astype(np.float32)
  middle = slice(1600, -1600)
  assert np.abs(resample(high, 44_100, 16_000)[middle]).max() < 1e-4
  kept = np.abs(resample(low, 44_100, 16_000)[middle]).max()
  assert 0.99 < kept < 1.01


def test_resampling_to_the_same_rate_changes_nothing():
  audio = _melody(16_000).astype(np.float32)
  before = audio.copy()
  np.testing.assert_array_equal(resample(audio, 16_000, 16_000), before)


@pytest.mark.parametrize("size", [1, 2, 17])
@pytest.mark.parametrize("rate", [8000, 44_100])
def test_the_shortest_recordings_can_be_resampled(size, rate):
  got = resample(np.ones(size, np.float32), rate, 16_000)
  assert got.dtype == np.float32 and got.ndim == 1
  assert abs(len(got) - size * 16_000 / rate) <= 1
  assert np.isfinite(got).all()


def _corrupt_header(path, suffix):
  soundfile.write(path, _melody(16_000), 16_000)
  data = bytearray(path.read_bytes())
  data[:4] = b"\x00\x01\x02\x03"
  path.write_bytes(data)


def _nothing_but_a_header(path, suffix):
  soundfile.write(path, np.zeros(0), 16_000)
  assert path.stat().st_size > 0


BROKEN = {
  "empty.wav": lambda p, s: p.write_bytes(b""),
  "empty.flac": lambda p, s: p.write_bytes(b""),
  "text.wav": lambda p, s: p.write_text("not a sound\n" * 50),
  "text.mp3": lambda p, s: p.write_text("not a sound\n" * 50),
  "no_data.wav": lambda p, s: p.write_bytes(b"RIFF\x10\x00\x00\x00WAVE"),
  "corrupt.wav": _corrupt_header,
  "corrupt.flac": _corrupt_header,
  "corrupt.ogg": _corrupt_header,
  "no_samples.wav": _nothing_but_a_header,
  "folder.wav": lambda p, s: p.mkdir(),
  "missing.wav": lambda p, s: None,
  "headerless.raw": lambda p, s: p.write_bytes(bytes(1000)),
}

REASONS = {
  "empty.wav": "the file is empty",
  "empty.flac": "the file is empty",
  "no_samples.wav": "it holds no samples",
  "missing.wav": "No such file or directory",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_gives_a_reason(tmp_path, name):
  path = tmp_path / name
  BROKEN[name](path, path.suffix)
  with pytest.raises(UnreadableAudio) as error:
    read(path)
  reason = str(error.value)
  assert reason.strip() and "\n" not in reason
  assert str(tmp_path) not in reason  # the report names the recording itself
  if name in REASONS:
    assert reason == REASONS[name]


def test_a_file_below_a_file_is_unreadable(tmp_path):
  (tmp_path / "x.wav").write_bytes(b"x")
  with pytest.raises(UnreadableAudio, match="Not a directory"):
    read(tmp_path / "x.wav" / "y.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_that_are_not_finite_are_refused(tmp_path, value, channels):
  audio = _melody(16_000, 0.1, channels)
  path = tmp_path / "x.wav"
  soundfile.write(path, audio, 16_000, subtype="FLOAT")
  read(path)
  audio.reshape(-1)[-1] = value
  soundfile.write(path, audio, 16_000, subtype="FLOAT")
  with pytest.raises(UnreadableAudio, match="not finite"):
    read(path)


@pytest.mark.parametrize("rate", [1000, 8000, 11_025, 16_000, 44_100, 96_000])
@pytest.mark.parametrize("size", [997, 30_000])
def test_resampling_in_blocks_gives_the_same_bits(rate, size):
  audio = _melody(rate, 1.3).astype(np.float32)
  pieces = [audio[i : i + size] for i in range(0, len(audio), size)]
  got = list(resample_blocks(pieces, rate, 16_000))
  whole = resample(audio, rate, 16_000)
  np.testing.assert_array_equal(np.concatenate(got), whole)
  assert all(part.dtype == np.float32 for part in got)


def test_fit_and_quantise():
  audio = np.float32([0.5, -1.5, 1.0, 1.5 / 2**15, 2.5 / 2**15])
  for length, count in ((3, 3), (5, 5), (7, 5)):
    got, real = fit(audio, length)
    assert real == count and got.shape == (length,)
    np.testing.assert_array_equal(got[:count], audio[:count])
    assert not got[count:].any()
  integers = quantise(audio)
  assert integers.dtype == np.int16
  assert integers.tolist() == [2**14, -(2**15), 2**15 - 1, 2, 2]
