r"""ASiT on ESC-50 (arXiv 2211.13189), fine-tuned: 5 folds of 400 clips.

Data: the folder ESC-50-master as published: audio/*.wav and meta/esc50.csv.
Command: all five folds, with a summary:
  python -m astjax.tools.folds --config=configs/asit_esc50.py \
    --config.input.data_dir=ESC-50-master \
    --config.init_from=checkpoint.pth --workdir=runs/asit_esc50
or one: python -m astjax.main, with the same flags.
Starts from a pre-trained ASiT: its authors' checkpoint.pth (fetched by hand),
or the work directory of a pre-training. Without init_from it starts at random.
Expected: two later papers quote 95.3 %. Not measured here. ASiT's fine-tuning
is "adopted from AST" and was not published: values marked [AST] are AST's, for
a start without AudioSet's labels; model and start are those of other people's
code that uses its weights.
Hardware: not published, not measured here.
"""

from ml_collections import ConfigDict

from configs import common

FRAMES = 512  # 5 s are 498 frames


def get_config(arg: str = "") -> ConfigDict:
  """The recipe; takes no argument."""
  common.no_argument(arg)
  c = ConfigDict(dict(seed=0, epochs=25.0, steps=0))  # [AST]

  c.task = "supervised"
  # The prefix is the class token alone.
  c.task_kw = dict(loss="softmax_xent", pooling="prefix")
  c.init_from = ""
  c.init_kw = dict(fresh=("head/.*",), network="teacher")
  c.model = common.ASIT_MODEL

  # [AST]: masks, statistics and batch.
  rest = f"fit(num_frames={FRAMES})|quantise|multi_hot|{common.KEEP}"
  masks = "freq_mask(24)|time_mask(96)"
  standardize = f"standardize({common.ESC50_STATS})"
  c.input = dict(common.ESC50, batch_size=48)
  c.input.on_host = f"{common.DECODE}|{rest}"
  c.input.on_device = f"{common.FRONT_END}|{masks}|{standardize}"

  c.evals = dict(test=dict(folds=("1",), batch_size=96, every_epochs=1.0))
  c.evals.test.on_device = f"{common.FRONT_END}|{standardize}"

  # [AST]
  c.schedule = dict(lr=1e-4, warmup="none", decay="multistep")
  c.schedule.update(decay_start=5, decay_every=1, decay_factor=0.85)
  c.optim = common.AST_ADAM

  c.checkpoint = dict(every_epochs=5.0, keep=1)
  c.log = dict(every_steps=10, tensorboard=True)
  return c
