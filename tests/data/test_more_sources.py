"""Manifests of the original, TFDS datasets, and several sources as one."""

import json

import numpy as np
import pytest
import soundfile

from astjax.data import order, sources
from astjax.data.source import fingerprint
from astjax.errors import UserError


def sound(path, seconds=0.1, rate=8_000, seed=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  soundfile.write(path, 0.1 * rng.standard_normal(int(seconds * rate)), rate)


# The original's manifest.

LABELS = 'index,mid,display_name\n0,/m/0,Dog\n1,/m/1,"Cat, meowing"\n'


@pytest.fixture
def manifest(tmp_path):
  sound(tmp_path / "a.wav", seed=1)
  sound(tmp_path / "far" / "b.flac", seed=2)
  entries = [
    {"wav": "a.wav", "labels": "/m/0"},
    {"wav": str(tmp_path / "far" / "b.flac"), "labels": "/m/1,/m/0"},
  ]
  (tmp_path / "train.json").write_text(json.dumps({"data": entries}))
  (tmp_path / "labels.csv").write_text(LABELS)
  return tmp_path


def build(kind, folder, /, split="", folds=(), **kw):
  return sources.build(
    kind, "config.input", kw, data_dir=str(folder), split=split, folds=folds
  )


def test_manifest(manifest):
  source = build(
    "manifest", manifest, json="train.json", label_list="labels.csv"
  )
  assert source.class_names == ("Dog", "Cat, meowing")
  assert [source.labels(i) for i in range(2)] == [(0,), (0, 1)]
  for i in range(2):
    audio, rate = source.read(i)
    assert rate == 8_000 and len(audio) == 800


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ("", "is not a manifest"),
    ("[1]", "is not a manifest"),
    ('{"dta": []}', "is not a manifest: KeyError.'data'"),
    ('{"data": []}', "lists no recordings"),
    ('{"data": {}}', "lists no recordings"),
    ('{"data": [{"wav": "a.wav"}]}', "is not a manifest: KeyError.'labels'"),
    ('{"data": ["a.wav"]}', "is not a manifest"),
    ('{"data": [{"wav": "", "labels": "/m/0"}]}', "entry 0: no path"),
    ('{"data": [{"wav": "a", "labels": " , "}]}', "entry 0: no path or no la"),
    ('{"data": [{"wav": "a", "labels": "/m/7"}]}', "'/m/7' of a is not in the"),
  ],
)
def test_a_manifest_that_is_wrong(text, told, manifest):
  (manifest / "bad.json").write_text(text)
  with pytest.raises(UserError, match=told) as e:
    build("manifest", manifest, json="bad.json", label_list="labels.csv")
  assert "\n" not in str(e.value)


def test_a_manifest_has_no_splits(manifest):
  kw = {"json": "train.json", "label_list": "labels.csv"}
  with pytest.raises(UserError, match="one manifest for each"):
    build("manifest", manifest, split="train", **kw)
  with pytest.raises(UserError, match="does not exist"):
    build("manifest", manifest, **kw | {"json": "no.json"})


def test_a_manifest_without_labels(manifest):
  """Those of a pre-training set are dummies, or not there."""
  source = build("manifest", manifest, json="train.json")
  assert source.class_names == () and source.labels(1) == ()
  (manifest / "bare.json").write_text('{"data": [{"wav": "a.wav"}]}')
  assert len(build("manifest", manifest, json="bare.json")) == 1


# Several sources.


def folder_of(root, classes, count):
  for name in classes:
    for i in range(count):
      sound(root / name / f"{i}.wav", seed=i)
  return {"source": "folder", "data_dir": str(root)}


def test_several(tmp_path):
  parts = (
    folder_of(tmp_path / "one", ["dog", "cat"], 2),
    folder_of(tmp_path / "two", ["cow", "cat"], 1),
  )
  source = build("several", "", sources=parts)
  assert source.class_names == ("cat", "dog", "cow")
  assert len(source) == 6 and source.shares == ()
  names = [source.name(i) for i in range(6)]
  labels = [source.class_names[source.labels(i)[0]] for i in range(6)]
  assert labels == [n.split("/")[0] for n in names]
  for i in range(6):
    audio, _ = source.read(i)
    folder = tmp_path / ("one" if i < 4 else "two")
    want, _ = soundfile.read(folder / names[i], dtype="float32")
    np.testing.assert_array_equal(audio, want)


def test_several_without_labels(tmp_path):
  labelled = folder_of(tmp_path / "one", ["dog", "cat"], 2)
  bare = folder_of(tmp_path / "two", ["x"], 3) | {"source": "filenames"}
  both = build("several", "", sources=(bare, bare))
  assert both.class_names == () and len(both) == 6
  assert {both.labels(i) for i in range(6)} == {()}
  source = build("several", "", sources=(bare, labelled))
  assert source.class_names == ("cat", "dog")
  assert [source.labels(i) for i in range(7)] == [()] * 3 + [(0,)] * 2 + [
    (1,)
  ] * 2
  assert order.draw_weights(both, "shuffle", "config.input") is None
  with pytest.raises(UserError, match="draw='balanced': no recording has a la"):
    order.draw_weights(both, "balanced", "config.input")
  shared = build("several", "", sources=(bare, labelled), shares=(1.0, 1.0))
  with pytest.raises(UserError, match="no recording of a part has a label"):
    order.draw_weights(shared, "balanced", "config.input")


def test_shares(tmp_path):
  parts = (
    folder_of(tmp_path / "one", ["dog"], 3),
    folder_of(tmp_path / "two", ["cat"], 2),
  )
  source = build("several", "", sources=parts, shares=(3.0, 1.0))
  assert source.shares == ((range(0, 3), 3.0), (range(3, 5), 1.0))


def test_splits_of_parts(tmp_path):
  part = folder_of(tmp_path / "one", ["dog", "cat"], 10)
  part["source_kw"] = {"holdout": 0.5}
  sizes = [
    len(build("several", "", split=split, sources=(part,)))
    for split in ("train", "val", "")
  ]
  assert sizes[0] + sizes[1] == sizes[2] == 20
  own = build("several", "", split="train", sources=(part | {"split": "val"},))
  assert len(own) == sizes[1]


@pytest.mark.parametrize(
  ("kw", "told"),
  [
    ({"sources": ()}, "sources is empty"),
    ({"sources": ({"data_dir": "x"},)}, r"sources\[0\]: missing.*'source'"),
    ({"sources": ({"source": "foldr"},)}, "Did you mean 'folder'"),
    ({"sources": ({"sorce": "folder"},)}, "Did you mean 'source'"),
    (
      {"sources": ({"source": "synthetic"},), "shares": (1.0, 2.0)},
      "2 numbers",
    ),
    ({"sources": ({"source": "synthetic"},), "shares": (0.0,)}, "positive"),
  ],
)
def test_several_that_are_wrong(kw, told):
  with pytest.raises(UserError, match=told):
    build("several", "", **kw)


def test_one_of_several_alone(tmp_path):
  part = folder_of(tmp_path / "one", ["dog"], 2)
  inner = build("folder", part["data_dir"])
  alone = build("several", "", sources=(part,))
  assert fingerprint(alone) == fingerprint(inner)


# TFDS.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Small datasets with TFDS's own features, in two formats."""
  tfds = pytest.importorskip("tensorflow_datasets")

  class TinyAudio(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None
    audio = tfds.features.Audio(sample_rate=8_000)

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            "audio": self.audio,
            "label": tfds.features.ClassLabel(names=["no", "yes"]),
            "speaker": tfds.features.Text(),
          }
        ),
      )

    def _split_generators(self, manager):
      return {"train": self._generate(6), "test": self._generate(2)}

    def _generate_examples(self):
      raise NotImplementedError

    def _generate(self, count):
      for i in range(count):
        audio = (np.arange(100 * (i + 1)) - 50).astype(np.int64)
        yield i, {"audio": audio, "label": i % 2, "speaker": "x"}

  class TinyAudioWithoutRate(TinyAudio):
    audio = tfds.features.Audio()

  folder = tmp_path_factory.mktemp("tfds")
  for make in (TinyAudio, TinyAudioWithoutRate):
    made = make(data_dir=folder, file_format="array_record")
    made.download_and_prepare()
  TinyAudio(data_dir=folder / "old").download_and_prepare()
  return folder


QUIET = pytest.mark.filterwarnings("ignore")


@QUIET
def test_tfds(prepared):
  source = build("tfds", prepared, split="train", name="tiny_audio")
  assert source.class_names == ("no", "yes")
  assert len(source) == 6
  lengths = set()
  for i in range(6):
    audio, rate = source.read(i)
    assert rate == 8_000 and audio.dtype == np.float32
    np.testing.assert_array_equal(audio, (np.arange(len(audio)) - 50) / 32_768)
    # Which example stands where is TFDS's matter; the label has to be its own.
    number = len(audio) // 100 - 1
    assert source.labels(i) == (number % 2,)
    lengths.add(number)
  assert lengths == set(range(6))
  assert len(build("tfds", prepared, split="test", name="tiny_audio")) == 2
  assert (
    len(build("tfds", prepared, split="train[:50%]", name="tiny_audio")) == 3
  )


@QUIET
@pytest.mark.parametrize(
  ("kw", "split", "told"),
  [
    ({"name": "tiny_adio"}, "train", "'tiny_adio'.*not found"),
    (
      {"name": "spoken_digit"},
      "train",
      "is not prepared in .*ArrayRecord.*python",
    ),
    (
      {"name": "tiny_audio"},
      "tain",
      "TFDS on 'tiny_audio'.tain.*tain",
    ),
    (
      {"name": "tiny_audio_without_rate"},
      "train",
      "give source_kw.sample_rate",
    ),
  ],
)
def test_tfds_that_is_wrong(kw, split, told, prepared):
  with pytest.raises(UserError, match=told) as e:
    build("tfds", prepared, split=split, **kw)
  assert "\n" not in str(e.value)


@QUIET
def test_tfds_of_another_format(prepared):
  with pytest.raises(
    UserError, match=r"is prepared as tfrecord .*array_record"
  ):
    build("tfds", prepared / "old", split="train", name="tiny_audio")


@QUIET
def test_a_rate_by_hand(prepared):
  name = "tiny_audio_without_rate"
  source = build("tfds", prepared, name=name, sample_rate=16_000)
  assert source.read(0)[1] == 16_000


# Splits in files, and tables with other columns.


@pytest.fixture
def words(tmp_path):
  for word in ("yes", "no", "_background_noise_"):
    for i in range(3):
      sound(tmp_path / word / f"{i}.wav", seed=i)
  (tmp_path / "val.txt").write_text("yes/0.wav\nno/0.wav\n")
  (tmp_path / "test.txt").write_text("yes/1.wav\n\n")
  return tmp_path


SPLIT_LISTS = {"val": "val.txt", "test": "test.txt"}
PATTERN = r"^(?P<label>[^/_][^/]*)/"


def test_splits_in_files(words):
  names = {
    split: [
      source.name(i)
      for source in [
        build(
          "folder",
          words,
          split=split,
          pattern=PATTERN,
          split_lists=SPLIT_LISTS,
        )
      ]
      for i in range(len(source))
    ]
    for split in ("train", "val", "test")
  }
  assert names["val"] == ["no/0.wav", "yes/0.wav"]
  assert names["test"] == ["yes/1.wav"]
  assert names["train"] == ["no/1.wav", "no/2.wav", "yes/2.wav"]


@pytest.mark.parametrize(
  ("text", "told"),
  [
    (None, "does not exist"),
    ("", "lists no recording"),
    ("x/9.wav\n", "x/9.wav"),
  ],
)
def test_split_files_that_are_wrong(text, told, words):
  if text is None:
    (words / "val.txt").unlink()
  else:
    (words / "val.txt").write_text(text)
  with pytest.raises(UserError, match=told):
    build("folder", words, pattern=PATTERN, split_lists=SPLIT_LISTS)


def test_a_table_with_other_columns(words):
  (words / "t.csv").write_text("filename,category,part\nyes/0.wav,a b,1\n")
  columns = {"path": "filename", "labels": "category", "fold": "part"}
  kw = {"csv": "t.csv", "columns": columns, "label_separator": ""}
  source = build("csv", words, folds=("1",), **kw)
  assert source.class_names == ("a b",) and source.name(0) == "yes/0.wav"
  below = build("csv", words.parent, **kw | {"csv": f"{words.name}/t.csv"})
  assert len(below) == 1
  inner = build("csv", words, **kw, below="deep/er")
  assert inner.name(0) == "deep/er/yes/0.wav"
  with pytest.raises(UserError, match="Did you mean 'path'"):
    build("csv", words, **kw | {"columns": {"paht": "filename"}})
  with pytest.raises(UserError, match="no column 'name'"):
    build("csv", words, **kw | {"columns": columns | {"path": "name"}})
