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
The last one learns the classes of sounds/, one folder per class; its model has
the same size and front-end. They are for a laptop; on a GPU add
--config.model.variant=base224 --config.model.depth=0 to both trainings.
Expected: depends on the recordings; docs/asit.md says what is measured, and
docs/training.md how a probe tells what it is worth. Not measured here.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
  """The recipe; takes no argument."""
  common.no_argument(arg)
  c = ConfigDict(dict(seed=0, epochs=0.0, steps=20_000))

  c.task = "asit"
  # The second release, its heads as small as its transformer.
  c.task_kw = dict(hidden=512, bottleneck=128, outputs=(2048,))
  c.init_from = ""
  c.model = dict(variant="tiny224", depth=6, prefix=("cls",), drop_path=0.1)
  c.model.update(patch_size=(16, 16), stride=(16, 16))

  views = "2, 3.0, local_count=4, local_seconds=1.0"
  rest = "quantise|quantise('audio_local')|keep('audio', 'audio_local')"
  # AudioSet's statistics suit 16 kHz recordings of everyday sounds.
  stats = common.AUDIOSET_STATS
  c.input = dict(source="filenames", data_dir="", split="train", batch_size=32)
  c.input.source_kw = dict(holdout=0.1)
  c.input.on_host = f"{common.DECODE}|views({views})|{rest}"
  c.input.on_device = (
    f"to_float|center(num_samples='')|fbank|cut_frames(288)"
    f"|standardize({stats})"
    "|to_float('audio_local')|center('audio_local', num_samples='')"
    "|fbank(audio='audio_local', out='fbank_local')"
    f"|cut_frames(96, 'fbank_local')|standardize({stats}, 'fbank_local')"
  )

  c.evals = dict(val=dict(split="val", every_steps=1_000))
  c.evals.val.on_host = f"{common.DECODE}|views({views}, random=False)|{rest}"
  c.evals.val.on_device = c.input.on_device

  c.schedule = dict(lr=5e-4, decay="cosine", final_lr=1e-6)
  c.schedule.update(warmup="linear", warmup_steps=1_000)
  c.optim = common.ASIT_ADAMW

  c.checkpoint = dict(every_steps=1_000, keep=2)
  c.log = dict(every_steps=50, tensorboard=True)
  return c
