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

from configs import common

RATE = common.DIGITS_RATE
DECODE = f"decode|resample({RATE})"
FRAMES = 72  # of a fine-tuning: 0.74 s, which 19 of 20 recordings do not exceed
# All mel bins of 4 frames. Of patches of 8 x 8 the model learns above all who
# speaks, and each step costs three times as much.
PATCH = (common.DIGITS_MELS, 4)

STAGES = dict(
  pretrain=dict(epochs=75.0, lr=1e-3),
  few=dict(epochs=100.0, lr=5e-4),
  all=dict(epochs=20.0, lr=5e-4),
)


def get_config(arg: str = "pretrain") -> ConfigDict:
  """The stage `arg`, a key of `STAGES`."""
  stage = common.choose(arg, STAGES)
  c = ConfigDict(dict(seed=0, epochs=stage["epochs"], steps=0))
  c.init_from = ""
  c.model = dict(common.DIGITS_MODEL, prefix=("cls",), drop_path=0.1)
  c.model.update(patch_size=PATCH, stride=PATCH)
  c.input = dict(common.digits(arg), batch_size=32)
  c.schedule = dict(lr=stage["lr"], decay="cosine", warmup="linear")
  c.schedule.warmup_steps = 50 if arg == "few" else 200
  c.checkpoint = dict(every_epochs=5.0, keep=1)
  c.log = dict(every_steps=50, tensorboard=False)
  if arg == "pretrain":
    pretraining(c)
  else:
    fine_tuning(c)
  return c


def pretraining(c: ConfigDict) -> None:
  """Task, views and evaluations of the first stage."""
  c.task = "asit"
  # The second release, its heads as small as its transformer; sharper and
  # quicker targets for a run that is so short.
  c.task_kw = dict(preset="r2", hidden=256, bottleneck=64, outputs=(512,))
  c.task_kw.update(teacher_temp=0.04, momentum=0.99)

  # Half the recordings are longer than 0.42 s, a quarter is shorter than 0.34.
  views = f"seconds=0.35, sample_rate={RATE}"
  local = "local_count=4, local_seconds=0.18"
  rest = "quantise|quantise('audio_local')|keep('audio', 'audio_local')"
  fbank = f"sample_rate={RATE}, num_mel_bins={common.DIGITS_MELS}"
  c.input.on_host = f"{DECODE}|views({local}, {views})|{rest}"
  c.input.on_device = common.views_front_end(fbank, common.DIGITS_STATS, 32, 16)

  c.evals = dict(test=dict(split="test", every_epochs=7.5))
  still = f"random=False, {views}"
  c.evals.test.on_host = f"{DECODE}|views({local}, {still})|{rest}"
  c.evals.test.on_device = c.input.on_device
  # Three views side by side, their class tokens' mean.
  c.evals.knn = dict(probe="knn", split="test", every_epochs=7.5)
  c.evals.knn.source_kw = common.digits("all")["source_kw"]
  c.evals.knn.train = dict(split="train")
  c.evals.knn.on_host = (
    f"{DECODE}|views(count=3, {still})|quantise|multi_hot"
    "|keep('audio', 'label')"
  )
  c.evals.knn.on_device = common.views_front_end(fbank, common.DIGITS_STATS, 32)
  c.optim = common.ASIT_ADAMW


def fine_tuning(c: ConfigDict) -> None:
  """The later ones; as in ssast_digits.py, but for the class token."""
  c.task = "supervised"
  c.task_kw = dict(loss="softmax_xent", pooling="prefix")
  c.init_kw = dict(fresh=("head/.*",), network="teacher")

  fit = f"fit(num_frames={FRAMES}, sample_rate={RATE})"
  masks = "freq_mask(16)|time_mask(16)"
  standardize = f"standardize({common.DIGITS_STATS})"
  c.input.on_host = f"{DECODE}|{fit}|quantise|multi_hot|{common.KEEP}"
  c.input.on_device = f"{common.DIGITS_FRONT_END}|{masks}|{standardize}"

  c.evals = dict(test=dict(split="test", every_epochs=c.epochs / 5))
  c.evals.test.on_device = f"{common.DIGITS_FRONT_END}|{standardize}"
  c.optim = dict(name="adamw", b1=0.9, b2=0.98, weight_decay=0.05)
