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

RATE = 8_000
FRAMES = 72  # 0.74 s, which 19 of 20 recordings do not exceed
MELS = 64
PATCH = (8, 8)  # 8 x 9 patches

STAGES = {
  "pretrain": {"split": "train", "epochs": 60.0, "lr": 1e-3},
  "few": {"split": "few", "epochs": 100.0, "lr": 5e-4},
  "all": {"split": "train", "epochs": 20.0, "lr": 5e-4},
}


def get_config(arg: str = "pretrain") -> ConfigDict:
  """The stage `arg`, a key of `STAGES`."""
  if arg not in STAGES:
    raise ValueError(
      f"configs/ssast_digits.py takes {', '.join(STAGES)}, got {arg!r}"
    )
  stage, pretraining = STAGES[arg], arg == "pretrain"
  c = ConfigDict()
  c.seed = 0
  c.epochs = stage["epochs"]
  c.steps = 0

  if pretraining:
    c.task = "ssast"
    # One pass: half the cost of the original's two.
    c.task_kw = ConfigDict({"objective": "joint", "num_mask": 54, "passes": 1})
  else:
    c.task = "supervised"
    c.task_kw = ConfigDict({"loss": "softmax_xent", "pooling": "tokens"})
  c.init_from = ""  # --config.init_from=WORKDIR of the pre-training
  c.init_kw = ConfigDict({"fresh": ("head/.*",), "rows": "frequency"})
  c.model = ConfigDict(
    {
      "variant": "tiny224",
      "width": 128,
      "depth": 4,
      "num_heads": 4,
      "patch_size": PATCH,
      "stride": PATCH,
      "drop_path": 0.0 if pretraining else 0.1,
    }
  )

  c.input = ConfigDict()
  c.input.source = "filenames"
  # Of the few labelled takes and the others; the first stage takes all.
  splits = {"train": r"_([5-9]|\d\d)\.wav$"}
  if arg == "few":
    splits = {"few": r"_[56]\.wav$", "train": r"_([789]|\d\d)\.wav$"}
  c.input.source_kw = ConfigDict(
    {
      # Without a group (?P<label>...) there are no labels.
      "pattern": r"\.wav$" if pretraining else r"(?P<label>\d)_[^/]+\.wav$",
      "splits": {"test": r"_[0-4]\.wav$", **splits},
    }
  )
  c.input.data_dir = ""
  c.input.split = stage["split"]
  c.input.batch_size = 32
  label = "" if pretraining else "|multi_hot"
  kept = "'audio', 'num_samples'" + ("" if pretraining else ", 'label'")
  c.input.on_host = (
    f"decode|resample({RATE})|fit(num_frames={FRAMES}, sample_rate={RATE})"
    f"|quantise{label}|keep({kept})"
  )
  front_end = (
    f"to_float|center|fbank(sample_rate={RATE}, num_mel_bins={MELS})"
    f"|pad_frames(sample_rate={RATE})"
  )
  standardize = "standardize(-6.726, 3.863)"
  augment = "" if pretraining else "|freq_mask(16)|time_mask(16)"
  c.input.on_device = f"{front_end}{augment}|{standardize}"

  c.evals = ConfigDict()
  c.evals.test = ConfigDict(
    {
      "split": "test",
      "on_device": f"{front_end}|{standardize}",
      "every_epochs": stage["epochs"] / 5,
    }
  )

  c.schedule = ConfigDict(
    {
      "lr": stage["lr"],
      "decay": "cosine",
      "warmup": "linear",
      "warmup_steps": 50 if arg == "few" else 200,
    }
  )
  c.optim = ConfigDict(
    {"name": "adamw", "b1": 0.9, "b2": 0.98, "weight_decay": 0.05}
  )

  c.checkpoint = ConfigDict({"every_epochs": 5.0, "keep": 1})
  c.log = ConfigDict({"every_steps": 50, "tensorboard": False})
  return c
