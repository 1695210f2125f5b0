r"""Your own recordings, without labels: a small SSAST, to be fine-tuned after.

Any folder with sub-folders, any format, rate, length and number of channels. A
tenth of the recordings, chosen by a digest of their path, is held out as the
split "val". Longer recordings give another five seconds every time.
Commands:
  python -m astjax.main --config=configs/ssast_folder.py \
    --config.input.data_dir=recordings --workdir=runs/ssast
  python -m astjax.tools.reconstruct --model=runs/ssast some.wav others.wav
  python -m astjax.main --config=configs/ast_folder.py \
    --config.init_from=runs/ssast --config.task_kw.pooling=tokens \
    --config.input.data_dir=sounds --workdir=runs/sounds
The last one learns the classes of sounds/, one folder per class; its model is
of the same sizes and hears the same front-end. They are for a laptop; on a GPU
add --config.model.variant=base384 --config.model.depth=0 to both trainings.
Expected: depends on the recordings; docs/ssast.md says what val/accuracy and
val/mse are. Not measured here.
"""

from ml_collections import ConfigDict

SECONDS = 5
FRAMES = 100 * SECONDS  # 8 x 31 patches
MASKED = 194  # as large a share as 400 of 512
# AudioSet's statistics, which suit 16 kHz recordings of everyday sounds.
STANDARDIZE = "standardize(-4.2677393, 4.5689974)"


def get_config(arg: str = "") -> ConfigDict:
  """The config; takes no argument."""
  if arg:
    raise ValueError(f"configs/ssast_folder.py takes no argument, got {arg!r}")
  c = ConfigDict()
  c.seed = 0
  c.epochs = 0.0
  c.steps = 20_000

  c.task = "ssast"
  c.task_kw = ConfigDict(
    {
      "objective": "joint",
      "num_mask": MASKED,
      "passes": 1,  # half the cost of the original's two
      "reference_quirks": False,  # every patch may be hidden
    }
  )
  c.init_from = ""
  c.model = ConfigDict(
    {
      "variant": "tiny224",
      "depth": 6,
      "patch_size": (16, 16),
      "stride": (16, 16),
    }
  )

  c.input = ConfigDict()
  c.input.source = "filenames"
  c.input.source_kw = ConfigDict({"holdout": 0.1})
  c.input.data_dir = ""
  c.input.split = "train"
  c.input.batch_size = 32
  rest = f"fit(num_frames={FRAMES})|quantise|keep('audio', 'num_samples')"
  crop = f"random_crop({SECONDS * 16_000 + 240})"  # FRAMES frames
  c.input.on_host = f"decode|resample(16_000)|{crop}|{rest}"
  c.input.on_device = f"to_float|center|fbank|pad_frames|{STANDARDIZE}"

  c.evals = ConfigDict()
  c.evals.val = ConfigDict(
    {
      "split": "val",
      "on_host": f"decode|resample(16_000)|{rest}",
      "on_device": c.input.on_device,
      "every_steps": 1_000,
    }
  )
  c.best = "val/accuracy"

  c.schedule = ConfigDict(
    {"lr": 5e-4, "decay": "cosine", "warmup": "linear", "warmup_steps": 1_000}
  )
  c.optim = ConfigDict(
    {"name": "adamw", "b1": 0.9, "b2": 0.98, "weight_decay": 0.05}
  )

  c.checkpoint = ConfigDict({"every_steps": 1_000, "keep": 2})
  c.log = ConfigDict({"every_steps": 50, "tensorboard": True})
  return c
