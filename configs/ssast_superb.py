r"""SSAST on three SUPERB tasks (arXiv 2110.09784, tables 1 and 4), fine-tuned.

`:ks` keyword spotting, `:sid` speaker identification, `:er` emotions, from
SSAST-Base-Frame-400; `:ks_patch`, `:sid_patch`, `:er_patch` from
SSAST-Base-Patch-400. Both are fetched. The classifier reads a learned mean of
all blocks, as in SUPERB.

Command: python -m astjax.main --config=configs/ssast_superb.py:ks \
  --config.input.data_dir=FOLDER --workdir=runs/ks

ks, Speech Commands V1: unpack speech_commands_v0.01.tar.gz into FOLDER and
speech_commands_test_set_v0.01.tar.gz into FOLDER/test. Other words than the ten
are _unknown_, pieces of _background_noise_ are _silence_. Unlike s3prl's, the
validation is on the list as it is, without silence, and no recording is made
3 dB quieter.
sid, VoxCeleb1: FOLDER has one folder per speaker, id10001 to id11251 (the
folders wav/ of both archives together), and VoxCeleb's iden_split.txt, whose
lines begin with 1 (training), 2 (validation) or 3 (test).
er, IEMOCAP: make a table in IEMOCAP_full_release, once:
  (echo path,labels,fold; awk -F'\t' '/^\[/ && $3 ~ /^(neu|hap|exc|sad|ang)$/ {
    s = substr($2, 5, 1); d = $2; sub(/_[^_]*$/, "", d)
    print "Session" s "/sentences/wav/" d "/" $2 ".wav," $3 "," s}' \
    Session?/dialog/EmoEvaluation/*.txt) > iemocap.csv
Excited (exc) counts as happy, as in SUPERB. A fifth of the training sessions,
by a digest of the path (s3prl draws it), is for validation. All five sessions:
  python -m astjax.tools.folds --config=configs/ssast_superb.py:er \
    --config.input.data_dir=IEMOCAP_full_release --workdir=runs/er

Expected: the paper reports, for frames and patches, ks 96.7 and 96.0 %, sid
80.8 and 64.2 %, er 60.5 and 59.6 % accuracy. Not measured here.
Hardware: not measured here.
"""

from ml_collections import ConfigDict

from configs import common

# Batches are 32 in all three; of 1 x 32 or, for long recordings, 8 x 4.
RECIPES = dict(
  ks=dict(
    frames=100,
    steps=20_000,
    every=500,
    accumulate=1,
    crop="random_crop(16_000)|",  # of the minutes of background noise
    draw="balanced",  # each class as often as the others
    lr=dict(frame=5e-5, patch=1e-4),
    train=common.SPEECHCOMMANDS_V1,
    val=dict(split="val"),
    test=common.SPEECHCOMMANDS_V1_TEST,
  ),
  sid=dict(
    frames=1000,
    steps=40_000,
    every=500,
    accumulate=8,
    crop="random_crop(128_000)|",
    draw="shuffle",
    lr=dict(frame=1e-4, patch=1e-4),
    train=common.VOXCELEB1,
    val=dict(split="2"),
    test=dict(split="3"),
  ),
  er=dict(
    frames=600,
    steps=10_000,
    every=200,
    accumulate=8,
    crop="",
    draw="shuffle",
    lr=dict(frame=1e-4, patch=1e-4),
    train=dict(
      source="csv",
      data_dir="",
      split="train",
      folds=("2", "3", "4", "5"),  # sessions
      source_kw=dict(csv="iemocap.csv", label_map=dict(exc="hap"), holdout=0.2),
    ),
    val=dict(split="val"),
    test=dict(split="", folds=("1",)),
  ),
)


def get_config(arg: str = "ks") -> ConfigDict:
  """The recipe; `arg` is a key of `RECIPES`, alone or with "_patch"."""
  both = RECIPES | {f"{name}_patch": RECIPES[name] for name in RECIPES}
  recipe = common.choose(arg, both)
  kind = "patch" if arg.endswith("_patch") else "frame"
  # Steps are updates of the weights.
  c = ConfigDict(dict(seed=0, epochs=0.0, steps=recipe["steps"]))
  c.accumulate = recipe["accumulate"]

  c.task = "supervised"
  # The mean over tokens includes padding, which SUPERB's toolkit (s3prl) cuts
  # off, in a way that does not fit patches.
  c.task_kw = dict(loss="softmax_xent", pooling="all", projection=256)
  c.init_from = f"SSAST-Base-{kind.title()}-400"
  c.init_kw = dict(fresh=("head/.*",))
  c.model = common.SSAST[kind]

  # Padding is 0 after standardising; no centring, no augmentation.
  rest = f"fit(num_frames={recipe['frames']})|quantise|multi_hot|{common.KEEP}"
  c.input = dict(recipe["train"], batch_size=32, draw=recipe["draw"])
  c.input.on_host = f"{common.DECODE}|{recipe['crop']}{rest}"
  c.input.on_device = (
    f"to_float|fbank|standardize({common.AUDIOSET_STATS})|pad_frames"
  )

  plain = dict(batch_size=32, on_host=f"{common.DECODE}|{rest}")
  plain["on_device"] = c.input.on_device
  c.evals = dict(
    val=dict(plain, **recipe["val"], every_steps=recipe["every"]),
    test=dict(plain, **recipe["test"], of_best=True),
  )
  c.best = "val/accuracy"

  c.schedule = dict(lr=recipe["lr"][kind], warmup="none", decay="constant")
  # Torch's defaults, without decay.
  c.optim = dict(name="adam", b1=0.9, b2=0.999, weight_decay=0.0, clip_norm=1.0)

  c.checkpoint = dict(every_steps=1000, keep=1)
  c.log = dict(every_steps=50, tensorboard=True)
  return c
