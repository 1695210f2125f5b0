"""The command that probes a saved model."""

from __future__ import annotations

import re

import numpy as np
import pytest
import soundfile

import astjax
from astjax.data import recordings
from astjax.data.reader import Reader
from astjax.ops import fbank, metrics
from astjax.ops.waveform import quantise, resample, to_mono
from astjax.run import log
from astjax.serving import recording
from astjax.tasks import probes
from astjax.tools import probe
from tests.serving import sounds

pytestmark = pytest.mark.usefixtures("one_device")

SOURCE = {
  "pattern": "^(?P<label>[ab])/",
  "splits": {"test": "stereo|exact|fast|long", "train": "."},
}


@pytest.fixture(scope="module")
def model(sounds_run):
  return sounds_run


def flags(run, data=None, **given):
  given = {
    "model": run,
    "data_dir": data or run.parent / "sounds",
    "source": "filenames",
    "source_kw": SOURCE,
  } | given
  return [f"--{k}={v}" for k, v in given.items()]


def table(text):
  """{(of, probe): numbers}."""
  found = re.findall(
    r"(embeddings|mean log-mels)\W+(knn|linear)\W+([\d.]+)\W+([\d.]+)", text
  )
  return {(a, b): (float(x), float(y)) for a, b, x, y in found}


def readers(model, data=None):
  return {
    split: Reader(
      recordings.Filenames(
        data_dir=str(data or model.parent / "sounds"), split=split, **SOURCE
      )
    )
    for split in ("train", "test")
  }


def test_embeddings_beside_log_mels(model, capsys):
  assert probe.main(flags(model)) == 0
  text = capsys.readouterr().out
  found = table(text)
  assert len(found) == 4 and "4 to learn from, 4 to rate" in text
  bundle = astjax.load(model)
  heard = {k: [] for k in ("train", "test")}
  labels = {k: [] for k in heard}
  for split, reader in readers(model).items():
    source = reader.source
    for i in range(len(source)):
      path = source.root / source.name(i)
      heard[split].append(bundle.embed(path, whole=False).clip)
      labels[split].append(np.eye(2)[source.labels(i)[0]])
  known, y, asked, want = (
    np.stack(x)
    for x in (heard["train"], labels["train"], heard["test"], labels["test"])
  )
  for name, made in (("knn", probes.knn()), ("linear", probes.linear())):
    rated, _ = metrics.classification(made.scores(known, y, asked), want)
    expected = rated["accuracy"], rated["mAP"]
    np.testing.assert_allclose(
      found["embeddings", name], expected, atol=1e-4, err_msg=name
    )


def test_log_mels_are_those_of_the_front_end(model):
  """Of the beginning, centred and standardised, over real frames alone."""
  bundle = astjax.load(model)
  reader = readers(model)["train"]
  console = log.Console(False)
  found = probe.hear(bundle, reader, console)
  assert {k: v.shape for k, v in found.items()} == {
    "embedding": (4, 16),
    "log_mels": (4, 16),
    "label": (4, 2),
  }
  frames = recording.parse(bundle.info.recipe).frames
  spec = fbank.FbankSpec(sample_rate=frames.sample_rate, num_mel_bins=16)
  for i, got in enumerate(found["log_mels"]):
    audio, rate = reader.read(i)
    audio = to_mono(audio, "mean")
    audio = resample(audio, rate, frames.sample_rate)[:1720]
    audio = quantise(audio) / 32_768
    mean = np.round(audio.mean() * 32_768) / 32_768
    mels = fbank.fbank((audio - mean).astype(np.float32), spec)
    want = ((mels + 3.559) / 7.0).mean(0)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_folds_and_one_probe(model, tmp_path, capsys):
  given = {
    "pattern": "^(?P<label>[ab])/(?P<fold>[a-z])",
    "label_list": str(tmp_path / "labels.txt"),
  }
  (tmp_path / "labels.txt").write_text("a\nb\n")
  args = flags(
    model,
    source_kw=given,
    train_split="",
    test_split="",
    train_folds="e,o,f",
    test_folds="l,s",
    probes="knn",
    k=1,
  )
  assert probe.main(args) == 0
  assert len(table(capsys.readouterr().out)) == 2


def test_unreadable_recordings_are_counted(model, tmp_path, capsys):
  data = sounds.write(tmp_path / "in")
  (data / "a" / "broken.wav").write_text("no")
  assert probe.main(flags(model, data)) == 1
  text = capsys.readouterr().out
  assert re.search(r"unreadable +1", text) and len(table(text)) == 4


def test_nothing_readable(model, tmp_path, mistake):
  for name in ("a/exact.wav", "b/other.wav"):
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True)
    path.write_text("no")
  told = "none of the 1 recordings can be read"
  mistake(probe.main(flags(model, tmp_path / "in")), told)


def test_literal_patches(model, tmp_path):
  """A recipe that cuts patches has the same log-mels."""
  recipe = astjax.load(model).info.recipe
  audio = sounds.noise(1500, seed=1)[:, 0]
  soundfile.write(tmp_path / "x.wav", audio, sounds.RATE)
  plain, cut = (
    probe._mean_log_mels(text)(audio, sounds.RATE)
    for text in (recipe, f"{recipe}|patchify((8, 10), (8, 10))")
  )
  np.testing.assert_array_equal(plain, cut)


@pytest.mark.parametrize(
  ("given", "told"),
  [
    ({"probes": "svm"}, "unknown --probes 'svm'"),
    ({"probes": ""}, "unknown --probes ''"),
    ({"k": 0}, "knn: k=0 must be at least 1"),
    ({"test_split": "train"}, "to learn from and those to rate are the same"),
    ({"test_split": "val"}, "no recording of split 'val'"),
    ({"source": "nowhere"}, "unknown recordings.source 'nowhere'"),
    ({"source_kw": "{'a': "}, "--source_kw=\"{'a': \" is not like"),
    ({"source_kw": "{'a': 1}"}, "'a' in recordings.source_kw"),
    (
      {"source_kw": {"splits": SOURCE["splits"]}},
      "the source 'filenames' has no labels",
    ),
    ({"data_dir": "nowhere"}, "no data directory 'nowhere'"),
    ({"model": "nowhere"}, "nowhere"),
  ],
)
def test_mistakes_end_in_one_line(given, told, model, mistake):
  mistake(probe.main(flags(model, **given)), told)
