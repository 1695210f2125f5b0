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

RATE = 8_000
FRAMES = 100  # 1 s; the median recording is 0.4 s long
MELS = 64


def get_config(arg: str = "") -> ConfigDict:
  """The digits' config; takes no argument."""
  if arg:
    raise ValueError(f"configs/ast_digits.py takes no argument, got {arg!r}")
  c = ConfigDict()
  c.seed = 0
  c.epochs = 40.0
  c.steps = 0

  c.task = "supervised"
  c.task_kw = ConfigDict({"loss": "softmax_xent"})
  c.init_from = ""  # at random
  c.init_kw = ConfigDict({"fresh": ("head/.*",), "rows": "frequency"})
  c.model = ConfigDict(
    {
      "variant": "tiny224",
      "width": 128,
      "depth": 4,
      "num_heads": 4,
      "patch_size": (16, 16),
      "stride": (10, 10),
      "drop_path": 0.1,
    }
  )

  c.input = ConfigDict()
  c.input.source = "filenames"
  c.input.source_kw = ConfigDict(
    {
      "pattern": r"(?P<label>\d)_[a-z]+_\d+\.wav$",
      "splits": {
        "test": r"_[0-4]\.wav$",
        "train": r"_([5-9]|\d\d)\.wav$",
      },
    }
  )
  c.input.data_dir = ""
  c.input.split = "train"
  c.input.batch_size = 32
  c.input.on_host = (
    f"decode|resample({RATE})|fit(num_frames={FRAMES}, sample_rate={RATE})"
    "|quantise|multi_hot|keep('audio', 'num_samples', 'label')"
  )
  front_end = (
    f"to_float|center|fbank(sample_rate={RATE}, num_mel_bins={MELS})"
    f"|pad_frames(sample_rate={RATE})"
  )
  standardize = "standardize(-6.726, 3.863)"
  c.input.on_device = f"{front_end}|freq_mask(16)|time_mask(16)|{standardize}"

  c.evals = ConfigDict()
  c.evals.test = ConfigDict(
    {
      "split": "test",
      "on_device": f"{front_end}|{standardize}",
      "every_epochs": 5.0,
    }
  )

  c.schedule = ConfigDict(
    {"lr": 1e-3, "decay": "cosine", "warmup": "linear", "warmup_steps": 200}
  )
  c.optim = ConfigDict(
    {"name": "adamw", "b1": 0.9, "b2": 0.98, "weight_decay": 0.05}
  )

  c.checkpoint = ConfigDict({"every_epochs": 5.0, "keep": 2})
  c.log = ConfigDict({"every_steps": 50, "tensorboard": True})
  return c
