r"""ASiT on AudioSet (arXiv 2211.13189), fine-tuned.

`:full` (2M clips, 5 epochs) or `:balanced` (20k clips, 25 epochs).

Data: the folder that configs/ast_audioset.py describes.
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

from configs import common

FRAMES = 1024  # 10 s are 998 frames; the rest is padding

# [AST], all of it.
RECIPES = dict(
  full=dict(
    epochs=5.0,
    lr=1e-5,
    decay=dict(decay_start=2, decay_every=1, decay_factor=0.5),
    average=dict(first_epoch=1, last_epoch=5),
    draw="balanced",
  ),
  balanced=dict(
    epochs=25.0,
    lr=5e-5,
    decay=dict(decay_start=10, decay_every=5, decay_factor=0.5),
    average=dict(first_epoch=6, last_epoch=25),
    draw="shuffle",
  ),
)


def get_config(arg: str = "full") -> ConfigDict:
  """The recipe; `arg` is a key of `RECIPES`."""
  recipe = common.choose(arg, RECIPES)
  c = ConfigDict(dict(seed=0, epochs=recipe["epochs"], steps=0))

  c.task = "supervised"
  # The prefix is the class token alone.
  c.task_kw = dict(loss="bce", pooling="prefix")
  c.init_from = ""
  c.init_kw = dict(fresh=("head/.*",), network="teacher")
  c.model = common.ASIT_MODEL

  # The front-end is that of the start; batch, mixing and masks are [AST].
  rest = f"fit(num_frames={FRAMES})|quantise|multi_hot(527)|{common.KEEP}"
  masks = "freq_mask(48)|time_mask(192)"
  standardize = f"standardize({common.AUDIOSET_STATS})"
  c.input = common.audioset(f"{arg}.csv")
  c.input.update(batch_size=12, draw=recipe["draw"])
  c.input.on_host = f"{common.DECODE}|mix(0.5)|{rest}"
  c.input.on_device = f"{common.FRONT_END}|{masks}|{standardize}"

  c.evals = dict(val=dict(batch_size=24, every_epochs=1.0))
  c.evals.val.source_kw = common.audioset("eval.csv")["source_kw"]
  c.evals.val.on_host = f"{common.DECODE}|{rest}"
  c.evals.val.on_device = f"{common.FRONT_END}|{standardize}"
  c.best = "val/mAP"
  c.average = recipe["average"]
  c.ensemble_predictions = True

  # [AST]: plateaus of 50 steps over the first 1,000.
  c.schedule = dict(lr=recipe["lr"], warmup="stepped", warmup_steps=1000)
  c.schedule.update(decay="multistep", **recipe["decay"])
  c.optim = common.AST_ADAM

  c.checkpoint = dict(every_steps=5000, keep=3)
  c.log = dict(every_steps=100, tensorboard=True)
  return c
