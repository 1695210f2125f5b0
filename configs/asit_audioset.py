r"""ASiT on AudioSet (arXiv 2211.13189), fine-tuned.

`:full` (2M clips, 5 epochs) or `:balanced` (20k clips, 25 epochs).

Data: as of configs/ast_audioset.py: a folder with the clips, AudioSet's
class_labels_indices.csv (columns index, mid, display_name), and the tables
full.csv, balanced.csv and eval.csv with the columns path (below the folder) and
labels (mids, separated by commas, in quotes).
Command: python -m astjax.main --config=configs/asit_audioset.py:balanced \
  --config.input.data_dir=FOLDER --config.init_from=checkpoint.pth \
  --workdir=runs/asit_audioset
Starts from a pre-trained ASiT: its authors' checkpoint.pth (fetched by hand),
or the work directory of a pre-training. Without init_from it starts at random.
Expected: two later papers quote mAP 0.480 (full) and 0.386 (balanced). Not
measured here. ASiT's fine-tuning is "adopted from AST" and was not published:
values marked [AST] are AST's; model and start are those of other people's code
that uses its weights.
Hardware: not published, not measured here.
"""

from ml_collections import ConfigDict

CLASSES = 527
FRAMES = 1024  # 10 s are 998 frames; the rest is padding
STANDARDIZE = "standardize(-4.2677393, 4.5689974)"

# [AST], all of it.
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
      f"configs/asit_audioset.py takes {' or '.join(RECIPES)}, got {arg!r}"
    )
  recipe = RECIPES[arg]
  c = ConfigDict()
  c.seed = 0
  c.epochs = recipe["epochs"]
  c.steps = 0

  c.task = "supervised"
  # The prefix is the class token alone.
  c.task_kw = ConfigDict({"loss": "bce", "pooling": "prefix"})
  c.init_from = ""
  c.init_kw = ConfigDict({"fresh": ("head/.*",), "network": "teacher"})
  # Pre-trained without overlap; positions are interpolated to the new grid.
  c.model = ConfigDict(
    {
      "variant": "base224",
      "patch_size": (16, 16),
      "stride": (10, 10),
      "prefix": ("cls",),
      "drop_path": 0.1,
      # There float16 with loss scaling; bfloat16 needs none.
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
  c.input.batch_size = 12  # [AST]
  c.input.draw = recipe["draw"]
  resample = "decode|resample(16_000)"
  rest = (
    f"fit(num_frames={FRAMES})|quantise|multi_hot({CLASSES})"
    "|keep('audio', 'num_samples', 'label')"
  )
  # The front-end is that of the start; mixing and masks are [AST].
  c.input.on_host = f"{resample}|mix(0.5)|{rest}"
  front_end = "to_float|center|fbank|pad_frames"
  c.input.on_device = f"{front_end}|freq_mask(48)|time_mask(192)|{STANDARDIZE}"

  c.evals = ConfigDict()
  c.evals.val = ConfigDict(
    {
      "source_kw": {
        "csv": "eval.csv",
        "label_list": "class_labels_indices.csv",
      },
      "batch_size": 24,
      "on_host": f"{resample}|{rest}",
      "on_device": f"{front_end}|{STANDARDIZE}",
      "every_epochs": 1.0,
    }
  )
  c.best = "val/mAP"
  c.average = ConfigDict(recipe["average"])
  c.ensemble_predictions = True

  # [AST]: plateaus of 50 steps over the first 1,000.
  c.schedule = ConfigDict(
    {
      "lr": recipe["lr"],
      "warmup": "stepped",
      "warmup_steps": 1000,
      "decay": "multistep",
      **recipe["decay"],
    }
  )
  # [AST]
  c.optim = ConfigDict(
    {"name": "adam", "b1": 0.95, "b2": 0.999, "weight_decay": 5e-7}
  )

  c.checkpoint = ConfigDict({"every_steps": 5000, "keep": 3})
  c.log = ConfigDict({"every_steps": 100, "tensorboard": True})
  return c
