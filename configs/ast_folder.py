r"""Your own recordings, one folder per class.

  sounds/dog/1.wav  sounds/dog/2.flac  sounds/cat/1.mp3  ...

Any format, rate and number of channels. A fifth of the recordings, chosen by a
digest of their path, is held out as the split "val".
Command: python -m astjax.main --config=configs/ast_folder.py \
  --config.input.data_dir=sounds --workdir=runs/sounds
`ast_folder.py` trains a small model from random initialisation, on a laptop;
`ast_folder.py:audioset` fine-tunes the published AudioSet model (base384),
which wants a GPU (its rate, decay and masks are those of the original's ESC-50
recipe). ssast_folder.py pre-trains on recordings without labels first.
Longer clips: change SECONDS. Several labels per recording: see the source "csv"
in docs/data.md and set task_kw.loss to "bce".
Expected: depends on the recordings; from random initialisation a transformer
wants hundreds of them per class, fine-tuned a few dozen. Not measured here.
"""

from ml_collections import ConfigDict

from configs import common

SECONDS = 5.0
FRAMES = round(100 * SECONDS)

RECIPES = dict(
  scratch=dict(
    init_from="",
    epochs=60.0,
    model=dict(
      variant="tiny224",
      depth=6,
      patch_size=(16, 16),
      stride=(16, 16),
      drop_path=0.1,
    ),
    # The original's advice for new data: 48 mel bins, a fifth of the frames.
    masks=f"freq_mask(48)|time_mask({FRAMES // 5})",
    schedule=dict(lr=5e-4, decay="cosine", warmup="linear", warmup_steps=200),
    optim=dict(name="adamw", b1=0.9, b2=0.98, weight_decay=0.05),
  ),
  audioset=dict(
    # Its positions are cut to the length of the clips; the classifier is new.
    init_from="audioset_10_10_0.4593",
    epochs=25.0,
    model=dict(
      variant="base384", patch_size=(16, 16), stride=(10, 10), dtype="bfloat16"
    ),
    masks=f"freq_mask(24)|time_mask({FRAMES // 5})",
    schedule=dict(
      lr=1e-5,
      decay="multistep",
      decay_start=5,
      decay_every=1,
      decay_factor=0.85,
      warmup="none",
    ),
    optim=common.AST_ADAM,
  ),
)


def get_config(arg: str = "scratch") -> ConfigDict:
  """The recipe; `arg` is a key of `RECIPES`."""
  recipe = common.choose(arg, RECIPES)
  c = ConfigDict(dict(seed=0, epochs=recipe["epochs"], steps=0))

  c.task = "supervised"
  # "tokens" for weights of an SSAST.
  c.task_kw = dict(loss="softmax_xent", pooling="prefix")
  c.init_from = recipe["init_from"]
  c.init_kw = dict(fresh=("head/.*",), rows="frequency")
  c.model = recipe["model"]

  rest = f"fit(num_frames={FRAMES})|quantise|multi_hot|{common.KEEP}"
  # AudioSet's statistics suit 16 kHz recordings of everyday sounds.
  standardize = f"standardize({common.AUDIOSET_STATS})"
  c.input = dict(source="folder", data_dir="", split="train", batch_size=32)
  c.input.source_kw = dict(holdout=0.2)
  c.input.on_host = f"{common.DECODE}|{rest}"
  c.input.on_device = f"{common.FRONT_END}|{recipe['masks']}|{standardize}"

  c.evals = dict(val=dict(split="val", every_epochs=5.0))
  c.evals.val.on_device = f"{common.FRONT_END}|{standardize}"
  c.best = "val/accuracy"

  c.schedule = recipe["schedule"]
  c.optim = recipe["optim"]

  c.checkpoint = dict(every_epochs=5.0, keep=2)
  c.log = dict(every_steps=20, tensorboard=True)
  return c
