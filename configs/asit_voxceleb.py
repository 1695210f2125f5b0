r"""ASiT on VoxCeleb1 (arXiv 2211.13189), fine-tuned: which of 1,251 speakers.

Data: as of sid in configs/ssast_superb.py.
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

from configs import common

FRAMES = 798  # the 8 s that are cut from longer recordings


def get_config(arg: str = "") -> ConfigDict:
  """The recipe; takes no argument."""
  common.no_argument(arg)
  # [SSAST]: 40,000 updates of the weights, each of 8 times 4 recordings.
  c = ConfigDict(dict(seed=0, epochs=0.0, steps=40_000, accumulate=8))

  c.task = "supervised"
  # The prefix is the class token alone.
  c.task_kw = dict(loss="softmax_xent", pooling="prefix")
  c.init_from = ""
  c.init_kw = dict(fresh=("head/.*",), network="teacher")
  c.model = common.ASIT_MODEL

  # [SSAST]: 8 s at most, no augmentation. Statistics as in the pre-training.
  rest = f"fit(num_frames={FRAMES})|quantise|multi_hot|{common.KEEP}"
  c.input = dict(common.VOXCELEB1, batch_size=32)
  c.input.on_host = f"{common.DECODE}|random_crop(128_000)|{rest}"
  c.input.on_device = f"{common.FRONT_END}|standardize({common.AUDIOSET_STATS})"

  plain = dict(batch_size=32, on_host=f"{common.DECODE}|{rest}")
  plain["on_device"] = c.input.on_device
  c.evals = dict(
    val=dict(plain, split="2", every_steps=500),
    test=dict(plain, split="3", of_best=True),
  )
  c.best = "val/accuracy"

  # [SSAST]; the optimiser is torch's default, without decay.
  c.schedule = dict(lr=1e-4, warmup="none", decay="constant")
  c.optim = dict(name="adam", b1=0.9, b2=0.999, weight_decay=0.0, clip_norm=1.0)

  c.checkpoint = dict(every_steps=1000, keep=1)
  c.log = dict(every_steps=50, tensorboard=True)
  return c
