r"""Spoken digits from scratch: a small AST on real recordings, on two cores.

Data: the Free Spoken Digit Dataset, 3,000 recordings (8 kHz, 6 speakers) named
{digit}_{speaker}_{take}.wav; takes 0 to 4 are the test set (300), the rest is
for training (2,700), as its authors define.
Command: python -m astjax.main --config=configs/ast_digits.py \
  --config.input.data_dir=FOLDER/recordings --workdir=runs/digits
Expected: test/accuracy of about 0.99 after 10 minutes on two CPU cores (0.9900
measured; docs/results.md has the curve).
"""

from ml_collections import ConfigDict

from configs import common

RATE = common.DIGITS_RATE
MELS = common.DIGITS_MELS
FRAMES = 100  # 1 s; the median recording is 0.4 s long


def get_config(arg: str = "") -> ConfigDict:
  """The recipe; takes no argument."""
  common.no_argument(arg)
  c = ConfigDict(dict(seed=0, epochs=40.0, steps=0))

  c.task = "supervised"
  c.task_kw = dict(loss="softmax_xent")
  c.init_from = ""  # at random
  c.init_kw = dict(fresh=("head/.*",), rows="frequency")
  c.model = dict(common.DIGITS_MODEL, drop_path=0.1)
  c.model.update(patch_size=(16, 16), stride=(10, 10))

  fit = f"fit(num_frames={FRAMES}, sample_rate={RATE})"
  masks = "freq_mask(16)|time_mask(16)"
  standardize = f"standardize({common.DIGITS_STATS})"
  c.input = dict(common.digits("all"), batch_size=32)
  c.input.source_kw.pattern = r"(?P<label>\d)_[a-z]+_\d+\.wav$"
  c.input.on_host = (
    f"decode|resample({RATE})|{fit}|quantise|multi_hot|{common.KEEP}"
  )
  c.input.on_device = f"{common.DIGITS_FRONT_END}|{masks}|{standardize}"

  c.evals = dict(test=dict(split="test", every_epochs=5.0))
  c.evals.test.on_device = f"{common.DIGITS_FRONT_END}|{standardize}"

  c.schedule = dict(lr=1e-3, decay="cosine", warmup="linear", warmup_steps=200)
  c.optim = dict(name="adamw", b1=0.9, b2=0.98, weight_decay=0.05)

  c.checkpoint = dict(every_epochs=5.0, keep=2)
  c.log = dict(every_steps=50, tensorboard=True)
  return c
