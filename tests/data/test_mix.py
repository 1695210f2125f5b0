"""Mixing two waveforms: the original's formula, partner, shares and labels."""

import numpy as np
import pytest
from scipy import stats

from astjax.data.reader import Reader
from astjax.errors import UserError
from astjax.ops.recipe import draws
from tests.data.test_pipeline import RATE, Memory, _ops, _train

KEEP = "|multi_hot|keep('audio', 'num_samples', 'label')"
RECIPE = f"decode|fit(num_frames=3, sample_rate={RATE})|mix(%s)" + KEEP


class Ramps(Memory):
  """Clip i is a ramp of its own slope and length, with a mean."""

  def read(self, index):
    length = 250 + 40 * index
    ramp = np.linspace(0, 1, length) * (index + 1) / 20 + 0.1
    return ramp.astype(np.float32), self._rate


def rows(source, rate, steps=10, seed=0, recipe=RECIPE):
  batches = _train(recipe % rate, Reader(source), last=steps, seed=seed)
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def test_by_hand():
  """l * (x1 - mean) + (1 - l) * (x2 - mean), less its mean; first's length."""
  source = Ramps(6)
  out = rows(source, "1.0", steps=12)
  length = out["audio"].shape[1]
  partners = set()
  for audio, count, label, index in zip(
    out["audio"], out["num_samples"], out["label"], out["id"], strict=True
  ):
    first = source.read(int(index))[0][:length]
    assert count == len(first)
    best = np.inf
    for partner in range(6):
      other = source.read(partner)[0]
      other = (other - other.mean())[:count]
      second = np.zeros(count)
      second[: len(other)] = other
      a, b = first - first.mean(), second
      # Solve for the share: audio = l * a + (1 - l) * b - mean.
      a, b = a - a.mean(), b - b.mean()
      d = a - b
      share = np.dot(audio[:count] - b, d) / max(np.dot(d, d), 1e-12)
      error = np.abs(share * a + (1 - share) * b - audio[:count]).max()
      if error < best:
        best, found, of = error, share, partner
    assert best < 1e-5
    partners.add(of)
    assert not audio[count:].any()
    expected = np.zeros(3)
    if of != int(index):  # alone with itself every share fits
      expected[list(source.labels(int(index)))] = found
      expected[list(source.labels(of))] += 1 - found
      np.testing.assert_allclose(label, expected, atol=1e-3)
    assert abs(audio[:count].mean()) < 1e-6
  assert partners == set(range(6))


def test_rate_zero_changes_nothing():
  source = Memory(5)
  plain = RECIPE.replace("|mix(%s)", "")
  mixed, alone = rows(source, "0.0"), rows(source, "", recipe=plain + "%s")
  for name in alone:
    np.testing.assert_array_equal(mixed[name], alone[name])


class Constant(Memory):
  """One class for each clip, so that the label tells partner and share."""

  def __init__(self, size):
    super().__init__(size)
    self.class_names = tuple(f"class {i}" for i in range(size))

  def labels(self, index):
    return (index,)


@pytest.mark.slow
def test_partner_and_share_have_the_right_statistics():
  source = Constant(20)
  out = rows(source, "0.5", steps=600)
  label, index = out["label"], out["id"]
  own = label[np.arange(len(index)), index]
  np.testing.assert_allclose(label.sum(axis=1), 1.0, atol=1e-6)
  mixed = own < 1.0  # a clip with itself looks unmixed: one in twenty
  rate = mixed.mean() / (19 / 20)
  assert abs(rate - 0.5) < 0.04
  others = label[mixed].copy()
  others[np.arange(mixed.sum()), index[mixed]] = 0.0
  partner = others.argmax(axis=1)
  # Uniform over the whole training set, whatever the first is.
  away = (partner - index[mixed]) % 20
  seen = np.bincount(away, minlength=20)[1:]
  chi2 = np.sum((seen - seen.mean()) ** 2 / seen.mean())
  assert abs(chi2 - 18) < 4 * np.sqrt(2 * 18)
  share = own[mixed]
  assert stats.kstest(share, stats.beta(10, 10).cdf).pvalue > 1e-3


def test_the_same_again_and_another_seed():
  first, again = rows(Memory(8), "0.7"), rows(Memory(8), "0.7")
  other = rows(Memory(8), "0.7", seed=1)
  np.testing.assert_array_equal(first["audio"], again["audio"])
  assert (first["audio"] != other["audio"]).any()


def test_a_partner_of_another_rate_is_resampled():
  class TwoRates(Ramps):
    def read(self, index):
      audio, rate = super().read(index)
      return audio, rate * 2 if index % 2 else rate

  recipe = RECIPE.replace("decode|", f"decode|resample({RATE})|")
  out = rows(TwoRates(4), "1.0", recipe=recipe)
  assert np.isfinite(out["audio"]).all()
  assert np.abs(out["audio"]).max() < 0.5


def test_an_unreadable_partner_is_replaced():
  source = Constant(6)
  source._bad = {2}
  out = rows(source, "1.0", steps=40)
  assert not out["label"][:, 2].any()
  assert out["label"][:, 3].any()


def test_before_the_fit_it_is_the_same_for_equal_lengths():
  audio = [np.sin(np.arange(360) * (i + 1) / 9) for i in range(5)]
  late = rows(Memory(5, audio=audio), "1.0")
  recipe = f"decode|mix(%s)|fit(num_frames=3, sample_rate={RATE})" + KEEP
  early = rows(Memory(5, audio=audio), "1.0", recipe=recipe)
  np.testing.assert_allclose(late["audio"], early["audio"], atol=1e-6)


@pytest.mark.parametrize(
  ("recipe", "told"),
  [
    ("decode|fit(3, 8000)|quantise|mix(0.5)", "put it before quantise"),
    ("decode|multi_hot|fit(3, 8000)|mix(0.5)", "before multi_hot"),
  ],
)
def test_nonsense(recipe, told):
  with pytest.raises(UserError, match=told):
    _train(recipe, Reader(Memory()))


def test_it_draws():
  assert draws(_ops("decode|mix(0.5)", Reader(Memory()))[1])
