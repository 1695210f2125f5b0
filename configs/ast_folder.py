r"""Your own recordings, one folder per class, from scratch.

  sounds/dog/1.wav  sounds/dog/2.flac  sounds/cat/1.mp3  ...

Any format, rate and number of channels. A fifth of the recordings, chosen by a
digest of their path, is held out as the split "val".
Command: python -m astjax.main --config=configs/ast_folder.py \
  --config.input.data_dir=sounds --workdir=runs/sounds
Longer clips: change SECONDS. Several labels per recording: see the source "csv"
in docs/data.md and set task_kw.loss to "bce".
Expected: depends on the recordings; from random initialisation a transformer
wants hundreds of them per class.
"""

from ml_collections import ConfigDict

SECONDS = 5.0
FRAMES = round(100 * SECONDS)
FRONT_END = "to_float|center|fbank|pad_frames"
# AudioSet's statistics, which suit 16 kHz recordings of everyday sounds.
STANDARDIZE = "standardize(-4.2677393, 4.5689974)"


def get_config(arg: str = "") -> ConfigDict:
  """The config; takes no argument."""
  if arg:
    raise ValueError(f"configs/ast_folder.py takes no argument, got {arg!r}")
  c = ConfigDict()
  c.seed = 0
  c.epochs = 60.0
  c.steps = 0

  c.task = "supervised"
  c.task_kw = ConfigDict({"loss": "softmax_xent"})
  c.model = ConfigDict(
    {
      "variant": "tiny224",
      "depth": 6,
      "patch_size": (16, 16),
      "stride": (16, 16),
      "drop_path": 0.1,
    }
  )

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
  # The original's advice for new data: 48 mel bins, a fifth of the frames.
  c.input.on_device = (
    f"{FRONT_END}|freq_mask(48)|time_mask({FRAMES // 5})|{STANDARDIZE}"
  )

  c.evals = ConfigDict()
  c.evals.val = ConfigDict(
    {
      "split": "val",
      "on_device": f"{FRONT_END}|{STANDARDIZE}",
      "every_epochs": 5.0,
    }
  )
  c.best = "val/accuracy"

  c.schedule = ConfigDict(
    {"lr": 5e-4, "decay": "cosine", "warmup": "linear", "warmup_steps": 200}
  )
  c.optim = ConfigDict(
    {"name": "adamw", "b1": 0.9, "b2": 0.98, "weight_decay": 0.05}
  )

  c.checkpoint = ConfigDict({"every_epochs": 5.0, "keep": 2})
  c.log = ConfigDict({"every_steps": 20, "tensorboard": True})
  return c
