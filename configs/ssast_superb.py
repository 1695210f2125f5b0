r"""SSAST on three SUPERB tasks (arXiv 2110.09784, tables 1 and 4), fine-tuned.

`:ks` keyword spotting, `:sid` speaker identification, `:er` emotions, from
SSAST-Base-Frame-400; `:ks_patch`, `:sid_patch`, `:er_patch` from
SSAST-Base-Patch-400. Both are fetched. The classifier reads a learned mean of
all blocks, as in SUPERB.

Command: python -m astjax.main --config=configs/ssast_superb.py:ks \
  --config.input.data_dir=FOLDER --workdir=runs/ks

ks, Speech Commands V1: unpack speech_commands_v0.01.tar.gz into FOLDER and
speech_commands_test_set_v0.01.tar.gz into FOLDER/test. Other words than the ten
are _unknown_, pieces of _background_noise_ are _silence_. Unlike s3prl's, the
validation is on the list as it is, without silence, and no recording is made
3 dB quieter.
In all three the mean over tokens includes padding, which s3prl cuts off.
sid, VoxCeleb1: FOLDER has one folder per speaker, id10001 to id11251 (the
folders wav/ of both archives together), and VoxCeleb's iden_split.txt, whose
lines begin with 1 (training), 2 (validation) or 3 (test).
er, IEMOCAP: make a table in IEMOCAP_full_release, once:
  (echo path,labels,fold; awk -F'\t' '/^\[/ && $3 ~ /^(neu|hap|exc|sad|ang)$/ {
    s = substr($2, 5, 1); d = $2; sub(/_[^_]*$/, "", d)
    print "Session" s "/sentences/wav/" d "/" $2 ".wav," $3 "," s}' \
    Session?/dialog/EmoEvaluation/*.txt) > iemocap.csv
Excited (exc) counts as happy, as in SUPERB. A fifth of the training sessions,
by a digest of the path (s3prl draws it), is for validation. All five sessions:
  python -m astjax.tools.folds --config=configs/ssast_superb.py:er \
    --config.input.data_dir=IEMOCAP_full_release --workdir=runs/er

Expected: the paper reports, for frames and patches, ks 96.7 and 96.0 %, sid
80.8 and 64.2 %, er 60.5 and 59.6 % accuracy. Not measured here.
Hardware: not measured here.
"""

from ml_collections import ConfigDict

STANDARDIZE = "standardize(-4.2677393, 4.5689974)"
MODELS = {
  "frame": {
    "init_from": "SSAST-Base-Frame-400",
    "patch_size": (128, 2),
    "stride": (128, 1),
  },
  "patch": {
    "init_from": "SSAST-Base-Patch-400",
    "patch_size": (16, 16),
    "stride": (10, 10),
  },
}

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
KEYWORDS = dict(zip(WORDS, WORDS, strict=True)) | {"*": "_unknown_"}

# Batches are 32 in all three; of 1 x 32 or, for long recordings, 8 x 4.
RECIPES = {
  "ks": {
    "frames": 100,
    "steps": 20_000,
    "every": 500,
    "accumulate": 1,
    "crop": "random_crop(16_000)|",  # of the minutes of background noise
    "draw": "balanced",  # each class as often as the others
    "lr": {"frame": 5e-5, "patch": 1e-4},
    "train": {
      "source": "folder",
      "split": "train",
      "source_kw": {
        "pattern": r"^(?P<label>[^/]+)/[^/]+$",
        "split_lists": {
          "val": "validation_list.txt",
          "test": "testing_list.txt",
        },
        "label_map": KEYWORDS | {"_background_noise_": "_silence_"},
      },
    },
    "val": {"split": "val"},
    "test": {
      "split": "",
      "source_kw": {
        "pattern": r"^test/(?P<label>[^/]+)/",
        "label_map": KEYWORDS | {"_silence_": "_silence_"},
      },
    },
  },
  "sid": {
    "frames": 1000,
    "steps": 40_000,
    "every": 500,
    "accumulate": 8,
    "crop": "random_crop(128_000)|",
    "draw": "shuffle",
    "lr": {"frame": 1e-4, "patch": 1e-4},
    "train": {
      "source": "folder",
      "split": "1",
      "source_kw": {"split_table": "iden_split.txt"},
    },
    "val": {"split": "2"},
    "test": {"split": "3"},
  },
  "er": {
    "frames": 600,
    "steps": 10_000,
    "every": 200,
    "accumulate": 8,
    "crop": "",
    "draw": "shuffle",
    "lr": {"frame": 1e-4, "patch": 1e-4},
    "train": {
      "source": "csv",
      "split": "train",
      "folds": ("2", "3", "4", "5"),  # sessions
      "source_kw": {
        "csv": "iemocap.csv",
        "label_map": {"exc": "hap"},
        "holdout": 0.2,
      },
    },
    "val": {"split": "val"},
    "test": {"split": "", "folds": ("1",)},
  },
}


def get_config(arg: str = "ks") -> ConfigDict:
  """The recipe; `arg` is a key of `RECIPES`, alone or with "_patch"."""
  name = arg.removesuffix("_patch")
  if name not in RECIPES:
    known = ", ".join(f"{k}, {k}_patch" for k in RECIPES)
    raise ValueError(f"configs/ssast_superb.py takes {known}, got {arg!r}")
  kind = "frame" if name == arg else "patch"
  recipe, model = RECIPES[name], MODELS[kind]
  c = ConfigDict()
  c.seed = 0
  c.epochs = 0.0
  c.steps = recipe["steps"]  # updates of the weights
  c.accumulate = recipe["accumulate"]

  c.task = "supervised"
  c.task_kw = ConfigDict(
    {"loss": "softmax_xent", "pooling": "all", "projection": 256}
  )
  c.init_from = model["init_from"]
  c.init_kw = ConfigDict({"fresh": ("head/.*",)})
  c.model = ConfigDict(
    {
      "variant": "base384",
      "patch_size": model["patch_size"],
      "stride": model["stride"],
      "prefix": ("cls", "dist"),
      "dtype": "float32",
    }
  )

  c.input = ConfigDict(recipe["train"])
  c.input.data_dir = ""
  c.input.batch_size = 32
  c.input.draw = recipe["draw"]
  resample = "decode|resample(16_000)"
  rest = (
    f"fit(num_frames={recipe['frames']})|quantise|multi_hot"
    "|keep('audio', 'num_samples', 'label')"
  )
  c.input.on_host = f"{resample}|{recipe['crop']}{rest}"
  # Padding is 0 after standardising; no centring, no augmentation.
  c.input.on_device = f"to_float|fbank|{STANDARDIZE}|pad_frames"

  c.evals = ConfigDict()
  plain = {
    "on_host": f"{resample}|{rest}",
    "on_device": c.input.on_device,
    "batch_size": 32,
  }
  c.evals.val = ConfigDict(
    plain | recipe["val"] | {"every_steps": recipe["every"]}
  )
  c.evals.test = ConfigDict(plain | recipe["test"] | {"of_best": True})
  c.best = "val/accuracy"

  c.schedule = ConfigDict(
    {"lr": recipe["lr"][kind], "warmup": "none", "decay": "constant"}
  )
  # Torch's defaults, without decay.
  c.optim = ConfigDict(
    {
      "name": "adam",
      "b1": 0.9,
      "b2": 0.999,
      "weight_decay": 0.0,
      "clip_norm": 1.0,
    }
  )

  c.checkpoint = ConfigDict({"every_steps": 1000, "keep": 1})
  c.log = ConfigDict({"every_steps": 50, "tensorboard": True})
  return c
