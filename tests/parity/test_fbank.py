"""Filter banks against torchaudio's Kaldi recipe."""

import jax
import numpy as np
import pytest

from astjax.ops import fbank, xp

BACKENDS = {
  "numpy": xp.NUMPY,
  "jax": xp.JAX,
  "jax_float32": xp.Jax(double=False),
}


def check(actual, expected):
  error = np.abs(np.asarray(actual) - expected)
  assert actual.shape == expected.shape
  assert error.max() <= 3e-3
  assert error.mean() < 5e-5


@pytest.mark.fixtures("kaldi_fbank*")
@pytest.mark.parametrize("name", BACKENDS)
def test_fbank(fixture, name):
  assert fixture.meta["cases"]
  for case, how in fixture.meta["cases"].items():
    rate = how["sample_rate"]
    wave = fixture.seeded.seeded_waveform(
      case, how["num_samples"], rate, fixture.seed
    )
    spec = fbank.FbankSpec(sample_rate=rate, num_mel_bins=how["num_mel_bins"])
    out = fbank.fbank(wave - wave.mean(), spec, xp=BACKENDS[name])
    assert out.shape[0] == how["num_frames"]
    check(np.asarray(out)[:: how["frame_step"]], fixture[case])


@pytest.mark.fixtures("kaldi_fbank*")
@pytest.mark.parametrize("name", BACKENDS)
def test_silence(fixture, name):
  out = fbank.fbank(
    np.zeros(16_000, np.float32), fbank.FbankSpec(), xp=BACKENDS[name]
  )
  rows = fixture["silence"]
  check(np.asarray(out)[: len(rows)], rows)


def test_jit_agrees_with_numpy():
  wave = np.random.default_rng(0).standard_normal((2, 8_000))
  wave = wave.astype(np.float32) * 0.1
  spec = fbank.FbankSpec(num_mel_bins=64)
  run = jax.jit(lambda x: fbank.fbank(x, spec, xp=xp.JAX))
  np.testing.assert_allclose(run(wave), fbank.fbank(wave, spec), atol=2e-6)
