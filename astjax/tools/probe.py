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
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from astjax import cli
from astjax.data import sources
from astjax.data.reader import Reader
from astjax.errors import UserError, call, lookup
from astjax.ops import device_ops
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
  add("--train_split", default="train", help="to learn from")
  add("--train_folds", default="", help="to learn from, such as 1,2,3,4")
  add("--test_split", default="test", help="to rate")
  add("--test_folds", default="", help="to rate, such as 5")
  add("--probes", default=",".join(probes.PROBES), help="which ones")
  add("--k", type=int, default=20, help="neighbours of knn")
  predict.add_model(parser, labels=False)
  return cli.run(_probe, parser, argv)


def _probe(args: argparse.Namespace) -> int:
  chosen = _probes(args)
  splits = {
    "train": (args.train_split, _listed(args.train_folds)),
    "test": (args.test_split, _listed(args.test_folds)),
  }
  if splits["train"] == splits["test"]:
    raise UserError(
      "the recordings to learn from and those to rate are the same: give other "
      "--train_split and --test_split, or folds"
    )
  readers = {
    k: Reader(_source(args, split, folds))
    for k, (split, folds) in splits.items()
  }
  names = {k: r.source.class_names for k, r in readers.items()}
  if names["train"] != names["test"]:
    raise UserError(
      f"{len(names['train'])} classes to learn from, {len(names['test'])} to "
      "rate: give both one label_list in --source_kw"
    )
  model = predict.load_model(args, ())
  console = log.Console(stderr=True)
  found = {k: hear(model, r, console, k) for k, r in readers.items()}
  kinds = {"embeddings": "embedding", "mean log-mels": "log_mels"}
  rows = []
  for kind, key in kinds.items():
    for name, probe in chosen.items():
      known, asked = found["train"], found["test"]
      scores = probe.scores(known[key], known["label"], asked[key])
      rated, _ = probe.summarise({"scores": scores, "label": asked["label"]})
      rows.append([kind, name, *rated.values()])
  unreadable = sum(len(r.unreadable) for r in readers.values())
  out = log.Console()
  out.block(
    f"{model.info.origin}, SHA-256 {model.digest[:16]}...",
    {
      "recordings": f"{len(found['train']['label'])} to learn from, "
      f"{len(found['test']['label'])} to rate",
      "classes": len(names["test"]),
      "unreadable": unreadable,
    },
  )
  out.table("", ["of", "probe", *probes.Probe.metric_names], rows)
  return 1 if unreadable else 0


def _probes(args) -> dict[str, probes.Probe]:
  given = {"knn": {"k": args.k}}
  return {
    name: call(
      lookup(probes.PROBES, name, "--probes"), name, given.get(name, {})
    )
    for name in _listed(args.probes) or ("",)
  }


def _listed(text: str) -> tuple[str, ...]:
  return tuple(x for x in text.split(",") if x)


def _source(args, split: str, folds: tuple[str, ...]) -> sources.Source:
  try:
    given: Any = ast.literal_eval(args.source_kw)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    given = None
  if not isinstance(given, dict):
    raise UserError(
      f"--source_kw={args.source_kw[:300]!r} is not like {{'holdout': 0.2}}"
    )
  source = sources.build(
    args.source,
    "recordings",
    given,
    data_dir=args.data_dir,
    split=split,
    folds=folds,
  )
  sources.check_labelled(source, f"the source {args.source!r}")
  return source


def hear(
  model: Bundle, reader: Reader, console: log.Console, what: str
) -> dict[str, np.ndarray]:
  """What a probe needs of each readable recording; progress calls them `what`.

  Returns:
    {"embedding": [n, D], "log_mels": [n, F], "label": [n, C] multi-hot}; the
    log-mels are means over the frames of real samples.
  """
  source = reader.source
  log_mels = _LogMels(model.info.recipe)
  progress = console.ticker(what, len(source), what="recordings")
  out: dict[str, list] = {"embedding": [], "log_mels": [], "label": []}
  for first in range(0, len(source), _BLOCK):
    block = range(first, min(first + _BLOCK, len(source)))
    heard = {i: x for i in block if (x := reader.read(i)) is not None}
    waves = [audio for audio, _ in heard.values()]
    rates = [rate for _, rate in heard.values()]
    embedded = model.embed(waves, rates, whole=False)
    out["embedding"] += [e.clip for e in embedded]
    out["log_mels"] += map(log_mels, waves, rates)
    for i in heard:
      label = np.zeros(len(source.class_names), np.float32)
      label[list(source.labels(i))] = 1.0
      out["label"].append(label)
    progress(block.stop)
  if not out["label"]:
    raise reader.none_readable()
  return {k: np.stack(v) for k, v in out.items()}


class _LogMels:
  """A waveform's mean log-mels [F], by the front-end of a recipe."""

  def __init__(self, text: str):
    recipe = recording.parse(text)
    self._frames = recipe.frames
    self._cutting = recording.Cutting(
      recipe, lengths=(recipe.num_frames,), column=1, num_columns=1
    )
    # Literal patches are cut from what is wanted here.
    ops = tuple(op for op in recipe.ops if op.name != "patchify")

    def run(batch):
      keys = device_ops.row_keys(jax.random.key(0, impl="threefry2x32"), 1)
      return device_ops.apply(ops, batch, keys)["fbank"][0]

    self._run = jax.jit(run)

  def __call__(self, audio: np.ndarray, rate: int) -> np.ndarray:
    heard = recording.Recording(audio, rate)
    row = next(heard.rows(self._cutting, whole=False))
    count = np.array([row.num_samples], np.int32)
    fbank = self._run({"audio": row.audio[None], "num_samples": count})
    return np.asarray(fbank)[: self._frames.num_frames(row.num_samples)].mean(0)


if __name__ == "__main__":
  sys.exit(main())
