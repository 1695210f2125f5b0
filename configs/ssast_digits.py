r"""SSAST on spoken digits: pre-training without labels, then few or all labels.

`:pretrain` learns from the recordings alone; `:few` (2 labelled recordings per
digit and speaker, 120 in all) and `:all` (2,700) fine-tune what it has learned.

Data: the Free Spoken Digit Dataset, as of ast_digits.py; takes 0 to 4 are the
test set, 5 and 6 the few labelled ones.
Commands, one after the other:
  python -m astjax.main --config=configs/ssast_digits.py:pretrain \
    --config.input.data_dir=FOLDER/recordings --workdir=runs/ssast
  python -m astjax.main --config=configs/ssast_digits.py:few \
    --config.init_from=runs/ssast \
    --config.input.data_dir=FOLDER/recordings --workdir=runs/ssast_few
`:all` instead of `:few` takes all labels; without --config.init_from it is the
same model from scratch.
Expected: test/accuracy of 0.76 with few labels, 0.40 from scratch (means of
three seeds), 0.99 and 0.92 with all (one seed); docs/results.md has the rest.
Hardware: two CPU cores; 21 minutes for the first stage, 2.5 and 7.5 for `:few`
and `:all`.
"""

from ml_collections import ConfigDict

from configs import common

RATE = common.DIGITS_RATE
FRAMES = 72  # 0.74 s, which 19 of 20 recordings do not exceed
PATCH = (8, 8)  # 8 x 9 patches

STAGES = dict(
  pretrain=dict(epochs=60.0, lr=1e-3),
  few=dict(epochs=100.0, lr=5e-4),
  all=dict(epochs=20.0, lr=5e-4),
)


def get_config(arg: str = "pretrain") -> ConfigDict:
  """The stage `arg`, a key of `STAGES`."""
  stage, pretraining = common.choose(arg, STAGES), arg == "pretrain"
  c = ConfigDict(dict(seed=0, epochs=stage["epochs"], steps=0))

  if pretraining:
    c.task = "ssast"
    # One pass: half the cost of the original's two.
    c.task_kw = dict(objective="joint", num_mask=54, passes=1)
    targets, masks = "keep('audio', 'num_samples')", ""
  else:
    c.task = "supervised"
    c.task_kw = dict(loss="softmax_xent", pooling="tokens")
    targets = f"multi_hot|{common.KEEP}"
    masks = "|freq_mask(16)|time_mask(16)"
  c.init_from = ""  # --config.init_from=WORKDIR of the pre-training
  c.init_kw = dict(fresh=("head/.*",), rows="frequency")
  c.model = dict(common.DIGITS_MODEL, patch_size=PATCH, stride=PATCH)
  c.model.drop_path = 0.0 if pretraining else 0.1

  fit = f"fit(num_frames={FRAMES}, sample_rate={RATE})"
  standardize = f"standardize({common.DIGITS_STATS})"
  c.input = dict(common.digits(arg), batch_size=32)
  c.input.on_host = f"decode|resample({RATE})|{fit}|quantise|{targets}"
  c.input.on_device = f"{common.DIGITS_FRONT_END}{masks}|{standardize}"

  c.evals = dict(test=dict(split="test", every_epochs=stage["epochs"] / 5))
  c.evals.test.on_device = f"{common.DIGITS_FRONT_END}|{standardize}"

  c.schedule = dict(lr=stage["lr"], decay="cosine", warmup="linear")
  c.schedule.warmup_steps = 50 if arg == "few" else 200
  c.optim = dict(name="adamw", b1=0.9, b2=0.98, weight_decay=0.05)

  c.checkpoint = dict(every_epochs=5.0, keep=1)
  c.log = dict(every_steps=50, tensorboard=False)
  return c
