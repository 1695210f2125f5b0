"""Sources: names, labels, splits and classes, and what is said if they fail."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest
import soundfile

from astjax.data import recordings, sources, tables
from astjax.data.source import check_labelled, fingerprint
from astjax.errors import UserError

DIGITS = r"(?P<label>\d+)_(?P<fold>[a-z]+)_\d+\.wav$"


def _fill(root: pathlib.Path, *names: str) -> str:
  """Empty files; a source reads none of them before it is asked to."""
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()
  return str(root)


def _write(
  root: pathlib.Path, text: str | bytes, name: str = "list.csv"
) -> str:
  data = text if isinstance(text, bytes) else text.encode()
  (root / name).write_bytes(data)
  return name


def _csv(root: pathlib.Path, text: str | bytes, **given):
  return recordings.Csv(data_dir=str(root), csv=_write(root, text), **given)


def _contents(source) -> list[tuple[str, tuple[str, ...]]]:
  """(name, names of the classes) of every example."""
  return [
    (
      source.name(i),
      tuple(source.class_names[label] for label in source.labels(i)),
    )
    for i in range(len(source))
  ]


def _refused(make, *parts: str, **given) -> str:
  """The one line of the UserError, which says all of `parts`."""
  with pytest.raises(UserError) as error:
    make(**given)
  text = str(error.value)
  assert "\n" not in text
  for part in parts:
    assert part in text
  return text


# --- folder -----------------------------------------------------------------


def test_a_folder_per_class(tmp_path):
  root = _fill(
    tmp_path,
    *("cat/a.wav", "cat/deep/er/b.FLAC", "dog/a.mp3", "dog/c.ogg"),
    *("dog/notes.txt", "dog/.hidden.wav", "stray.wav", "readme.md"),
  )
  source = recordings.Folder(data_dir=root)
  assert source.class_names == ("cat", "dog")
  assert _contents(source) == [
    ("cat/a.wav", ("cat",)),
    ("cat/deep/er/b.FLAC", ("cat",)),
    ("dog/a.mp3", ("dog",)),
    ("dog/c.ogg", ("dog",)),
  ]


def test_a_folder_per_split_above_the_classes(tmp_path):
  root = _fill(tmp_path, "train/cat/a.wav", "train/dog/a.wav", "test/cat/a.wav")
  given = {
    "data_dir": root,
    "pattern": r"^(?P<split>[^/]+)/(?P<label>[^/]+)/",
  }
  train = recordings.Folder(split="train", **given)
  test = recordings.Folder(split="test", **given)
  assert _contents(train) == [
    ("train/cat/a.wav", ("cat",)),
    ("train/dog/a.wav", ("dog",)),
  ]
  assert _contents(test) == [("test/cat/a.wav", ("cat",))]
  assert train.class_names == test.class_names == ("cat", "dog")
  assert len(recordings.Folder(**given)) == 3


def test_the_order_of_files_does_not_depend_on_the_disk(tmp_path):
  names = [f"{c}/{i}.wav" for c in "ba" for i in (10, 9, 1)]
  forwards = recordings.Folder(data_dir=_fill(tmp_path / "x", *names))
  backwards = recordings.Folder(data_dir=_fill(tmp_path / "y", *names[::-1]))
  assert _contents(forwards) == _contents(backwards)
  assert len(forwards) == 6


def test_hidden_folders_hold_no_recordings(tmp_path):
  root = _fill(tmp_path, "cat/a.wav", ".trash/b.wav", "cat/.cache/c.wav")
  assert _contents(recordings.Folder(data_dir=root)) == [
    ("cat/a.wav", ("cat",))
  ]


def test_links_are_followed_once(tmp_path):
  root = _fill(tmp_path / "data", "cat/a.wav", "dog/b.wav")
  (tmp_path / "data" / "cow").symlink_to(tmp_path / "elsewhere")
  _fill(tmp_path / "elsewhere", "c.wav")
  source = recordings.Folder(data_dir=root)
  assert source.class_names == ("cat", "cow", "dog")
  (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data")
  assert len(recordings.Folder(data_dir=root)) == 3


def test_reading_gives_the_recording(tmp_path):
  audio = (np.arange(100) / 2**15).astype(np.float32)
  _fill(tmp_path, "cat/a.wav", "cat/b.wav")
  soundfile.write(tmp_path / "cat/b.wav", audio, 8000, subtype="PCM_16")
  got, rate = recordings.Folder(data_dir=str(tmp_path)).read(1)
  np.testing.assert_array_equal(got, audio)
  assert rate == 8000


# --- filenames --------------------------------------------------------------


@pytest.fixture
def digits(tmp_path):
  return _fill(
    tmp_path,
    *(
      f"{d}_{who}_{take}.wav"
      for d in (0, 1, 9, 10)
      for who in ("ann", "bob")
      for take in range(3)
    ),
  )


def test_labels_and_folds_from_names(digits):
  source = recordings.Filenames(data_dir=digits, pattern=DIGITS)
  assert len(source) == 24
  assert source.class_names == ("0", "1", "9", "10")
  for name, labels in _contents(source):
    assert labels == (name.split("_")[0],)
  ann = recordings.Filenames(data_dir=digits, pattern=DIGITS, folds=("ann",))
  both = recordings.Filenames(
    data_dir=digits, pattern=DIGITS, folds=("ann", "bob")
  )
  assert len(ann) == 12 and len(both) == 24
  assert all("_ann_" in name for name, _ in _contents(ann))


def test_splits_by_expressions_and_by_a_group_are_the_same(digits):
  rules = {"test": r"_0\.wav$", "train": r"_[1-9]\.wav$"}
  groups = r"(?P<label>\d+)_[a-z]+_(?P<split>\d)\.wav$"
  for split, takes in {"test": "0", "train": "12"}.items():
    by_rule = recordings.Filenames(
      data_dir=digits, pattern=DIGITS, splits=rules, split=split
    )
    by_group = [
      row
      for take in takes
      for row in _contents(
        recordings.Filenames(data_dir=digits, pattern=groups, split=take)
      )
    ]
    assert sorted(_contents(by_rule)) == sorted(by_group)
    assert len(by_rule) == 8 * len(takes)


def test_the_first_expression_that_fits_decides_on_the_split(digits):
  rules = {"few": "ann_0", "rest": "."}
  given = {"data_dir": digits, "pattern": DIGITS, "splits": rules}
  assert len(recordings.Filenames(split="few", **given)) == 4
  assert len(recordings.Filenames(split="rest", **given)) == 20


def test_splits_and_folds_can_be_combined(digits):
  source = recordings.Filenames(
    data_dir=digits,
    pattern=DIGITS,
    splits={"test": r"_0\.wav$"},
    split="test",
    folds=("bob",),
  )
  assert [n for n, _ in _contents(source)] == sorted(
    f"{d}_bob_0.wav" for d in (0, 1, 9, 10)
  )


def test_files_that_the_pattern_does_not_fit_are_left_out(tmp_path):
  root = _fill(tmp_path, "1_ann_0.wav", "noise.wav", "x_ann_0.wav")
  source = recordings.Filenames(data_dir=root, pattern=DIGITS)
  assert _contents(source) == [("1_ann_0.wav", ("1",))]


def test_classes_are_the_same_over_splits_even_if_one_lacks_some(tmp_path):
  root = _fill(tmp_path, "a/train_1.wav", "b/train_1.wav", "c/test_1.wav")
  given = {
    "data_dir": root,
    "splits": {"train": "train_", "test": "test_"},
  }
  train = recordings.Folder(split="train", **given)
  test = recordings.Folder(split="test", **given)
  assert train.class_names == test.class_names == ("a", "b", "c")
  assert test.labels(0) == (2,)


@pytest.mark.parametrize(
  "names",
  [
    ["1", "2", "9", "10", "11", "100"],
    ["a1", "a2", "a10", "b1"],
    ["7", "70", "x", "x7", "x70"],
    ["cat", "dog", "zebra"],
    ["5²", "10²"],  # a digit to Unicode, but no number
  ],
)
def test_class_names_sort_as_people_count(tmp_path, names):
  root = _fill(tmp_path, *(f"{name}/x.wav" for name in reversed(names)))
  assert recordings.Folder(data_dir=root).class_names == tuple(names)


# --- csv --------------------------------------------------------------------


def test_a_table_of_several_labels(tmp_path):
  source = _csv(
    tmp_path,
    "path,labels\n"
    'b.wav,"dog, cat"\n'
    "a.wav,cow\n"
    '"name, with comma.wav","cat,cat"\n'
    "\n"
    'c.wav, "10,9"\r\n',
  )
  assert source.class_names == ("9", "10", "cat", "cow", "dog")
  assert _contents(source) == [
    ("b.wav", ("cat", "dog")),
    ("a.wav", ("cow",)),
    ("name, with comma.wav", ("cat",)),
    ("c.wav", ("9", "10")),
  ]


@pytest.mark.parametrize("separator", [",", ";", "|", " "])
def test_any_separator(tmp_path, separator):
  text = f'path,labels\na.wav,"b{separator}a"\n'
  source = _csv(tmp_path, text, label_separator=separator)
  assert _contents(source) == [("a.wav", ("a", "b"))]


def test_no_separator_keeps_a_label_whole(tmp_path):
  source = _csv(
    tmp_path, 'path,label\na.wav,"Male speech, man"\n', label_separator=""
  )
  assert source.class_names == ("Male speech, man",)


def test_splits_and_folds_of_a_table(tmp_path):
  text = (
    "fold,label,path,split,notes\n"
    "1,a,1.wav,train,x\n"
    "2,b,2.wav,train,\n"
    "1,c,3.wav,test,y\n"
  )
  assert len(_csv(tmp_path, text)) == 3
  train = _csv(tmp_path, text, split="train")
  assert [n for n, _ in _contents(train)] == ["1.wav", "2.wav"]
  assert train.class_names == ("a", "b", "c")
  both = _csv(tmp_path, text, split="train", folds=("2",))
  assert _contents(both) == [("2.wav", ("b",))]


def test_folds_may_be_numbers_in_a_config(tmp_path):
  text = "path,label,fold\n1.wav,a,1\n2.wav,a,2\n"
  name = _write(tmp_path, text)
  source = sources.build(
    "csv",
    "config.input",
    {"csv": name},
    data_dir=str(tmp_path),
    split="",
    folds=(2,),
  )
  assert _contents(source) == [("2.wav", ("a",))]


def test_absolute_paths(tmp_path):
  audio = np.array([0.5, -0.5], np.float32)
  far = tmp_path / "far" / "x.wav"
  far.parent.mkdir()
  soundfile.write(far, audio, 8000)
  (tmp_path / "near").mkdir()
  table = tmp_path / "table.csv"
  table.write_text(f"path,label\n{far},a\n")
  source = recordings.Csv(data_dir=str(tmp_path / "near"), csv=str(table))
  assert source.name(0) == str(far)
  np.testing.assert_array_equal(source.read(0)[0], audio)


def test_a_table_that_a_spreadsheet_saved(tmp_path):
  """Excel writes a byte order mark, and lines end in CRLF."""
  data = b"\xef\xbb\xbf" + "path,labels\r\né.wav,Grüße\r\n".encode()
  assert _contents(_csv(tmp_path, data)) == [("é.wav", ("Grüße",))]


def test_paths_and_label_list_are_relative_to_the_data(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path.parent)
  _write(tmp_path, "dog\ncat\n", "classes.txt")
  source = _csv(tmp_path, "path,labels\na.wav,cat\n", label_list="classes.txt")
  assert source.class_names == ("dog", "cat")
  assert source.labels(0) == (1,)


# --- label lists ------------------------------------------------------------

AUDIOSET = (
  "index,mid,display_name\n"
  '0,/m/09x0r,"Speech"\n'
  '1,/m/05zppz,"Male speech, man speaking"\n'
  "2,/m/0bt9lr,Dog\n"
)


def test_audioset_format_takes_names_and_mids(tmp_path):
  _write(tmp_path, AUDIOSET, "labels.csv")
  source = _csv(
    tmp_path,
    'path,labels\na.wav,"/m/0bt9lr,/m/09x0r"\nb.wav,Dog\nc.wav,/m/05zppz\n',
    label_list="labels.csv",
  )
  assert source.class_names == ("Speech", "Male speech, man speaking", "Dog")
  assert [source.labels(i) for i in range(3)] == [(0, 2), (2,), (1,)]


def test_plain_text_gives_the_order(tmp_path):
  path = tmp_path / "classes.txt"
  path.write_text("  zebra \n\ncat\r\nMale speech, man\n")
  names, aliases = tables.read_label_list(str(path))
  assert names == ["zebra", "cat", "Male speech, man"]
  assert aliases == {"zebra": 0, "cat": 1, "Male speech, man": 2}


def test_classes_of_a_list_that_do_not_occur_keep_their_place(tmp_path):
  root = _fill(tmp_path / "data", "dog/a.wav")
  path = tmp_path / "classes.txt"
  path.write_text("ant\nbee\ndog\neel\n")
  source = recordings.Folder(data_dir=root, label_list=str(path))
  assert source.class_names == ("ant", "bee", "dog", "eel")
  assert source.labels(0) == (2,)


@pytest.mark.parametrize("text", ["dog\ncat\n", AUDIOSET])
def test_a_byte_order_mark_is_no_part_of_a_list(tmp_path, text):
  path = tmp_path / "classes"
  path.write_text(text)
  want = tables.read_label_list(str(path))
  path.write_bytes(b"\xef\xbb\xbf" + text.encode())
  assert tables.read_label_list(str(path)) == want


BAD_LISTS = {
  "empty": ("", ["lists no classes"]),
  "blank lines": ("\n\n", ["lists no classes"]),
  "header only": ("index,mid,display_name\n", ["lists no classes"]),
  "name twice": ("dog\ncat\ndog\n", ["'dog'", "twice"]),
  "display name twice": (
    "index,mid,display_name\n0,/m/1,a\n1,/m/2,a\n",
    ["'a'", "twice"],
  ),
  "mid twice": (
    "index,mid,display_name\n0,/m/1,a\n1,/m/1,b\n",
    ["'/m/1'", "twice"],
  ),
  "gap": (
    "index,mid,display_name\n0,/m/1,a\n2,/m/2,b\n",
    ["line 3", "index 1", "'2'"],
  ),
  "from one": (
    "index,mid,display_name\n1,/m/1,a\n",
    ["line 2", "index 0", "'1'"],
  ),
  "no index": ("mid,display_name\n/m/1,a\n", ["index"]),
  "short row": ("index,mid,display_name\n0,/m/1\n", ["line 2"]),
  "UTF-16": (b"\xff\xfed\x00o\x00g\x00\n\x00", []),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_bad_label_list_is_refused(tmp_path, case):
  text, parts = BAD_LISTS[case]
  path = str(tmp_path / _write(tmp_path, text, "classes"))
  _refused(tables.read_label_list, path, *parts, path=path)


# --- errors -----------------------------------------------------------------


def test_a_data_directory_must_exist(tmp_path):
  name = _write(tmp_path, "x")
  makers = [
    lambda d: recordings.Folder(data_dir=d),
    lambda d: recordings.Filenames(data_dir=d, pattern=DIGITS),
    lambda d: recordings.Csv(data_dir=d, csv="x.csv"),
  ]
  for make in makers:
    for path in ("", str(tmp_path / "gone"), str(tmp_path / name)):
      said = f"no data directory {path!r}"
      _refused(lambda: make(path), said, "data_dir=FOLDER")  # noqa: B023


@pytest.mark.parametrize("names", [(), ("a.txt", "b/c.png")])
def test_a_folder_without_recordings_is_refused(tmp_path, names):
  root = _fill(tmp_path, *names)
  _refused(recordings.Folder, "no recordings", root, ".wav", data_dir=root)


@pytest.mark.parametrize(
  ("given", "parts"),
  [
    ({"pattern": "("}, ["pattern='('", "not a regular expression"]),
    ({"pattern": "(?P<label>x"}, ["not a regular expression"]),
    (
      {"pattern": "(?P<label>zzz)"},
      ["(?P<label>zzz)", "none of the 24 recordings", "'0_ann_0.wav'"],
    ),
    (
      {"pattern": DIGITS, "splits": {"a": "["}},
      ["splits.a='['", "not a regular expression"],
    ),
    # An optional group that took no part gives no name of a class.
    ({"pattern": r"(?P<label>x)?_ann"}, ["label", "'0_ann_0.wav'"]),
  ],
)
def test_bad_patterns_are_refused(digits, given, parts):
  _refused(recordings.Filenames, *parts, data_dir=digits, **given)


def test_unknown_splits_and_folds_name_the_existing_ones(digits, tmp_path):
  given = {
    "data_dir": digits,
    "pattern": DIGITS,
    "splits": {"test": r"_0\.wav$", "train": r"_1\.wav$"},
  }
  _refused(
    recordings.Filenames,
    *("split 'val'", "test (8)", "train (8)", "(none) (8)"),
    split="val",
    **given,
  )
  _refused(
    recordings.Filenames,
    *("fold 'eve'", "ann (12)", "bob (12)"),
    folds=("ann", "eve"),
    **given,
  )
  _refused(
    recordings.Filenames,
    *("fold '1'", "(none) (1)"),
    data_dir=_fill(tmp_path / "y", "a.wav"),
    pattern="(?P<label>a)",
    folds=("1",),
  )


def test_a_fold_that_stands_in_another_split_is_not_called_missing(tmp_path):
  text = "path,label,split,fold\na.wav,a,train,1\nb.wav,a,test,2\n"
  said = _refused(
    _csv, "fold '2'", root=tmp_path, text=text, split="train", folds=("2",)
  )
  assert "train" in said  # it is the split that lacks this fold


@pytest.mark.parametrize(
  ("listed", "label", "nearest"),
  [
    ("cat\ndog\nhorse\n", "doog", "dog"),
    (AUDIOSET, "Doog", "Dog"),
    (AUDIOSET, "Speach", "Speech"),
  ],
)
def test_a_label_that_is_not_listed_names_the_nearest(
  tmp_path, listed, label, nearest
):
  path = tmp_path / _write(tmp_path, listed, "classes")
  _refused(
    recordings.Folder,
    f"label {label!r} of {label}/a.wav is not in the label list",
    f"Did you mean {nearest!r}",
    data_dir=_fill(tmp_path / "data", f"{label}/a.wav"),
    label_list=str(path),
  )


def test_a_long_label_list_still_gives_a_short_line(tmp_path):
  path = tmp_path / "classes.txt"
  path.write_text("".join(f"class number {i}\n" for i in range(2000)))
  root = _fill(tmp_path / "data", "clas number 7/a.wav")
  said = _refused(recordings.Folder, data_dir=root, label_list=str(path))
  assert "Did you mean 'class number 7'" in said
  assert len(said) < 600


def test_a_missing_label_list_is_named(tmp_path):
  root = _fill(tmp_path, "a/a.wav")
  gone = str(tmp_path / "gone.txt")
  _refused(
    recordings.Folder,
    *("label_list", gone, "does not exist"),
    data_dir=root,
    label_list=gone,
  )


BAD_TABLES = {
  "empty": ("", ["lists no recordings"]),
  "header only": ("path,labels\n", ["lists no recordings"]),
  "no path column": (
    "file,labels\na.wav,x\n",
    ["no column 'path'", "columns: file, labels"],
  ),
  "semicolons": (
    "path;labels\na.wav;x\n",
    ["no column", "columns: path;labels"],
  ),
  "no path": ("path,labels\na.wav,x\n,x\n", ["line 3", "no path"]),
  "no label": ("path,labels\na.wav,\n", ["line 2", "no label"]),
  "separators only": ('path,labels\na.wav," , "\n', ["line 2", "no label"]),
  "short row": ("path,labels\na.wav\n", ["line 2", "no label"]),
  # Unquoted labels run over the columns; none may be lost in silence.
  "long row": ("path,labels\na.wav,dog,cat\n", ["line 2"]),
  "a sound": (b"RIFF\x00\xff\xfe\x80data\n\xff\xff\n", ["not a CSV file"]),
  "bytes": (bytes(range(256)) * 9, ["not a CSV file"]),
  "huge cell": (b"path,labels\na," + b"x" * 200_000, ["not a CSV file"]),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_refused(tmp_path, case):
  text, parts = BAD_TABLES[case]
  _refused(_csv, "list.csv", *parts, root=tmp_path, text=text)


def test_a_missing_table_is_named(tmp_path):
  _refused(
    recordings.Csv,
    *("source_kw.csv", str(tmp_path / "gone.csv"), "does not exist"),
    data_dir=str(tmp_path),
    csv="gone.csv",
  )


@pytest.mark.parametrize(
  ("name", "given", "parts"),
  [
    ("foldr", {}, ["config.input.source 'foldr'", "'folder'", "synthetic"]),
    (
      "filenames",
      {"patern": "x"},
      ["'patern'", "config.input.source_kw", "'pattern'"],
    ),
    ("folder", {"pattern": r"(\d)_"}, ["(?P<label>...)", "'filenames'"]),
    ("filenames", {"pattern": 3}, ["pattern=3", "expected str"]),
    ("folder", {"splits": "x"}, ["splits='x'"]),
    ("folder", {"splits": {"a": 3}}, ["splits", "3"]),
    ("csv", {}, ["'csv'"]),
    ("synthetic", {"num_example": 3}, ["'num_example'", "'num_examples'"]),
    ("synthetic", {"num_examples": 0}, ["num_examples=0"]),
  ],
)
def test_wrong_arguments_are_refused(digits, name, given, parts):
  _refused(
    lambda: sources.build(
      name, "config.input", given, data_dir=digits, split="", folds=()
    ),
    *parts,
  )


# --- fingerprint ------------------------------------------------------------


def test_the_fingerprint_knows_names_labels_and_classes(tmp_path):
  base = "path,labels\na.wav,dog\nb.wav,cat\n"
  _write(tmp_path, "dog\ncat\n", "x.txt")
  _write(tmp_path, "cat\ndog\n", "y.txt")
  _write(tmp_path, "cat\ndog\ncow\n", "z.txt")
  seen = [
    fingerprint(_csv(tmp_path, text, **given))
    for text, given in [
      (base, {}),
      (base.replace("a.wav", "c.wav"), {}),
      (base.replace("a.wav,dog", "a.wav,cat"), {}),
      (base.replace("dog", "cow"), {}),
      (base.replace("cat", '"cat,dog"'), {}),
      (base + "c.wav,cat\n", {}),
      ("path,labels\nb.wav,cat\na.wav,dog\n", {}),
      (base, {"label_list": "x.txt"}),
      (base, {"label_list": "z.txt"}),
    ]
  ]
  assert len(set(seen)) == len(seen)
  same = fingerprint(_csv(tmp_path, base, label_list="y.txt"))
  assert same == seen[0]
  assert fingerprint(_csv(tmp_path, base)) == seen[0]


def test_the_fingerprint_stays_when_the_data_moves(tmp_path, digits):
  before = recordings.Filenames(data_dir=digits, pattern=DIGITS)
  moved = shutil.copytree(digits, tmp_path / "moved" / "there")
  after = recordings.Filenames(data_dir=str(moved), pattern=DIGITS)
  assert fingerprint(after) == fingerprint(before)


def test_the_fingerprint_knows_the_split(digits):
  given = {"data_dir": digits, "pattern": DIGITS}
  parts = [recordings.Filenames(folds=(f,), **given) for f in ("ann", "bob")]
  prints = {fingerprint(s) for s in parts}
  prints.add(fingerprint(recordings.Filenames(**given)))
  assert len(prints) == 3


def test_holdout_is_a_function_of_the_path(tmp_path):
  for i in range(200):
    path = tmp_path / ("dog", "cat")[i % 2] / f"{i}.wav"
    path.parent.mkdir(exist_ok=True)
    path.touch()
  names = {
    split: {
      source.name(i)
      for source in [
        recordings.Folder(data_dir=str(tmp_path), split=split, holdout=0.2)
      ]
      for i in range(len(source))
    }
    for split in ("train", "val")
  }
  assert not names["train"] & names["val"]
  assert len(names["train"] | names["val"]) == 200
  assert 20 <= len(names["val"]) <= 60
  (tmp_path / "dog" / "new.wav").touch()
  again = recordings.Folder(data_dir=str(tmp_path), split="val", holdout=0.2)
  now = {again.name(i) for i in range(len(again))}
  assert now - {"dog/new.wav"} == names["val"]
  with pytest.raises(UserError, match="holdout"):
    sources.build("folder", "x", {"holdout": 1.5}, data_dir=str(tmp_path))


# --- without labels ---------------------------------------------------------


def test_all_recordings_below_a_folder(tmp_path):
  root = _fill(tmp_path, "b.wav", "a/x.flac", "a/deep/y.mp3", "a/z.txt")
  source = recordings.Filenames(data_dir=root)
  assert source.class_names == ()
  assert _contents(source) == [
    ("b.wav", ()),
    ("a/x.flac", ()),
    ("a/deep/y.mp3", ()),
  ]
  labelled = recordings.Filenames(data_dir=root, pattern="(?P<label>.)")
  assert fingerprint(source) != fingerprint(labelled)


def test_splits_and_folds_without_labels(digits, tmp_path):
  given = {"data_dir": digits, "pattern": r"_(?P<fold>[a-z]+)_(?P<split>\d)"}
  assert len(recordings.Filenames(folds=("ann",), split="1", **given)) == 4
  rules = {"data_dir": digits, "splits": {"few": "ann_0", "rest": "."}}
  assert len(recordings.Filenames(split="few", **rules)) == 4
  (tmp_path / "few.txt").write_text("0_ann_0.wav\n")
  lists = {
    "data_dir": digits,
    "split_lists": {"few": str(tmp_path / "few.txt")},
  }
  assert len(recordings.Filenames(split="few", **lists)) == 1
  assert len(recordings.Filenames(split="train", **lists)) == 23
  held = [
    recordings.Filenames(data_dir=digits, holdout=0.3, split=split)
    for split in ("train", "val")
  ]
  assert sum(map(len, held)) == 24 and min(map(len, held)) > 0


def test_a_table_without_labels(tmp_path):
  text = "path,split,fold\na.wav,train,1\nb.wav,train,2\nc.wav,val,1\n"
  source = _csv(tmp_path, text, split="train", folds=("1",))
  assert source.class_names == () and _contents(source) == [("a.wav", ())]
  _refused(
    lambda: _csv(tmp_path, text, columns={"labels": "category"}),
    *("no column 'category'", "path, split, fold"),
  )


def test_labels_that_nothing_has(tmp_path):
  """A list of labels says that there should be some."""
  (tmp_path / "names.txt").write_text("x\ny\n")
  _refused(
    lambda: _csv(tmp_path, "path,mids\na.wav,x\n", label_list="names.txt"),
    *("label_list='names.txt'", "have no labels", "column 'labels'"),
  )
  root = _fill(tmp_path / "sounds", "x/a.wav")
  _refused(
    lambda: recordings.Filenames(
      data_dir=root, label_list=str(tmp_path / "names.txt")
    ),
    *("have no labels", "(?P<label>...)"),
  )


def test_a_part_without_labels(tmp_path):
  bare = recordings.Filenames(data_dir=_fill(tmp_path / "a", "1.wav"))
  named = recordings.Folder(data_dir=_fill(tmp_path / "b", "x/1.wav"))
  both = sources.Several(
    sources=(
      {"source": "folder", "data_dir": str(named.root)},
      {"source": "filenames", "data_dir": str(bare.root)},
    )
  )
  check_labelled(named, "train")
  for part in (bare, both):
    _refused(
      lambda part=part: check_labelled(part, "train"),
      *("train has no labels (1.wav, ...)", "column 'labels'"),
    )


def test_splits_are_said_once(digits):
  both = {"splits": {"a": "x"}, "split_lists": {"b": "y"}}
  _refused(
    lambda: recordings.Filenames(data_dir=digits, **both),
    *("says the splits twice", "splits and split_lists"),
  )
  _refused(
    lambda: recordings.Filenames(
      data_dir=digits, pattern="(?P<split>.)", split_table="x"
    ),
    *("split_table and a group 'split'",),
  )


# --- other classes, splits in one table -------------------------------------


WORDS = {"yes": "yes", "_noise_": "_silence_", "*": "_unknown_"}


def test_labels_become_other_classes(tmp_path):
  root = _fill(tmp_path, "yes/a.wav", "bed/b.wav", "cat/c.wav", "_noise_/d.wav")
  source = recordings.Folder(data_dir=root, label_map=WORDS)
  assert source.class_names == ("_silence_", "_unknown_", "yes")
  assert dict(_contents(source)) == {
    "yes/a.wav": ("yes",),
    "bed/b.wav": ("_unknown_",),
    "cat/c.wav": ("_unknown_",),
    "_noise_/d.wav": ("_silence_",),
  }
  text = 'path,labels\na.wav,"exc,fru"\nb.wav,hap\n'
  table = _csv(tmp_path, text, label_map={"exc": "hap"})
  assert _contents(table) == [("a.wav", ("fru", "hap")), ("b.wav", ("hap",))]
  _refused(
    lambda: _csv(tmp_path, text, label_map={"ecx": "hap"}),
    *("no recording has the label 'ecx'", "Did you mean 'exc'"),
  )
  _csv(tmp_path, text, label_map={"sad": "sad"})  # it stays as it is


def test_splits_in_one_table(tmp_path):
  root = _fill(tmp_path, *(f"id{i}/x/1.wav" for i in range(4)))
  given = {"data_dir": root, "pattern": "^(?P<label>[^/]+)/"}
  name = _write(tmp_path, "1 id0/x/1.wav\n2\tid1/x/1.wav\n\n3 gone.wav\n")
  for split, label in {"1": "id0", "2": "id1"}.items():
    source = recordings.Folder(split=split, split_table=name, **given)
    assert _contents(source) == [(f"{label}/x/1.wav", (label,))]
    assert len(source.class_names) == 4
  assert len(recordings.Folder(split_table=name, **given)) == 4
  _refused(
    lambda: recordings.Folder(split="3", split_table=name, **given),
    *("split '3'", "1 (1)", "2 (1)", "(none) (2)"),
  )
  for text, part in {
    "x": "'x' is not a split and a path",
    "1 id0/x/1.wav\n2 id0/x/1.wav\n": "is in '1' and in '2'",
    "": "lists no",
  }.items():
    _write(tmp_path, text)
    _refused(lambda: recordings.Folder(split_table=name, **given), part)
