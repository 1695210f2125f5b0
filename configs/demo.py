"""A first look: a small AST learns overlapping synthetic sound events.

Command: make demo
    or:  python -m astjax.main --config=configs/demo.py --workdir=runs/demo
Data: built in, made as it is read; 10 classes, one to three per clip of 2 s.
Expected: val/mAP of about 0.7 (0.707 and 0.714 measured) in 4 minutes on two
CPU cores.

Every config has these sections. Each value can be set on the command line:
--config.schedule.lr=5e-4. docs/training.md and docs/data.md say more.
"""

from ml_collections import ConfigDict

RATE = 16_000  # Hz
FRAMES = 200  # 2 s, one frame every 10 ms
MELS = 64  # frequency bins
CLIPS = dict(seconds=2.0, sample_rate=RATE)


def get_config(arg: str = "") -> ConfigDict:
  """The demo's config; takes no argument."""
  if arg:
    raise ValueError(f"configs/demo.py takes no argument, got {arg!r}")
  c = ConfigDict()

  # How long: `epochs` passes over the data, or a number of `steps` instead. All
  # that is random follows from the seed.
  c.seed = 0
  c.epochs = 10.0
  c.steps = 0

  # What is learned: which classes are in a clip. Several can be, so each class
  # has a sigmoid and a binary cross-entropy (bce) of its own.
  c.task = "supervised"
  c.task_kw = dict(loss="bce")

  # Where it starts: at random. With a file of weights or a run in `init_from`,
  # `fresh` names the parameters that are new all the same, here the classifier,
  # and `rows` says which axis of the spectrogram an image's rows become.
  c.init_from = ""
  c.init_kw = dict(fresh=("head/.*",), rows="frequency")

  # A vision transformer on patches of 16 mel bins x 16 frames, side by side.
  # The size that is named gives what is not said here.
  c.model = dict(
    variant="tiny224",
    width=96,
    depth=4,
    num_heads=3,
    patch_size=(16, 16),
    stride=(16, 16),
  )

  # From a recording to what the model sees, as two chains of operations. The
  # host makes clips of one length, as 16-bit samples, and their labels. The
  # device computes log-mels, hides a run of mel bins and a run of frames, and
  # standardises with the mean and standard deviation of the data.
  log_mels = f"to_float|center|fbank(num_mel_bins={MELS})|pad_frames"
  standardize = "standardize(-3.559, 3.5)"
  c.input = dict(
    source="synthetic",
    source_kw=dict(num_examples=3000, **CLIPS),
    split="train",
    batch_size=32,
    on_host=(
      f"decode|fit(num_frames={FRAMES})|quantise|multi_hot"
      "|keep('audio', 'num_samples', 'label')"
    ),
    on_device=f"{log_mels}|freq_mask(8)|time_mask(20)|{standardize}",
  )

  # Evaluations by name; what they leave out is as in `input`. This one hides
  # nothing. The checkpoint with the highest val/mAP is kept as the best.
  c.evals = dict(
    val=dict(
      split="val",
      source_kw=dict(num_examples=500, **CLIPS),
      on_device=f"{log_mels}|{standardize}",
      every_epochs=1.0,
    )
  )
  c.best = "val/mAP"

  # The learning rate rises for 50 steps, then falls to 0 along a cosine.
  c.schedule = dict(lr=1e-3, decay="cosine", warmup="linear", warmup_steps=50)
  c.optim = dict(name="adam", b1=0.9, weight_decay=5e-7)

  # How often the run is saved and how many checkpoints stay; how often it
  # writes to metrics.jsonl.
  c.checkpoint = dict(every_epochs=1.0, keep=2)
  c.log = dict(every_steps=20, tensorboard=True)
  return c
