r"""ASiT on Speech Commands (arXiv 2211.13189), fine-tuned.

`:v1` (12 classes: ten keywords, other words, silence) or `:v2` (35 words).

Data of v2: as in configs/ast_speechcommands.py; of v1: as of ks in
configs/ssast_superb.py.
Command: python -m astjax.main --config=configs/asit_speechcommands.py:v2 \
  --config.input.data_dir=FOLDER --config.init_from=checkpoint.pth \
  --workdir=runs/asit_speechcommands
Starts from a pre-trained ASiT: its authors' checkpoint.pth (fetched by hand),
or the work directory of a pre-training. Without init_from it starts at random.
Expected: two later papers quote 98.2 % (v1) and 98.9 % (v2). Not measured here.
ASiT's fine-tuning is "adopted from AST" and was not published: values marked
[AST] are those of AST on V2; model and start are those of other people's code
that uses ASiT's weights. Which classes and which classifier ASiT has on V1 is
not known: the classes, the crops of the noise and the balanced draws of :v1 are
SUPERB's, as SSAST has it there (with a rate of 5e-5 or 1e-4, batches of 32 and
20,000 steps), the rest is as on V2.
Hardware: not published, not measured here.
"""

from ml_collections import ConfigDict

from configs import common

FRAMES = 128  # 1 s is 98 frames

RECIPES = dict(
  v1=dict(
    data=common.SPEECHCOMMANDS_V1,
    test=common.SPEECHCOMMANDS_V1_TEST,
    crop="random_crop(16_000)|",  # of the minutes of background noise
    draw="balanced",  # each class as often as the others
  ),
  v2=dict(
    data=common.SPEECHCOMMANDS_V2,
    test=dict(split="test"),
    crop="",
    draw="shuffle",
  ),
)


def get_config(arg: str = "v2") -> ConfigDict:
  """The recipe; `arg` is a key of `RECIPES`."""
  recipe = common.choose(arg, RECIPES)
  c = ConfigDict(dict(seed=0, epochs=30.0, steps=0))  # [AST]

  c.task = "supervised"
  # The prefix is the class token alone.
  c.task_kw = dict(loss="bce", pooling="prefix")
  c.init_from = ""
  c.init_kw = dict(fresh=("head/.*",), network="teacher")
  # Of the 37 columns of positions it takes the middle 12.
  c.model = common.ASIT_MODEL

  # [AST]: batch, mixing, masks, statistics, noise and roll.
  rest = f"fit(num_frames={FRAMES})|quantise|multi_hot|{common.KEEP}"
  masks = "freq_mask(48)|time_mask(48)"
  standardize = f"standardize({common.SPEECHCOMMANDS_STATS})"
  c.input = dict(recipe["data"], batch_size=128, draw=recipe["draw"])
  c.input.on_host = f"{common.DECODE}|{recipe['crop']}mix(0.6)|{rest}"
  c.input.on_device = f"{common.FRONT_END}|{masks}|{standardize}|noise|roll"

  plain = dict(batch_size=256, on_host=f"{common.DECODE}|{rest}")
  plain["on_device"] = f"{common.FRONT_END}|{standardize}"
  c.evals = dict(
    val=dict(plain, split="val", every_epochs=1.0),
    test=dict(plain, **recipe["test"], of_best=True),
  )
  c.best = "val/accuracy"

  # [AST]
  c.schedule = dict(lr=2.5e-4, warmup="none", decay="multistep")
  c.schedule.update(decay_start=5, decay_every=1, decay_factor=0.85)
  c.optim = common.AST_ADAM

  c.checkpoint = dict(every_epochs=1.0, keep=2)
  c.log = dict(every_steps=50, tensorboard=True)
  return c
