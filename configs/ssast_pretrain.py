r"""SSAST pre-training (arXiv 2110.09784) on AudioSet-2M and LibriSpeech-960.

`:patch` (16 mel bins x 16 frames), `:frame` (128 x 2), both of base size, and
the tiny ones, `:tiny` and `:tiny_frame`.

Data: one folder with audioset/train, audioset/eval (below them as you like) and
LibriSpeech/train-clean-100, train-clean-360 and train-other-500 as published.
No labels are read. The paper's data is 16 kHz; utterances are cut at 10.24 s.
Command: python -m astjax.main --config=configs/ssast_pretrain.py:patch \
  --config.input.data_dir=FOLDER --workdir=runs/ssast
Expected: the paper reports, after fine-tuning the patch model, mAP 0.310 on
AudioSet-20K and 88.8 % on ESC-50, the frame model 98.1 % on Speech Commands V2.
The value of val/accuracy that it reached is not published. Not measured here.
Hardware: the paper used 4 GPUs of 12 GB for about 10 days. Not measured here.
"""

from ml_collections import ConfigDict

from configs import common

FRAMES = 1024

# Rates, batches and evaluations of the original's scripts.
BASE = dict(variant="base384", batch=24, lr=1e-4, every_steps=4000)
TINY = dict(variant="tiny224", batch=120, lr=5e-4, every_steps=800)
RECIPES = dict(
  patch=dict(BASE, patch=(16, 16)),
  frame=dict(BASE, patch=(128, 2)),
  tiny=dict(TINY, patch=(16, 16)),
  tiny_frame=dict(TINY, patch=(128, 2)),
)


def get_config(arg: str = "patch") -> ConfigDict:
  """The recipe; `arg` is a key of `RECIPES`."""
  recipe = common.choose(arg, RECIPES)
  # "Up to" 10 epochs; the original was stopped earlier.
  c = ConfigDict(dict(seed=0, epochs=10.0, steps=0))

  c.task = "ssast"
  c.task_kw = dict(
    objective="joint",
    num_mask=400,  # of 512
    eval_num_mask=400,
    passes=2,  # 1 is nearly twice as fast, and what the paper describes
    mse_weight=10.0,
    reference_quirks=True,  # False: clusters as the paper describes them
  )
  c.init_from = ""
  # float32 as the original; "bfloat16" is faster.
  c.model = dict(variant=recipe["variant"], dtype="float32")
  c.model.update(patch_size=recipe["patch"], stride=recipe["patch"])

  # Nothing is augmented.
  rest = f"fit(num_frames={FRAMES})|quantise|keep('audio', 'num_samples')"
  c.input = dict(source="filenames", data_dir="", split="train")
  train = r"^(audioset/train|LibriSpeech/train-[a-z]+-\d+)/"
  c.input.source_kw = dict(splits=dict(train=train, val=r"^audioset/eval/"))
  c.input.batch_size = recipe["batch"]
  c.input.on_host = f"{common.DECODE}|{rest}"
  c.input.on_device = f"{common.FRONT_END}|standardize({common.AUDIOSET_STATS})"

  c.evals = dict(val=dict(split="val", every_steps=recipe["every_steps"]))
  c.evals.val.batch_size = 2 * recipe["batch"]
  c.evals.val.on_device = c.input.on_device
  # For the generative objective alone: "val/mse", True, and mode "min".
  c.best = "val/accuracy"
  c.best_is_lowest = False
  c.plateau = dict(metric="val/accuracy", mode="max", factor=0.5, patience=2)

  c.schedule = dict(lr=recipe["lr"], warmup="stepped", warmup_steps=1000)
  c.optim = common.AST_ADAM

  c.checkpoint = dict(every_steps=recipe["every_steps"], keep=2)
  c.log = dict(every_steps=100, tensorboard=True)
  return c
