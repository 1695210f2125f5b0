"""Rates what a model makes of recordings, without training it: probes.

  python -m astjax.tools.probe --model=runs/ssast --data_dir=recordings \
    --source=filenames --source_kw="{'pattern': ..., 'splits': {...}}"

Small classifiers learn from the embeddings of one labelled split and are rated
on another; the same on mean log-mels of the model's own front-end says what
that is worth. As in training's evaluations, the beginning of each recording is
heard, of the trained length.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from astjax import cli
from astjax.data import sources
from astjax.data.reader import Reader
from astjax.data.source import check_labelled
from astjax.errors import UserError, call, lookup
from astjax.ops.recipe import apply_rows, row_keys
from astjax.run import log
from astjax.serving import recording
from astjax.serving.bundle import Bundle
from astjax.tasks import probes
from astjax.tools import predict

_BLOCK = 64  # recordings in memory at once


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = cli.Parser(__doc__)
  add = parser.add_argument
  add("--data_dir", default="", help="where the recordings are")
  add("--source", default="folder", help="as config.input.source")
  what = "its arguments, as in a config: \"{'holdout': 0.2}\""
  add("--source_kw", default="{}", help=what)
  for name, what in (("train", "learn from"), ("test", "rate")):
    add(f"--{name}_split", default=name, help=f"to {what}")
    what = f"to {what}, such as 1,2; all by default"
    add(f"--{name}_folds", type=cli.listed, default=(), help=what)
  add(
    "--probes", type=cli.listed, default=tuple(probes.PROBES), help="which ones"
  )
  add("--k", type=int, default=20, help="neighbours of knn")
  predict.add_model(parser, labels=False)
  return cli.run(_probe, parser, argv)


def _probe(args: argparse.Namespace) -> int:
  given = {"knn": {"k": args.k}}
  chosen = {}
  for name in args.probes or ("",):
    make = lookup(probes.PROBES, name, "--probes")
    chosen[name] = call(make, name, given.get(name, {}))
  parts = [
    (args.train_split, args.train_folds),
    (args.test_split, args.test_folds),
  ]
  if parts[0] == parts[1]:
    raise UserError(
      "the recordings to learn from and those to rate are the same: give other "
      "--train_split and --test_split, or folds"
    )
  readers = [_reader(args, *part) for part in parts]
  names = [reader.source.class_names for reader in readers]
  if names[0] != names[1]:
    raise UserError(
      f"{len(names[0])} classes to learn from, {len(names[1])} to rate: give "
      "both one label_list in --source_kw"
    )
  model = predict.load_model(args, ())
  console = log.Console(stderr=True)
  known, asked = (hear(model, reader, console) for reader in readers)
  rows = []
  for kind, key in (("embeddings", "embedding"), ("mean log-mels", "log_mels")):
    for name, probe in chosen.items():
      scores = probe.scores(known[key], known["label"], asked[key])
      rated, _ = probe.summarise({"scores": scores, "label": asked["label"]})
      rows.append([kind, name, *rated.values()])
  counts = [len(x["label"]) for x in (known, asked)]
  unreadable = sum(len(reader.unreadable) for reader in readers)
  facts = {
    "recordings": f"{counts[0]} to learn from, {counts[1]} to rate",
    "classes": len(names[0]),
    "unreadable": unreadable,
  }
  out = log.Console()
  out.block(f"{model.info.origin}, SHA-256 {model.digest[:16]}...", facts)
  out.table("", ["of", "probe", *probes.Probe.metric_names], rows)
  return 1 if unreadable else 0


def _reader(args, split: str, folds: tuple[str, ...]) -> Reader:
  try:
    given = ast.literal_eval(args.source_kw)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    given = None
  if not isinstance(given, dict):
    raise UserError(
      f"--source_kw={args.source_kw[:300]!r} is not like {{'holdout': 0.2}}"
    )
  where = {"data_dir": args.data_dir, "split": split, "folds": folds}
  source = sources.build(args.source, "recordings", given, **where)
  check_labelled(source, f"the source {args.source!r}")
  return Reader(source)


def hear(
  model: Bundle, reader: Reader, console: log.Console
) -> dict[str, np.ndarray]:
  """{"embedding": [n, D], "log_mels": [n, F], "label": [n, C] multi-hot}.

  Of each readable recording; log-mels are means over frames of real samples.
  """
  source = reader.source
  log_mels = _mean_log_mels(model.info.recipe)
  progress = console.ticker("heard", len(source), what="recordings")
  out: dict[str, list[Any]] = {"embedding": [], "log_mels": [], "label": []}
  classes = np.arange(len(source.class_names))
  heard = ((i, x) for i in range(len(source)) if (x := reader.read(i)))
  while block := list(itertools.islice(heard, _BLOCK)):
    waves, rates = zip(*(x for _, x in block), strict=True)
    embedded: Any = model.embed(waves, rates, whole=False)
    out["embedding"] += [e.clip for e in embedded]
    out["log_mels"] += map(log_mels, waves, rates)
    labels = [np.isin(classes, source.labels(i)) for i, _ in block]
    out["label"] += [label.astype(np.float32) for label in labels]
    progress(block[-1][0] + 1)
  if not out["label"]:
    raise reader.none_readable()
  return {k: np.stack(v) for k, v in out.items()}


def _mean_log_mels(text: str) -> Callable[[np.ndarray, int], np.ndarray]:
  """A function of a waveform and its rate: mean log-mels [F], by a recipe."""
  parsed = recording.parse(text)
  # Literal patches are cut from what is wanted here.
  ops = tuple(op for op in parsed.ops if op.name != "patchify")

  @jax.jit
  def run(batch):
    keys = row_keys(jax.random.key(0, impl="threefry2x32"), 1)
    return apply_rows(ops, batch, keys)["fbank"][0]

  def mean(audio, rate):
    heard = recording.Recording(audio, rate)
    batch = recording.beginnings(parsed, [heard])
    real = parsed.frames.num_frames(int(batch["num_samples"][0]))
    return np.asarray(run(batch))[:real].mean(0)

  return mean


if __name__ == "__main__":
  sys.exit(main())
