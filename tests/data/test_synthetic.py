"""The synthetic clips: repeatable, labelled by what they hold, well formed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.signal

from astjax.data import sources, synthetic
from astjax.data.synthetic import EVENTS, Synthetic
from astjax.errors import UserError

RATE = 16_000
NAMES = tuple(EVENTS)


def _audio(data: Synthetic, indices) -> list[bytes]:
  return [data.read(i)[0].tobytes() for i in indices]


def _events(name: str, count: int = 20) -> list[np.ndarray]:
  rng = np.random.default_rng(7)
  event = EVENTS[name]
  return [
    synthetic.make_event(rng, event, RATE * 2, RATE) for _ in range(count)
  ]


def _power(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Frequencies in Hz, and the power spectrum of the whole sound."""
  return (
    np.fft.rfftfreq(len(x), 1 / RATE),
    np.abs(np.fft.rfft(x * np.hanning(len(x)))) ** 2,
  )


def _band_share(x: np.ndarray, low: float, high: float) -> float:
  hertz, power = _power(x)
  return power[(hertz >= low) & (hertz <= high)].sum() / power.sum()


def _pitch_track(x: np.ndarray) -> np.ndarray:
  """The strongest frequency in Hz every 10 ms, away from the faded ends."""
  frames = np.lib.stride_tricks.sliding_window_view(x, 640)[::160]
  spectrum = np.abs(np.fft.rfft(frames * np.hanning(640), 4096))
  return spectrum[5:-5].argmax(1) * RATE / 4096


def _level_track(x: np.ndarray) -> np.ndarray:
  """The rms every 10 ms, away from the faded ends."""
  frames = np.lib.stride_tricks.sliding_window_view(x, 640)[::160]
  return np.sqrt((frames**2).mean(1))[5:-5]


def _trend(track: np.ndarray) -> float:
  return np.corrcoef(np.arange(len(track)), track)[0, 1]


def _strongest_line_share(x: np.ndarray) -> float:
  hertz, power = _power(x)
  near = np.abs(hertz - hertz[power.argmax()]) < 10
  return power[near].sum() / power.sum()


def _flatness(x: np.ndarray) -> float:
  hertz, power = scipy.signal.welch(x, RATE, nperseg=256)
  power = power[(hertz > 300) & (hertz < 7000)]
  return np.exp(np.log(power).mean()) / power.mean()


def _pulses(x: np.ndarray) -> np.ndarray:
  """The seconds between sounds that are set apart by silence."""
  loud = np.flatnonzero(np.abs(x) > 1e-3)
  starts = loud[np.flatnonzero(np.diff(loud, prepend=-RATE) > 0.02 * RATE)]
  return np.diff(starts) / RATE


def test_same_bytes_in_any_order_and_from_any_thread():
  data = Synthetic(num_examples=24)
  forwards = _audio(data, range(24))
  assert len(set(forwards)) == 24
  assert _audio(data, reversed(range(24))) == forwards[::-1]
  assert _audio(Synthetic(num_examples=99), range(24)) == forwards
  with ThreadPoolExecutor(4) as pool:
    threaded = list(pool.map(lambda i: data.read(i)[0].tobytes(), range(24)))
  assert threaded == forwards


@pytest.mark.parametrize("other", [{"split": "valid"}, {"seed": 1}])
def test_another_split_or_seed_gives_other_clips(other):
  data, others = Synthetic(num_examples=40), Synthetic(num_examples=40, **other)
  labels = [data.labels(i) for i in range(40)]
  same = sum(labels[i] == others.labels(i) for i in range(40))
  assert same < 10
  assert not set(_audio(data, range(8))) & set(_audio(others, range(8)))


def test_names_and_length():
  data = Synthetic(num_examples=321, split="valid")
  assert len(data) == 321
  assert data.name(123) == "valid/000123"
  assert len({data.name(i) for i in range(321)}) == 321
  assert data.class_names == NAMES
  assert len(set(data.class_names)) == 10


def test_labels_need_no_synthesis_and_no_rate(monkeypatch):
  data = Synthetic(num_examples=20)
  short = Synthetic(num_examples=20, seconds=0.5, sample_rate=8000)

  def refuse(*args):
    raise AssertionError("synthesised")

  monkeypatch.setattr(synthetic, "_mix", refuse)
  for i in range(20):
    assert data.labels(i) == short.labels(i)
  with pytest.raises(AssertionError, match="synthesised"):
    data.read(0)


def test_every_class_is_as_frequent_as_another():
  data = Synthetic(num_examples=3000)
  labels = [data.labels(i) for i in range(3000)]
  for drawn in labels:
    assert drawn == tuple(sorted(set(drawn)))
  counts = np.bincount([len(drawn) for drawn in labels], minlength=4)
  np.testing.assert_allclose(counts / 3000, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.04)
  per_class = np.bincount(np.concatenate(labels), minlength=10)
  np.testing.assert_allclose(per_class / 3000, [0.2] * 10, atol=0.03)


@pytest.mark.parametrize(
  ("rate", "seconds", "size"),
  [
    (16_000, 2.0, 32_000),
    (4000, 1.0, 4000),
    (8000, 0.3, 2400),
    (22_050, 1.38, 30_429),
    (44_100, 0.7, 30_870),
    (16_000, 0.0001, 2),
  ],
)
def test_clips_are_well_formed(rate, seconds, size):
  data = Synthetic(num_examples=40, seconds=seconds, sample_rate=rate)
  peaks = []
  for i in range(40):
    audio, read_rate = data.read(i)
    assert read_rate == rate
    assert audio.shape == (size,)
    assert audio.dtype == np.float32
    assert np.isfinite(audio).all()
    peaks.append(np.abs(audio).max())
  assert max(peaks) <= 1
  assert min(peaks) > 0.09  # a clip is never silent ...
  assert max(peaks) > 2 * min(peaks)  # ... nor all equally loud


@pytest.mark.parametrize("name", NAMES)
def test_silencing_a_class_changes_the_clips_labelled_with_it(
  name, monkeypatch
):
  data = Synthetic(num_examples=40)
  labelled = [NAMES.index(name) in data.labels(i) for i in range(40)]
  assert 0 < sum(labelled) < 40
  before = _audio(data, range(40))
  make = EVENTS[name].make
  silent = EVENTS[name]._replace(make=lambda *args: 0 * make(*args))
  monkeypatch.setitem(EVENTS, name, silent)
  after = _audio(data, range(40))
  changed = [a != b for a, b in zip(before, after, strict=True)]
  assert changed == labelled


def test_tone_and_chord_are_steady():
  for name in ("tone", "chord"):
    for x in _events(name):
      level = _level_track(x)
      assert np.percentile(level, 10) > 0.5 * np.percentile(level, 90)
  for x in _events("tone"):
    assert np.ptp(_pitch_track(x)) < 10
    assert _strongest_line_share(x) > 0.7
  for x in _events("chord"):
    assert _strongest_line_share(x) < 0.6


def test_sweeps_go_their_way():
  for x in _events("rising sweep"):
    track = _pitch_track(x)
    assert _trend(track) > 0.9 and track[-1] > 1.5 * track[0]
  for x in _events("falling sweep"):
    track = _pitch_track(x)
    assert _trend(track) < -0.9 and track[0] > 1.5 * track[-1]


def test_tremolo_moves_in_level_and_vibrato_in_pitch():
  for x in _events("tremolo"):
    level = _level_track(x)
    assert level.min() < 0.35 * level.max()
    assert np.ptp(_pitch_track(x)[level > 0.2 * level.max()]) < 10
  for x in _events("vibrato"):
    level, track = _level_track(x), _pitch_track(x)
    assert level.min() > 0.6 * level.max()
    assert 1.04 < track.max() / track.min() < 1.35
    assert abs(_trend(track)) < 0.6


def test_rumble_is_low_and_hiss_high():
  for x in _events("rumble"):
    assert _band_share(x, 0, 260) > 0.98
  for x in _events("hiss"):
    assert _band_share(x, 3000, RATE / 2) > 0.98


def test_noise_burst_is_one_short_broad_sound():
  for x in _events("noise burst"):
    assert 0.08 * RATE <= len(x) <= 0.25 * RATE
    assert _flatness(x) > 0.5
    assert len(_pulses(x)) == 0


def test_click_train_is_sparse_and_regular():
  for x in _events("click train"):
    assert (np.abs(x) > 0.01).mean() < 0.15
    gaps = _pulses(x)
    assert len(gaps) >= 2
    assert gaps.min() > 1 / 19 and gaps.max() < 1 / 5
    assert np.ptp(gaps) < 0.01


def test_labels_can_be_heard_in_the_mixed_clips():
  """A linear reading of coarse spectral statistics ranks the labels."""
  x, y = _statistics(Synthetic(num_examples=600))
  v, w = _statistics(Synthetic(num_examples=200, split="valid"))
  mean, scale = x.mean(0), x.std(0) + 1e-6
  x, v = (x - mean) / scale, (v - mean) / scale
  weights = np.linalg.solve(x.T @ x + 300 * np.eye(x.shape[1]), x.T @ y)
  precision = _average_precision(w, v @ weights)
  assert precision.mean() > 0.6
  assert precision.min() > 0.28
  # The same scores against other clips' labels find only the base rate.
  assert _average_precision(np.roll(w, 1, 0), v @ weights).mean() < 0.28


def _statistics(data: Synthetic) -> tuple[np.ndarray, np.ndarray]:
  """Per clip, quantiles over time of 20 bands' levels and changes; targets."""
  rows, targets = [], np.zeros((len(data), 10))
  edges = np.unique(np.geomspace(1, 200, 24).astype(int))
  for i in range(len(data)):
    frames = np.lib.stride_tricks.sliding_window_view(data.read(i)[0], 512)
    power = np.abs(np.fft.rfft(frames[::256] * np.hanning(512))) ** 2
    level = np.log(np.add.reduceat(power, edges, axis=1) + 1e-6)
    change = np.diff(level, axis=0)
    upward = level[4:, 1:] - level[:-4, :-1]  # a band higher, 64 ms later
    tracks = (level, change, upward)
    rows.append(
      np.concatenate(
        [np.quantile(t, (0, 0.1, 0.5, 0.9, 1), axis=0).ravel() for t in tracks]
      )
    )
    targets[i, list(data.labels(i))] = 1
  return np.stack(rows), targets


def _average_precision(target: np.ndarray, score: np.ndarray) -> np.ndarray:
  """Per class, the mean precision at each clip that holds it."""
  hits = np.take_along_axis(target, np.argsort(-score, axis=0), axis=0)
  precision = np.cumsum(hits, axis=0) / np.arange(1, len(hits) + 1)[:, None]
  return (precision * hits).sum(0) / hits.sum(0)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"num_examples": 0}, "num_examples=0 must be at least 1"),
    ({"seconds": 0.0}, "seconds=0.0 must be positive"),
    ({"seconds": float("nan")}, "seconds=nan must be"),
    ({"seconds": float("inf")}, "seconds=inf must be"),
    ({"seconds": 1e-5}, "no sample at 16000 Hz"),
    ({"sample_rate": 3999}, "sample_rate=3999 must be at least 4000 Hz"),
    ({"seed": -1}, "seed=-1 must be at least 0"),
  ],
)
def test_nonsense_is_refused_in_one_line(given, message):
  with pytest.raises(UserError) as error:
    sources.build("synthetic", "config.input", given, split="train")
  assert message in str(error.value)
  assert "\n" not in str(error.value)
