r"""SSAST on ESC-50 (arXiv 2110.09784, tables 1 and 4): 5 folds of 400 clips.

`:patch` starts from SSAST-Base-Patch-400, `:frame` from SSAST-Base-Frame-400;
both are fetched.

Data: the folder ESC-50-master as published: audio/*.wav and meta/esc50.csv.
Command: all five folds, with a summary:
  python -m astjax.tools.folds --config=configs/ssast_esc50.py:patch \
    --config.input.data_dir=ESC-50-master --workdir=runs/ssast_esc50
or one: python -m astjax.main, with the same flags.
Expected: the paper reports 88.8 % (patch) and 85.9 % (frame), from scratch
41.9 % and 53.7 %. Not measured here.
Hardware: the original used 4 GPUs. Not measured here.
"""

from ml_collections import ConfigDict

from configs import common

FRAMES = 512  # 5 s are 498 frames


def get_config(arg: str = "patch") -> ConfigDict:
  """The recipe; `arg` is the kind of patches, a key of `common.SSAST`."""
  model = common.choose(arg, common.SSAST)
  c = ConfigDict(dict(seed=0, epochs=50.0, steps=0))

  c.task = "supervised"
  c.task_kw = dict(loss="softmax_xent", pooling="tokens")
  c.init_from = f"SSAST-Base-{arg.title()}-400"
  c.init_kw = dict(fresh=("head/.*",))
  c.model = model

  rest = f"fit(num_frames={FRAMES})|quantise|multi_hot|{common.KEEP}"
  masks = "freq_mask(24)|time_mask(96)"
  standardize = f"standardize({common.ESC50_STATS})"
  c.input = dict(common.ESC50, batch_size=48)
  c.input.on_host = f"{common.DECODE}|{rest}"
  c.input.on_device = f"{common.FRONT_END}|{masks}|{standardize}|noise|roll"

  c.evals = dict(test=dict(folds=("1",), batch_size=96, every_epochs=1.0))
  c.evals.test.on_device = f"{common.FRONT_END}|{standardize}"

  c.schedule = dict(lr=1e-4, warmup="none", decay="multistep")
  c.schedule.update(decay_start=6, decay_every=1, decay_factor=0.85)
  # The classifier's rate in those of the rest: 1 in the original's scripts.
  c.optim = dict(common.AST_ADAM, lr_multipliers=(("^head/", 1.0),))

  c.checkpoint = dict(every_epochs=5.0, keep=1)
  c.log = dict(every_steps=10, tensorboard=True)
  return c
