r"""ASiT pre-training (arXiv 2211.13189) on AudioSet-2M.

`:r2` is the authors' second release (March 2024: 16 kHz, local views), `:r1`
the first one (April 2023: 32 kHz), both of base size; `:small` is `:r2` with
their smaller transformer.

Data: one folder with audioset/train and audioset/eval, below them as you like.
No labels are read. The original takes recordings of 16 kHz (r1: 32 kHz); others
are resampled.
Command: python -m astjax.main --config=configs/asit_pretrain.py:r2 \
  --config.input.data_dir=FOLDER --workdir=runs/asit
The second release starts from a vision transformer of images by default;
whether the published numbers have that start is not known; it is off here:
  --config.init_from=vit_base_patch16_224_in21k
Expected: two later papers quote, after fine-tuning, mAP 48.0 on AudioSet-2M and
38.6 on AudioSet-20K. Not measured here. Neither are val/spread and val/cls that
its authors reached: they are not published.
Starting from an ASiT (checkpoint.pth or a work directory) instead takes
--config.init_kw.rows=frequency; centers and moments then begin anew.
Hardware: the authors' commands are for 4 GPUs. Not measured here. On one GPU:
--config.accumulate=4 --config.model.dtype=bfloat16, or a smaller
--config.input.batch_size, to which the rate adapts itself.
"""

from ml_collections import ConfigDict

from configs import common

R2 = dict(
  preset="r2",
  variant="base224",
  rate=16_000,
  batch=80,  # of 4 GPUs
  roll="",
  local=4,
  freeze_first=("projection/last",),
)
RECIPES = dict(
  r2=R2,
  r1=dict(
    preset="r1",
    variant="base224",
    rate=32_000,
    batch=128,  # of 4 GPUs
    roll="roll_waveform(0.5)|",
    local=0,
    # The original's freeze meets no parameter; its output scales never learn.
    freeze_first=(),
  ),
  small=dict(R2, variant="small224"),
)


def get_config(arg: str = "r2") -> ConfigDict:
  """The recipe; `arg` is a key of `RECIPES`."""
  recipe = common.choose(arg, RECIPES)
  rate, local = recipe["rate"], recipe["local"]
  c = ConfigDict(dict(seed=0, epochs=100.0, steps=0))

  c.task = "asit"
  # Corruption, temperatures, weights of the losses: all of it the preset's.
  c.task_kw = dict(preset=recipe["preset"])
  c.init_from = ""
  c.init_kw = dict(rows="time")  # of an image become time
  c.model = dict(
    variant=recipe["variant"],
    patch_size=(16, 16),
    stride=(16, 16),
    prefix=("cls",),
    drop_path=0.1,  # of the student
    dtype="float32",  # as r2; "bfloat16" is faster
    scan=True,  # compiles sooner, see docs/scaling.md
  )

  decode = f"decode('first')|resample({rate})|"
  views = f"2, 6.0, local_count={local}, sample_rate={rate}"
  rest = "quantise('audio')|keep('audio')"
  if local:
    both = "quantise('audio')|quantise('audio_local')"
    rest = f"{both}|keep('audio', 'audio_local')"
  c.input = dict(source="filenames", data_dir="", split="train")
  splits = dict(train="^audioset/train/", val="^audioset/eval/")
  c.input.source_kw = dict(splits=splits)
  c.input.batch_size = recipe["batch"]
  roll = recipe["roll"]
  c.input.on_host = f"{decode}{roll}views({views}, random=True)|{rest}"
  c.input.on_device = common.views_front_end(
    f"sample_rate={rate}", common.AUDIOSET_STATS, 592, 192 if local else 0
  )

  c.evals = dict(val=dict(split="val", every_epochs=5.0))
  c.evals.val.on_host = f"{decode}views({views}, random=False)|{rest}"
  c.evals.val.on_device = c.input.on_device

  # 5e-4 for 256 clips; the first step has a rate of exactly 0.
  c.schedule = dict(lr=5e-4, lr_batch_size=256, decay="cosine", final_lr=1e-6)
  c.schedule.update(warmup="linspace", warmup_epochs=10.0)
  c.optim = dict(common.ASIT_ADAMW, final_weight_decay=0.4)
  c.optim.freeze_first = recipe["freeze_first"]

  c.checkpoint = dict(every_epochs=1.0, keep=2)
  c.log = dict(every_steps=100, tensorboard=True)
  return c
