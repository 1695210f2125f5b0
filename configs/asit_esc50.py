r"""ASiT on ESC-50 (arXiv 2211.13189), fine-tuned: 5 folds of 400 clips.

Data: the folder ESC-50-master as published: audio/*.wav and meta/esc50.csv.
Command: all five folds, with a summary:
  python -m astjax.tools.folds --config=configs/asit_esc50.py \
    --config.input.data_dir=ESC-50-master \
    --config.init_from=checkpoint.pth --workdir=runs/asit_esc50
or one: python -m astjax.main, with the same flags.
Starts from a pre-trained ASiT: its authors' checkpoint.pth (fetched by hand),
or the work directory of a pre-training. Without init_from it starts at random.
Expected: two later papers quote 95.3 %. Not measured here. ASiT's fine-tuning
is "adopted from AST" and was not published: values marked [AST] are AST's, for
a start without AudioSet's labels; model and start are those of other people's
code that uses its weights.
Hardware: not published, not measured here.
"""

from ml_collections import ConfigDict

FRAMES = 512  # 5 s are 498 frames
STANDARDIZE = "standardize(-6.6268077, 5.358466)"  # [AST]


def get_config(arg: str = "") -> ConfigDict:
  """The recipe; takes no argument."""
  if arg:
    raise ValueError(f"configs/asit_esc50.py takes no argument, got {arg!r}")
  c = ConfigDict()
  c.seed = 0
  c.epochs = 25.0  # [AST]
  c.steps = 0

  c.task = "supervised"
  # The prefix is the class token alone.
  c.task_kw = ConfigDict({"loss": "softmax_xent", "pooling": "prefix"})
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
      "dtype": "bfloat16",
    }
  )

  c.input = ConfigDict()
  c.input.source = "csv"
  c.input.source_kw = ConfigDict(
    {
      "csv": "meta/esc50.csv",
      "columns": {"path": "filename", "labels": "category"},
      "below": "audio",
      "label_separator": "",
    }
  )
  c.input.data_dir = ""
  c.input.split = ""
  c.input.folds = ("2", "3", "4", "5")
  c.input.batch_size = 48  # [AST]
  c.input.on_host = (
    f"decode|resample(16_000)|fit(num_frames={FRAMES})|quantise|multi_hot"
    "|keep('audio', 'num_samples', 'label')"
  )
  front_end = "to_float|center|fbank|pad_frames"
  # [AST]: these masks.
  c.input.on_device = f"{front_end}|freq_mask(24)|time_mask(96)|{STANDARDIZE}"

  c.evals = ConfigDict()
  c.evals.test = ConfigDict(
    {
      "folds": ("1",),
      "batch_size": 96,
      "on_device": f"{front_end}|{STANDARDIZE}",
      "every_epochs": 1.0,
    }
  )

  # [AST]
  c.schedule = ConfigDict(
    {
      "lr": 1e-4,
      "warmup": "none",
      "decay": "multistep",
      "decay_start": 5,
      "decay_every": 1,
      "decay_factor": 0.85,
    }
  )
  # [AST]
  c.optim = ConfigDict(
    {"name": "adam", "b1": 0.95, "b2": 0.999, "weight_decay": 5e-7}
  )

  c.checkpoint = ConfigDict({"every_epochs": 5.0, "keep": 1})
  c.log = ConfigDict({"every_steps": 10, "tensorboard": True})
  return c
