r"""ASiT on VoxCeleb1 (arXiv 2211.13189), fine-tuned: which of 1,251 speakers.

Data: FOLDER has one folder per speaker, id10001 to id11251 (the folders wav/ of
both archives together), and VoxCeleb's iden_split.txt, whose lines begin with 1
(training), 2 (validation) or 3 (test).
Command: python -m astjax.main --config=configs/asit_voxceleb.py \
  --config.input.data_dir=FOLDER --config.init_from=checkpoint.pth \
  --workdir=runs/asit_voxceleb
Starts from a pre-trained ASiT: its authors' checkpoint.pth (fetched by hand),
or the work directory of a pre-training. Without init_from it starts at random.
Expected: the paper has this task; its number is not known here. Not measured.
ASiT's fine-tuning was not published: values marked [SSAST] are those of SSAST
on this task in SUPERB, of whose toolkit nothing else is here: the classifier is
ASiT's on the class token, as other people's code that uses its weights has it.
Hardware: not published, not measured here.
"""

from ml_collections import ConfigDict

FRAMES = 798  # the 8 s that are cut from longer recordings
STANDARDIZE = "standardize(-4.2677393, 4.5689974)"  # of the pre-training


def get_config(arg: str = "") -> ConfigDict:
  """The recipe; takes no argument."""
  if arg:
    raise ValueError(f"configs/asit_voxceleb.py takes no argument, got {arg!r}")
  c = ConfigDict()
  c.seed = 0
  c.epochs = 0.0
  c.steps = 40_000  # [SSAST], updates of the weights
  c.accumulate = 8  # [SSAST]: 8 times 4

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
  c.input.source = "folder"
  c.input.source_kw = ConfigDict({"split_table": "iden_split.txt"})
  c.input.data_dir = ""
  c.input.split = "1"
  c.input.batch_size = 32  # [SSAST]
  resample = "decode|resample(16_000)"
  rest = (
    f"fit(num_frames={FRAMES})|quantise|multi_hot"
    "|keep('audio', 'num_samples', 'label')"
  )
  # [SSAST]: 8 s at most, no augmentation.
  c.input.on_host = f"{resample}|random_crop(128_000)|{rest}"
  c.input.on_device = f"to_float|center|fbank|pad_frames|{STANDARDIZE}"

  c.evals = ConfigDict()
  plain = {
    "on_host": f"{resample}|{rest}",
    "on_device": c.input.on_device,
    "batch_size": 32,
  }
  c.evals.val = ConfigDict(plain | {"split": "2", "every_steps": 500})
  c.evals.test = ConfigDict(plain | {"split": "3", "of_best": True})
  c.best = "val/accuracy"

  # [SSAST]
  c.schedule = ConfigDict({"lr": 1e-4, "warmup": "none", "decay": "constant"})
  # [SSAST]: torch's defaults, without decay.
  c.optim = ConfigDict(
    {
      "name": "adam",
      "b1": 0.9,
      "b2": 0.999,
      "weight_decay": 0.0,
      "clip_norm": 1.0,
    }
  )

  c.checkpoint = ConfigDict({"every_steps": 1000, "keep": 1})
  c.log = ConfigDict({"every_steps": 50, "tensorboard": True})
  return c
