"""A first look: a small AST learns overlapping synthetic sound events.

Command: make demo
    or:  python -m astjax.main --config=configs/demo.py --workdir=runs/demo
Data: built in, made as it is read; 10 classes, one to three per clip of 2 s.
Expected: val/mAP of about 0.7 (0.707 and 0.714 measured) in 4 minutes on two
CPU cores.
"""

from ml_collections import ConfigDict

RATE = 16_000
FRAMES = 200  # 2 s
MELS = 64


def get_config(arg: str = "") -> ConfigDict:
  """The demo's config; takes no argument."""
  if arg:
    raise ValueError(f"configs/demo.py takes no argument, got {arg!r}")
  c = ConfigDict()
  c.seed = 0
  c.epochs = 10.0
  c.steps = 0

  c.task = "supervised"
  c.task_kw = ConfigDict({"loss": "bce"})
  c.init_from = ""  # at random
  c.init_kw = ConfigDict({"fresh": ("head/.*",), "rows": "frequency"})
  c.model = ConfigDict(
    {
      "variant": "tiny224",
      "width": 96,
      "depth": 4,
      "num_heads": 3,
      "patch_size": (16, 16),
      "stride": (16, 16),
    }
  )

  c.input = ConfigDict()
  c.input.source = "synthetic"
  c.input.source_kw = ConfigDict(
    {"num_examples": 3000, "seconds": 2.0, "sample_rate": RATE}
  )
  c.input.split = "train"
  c.input.batch_size = 32
  c.input.on_host = (
    f"decode|fit(num_frames={FRAMES})|quantise|multi_hot"
    "|keep('audio', 'num_samples', 'label')"
  )
  c.input.on_device = (
    f"to_float|center|fbank(num_mel_bins={MELS})|pad_frames"
    "|freq_mask(8)|time_mask(20)|standardize(-3.559, 3.5)"
  )

  c.evals = ConfigDict()
  c.evals.val = ConfigDict(
    {
      "split": "val",
      "source_kw": {"num_examples": 500, "seconds": 2.0, "sample_rate": RATE},
      "on_device": (
        f"to_float|center|fbank(num_mel_bins={MELS})|pad_frames"
        "|standardize(-3.559, 3.5)"
      ),
      "every_epochs": 1.0,
    }
  )
  c.best = "val/mAP"

  c.schedule = ConfigDict(
    {"lr": 1e-3, "decay": "cosine", "warmup": "linear", "warmup_steps": 50}
  )
  c.optim = ConfigDict({"name": "adam", "b1": 0.9, "weight_decay": 5e-7})

  c.checkpoint = ConfigDict({"every_epochs": 1.0, "keep": 2})
  c.log = ConfigDict({"every_steps": 20, "tensorboard": True})
  return c
