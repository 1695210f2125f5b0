"""Mean and standard deviation of a training set's log-mels, for `standardize`.

  python -m astjax.tools.dataset_stats --config=configs/ast_folder.py \
    --data_dir=sounds

takes source, rate, length and filter banks from the config. Every real cell
counts once; padding and augmentation do not count. `--original` computes the
number as the original does it, with padding, mixing and masks and as a mean
over batches of 1,000: its published statistics are of that kind.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from astjax import cli
from astjax.data import pipeline, sources
from astjax.data.reader import Reader
from astjax.engine.step import train_key
from astjax.errors import UserError
from astjax.ops import frontend, host_ops, recipe
from astjax.run import config as run_config
from astjax.run import log

_BATCH = 1000  # the original's; its statistics are a mean over batches
_ON_HOST = ("decode", "resample", "mix", "fit", "quantise")
_ON_DEVICE = ("to_float", "center", "fbank", "pad_frames")
_ON_DEVICE += ("freq_mask", "time_mask")
_AUGMENTATIONS = ("mix", "freq_mask", "time_mask")
_NEEDED = ("decode", "fit", "quantise", "fbank", "pad_frames")


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = cli.Parser(__doc__, config=True)
  add = parser.add_argument
  add("--data_dir", help="where the recordings are")
  add("--original", action="store_true", help="as the original")
  return cli.run(_print_stats, parser, argv)


def _print_stats(args: argparse.Namespace) -> None:
  if args.data_dir is not None:
    args.config.input.data_dir = args.data_dir
  run = run_config.parse(args.config)
  source = sources.build(
    run.input.source,
    "config.input",
    run.input.source_kw,
    data_dir=run.input.data_dir,
    split=run.input.split,
    folds=tuple(str(f) for f in run.input.folds),
  )
  compute = original if args.original else clean
  mean, std, count = compute(run, Reader(source))
  print(f"{count:,} recordings: standardize({mean:.7g}, {std:.7g})")


def clean(
  run: run_config.RunConfig, reader: Reader
) -> tuple[float, float, int]:
  """(mean, standard deviation, recordings) over the real cells alone.

  A streaming sum in float64 over [T, F] of every recording.
  """
  # Of what a recording is, not of what a training does to it.
  ops = _ops(run)
  for name in _AUGMENTATIONS:
    ops.pop(name, None)
  total, squares, cells, count = 0.0, 0.0, 0, 0
  for fbank in _fbanks(run, reader, ops, size=64):
    fbank = fbank.astype(np.float64)  # [B, T, F]
    # pad_frames has written 0.0 into every bin of the other frames.
    real = fbank[(fbank != 0.0).any(axis=-1)]
    total += real.sum()
    squares += np.square(real).sum()
    cells += real.size
    count += len(fbank)
  if not cells:
    raise UserError("no recording has a whole frame")
  mean = total / cells
  return mean, math.sqrt(max(squares / cells - mean * mean, 0.0)), count


def original(
  run: run_config.RunConfig, reader: Reader
) -> tuple[float, float, int]:
  """What `clean` gives, as the original's script computes it.

  With mixing (rate 0.5), padding and masks of up to 24 mel bins and 192 frames
  (or as many as there are), and as the mean over batches of 1,000 of each
  batch's mean and unbiased standard deviation.
  """
  ops = _ops(run)
  args, kwargs = ops["fit"]
  frames = args[0] if args else kwargs["num_frames"]
  args, kwargs = ops["fbank"]
  bins = args[1] if len(args) > 1 else kwargs.get("num_mel_bins", 128)
  for name, value in zip(
    _AUGMENTATIONS, (0.5, min(24, bins), min(192, frames)), strict=True
  ):
    ops[name] = ([value], {})
  found, held, count = [], [], 0
  for fbank in _fbanks(run, reader, ops, size=50):
    held.extend(fbank)
    count += len(fbank)
    while len(held) >= _BATCH:
      found.append(_of_batch(held[:_BATCH]))
      held = held[_BATCH:]
  if held:
    found.append(_of_batch(held))
  mean, std = np.mean(found, axis=0)
  return float(mean), float(std), count


def _of_batch(fbanks):
  values = np.asarray(fbanks)
  return values.mean(dtype=np.float64), values.std(ddof=1, dtype=np.float64)


def _ops(run) -> dict[str, tuple]:
  """{op: its arguments} of the training, from both sides."""
  ops = {}
  for side in ("on_host", "on_device"):
    text = getattr(run.input, side)
    for name, *given in recipe.calls(text, f"config.input.{side}"):
      ops[name] = given
  for name in _NEEDED:
    if name not in ops:
      raise UserError(f"the config's recipes have no {name}")
  return ops


def _fbanks(run, reader, ops, *, size: int) -> Iterator[np.ndarray]:
  """One pass over the readable recordings, [B, T, F] each, with progress."""
  pipeline.hide_accelerators()
  host, device = (
    "|".join(recipe.text(x, *ops[x]) for x in names if x in ops)
    for names in (_ON_HOST, _ON_DEVICE)
  )
  host += "|keep('audio', 'num_samples')"
  where = "config.input.on_host"
  on_host = recipe.parse(host, host_ops.OPS, where, reader=reader)
  on_device = recipe.parse(device, frontend.OPS, "config.input.on_device")
  key = train_key(run.seed)

  @jax.jit
  def compute(batch):
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["id"])
    return recipe.apply_rows(on_device, batch, keys)["fbank"]

  batches = pipeline.eval_batches(reader, on_host, batch_size=size)
  progress = log.Console(stderr=True).ticker(
    "statistics", pipeline.num_eval_batches(reader, size)
  )
  with contextlib.closing(batches):
    for i, batch in enumerate(batches, start=1):
      yield np.asarray(compute(batch))[batch["valid"]]
      progress(i)


if __name__ == "__main__":
  sys.exit(main())
