"""Crops at a random place: of the right length, evenly, reproducibly."""

import numpy as np
from scipy import stats

from astjax.data.reader import Reader
from astjax.ops import recipe
from tests.data.test_pipeline import RATE, Memory, _ops, _train

CROP = 200  # samples: one frame
RECIPE = f"decode|random_crop(%d)|fit(num_frames=1, sample_rate={RATE})"


def rows(source, crop=CROP, steps=8, **given):
  batches = _train(RECIPE % crop, Reader(source), last=steps, **given)
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def ramps(*lengths):
  return Memory(len(lengths), audio=[np.arange(n) / 2**15 for n in lengths])


def test_a_piece_from_anywhere():
  out = rows(ramps(*[600] * 4), steps=150)
  starts = np.round(out["audio"][:, 0] * 2**15).astype(int)
  pieces = (starts[:, None] + np.arange(CROP)) / 2**15
  np.testing.assert_array_equal(out["audio"], pieces.astype(np.float32))
  assert (out["num_samples"] == CROP).all()
  assert starts.min() >= 0 and starts.max() <= 400
  assert stats.kstest(starts, stats.uniform(0, 400).cdf).pvalue > 1e-3


def test_every_place_is_possible():
  out = rows(ramps(*[CROP + 2] * 4), steps=50)
  starts = np.round(out["audio"][:, 0] * 2**15).astype(int)
  assert set(starts) == {0, 1, 2}


def test_shorter_ones_stay_whole():
  out = rows(ramps(CROP, CROP - 1, 70, 1))
  assert {*zip(out["id"], out["num_samples"], strict=True)} == {
    (0, CROP),
    (1, CROP - 1),
    (2, 70),
    (3, 1),
  }
  for audio, count in zip(out["audio"], out["num_samples"], strict=True):
    np.testing.assert_array_equal(audio[:count], np.arange(count) / 2**15)
    assert not audio[count:].any()


def test_a_function_of_seed_and_position():
  source = Memory(10)
  first, again = rows(source), rows(source)
  np.testing.assert_array_equal(first["audio"], again["audio"])
  late = rows(source, steps=8, first=5)
  np.testing.assert_array_equal(first["audio"][20:], late["audio"])
  other = rows(source, seed=1)
  assert (first["audio"] != other["audio"]).any()


def test_it_draws():
  assert recipe.draws(_ops("decode|random_crop(3)", Reader(Memory()))[1])
