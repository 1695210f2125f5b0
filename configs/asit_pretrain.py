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

STANDARDIZE = "standardize(-4.2677393, 4.5689974"

R2 = {
  "preset": "r2",
  "variant": "base224",
  "rate": 16_000,
  "batch": 80,  # of 4 GPUs
  "roll": "",
  "local": 4,
  "freeze_first": ("projection/last",),
}
RECIPES = {
  "r2": R2,
  "r1": {
    "preset": "r1",
    "variant": "base224",
    "rate": 32_000,
    "batch": 128,  # of 4 GPUs
    "roll": "roll_waveform(0.5)|",
    "local": 0,
    # The original's freeze meets no parameter; its output scales never learn.
    "freeze_first": (),
  },
  "small": R2 | {"variant": "small224"},
}


def get_config(arg: str = "r2") -> ConfigDict:
  """The recipe; `arg` is a key of `RECIPES`."""
  if arg not in RECIPES:
    raise ValueError(
      f"configs/asit_pretrain.py takes {', '.join(RECIPES)}, got {arg!r}"
    )
  recipe = RECIPES[arg]
  rate, local = recipe["rate"], recipe["local"]
  c = ConfigDict()
  c.seed = 0
  c.epochs = 100.0
  c.steps = 0

  c.task = "asit"
  # Corruption, temperatures, weights of the losses: all of it the preset's.
  c.task_kw = ConfigDict({"preset": recipe["preset"]})
  c.init_from = ""
  c.init_kw = ConfigDict({"rows": "time"})  # of an image become time
  c.model = ConfigDict(
    {
      "variant": recipe["variant"],
      "patch_size": (16, 16),
      "stride": (16, 16),
      "prefix": ("cls",),
      "drop_path": 0.1,  # of the student
      "dtype": "float32",  # as r2; "bfloat16" is faster
      "scan": True,  # compiles sooner, see docs/scaling.md
    }
  )

  c.input = ConfigDict()
  c.input.source = "filenames"
  c.input.source_kw = ConfigDict(
    {"splits": {"train": "^audioset/train/", "val": "^audioset/eval/"}}
  )
  c.input.data_dir = ""
  c.input.split = "train"
  c.input.batch_size = recipe["batch"]

  def on_host(drawn: bool) -> str:
    roll = recipe["roll"] if drawn else ""
    views = f"2, 6.0, local_count={local}, sample_rate={rate}, random={drawn}"
    kept = ("audio", "audio_local") if local else ("audio",)
    quantise = "|".join(f"quantise({name!r})" for name in kept)
    kept = ", ".join(map(repr, kept))
    return (
      f"decode('first')|resample({rate})|{roll}views({views})|{quantise}"
      f"|keep({kept})"
    )

  def front_end(audio: str, fbank: str, num_frames: int) -> str:
    return (
      f"to_float('{audio}')|center('{audio}', num_samples='')"
      f"|fbank(sample_rate={rate}, audio='{audio}', out='{fbank}')"
      f"|cut_frames({num_frames}, '{fbank}')|{STANDARDIZE}, '{fbank}')"
    )

  c.input.on_host = on_host(True)
  c.input.on_device = front_end("audio", "fbank", 592)
  if local:
    c.input.on_device += "|" + front_end("audio_local", "fbank_local", 192)

  c.evals = ConfigDict()
  c.evals.val = ConfigDict(
    {
      "split": "val",
      "on_host": on_host(False),
      "on_device": c.input.on_device,
      "every_epochs": 5.0,
    }
  )

  # 5e-4 for 256 clips; the first step has a rate of exactly 0.
  c.schedule = ConfigDict(
    {
      "lr": 5e-4,
      "lr_batch_size": 256,
      "warmup": "linspace",
      "warmup_epochs": 10.0,
      "decay": "cosine",
      "final_lr": 1e-6,
    }
  )
  c.optim = ConfigDict(
    {
      "name": "adamw",
      "b1": 0.9,
      "b2": 0.999,
      "weight_decay": 0.04,
      "final_weight_decay": 0.4,
      "no_decay": ("(bias|scale)$",),
      "clip_each": 3.0,
      "freeze_first": recipe["freeze_first"],
    }
  )

  c.checkpoint = ConfigDict({"every_epochs": 1.0, "keep": 2})
  c.log = ConfigDict({"every_steps": 100, "tensorboard": True})
  return c
