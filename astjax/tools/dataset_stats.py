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
import importlib.util
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from astjax.data import pipeline, sources
from astjax.data.reader import Reader
from astjax.engine import step
from astjax.errors import UserError
from astjax.ops import frontend, host_ops, recipe
from astjax.run import config as run_config
from astjax.run import log

_BATCH = 1000  # the original's


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", required=True, help="FILE.py or FILE.py:arg")
  parser.add_argument("--data_dir", help="where the recordings are")
  parser.add_argument("--original", action="store_true", help="as the original")
  args = parser.parse_args(argv)
  try:
    config = load_config(args.config)
    if args.data_dir is not None:
      config["input"]["data_dir"] = args.data_dir
    run = run_config.parse(config)
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
  except UserError as e:
    print(f"astjax: error: {e}", file=sys.stderr)
    return 1
  print(f"{count:,} recordings: standardize({mean:.7g}, {std:.7g})")
  return 0


def load_config(text: str) -> dict:
  """The plain config of FILE.py or FILE.py:arg.

  Raises:
    UserError: no such file, or its get_config raises.
  """
  path, _, arg = text.partition(":")
  if not pathlib.Path(path).is_file():
    raise UserError(f"there is no config file {path!r}")
  spec = importlib.util.spec_from_file_location("config", path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(arg) if arg else module.get_config()
  except Exception as e:
    raise UserError(f"{path}: {type(e).__name__}: {e}") from None
  return run_config.to_plain(config)


def _recipes(run: run_config.RunConfig):
  """{op: its text} of the training, from both sides."""
  calls = (
    *recipe.calls(run.input.on_host, "config.input.on_host"),
    *recipe.calls(run.input.on_device, "config.input.on_device"),
  )
  ops = {name: recipe.text(name, args, kwargs) for name, args, kwargs in calls}
  for name in ("decode", "fit", "quantise", "fbank", "pad_frames"):
    if name not in ops:
      raise UserError(f"the config's recipes have no {name}")
  return ops


def _size(run):
  """(frames, mel bins) of the input."""
  sizes = {}
  for text in (run.input.on_host, run.input.on_device):
    for name, args, kwargs in recipe.calls(text, "the recipe"):
      sizes[name] = (args, kwargs)
  args, kwargs = sizes["fit"]
  frames = args[0] if args else kwargs["num_frames"]
  args, kwargs = sizes["fbank"]
  return frames, args[1] if len(args) > 1 else kwargs.get("num_mel_bins", 128)


def _joined(ops, *names):
  return "|".join(ops[n] for n in names if n in ops)


def clean(run: run_config.RunConfig, reader: Reader):
  """(mean, standard deviation, recordings) over the real cells alone.

  A streaming sum in float64 over [T, F] of every recording.
  """
  ops = _recipes(run)
  host = _joined(ops, "decode", "resample", "fit", "quantise")
  host += "|keep('audio', 'num_samples')"
  device = _joined(ops, "to_float", "center", "fbank", "pad_frames")
  total, squares, cells, count = 0.0, 0.0, 0, 0
  for batch in _batches(run, reader, host, device, size=64):
    fbank = batch["fbank"].astype(np.float64)  # [B, T, F]
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


def original(run: run_config.RunConfig, reader: Reader):
  """The same as the original's script computes it.

  With mixing (rate 0.5), padding and masks of up to 24 mel bins and 192 frames
  (or as many as there are), and as the mean over batches of 1,000 of each
  batch's mean and unbiased standard deviation.
  """
  ops = _recipes(run)
  frames, bins = _size(run)
  ops |= {
    "mix": "mix(0.5)",
    "freq_mask": f"freq_mask({min(24, bins)})",
    "time_mask": f"time_mask({min(192, frames)})",
  }
  host = _joined(ops, "decode", "resample", "mix", "fit", "quantise")
  host += "|keep('audio', 'num_samples')"
  device = _joined(
    ops, "to_float", "center", "fbank", "pad_frames", "freq_mask", "time_mask"
  )
  means, deviations, held, count = [], [], [], 0
  for batch in _batches(run, reader, host, device, size=50):
    held.extend(batch["fbank"])
    while len(held) >= _BATCH:
      means.append(np.mean(held[:_BATCH], dtype=np.float64))
      deviations.append(np.std(held[:_BATCH], ddof=1, dtype=np.float64))
      held = held[_BATCH:]
    count += len(batch["fbank"])
  if held:
    means.append(np.mean(held, dtype=np.float64))
    deviations.append(np.std(held, ddof=1, dtype=np.float64))
  return float(np.mean(means)), float(np.mean(deviations)), count


def _batches(run, reader, host, device, *, size) -> Iterator[dict]:
  """One pass over the readable recordings, with progress."""
  pipeline.hide_accelerators()
  on_host = recipe.parse(
    host, host_ops.OPS, "config.input.on_host", reader=reader
  )
  on_device = recipe.parse(device, frontend.OPS, "config.input.on_device")
  key = step.train_key(run.seed)

  @jax.jit
  def compute(batch):
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["id"])
    return recipe.apply_rows(on_device, batch, keys)

  batches = pipeline.eval_batches(reader, on_host, batch_size=size)
  progress = log.Console(stderr=True).ticker(
    "statistics", pipeline.num_eval_batches(reader, size)
  )
  with contextlib.closing(batches):
    for i, batch in enumerate(batches, start=1):
      out = {k: np.asarray(v) for k, v in compute(batch).items()}
      yield {k: v[batch["valid"]] for k, v in out.items()}
      progress(i)


if __name__ == "__main__":
  sys.exit(main())
