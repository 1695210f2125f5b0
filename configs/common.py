"""Facts that several recipes share: data sets, front-ends, published models.

What a recipe chooses (rates, epochs, masks, batch sizes) stands in its own
file, which can be read beside its paper.
"""

# How the papers read sound: one channel, 16 kHz.
DECODE = "decode|resample(16_000)"
# What goes from the host to the device.
KEEP = "keep('audio', 'num_samples', 'label')"
# AST's log-mels: 128 bins every 10 ms. Missing frames of a short clip are 0.0
# before standardising, so afterwards they are not 0.
FRONT_END = "to_float|center|fbank|pad_frames"

# Mean and standard deviation of the log-mels, as published with AST; those of
# the digits were measured here.
AUDIOSET_STATS = "-4.2677393, 4.5689974"
ESC50_STATS = "-6.6268077, 5.358466"
SPEECHCOMMANDS_STATS = "-6.845978, 5.5654526"
DIGITS_STATS = "-6.726, 3.863"

# AST's, which SSAST has too: coupled L2 on every parameter, no clipping.
AST_ADAM = dict(name="adam", b1=0.95, b2=0.999, weight_decay=5e-7)
# ASiT's, whose output layer stands still during the first epoch.
ASIT_ADAMW = dict(
  name="adamw",
  b1=0.9,
  b2=0.999,
  weight_decay=0.04,
  no_decay=("(bias|scale)$",),
  clip_each=3.0,
  freeze_first=("projection/last",),
)

# Models to be fine-tuned: SSAST-Base-Patch-400 and SSAST-Base-Frame-400, and
# ASiT as in other people's code that uses its weights. They were pre-trained on
# patches (mel bins x frames) side by side and are fine-tuned on overlapping
# ones; the positions are fitted to the new grid.
_SSAST = dict(variant="base384", prefix=("cls", "dist"), dtype="float32")
SSAST = dict(
  patch=dict(_SSAST, patch_size=(16, 16), stride=(10, 10)),
  frame=dict(_SSAST, patch_size=(128, 2), stride=(128, 1)),
)
ASIT_MODEL = dict(
  variant="base224",
  patch_size=(16, 16),
  stride=(10, 10),
  prefix=("cls",),
  drop_path=0.1,
  dtype="bfloat16",  # there float16 with loss scaling; bfloat16 needs none
)

# What `config.input` says of each data set. Here fold 1 of ESC-50 is left for
# the test; tools/folds leaves each of the five in turn.
ESC50 = dict(
  source="csv",
  source_kw=dict(
    csv="meta/esc50.csv",
    columns=dict(path="filename", labels="category"),
    below="audio",
    label_separator="",
  ),
  data_dir="",
  split="",
  folds=("2", "3", "4", "5"),
)

# 35 words; a folder whose name begins with _ is none.
_LISTS = dict(val="validation_list.txt", test="testing_list.txt")
SPEECHCOMMANDS_V2 = dict(
  source="folder",
  source_kw=dict(pattern=r"^(?P<label>[^/_][^/]*)/", split_lists=_LISTS),
  data_dir="",
  split="train",
)

# 12 classes: ten words, others and silence. The test set has its own archive.
_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
_KEYWORDS = {word: word for word in _WORDS} | {"*": "_unknown_"}
SPEECHCOMMANDS_V1 = dict(
  source="folder",
  source_kw=dict(
    pattern=r"^(?P<label>[^/]+)/[^/]+$",
    split_lists=_LISTS,
    label_map=_KEYWORDS | {"_background_noise_": "_silence_"},
  ),
  data_dir="",
  split="train",
)
SPEECHCOMMANDS_V1_TEST = dict(
  source_kw=dict(
    pattern=r"^test/(?P<label>[^/]+)/",
    label_map=_KEYWORDS | {"_silence_": "_silence_"},
  ),
  split="",
)

# The splits are called 1 (training), 2 (validation) and 3 (test).
VOXCELEB1 = dict(
  source="folder",
  source_kw=dict(split_table="iden_split.txt"),
  data_dir="",
  split="1",
)

DIGITS_RATE = 8_000
DIGITS_MELS = 64
DIGITS_FRONT_END = (
  f"to_float|center|fbank(sample_rate={DIGITS_RATE}, "
  f"num_mel_bins={DIGITS_MELS})|pad_frames(sample_rate={DIGITS_RATE})"
)
# The same transformer in all recipes, so that they can be compared.
DIGITS_MODEL = dict(variant="tiny224", width=128, depth=4, num_heads=4)


def audioset(csv: str) -> dict:
  """AudioSet's clips that the table `csv` lists; all are in one split."""
  kw = dict(csv=csv, label_list="class_labels_indices.csv")
  return dict(source="csv", source_kw=kw, data_dir="", split="")


def digits(stage: str) -> dict:
  """The recordings of "pretrain" (unlabelled), "few" or "all"."""
  # Without a group (?P<label>...) there are no labels.
  label = "" if stage == "pretrain" else r"(?P<label>\d)_[^/]+"
  splits = dict(train=r"_([5-9]|\d\d)\.wav$")
  if stage == "few":
    splits = dict(few=r"_[56]\.wav$", train=r"_([789]|\d\d)\.wav$")
  splits |= dict(test=r"_[0-4]\.wav$")
  return dict(
    source="filenames",
    source_kw=dict(pattern=rf"{label}\.wav$", splits=splits),
    data_dir="",
    split="few" if stage == "few" else "train",
  )


def views_front_end(
  fbank: str, stats: str, num_frames: int, local_frames: int = 0
) -> str:
  """ASiT's log-mels of the views of a clip, and of local ones if it has them.

  What pads a view is taken for sound, as in the original.
  """
  parts = [("audio", "fbank", num_frames)]
  if local_frames:
    parts.append(("audio_local", "fbank_local", local_frames))
  return "|".join(
    f"to_float('{audio}')|center('{audio}', num_samples='')"
    f"|fbank({fbank}, audio='{audio}', out='{out}')"
    f"|cut_frames({frames}, '{out}')|standardize({stats}, '{out}')"
    for audio, out, frames in parts
  )


def choose(arg: str, recipes: dict[str, dict]) -> dict:
  """`recipes[arg]`, where `arg` is what follows the colon of --config."""
  if arg not in recipes:
    known = ", ".join(recipes)
    raise ValueError(f"this config takes one of {known}; got {arg!r}")
  return recipes[arg]


def no_argument(arg: str) -> None:
  """Refuses what follows the colon of --config."""
  if arg:
    raise ValueError(f"this config takes no argument, got {arg!r}")
