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
The last one learns the classes of sounds/, one folder per class; its model has
the same size and front-end. They are for a laptop; on a GPU add
--config.model.variant=base384 --config.model.depth=0 to both trainings.
Expected: depends on the recordings; docs/ssast.md says what val/accuracy and
val/mse are. Not measured here.
"""

from ml_collections import ConfigDict

from configs import common

SECONDS = 5
FRAMES = 100 * SECONDS  # 8 x 31 patches
MASKED = 194  # as large a share as 400 of 512


def get_config(arg: str = "") -> ConfigDict:
  """The recipe; takes no argument."""
  common.no_argument(arg)
  c = ConfigDict(dict(seed=0, epochs=0.0, steps=20_000))

  c.task = "ssast"
  c.task_kw = dict(
    objective="joint",
    num_mask=MASKED,
    passes=1,  # half the cost of the original's two
    reference_quirks=False,  # every patch may be hidden
  )
  c.init_from = ""
  c.model = dict(variant="tiny224", depth=6)
  c.model.update(patch_size=(16, 16), stride=(16, 16))

  # AudioSet's statistics suit 16 kHz recordings of everyday sounds.
  crop = f"random_crop({SECONDS * 16_000 + 240})"  # FRAMES frames
  rest = f"fit(num_frames={FRAMES})|quantise|keep('audio', 'num_samples')"
  c.input = dict(source="filenames", data_dir="", split="train", batch_size=32)
  c.input.source_kw = dict(holdout=0.1)
  c.input.on_host = f"{common.DECODE}|{crop}|{rest}"
  c.input.on_device = f"{common.FRONT_END}|standardize({common.AUDIOSET_STATS})"

  c.evals = dict(val=dict(split="val", every_steps=1_000))
  c.evals.val.on_host = f"{common.DECODE}|{rest}"
  c.evals.val.on_device = c.input.on_device
  c.best = "val/accuracy"

  c.schedule = dict(lr=5e-4, decay="cosine", warmup="linear")
  c.schedule.warmup_steps = 1_000
  c.optim = dict(name="adamw", b1=0.9, b2=0.98, weight_decay=0.05)

  c.checkpoint = dict(every_steps=1_000, keep=2)
  c.log = dict(every_steps=50, tensorboard=True)
  return c
