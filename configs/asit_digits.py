r"""ASiT on spoken digits: pre-training without labels, then few or all labels.

`:pretrain` learns from the recordings alone, and tells as it goes how well its
nearest neighbours agree in their labels; `:few` (2 labelled recordings per
digit and speaker, 120 in all) and `:all` (2,700) fine-tune what it has learned.

Data: the Free Spoken Digit Dataset, as of ast_digits.py; takes 0 to 4 are the
test set, 5 and 6 the few labelled ones.
Commands, one after the other:
  python -m astjax.main --config=configs/asit_digits.py:pretrain \
    --config.input.data_dir=FOLDER/recordings --workdir=runs/asit
  python -m astjax.main --config=configs/asit_digits.py:few \
    --config.init_from=runs/asit \
    --config.input.data_dir=FOLDER/recordings --workdir=runs/asit_few
`:all` instead of `:few` takes all labels; without --config.init_from it is the
same model from scratch.
Expected: knn/accuracy of 0.95 (0.92 untrained, 0.91 by mean log-mels),
test/accuracy of 0.95 with few labels, 0.89 from scratch (means of three seeds);
docs/results.md has the rest. `:all` has not been measured.
Hardware: two CPU cores; 19 minutes for the first stage, one for `:few`.
"""

from ml_collections import ConfigDict

RATE = 8_000
FRAMES = 72  # of a fine-tuning: 0.74 s, which 19 of 20 recordings do not exceed
MELS = 64
# All mel bins of 4 frames. Of patches of 8 x 8 the model learns above all who
# speaks, and each step costs three times as much.
PATCH = (64, 4)
# Seconds and frames of global and local views; half the recordings are longer
# than 0.42 s, a quarter is shorter than 0.34 s.
GLOBAL = (0.35, 32)
LOCAL = (0.18, 16)
LABEL = r"(?P<label>\d)_[^/]+\.wav$"
STANDARDIZE = "standardize(-6.726, 3.863"

STAGES = {
  "pretrain": {"split": "train", "epochs": 75.0, "lr": 1e-3},
  "few": {"split": "few", "epochs": 100.0, "lr": 5e-4},
  "all": {"split": "train", "epochs": 20.0, "lr": 5e-4},
}


def views(**how) -> str:
  """From a recording to its views."""
  how |= {"seconds": GLOBAL[0], "sample_rate": RATE}
  args = ", ".join(f"{k}={v}" for k, v in how.items())
  return f"decode|resample({RATE})|views({args})"


def front_end(suffix: str, num_frames: int) -> str:
  """From views to their log-mels."""
  audio, fbank = f"audio{suffix}", f"fbank{suffix}"
  return (
    f"to_float('{audio}')|center('{audio}', num_samples='')"
    f"|fbank(sample_rate={RATE}, num_mel_bins={MELS}, audio='{audio}', "
    f"out='{fbank}')|cut_frames({num_frames}, '{fbank}')"
    f"|{STANDARDIZE}, '{fbank}')"
  )


def pretraining(c: ConfigDict) -> None:
  """Task, data and evaluations of the first stage."""
  c.task = "asit"
  # The second release, its heads as small as its transformer; sharper and
  # quicker targets for a run that is so short.
  c.task_kw = ConfigDict(
    {
      "preset": "r2",
      "hidden": 256,
      "bottleneck": 64,
      "outputs": (512,),
      "teacher_temp": 0.04,
      "momentum": 0.99,
    }
  )
  local = {"local_count": 4, "local_seconds": LOCAL[0]}
  kept = "quantise|quantise('audio_local')|keep('audio', 'audio_local')"
  c.input.on_host = f"{views(**local)}|{kept}"
  both = f"{front_end('', GLOBAL[1])}|{front_end('_local', LOCAL[1])}"
  c.input.on_device = both
  c.evals.test = ConfigDict(
    {
      "split": "test",
      "on_host": f"{views(**local, random=False)}|{kept}",
      "on_device": both,
      "every_epochs": 7.5,
    }
  )
  # Three views side by side, their class tokens' mean.
  still = views(count=3, random=False)
  c.evals.knn = ConfigDict(
    {
      "probe": "knn",
      "source_kw": c.input.source_kw.to_dict() | {"pattern": LABEL},
      "split": "test",
      "train": {"split": "train"},
      "on_host": f"{still}|quantise|multi_hot|keep('audio', 'label')",
      "on_device": front_end("", GLOBAL[1]),
      "every_epochs": 7.5,
    }
  )
  c.optim = ConfigDict(
    {
      "name": "adamw",
      "b1": 0.9,
      "b2": 0.999,
      "weight_decay": 0.04,
      "no_decay": ("(bias|scale)$",),
      "clip_each": 3.0,
      "freeze_first": ("projection/last",),
    }
  )


def fine_tuning(c: ConfigDict, every_epochs: float) -> None:
  """Of the later ones; as in ssast_digits.py, but for the class token."""
  c.task = "supervised"
  c.task_kw = ConfigDict({"loss": "softmax_xent", "pooling": "prefix"})
  c.init_kw = ConfigDict({"fresh": ("head/.*",), "network": "teacher"})
  c.input.on_host = (
    f"decode|resample({RATE})|fit(num_frames={FRAMES}, sample_rate={RATE})"
    "|quantise|multi_hot|keep('audio', 'num_samples', 'label')"
  )
  log_mels = (
    f"to_float|center|fbank(sample_rate={RATE}, num_mel_bins={MELS})"
    f"|pad_frames(sample_rate={RATE})"
  )
  c.input.on_device = f"{log_mels}|freq_mask(16)|time_mask(16)|{STANDARDIZE})"
  c.evals.test = ConfigDict(
    {
      "split": "test",
      "on_device": f"{log_mels}|{STANDARDIZE})",
      "every_epochs": every_epochs,
    }
  )
  c.optim = ConfigDict(
    {"name": "adamw", "b1": 0.9, "b2": 0.98, "weight_decay": 0.05}
  )


def get_config(arg: str = "pretrain") -> ConfigDict:
  """The stage `arg`, a key of `STAGES`."""
  if arg not in STAGES:
    raise ValueError(
      f"configs/asit_digits.py takes {', '.join(STAGES)}, got {arg!r}"
    )
  stage = STAGES[arg]
  c = ConfigDict()
  c.seed = 0
  c.epochs = stage["epochs"]
  c.steps = 0
  c.init_from = ""
  c.model = ConfigDict(
    {
      "variant": "tiny224",
      "width": 128,
      "depth": 4,
      "num_heads": 4,
      "patch_size": PATCH,
      "stride": PATCH,
      "prefix": ("cls",),
      "drop_path": 0.1,
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
      "pattern": r"\.wav$" if arg == "pretrain" else LABEL,
      "splits": {"test": r"_[0-4]\.wav$", **splits},
    }
  )
  c.input.data_dir = ""
  c.input.split = stage["split"]
  c.input.batch_size = 32
  c.evals = ConfigDict()
  if arg == "pretrain":
    pretraining(c)
  else:
    fine_tuning(c, stage["epochs"] / 5)

  c.schedule = ConfigDict(
    {
      "lr": stage["lr"],
      "decay": "cosine",
      "warmup": "linear",
      "warmup_steps": 50 if arg == "few" else 200,
    }
  )
  c.checkpoint = ConfigDict({"every_epochs": 5.0, "keep": 1})
  c.log = ConfigDict({"every_steps": 50, "tensorboard": False})
  return c
