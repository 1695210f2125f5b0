r"""AST on AudioSet (arXiv 2104.01778, table 1), from ImageNet weights.

`:full` (2M clips, 5 epochs) or `:balanced` (20k clips, 25 epochs).

Data: a folder with the clips, AudioSet's class_labels_indices.csv (columns
index, mid, display_name), and the tables full.csv, balanced.csv and eval.csv
with the columns path (below the folder) and labels (mids, separated by commas,
in quotes). Any rate and format; the paper's data is 16 kHz mono.
Command: python -m astjax.main --config=configs/ast_audioset.py:balanced \
  --config.input.data_dir=FOLDER --workdir=runs/audioset
Starts from DeiT, which is fetched (350 MB); --config.init_from= starts at
random, --config.init_from=FILE.pth from a file.
Expected: the paper reports mAP 0.459 (full) and 0.347 (balanced), without
ImageNet weights 0.366 and 0.148, for averaged weights (val/average_mAP); the
published log has 0.4647 for averaged scores (val/ensemble_mAP, full). Not
measured here. For the balanced set the original uses PSLA's enhanced labels.
Hardware: the paper used 4 GPUs of 12 GB for a week (full). Not measured here.
"""

from ml_collections import ConfigDict

from configs import common

FRAMES = 1024  # 10 s are 998 frames; the rest is padding

# What differs between the two, as in the original's scripts.
RECIPES = dict(
  full=dict(
    epochs=5.0,
    lr=1e-5,
    decay=dict(decay_start=2, decay_every=1, decay_factor=0.5),
    average=dict(first_epoch=1, last_epoch=5),
    draw="balanced",
  ),
  balanced=dict(
    epochs=25.0,
    lr=5e-5,
    decay=dict(decay_start=10, decay_every=5, decay_factor=0.5),
    average=dict(first_epoch=6, last_epoch=25),
    draw="shuffle",
  ),
)


def get_config(arg: str = "full") -> ConfigDict:
  """The recipe; `arg` is a key of `RECIPES`."""
  recipe = common.choose(arg, RECIPES)
  c = ConfigDict(dict(seed=0, epochs=recipe["epochs"], steps=0))

  c.task = "supervised"
  c.task_kw = dict(loss="bce", pooling="prefix")
  # Rows of an image become frequency; the classifier is new.
  c.init_from = "deit_base_distilled_patch16_384"
  c.init_kw = dict(fresh=("head/.*",), rows="frequency")
  # The original computes in float16 with loss scaling; bfloat16 needs none.
  c.model = dict(variant="base384", dtype="bfloat16", remat=False)
  c.model.update(patch_size=(16, 16), stride=(10, 10), prefix=("cls", "dist"))

  rest = f"fit(num_frames={FRAMES})|quantise|multi_hot(527)|{common.KEEP}"
  masks = "freq_mask(48)|time_mask(192)"
  standardize = f"standardize({common.AUDIOSET_STATS})"
  c.input = common.audioset(f"{arg}.csv")
  c.input.update(batch_size=12, draw=recipe["draw"])
  c.input.on_host = f"{common.DECODE}|mix(0.5)|{rest}"
  c.input.on_device = f"{common.FRONT_END}|{masks}|{standardize}"

  c.evals = dict(val=dict(batch_size=24, every_epochs=1.0))
  c.evals.val.source_kw = common.audioset("eval.csv")["source_kw"]
  c.evals.val.on_host = f"{common.DECODE}|{rest}"
  c.evals.val.on_device = f"{common.FRONT_END}|{standardize}"
  c.best = "val/mAP"
  c.average = recipe["average"]
  c.ensemble_predictions = True

  # The rate rises in plateaus of 50 steps over the first 1,000.
  c.schedule = dict(lr=recipe["lr"], warmup="stepped", warmup_steps=1000)
  c.schedule.update(decay="multistep", **recipe["decay"])
  c.optim = dict(common.AST_ADAM, eps=1e-8)

  c.checkpoint = dict(every_steps=5000, keep=3)
  c.log = dict(every_steps=100, tensorboard=True)
  return c
