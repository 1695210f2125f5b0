r"""Your own recordings, without labels: a small ASiT, to be fine-tuned after.

Any folder with sub-folders, any format, rate, length and number of channels. A
tenth of the recordings, chosen by a digest of their path, is held out as the
split "val". Of each recording two views of 3 s and four of 1 s are compared:
give ones of 5 s or more, shorter ones are padded.
Commands:
  python -m astjax.main --config=configs/asit_folder.py \
    --config.input.data_dir=recordings --workdir=runs/asit
  python -m astjax.tools.reconstruct --model=runs/asit some.wav others.wav
  python -m astjax.main --config=configs/ast_folder.py \
    --config.init_from=runs/asit --config.model.prefix="('cls',)" \
    --config.input.data_dir=sounds --workdir=runs/sounds
The last one learns the classes of sounds/, one folder per class; its model is
of the same sizes and hears the same front-end. They are for a laptop; on a GPU
add --config.model.variant=base224 --config.model.depth=0 to both trainings.
Expected: depends on the recordings; docs/asit.md says what is measured, and
docs/training.md how a probe tells what it is worth. Not measured here.
"""

from ml_collections import ConfigDict

# AudioSet's statistics, which suit 16 kHz recordings of everyday sounds.
STANDARDIZE = "standardize(-4.2677393, 4.5689974)"


def get_config(arg: str = "") -> ConfigDict:
  """The config; takes no argument."""
  if arg:
    raise ValueError(f"configs/asit_folder.py takes no argument, got {arg!r}")
  c = ConfigDict()
  c.seed = 0
  c.epochs = 0.0
  c.steps = 20_000

  c.task = "asit"
  # The second release, its heads as small as its transformer.
  c.task_kw = ConfigDict({"hidden": 512, "bottleneck": 128, "outputs": (2048,)})
  c.init_from = ""
  c.model = ConfigDict(
    {
      "variant": "tiny224",
      "depth": 6,
      "patch_size": (16, 16),
      "stride": (16, 16),
      "prefix": ("cls",),
      "drop_path": 0.1,
    }
  )

  c.input = ConfigDict()
  c.input.source = "filenames"
  c.input.source_kw = ConfigDict({"holdout": 0.1})
  c.input.data_dir = ""
  c.input.split = "train"
  c.input.batch_size = 32
  views = "2, 3.0, local_count=4, local_seconds=1.0"
  rest = "quantise|quantise('audio_local')|keep('audio', 'audio_local')"
  c.input.on_host = f"decode|resample(16_000)|views({views})|{rest}"
  local = STANDARDIZE.replace(")", ", 'fbank_local')")
  c.input.on_device = (
    f"to_float|center(num_samples='')|fbank|cut_frames(288)|{STANDARDIZE}"
    "|to_float('audio_local')|center('audio_local', num_samples='')"
    "|fbank(audio='audio_local', out='fbank_local')"
    f"|cut_frames(96, 'fbank_local')|{local}"
  )

  c.evals = ConfigDict()
  c.evals.val = ConfigDict(
    {
      "split": "val",
      "on_host": f"decode|resample(16_000)|views({views}, random=False)|{rest}",
      "on_device": c.input.on_device,
      "every_steps": 1_000,
    }
  )

  c.schedule = ConfigDict(
    {
      "lr": 5e-4,
      "decay": "cosine",
      "final_lr": 1e-6,
      "warmup": "linear",
      "warmup_steps": 1_000,
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

  c.checkpoint = ConfigDict({"every_steps": 1_000, "keep": 2})
  c.log = ConfigDict({"every_steps": 50, "tensorboard": True})
  return c
