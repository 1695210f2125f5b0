r"""AST on AudioSet (arXiv 2104.01778, table 1), from ImageNet weights.

`:full` (2M clips, 5 epochs) or `:balanced` (20k clips, 25 epochs).

Data: a folder with the clips, AudioSet's class_labels_indices.csv (columns
index, mid, display_name), and the tables full.csv, balanced.csv and eval.csv
with the columns path (below the folder) and labels (mids, separated by commas,
in quotes). Any rate and format; the paper's data is 16 kHz mono.
Command: python -m astjax.main --config=configs/ast_audioset.py:balanced \
  --config.input.data_dir=FOLDER --workdir=runs/audioset
Starts from DeiT, which is fetched (350 MB); --config.init_from= starts at
random, --config.init_from=FILE.pth from a file.
Expected: the paper reports mAP 0.459 (full) and 0.347 (balanced), without
ImageNet weights 0.366 and 0.148, for averaged weights (val/average_mAP); the
published log has 0.4647 for averaged scores (val/ensemble_mAP, full). Not
measured here. For the balanced set the original uses PSLA's enhanced labels.
Hardware: the paper used 4 GPUs of 12 GB for a week (full). Not measured here.
"""

from ml_collections import ConfigDict

CLASSES = 527
FRAMES = 1024  # 10 s are 998 frames; the rest is padding
STANDARDIZE = "standardize(-4.2677393, 4.5689974)"

# What differs between the two, as in the original's scripts.
RECIPES = {
  "full": {
    "csv": "full.csv",
    "draw": "balanced",
    "lr": 1e-5,
    "epochs": 5.0,
    "average": {"first_epoch": 1, "last_epoch": 5},
    "decay": {"decay_start": 2, "decay_every": 1, "decay_factor": 0.5},
  },
  "balanced": {
    "csv": "balanced.csv",
    "draw": "shuffle",
    "lr": 5e-5,
    "epochs": 25.0,
    "average": {"first_epoch": 6, "last_epoch": 25},
    "decay": {"decay_start": 10, "decay_every": 5, "decay_factor": 0.5},
  },
}


def get_config(arg: str = "full") -> ConfigDict:
  """The recipe; `arg` is a key of `RECIPES`."""
  if arg not in RECIPES:
    raise ValueError(
      f"configs/ast_audioset.py takes {' or '.join(RECIPES)}, got {arg!r}"
    )
  recipe = RECIPES[arg]
  c = ConfigDict()
  c.seed = 0
  c.epochs = recipe["epochs"]
  c.steps = 0

  c.task = "supervised"
  c.task_kw = ConfigDict({"loss": "bce", "pooling": "prefix"})
  # Rows of an image become frequency; the classifier is new.
  c.init_from = "deit_base_distilled_patch16_384"
  c.init_kw = ConfigDict({"fresh": ("head/.*",), "rows": "frequency"})
  c.model = ConfigDict(
    {
      "variant": "base384",
      "patch_size": (16, 16),
      "stride": (10, 10),
      "prefix": ("cls", "dist"),
      "remat": False,
      # The original computes in float16 with loss scaling; bfloat16 needs none.
      "dtype": "bfloat16",
    }
  )

  c.input = ConfigDict()
  c.input.source = "csv"
  c.input.source_kw = ConfigDict(
    {"csv": recipe["csv"], "label_list": "class_labels_indices.csv"}
  )
  c.input.data_dir = ""
  c.input.split = ""
  c.input.batch_size = 12
  c.input.draw = recipe["draw"]
  resample = "decode|resample(16_000)"
  rest = (
    f"fit(num_frames={FRAMES})|quantise|multi_hot({CLASSES})"
    "|keep('audio', 'num_samples', 'label')"
  )
  c.input.on_host = f"{resample}|mix(0.5)|{rest}"
  c.input.on_device = (
    "to_float|center|fbank|pad_frames|freq_mask(48)|time_mask(192)"
    f"|{STANDARDIZE}"
  )

  c.evals = ConfigDict()
  c.evals.val = ConfigDict(
    {
      "source_kw": {
        "csv": "eval.csv",
        "label_list": "class_labels_indices.csv",
      },
      "batch_size": 24,
      "on_host": f"{resample}|{rest}",
      "on_device": f"to_float|center|fbank|pad_frames|{STANDARDIZE}",
      "every_epochs": 1.0,
    }
  )
  c.best = "val/mAP"
  c.average = ConfigDict(recipe["average"])
  c.ensemble_predictions = True

  # The rate rises in plateaus of 50 steps over the first 1,000.
  c.schedule = ConfigDict(
    {
      "lr": recipe["lr"],
      "warmup": "stepped",
      "warmup_steps": 1000,
      "decay": "multistep",
      **recipe["decay"],
    }
  )
  # Coupled L2 on every parameter; no clipping.
  c.optim = ConfigDict(
    {
      "name": "adam",
      "b1": 0.95,
      "b2": 0.999,
      "eps": 1e-8,
      "weight_decay": 5e-7,
    }
  )

  c.checkpoint = ConfigDict({"every_steps": 5000, "keep": 3})
  c.log = ConfigDict({"every_steps": 100, "tensorboard": True})
  return c
