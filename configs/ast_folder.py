r"""Your own recordings, one folder per class.

  sounds/dog/1.wav  sounds/dog/2.flac  sounds/cat/1.mp3  ...

Any format, rate and number of channels. A fifth of the recordings, chosen by a
digest of their path, is held out as the split "val".
Command: python -m astjax.main --config=configs/ast_folder.py \
  --config.input.data_dir=sounds --workdir=runs/sounds
`ast_folder.py` trains a small model from random initialisation, on a laptop;
`ast_folder.py:audioset` fine-tunes the published AudioSet model (base384),
which wants a GPU (its rate, decay and masks are those of the original's ESC-50
recipe). ssast_folder.py pre-trains on recordings without labels first.
Longer clips: change SECONDS. Several labels per recording: see the source "csv"
in docs/data.md and set task_kw.loss to "bce".
Expected: depends on the recordings; from random initialisation a transformer
wants hundreds of them per class, fine-tuned a few dozen. Not measured here.
"""

from ml_collections import ConfigDict

SECONDS = 5.0
FRAMES = round(100 * SECONDS)
FRONT_END = "to_float|center|fbank|pad_frames"
# AudioSet's statistics, which suit 16 kHz recordings of everyday sounds.
STANDARDIZE = "standardize(-4.2677393, 4.5689974)"


RECIPES = {
  "scratch": {
    "init_from": "",
    "epochs": 60.0,
    "model": {
      "variant": "tiny224",
      "depth": 6,
      "patch_size": (16, 16),
      "stride": (16, 16),
      "drop_path": 0.1,
    },
    # The original's advice for new data: 48 mel bins, a fifth of the frames.
    "masks": f"freq_mask(48)|time_mask({FRAMES // 5})",
    "schedule": {
      "lr": 5e-4,
      "decay": "cosine",
      "warmup": "linear",
      "warmup_steps": 200,
    },
    "optim": {"name": "adamw", "b1": 0.9, "b2": 0.98, "weight_decay": 0.05},
  },
  "audioset": {
    # Its positions are cut to the length of the clips; the classifier is new.
    "init_from": "audioset_10_10_0.4593",
    "epochs": 25.0,
    "model": {
      "variant": "base384",
      "patch_size": (16, 16),
      "stride": (10, 10),
      "dtype": "bfloat16",
    },
    "masks": f"freq_mask(24)|time_mask({FRAMES // 5})",
    "schedule": {
      "lr": 1e-5,
      "decay": "multistep",
      "decay_start": 5,
      "decay_every": 1,
      "decay_factor": 0.85,
      "warmup": "none",
    },
    "optim": {"name": "adam", "b1": 0.95, "b2": 0.999, "weight_decay": 5e-7},
  },
}


def get_config(arg: str = "scratch") -> ConfigDict:
  """The config; `arg` is a key of `RECIPES`."""
  if arg not in RECIPES:
    raise ValueError(
      f"configs/ast_folder.py takes {' or '.join(RECIPES)}, got {arg!r}"
    )
  recipe = RECIPES[arg]
  c = ConfigDict()
  c.seed = 0
  c.epochs = recipe["epochs"]
  c.steps = 0

  c.task = "supervised"
  # "tokens" for weights of an SSAST.
  c.task_kw = ConfigDict({"loss": "softmax_xent", "pooling": "prefix"})
  c.init_from = recipe["init_from"]
  c.init_kw = ConfigDict({"fresh": ("head/.*",), "rows": "frequency"})
  c.model = ConfigDict(recipe["model"])

  c.input = ConfigDict()
  c.input.source = "folder"
  c.input.source_kw = ConfigDict({"holdout": 0.2})
  c.input.data_dir = ""
  c.input.split = "train"
  c.input.batch_size = 32
  c.input.on_host = (
    f"decode|resample(16_000)|fit(num_frames={FRAMES})|quantise|multi_hot"
    "|keep('audio', 'num_samples', 'label')"
  )
  c.input.on_device = f"{FRONT_END}|{recipe['masks']}|{STANDARDIZE}"

  c.evals = ConfigDict()
  c.evals.val = ConfigDict(
    {
      "split": "val",
      "on_device": f"{FRONT_END}|{STANDARDIZE}",
      "every_epochs": 5.0,
    }
  )
  c.best = "val/accuracy"

  c.schedule = ConfigDict(recipe["schedule"])
  c.optim = ConfigDict(recipe["optim"])

  c.checkpoint = ConfigDict({"every_epochs": 5.0, "keep": 2})
  c.log = ConfigDict({"every_steps": 20, "tensorboard": True})
  return c
