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
import itertools
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
from astjax.run import config, log
from astjax.run.config import RunConfig

_BATCH = 1000  # the original's; its statistics are a mean over batches
_ON_HOST = ("decode", "resample", "mix", "fit", "quantise")
_MASKS = ("freq_mask", "time_mask")
_ON_DEVICE = ("to_float", "center", "fbank", "pad_frames", *_MASKS)
_AUGMENTATIONS = ("mix", *_MASKS)
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
  run = config.parse(args.config)
  source = sources.build(
    run.input.source,
    "config.input",
    run.input.source_kw,
    data_dir=run.input.data_dir,
    split=run.input.split,
    folds=tuple(map(str, run.input.folds)),
  )
  compute = original if args.original else clean
  mean, std, count = compute(run, Reader(source))
  print(f"{count:,} recordings: standardize({mean:.7g}, {std:.7g})")


def clean(run: RunConfig, reader: Reader) -> tuple[float, float, int]:
  """(mean, standard deviation, recordings) over the real cells alone."""
  # Statistics are of the recordings, so nothing is changed at random.
  ops = {k: v for k, v in _ops(run).items() if k not in _AUGMENTATIONS}
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


def original(run: RunConfig, reader: Reader) -> tuple[float, float, int]:
  """What `clean` gives, as the original's script computes it.

  With mixing (rate 0.5), padding and masks of up to 24 mel bins and 192 frames
  (or as many as there are), and as the mean over batches of 1,000 of each
  batch's mean and unbiased standard deviation.
  """
  ops = _ops(run)
  (fit,) = recipe.parse(ops["fit"], host_ops.OPS, "config.input.on_host")
  (fbank,) = recipe.parse(ops["fbank"], frontend.OPS, "config.input.on_device")
  ops["mix"] = "mix(0.5)"
  ops["freq_mask"] = f"freq_mask({min(24, fbank.arguments['num_mel_bins'])})"
  ops["time_mask"] = f"time_mask({min(192, fit.arguments['num_frames'])})"
  rows = itertools.chain.from_iterable(_fbanks(run, reader, ops, size=50))
  found, count = [], 0
  while held := list(itertools.islice(rows, _BATCH)):
    batch = np.stack(held)
    mean = batch.mean(dtype=np.float64)
    found.append((mean, batch.std(ddof=1, dtype=np.float64)))
    count += len(held)
  if not found:
    raise UserError("no recording has a whole frame")
  mean, std = np.mean(found, axis=0)
  return float(mean), float(std), count


def _ops(run) -> dict[str, str]:
  """{op: how it is written} of the training, from both sides."""
  ops = {}
  for side in ("on_host", "on_device"):
    for call in recipe.calls(getattr(run.input, side), f"config.input.{side}"):
      ops[call[0]] = recipe.text(*call)
  for name in _NEEDED:
    if name not in ops:
      raise UserError(f"the config's recipes have no {name}")
  return ops


def _fbanks(run, reader, ops, *, size: int) -> Iterator[np.ndarray]:
  """One pass over the readable recordings, [B, T, F] each, with progress."""
  pipeline.hide_accelerators()
  host = [ops[name] for name in _ON_HOST if name in ops]
  on_host = recipe.parse(
    "|".join([*host, "keep('audio', 'num_samples')"]),
    host_ops.OPS,
    "config.input.on_host",
    reader=reader,
  )
  device = "|".join(ops[name] for name in _ON_DEVICE if name in ops)
  on_device = recipe.parse(device, frontend.OPS, "config.input.on_device")
  key = train_key(run.seed)

  @jax.jit
  def compute(batch):
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["id"])
    return recipe.apply_rows(on_device, batch, keys)["fbank"]

  total = pipeline.num_eval_batches(reader, size)
  progress = log.Console(stderr=True).ticker("statistics", total)
  batches = pipeline.eval_batches(reader, on_host, batch_size=size)
  for i, batch in enumerate(batches, start=1):
    yield np.asarray(compute(batch))[batch["valid"]]
    progress(i)


if __name__ == "__main__":
  sys.exit(main())
