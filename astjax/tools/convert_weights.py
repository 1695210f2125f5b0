"""Turns a published checkpoint into a model of astjax, or a model into others'.

  python -m astjax.tools.convert_weights deit_base_distilled_patch16_384 OUT \
    --variant=base384 --input=128x1024 --num_classes=527
  python -m astjax.tools.convert_weights runs/digits OUT --format=hf
  python -m astjax.tools.convert_weights --list

SOURCE is a path (.safetensors, .npz, .pth, a Hugging Face folder, a model or a
work directory of astjax), a published checkpoint (--list) or a Hugging Face
name.
It prints what was taken, adapted, dropped and made fresh.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from astjax import cli
from astjax.errors import UserError, call
from astjax.models import ast
from astjax.models.heads import Head
from astjax.ops import patches
from astjax.types import Params
from astjax.weights import (
  adapt,
  convert,
  files,
  hugging_face,
  registry,
  tables,
)
from astjax.weights.front_end import FrontEnd
from astjax.weights.info import Loaded, ModelInfo, Options, save_model
from astjax.weights.load import load, start


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  return cli.run(_work, _parser(), argv)


def _work(args) -> None:
  if args.list:
    print(_list())
  elif args.source and args.out:
    _convert(args)
  else:
    raise UserError("give SOURCE and OUT, or --list")


def _parser() -> cli.Parser:
  parser = cli.Parser(__doc__)
  add = parser.add_argument
  add("source", nargs="?", metavar="SOURCE")
  add("out", nargs="?", metavar="OUT", help="a new folder; a file for official")
  add("--list", action="store_true", help="list the published checkpoints")
  add("--format", choices=("astjax", "hf", "official"), default="astjax")
  add = parser.add_argument_group("the model that is written").add_argument
  add("--variant", choices=sorted(ast.VARIANTS), help="only checks the size")
  add("--input", type=_pair, metavar="128x1024", help="mel bins x frames")
  what = "mel bins x frames"
  add("--stride", dest="new_stride", type=_pair, metavar="10x10", help=what)
  add("--prefix", help="tokens, such as cls,dist; as in the source by default")
  what = "what rows of the source's patches become: frequency or time"
  add("--rows", help=what)
  what = "how SSAST's change for another grid: original or corrected"
  add("--positions", help=what)
  add("--num_classes", type=int, help="a fresh classifier of so many")
  what = "class names, one a line, or AudioSet's CSV; if there are not as many "
  add("--labels", help=what + "classes, also a fresh classifier")
  add("--scores", choices=("sigmoid", "softmax"), help="of the classifier")
  add("--sample_rate", type=int, help="Hz")
  add("--mean", type=float, help="of the log-mels, to standardise")
  add("--std", type=float, help="of the log-mels, to standardise")
  add("--seed", type=int, default=0, help="of what is made fresh")
  add = parser.add_argument_group("what a bare file does not tell").add_argument
  what = "frequency x time"
  add("--source_grid", dest="grid", type=_pair, metavar="12x101", help=what)
  what = "mel bins x frames"
  add("--source_stride", dest="stride", type=_pair, metavar="10x10", help=what)
  add("--source_mel_bins", dest="num_mel_bins", type=int, help="default: 128")
  add("--num_heads", type=int, help="default: width / 64")
  what = "of its classifier: prefix or tokens"
  add("--source_pooling", dest="pooling", help=what)
  what = "of ASiT's two; also under whose names official writes"
  add("--network", choices=files.NETWORKS, default=files.NETWORKS[0], help=what)
  return parser


def _pair(text: str) -> tuple[int, int]:
  match = re.fullmatch(r"(\d+)[x,](\d+)", text)
  if not match or "0" in match.groups():
    raise argparse.ArgumentTypeError(f"{text!r} is no pair like 128x1024")
  return int(match.group(1)), int(match.group(2))


def _list() -> str:
  lines = []
  for name, c in registry.CHECKPOINTS.items():
    lines += [name, f"  {c.what}; {c.licence}"]
    lines += [f"  {c.expected or 'no metric reported'}", f"  {c.url}"]
    lines += [f"  SHA-256 begins with {c.sha256}"] if c.sha256 else []
    lines += [f"  also as {c.mirror}"] if c.mirror else []
  return "\n".join(lines)


def _convert(args) -> None:
  out = pathlib.Path(args.out).expanduser()
  if args.format == "official" and out.suffix != ".safetensors":
    raise UserError(f"{out}: official names go into a file named .safetensors")
  files.check_new(out)  # before the work
  labels = _labels(args)
  names = [field.name for field in dataclasses.fields(Options)]
  given = {k: v for k, v in vars(args).items() if k in names and v is not None}
  options = call(Options, "the flags of the source", given)
  loaded = load(args.source, options)
  info, grid = _target(loaded, args, labels)
  old, new = loaded.info.head, info.head
  is_kept = args.num_classes is None and bool(
    old and new and old.num_classes == new.num_classes
  )
  init = jax.jit(lambda key: info.init_params(grid, key))
  params, report = start(
    loaded,
    init(jax.random.key(args.seed)),
    backbone=info.backbone(),
    objective=info.objective,
    options=dataclasses.replace(
      options, fresh=() if is_kept else (adapt.HEAD,)
    ),
  )
  if report.changed or report.fresh:  # it is another model now
    info = dataclasses.replace(info, expected="", reported=None)
  print(f"source: {loaded.info.origin}, SHA-256 {loaded.digest[:16]}...")
  if info.licence:
    print(f"licence of the weights: {info.licence}")
  if loaded.info.expected:
    print(f"published result of the source: {loaded.info.expected}")
  report.notes += _write(args, out, info, grid, params)
  print("\n".join(report.lines()))
  count = sum(x.size for x in jax.tree.leaves(params))
  what = f"{count:,} parameters, grid {adapt.by(grid)} (frequency x time)"
  print(f"wrote {out}: {what}")


def _labels(args) -> tuple[str, ...]:
  if not args.labels:
    return ()
  from astjax.data import tables

  labels = tuple(tables.read_label_list(args.labels)[0])
  if args.num_classes not in (None, len(labels)):
    raise UserError(f"--num_classes differs from the {len(labels)} of --labels")
  return labels


def _target(loaded: Loaded, args, labels) -> tuple[ModelInfo, tuple[int, int]]:
  """The model to write: the source's, with what the flags change."""
  info, model = loaded.info, dict(loaded.info.model)
  for name, wanted in ast.VARIANTS.get(args.variant, {}).items():
    if model[name] != wanted:
      raise UserError(f"the source has {name} {model[name]}, not {wanted}")
  if args.prefix is not None:
    model["prefix"] = tuple(p for p in args.prefix.split(",") if p)
  if loaded.is_image:
    if not args.input:
      raise UserError(f"a checkpoint of images {_NEEDS_INPUT}")
    if args.rows == "time":
      model["patch_size"] = model["patch_size"][::-1]
    model["stride"] = (10, 10)
  if args.new_stride:
    model["stride"] = args.new_stride
  recipe, size = _recipe(info, args)
  grid = loaded.params[convert.GRID].shape[:2]
  if size:
    bins, frames = size
    patch, stride = model["patch_size"], model["stride"]
    grid = patches.grid_shape(frames, bins, patch, stride)
  elif args.new_stride:
    raise UserError(f"--stride {_NEEDS_INPUT}")
  info = dataclasses.replace(
    info, model=model, recipe=recipe, **_classifier(info, args, labels)
  )
  return info, grid


_NEEDS_INPUT = "needs --input=128x1024 (mel bins x frames)"


def _classifier(info: ModelInfo, args, labels) -> dict:
  """The fields of `ModelInfo` that say what stands on top."""
  head, names, objective = info.head, labels or info.class_names, info.objective
  count = len(labels) or args.num_classes
  if count is not None and (
    head is None or head.num_classes != count or args.num_classes is not None
  ):
    # A fine-tuning reads those tokens that the pre-training has taught.
    pooling = info.pretraining.pooling if info.pretraining else "prefix"
    given = {"num_classes": count, "pooling": pooling}
    head = call(Head, "--num_classes", given)
    names, objective = labels, {}
  if args.scores:
    if head is None:
      raise UserError("--scores is of a classifier; this model has none")
    head = dataclasses.replace(head, scores=args.scores)
  return {"head": head, "class_names": names, "objective": objective}


def _recipe(info: ModelInfo, args) -> tuple[str, tuple[int, int] | None]:
  """(recipe, (mel bins, frames) if they change); without flags as it is."""
  if (args.mean is None) != (args.std is None):
    raise UserError("--mean and --std belong together")
  changes = {}
  if args.input:
    changes = {"num_mel_bins": args.input[0], "num_frames": args.input[1]}
  if args.mean is not None:
    changes["statistics"] = (args.mean, args.std)
  if args.sample_rate is not None:
    changes["sample_rate"] = args.sample_rate
  if not changes and not (info.recipe and args.new_stride):
    return info.recipe, None
  given: dict[str, Any] = {"sample_rate": 16_000}
  if info.recipe:
    given = dataclasses.asdict(FrontEnd.from_recipe(info.recipe))
  elif not args.input:
    raise UserError(f"a source without a front-end {_NEEDS_INPUT}")
  elif args.mean is None:
    return "", args.input
  front_end = call(FrontEnd, "the flags of the front-end", given | changes)
  return front_end.recipe(), (front_end.num_mel_bins, front_end.num_frames)


def _write(args, out, info: ModelInfo, grid, params: Params) -> list[str]:
  """Writes it; returns what should be known about the result."""
  if args.format == "astjax":
    save_model(out, info, params)
    return [] if info.recipe else ["the front-end is unknown and left out"]
  if args.format == "hf":
    return hugging_face.save(out, info, params)
  name = info.objective.get("name", "")
  tensors = _OFFICIAL.get(name, _official_classifier)(info, params, args, grid)
  # For this library: what the official names do not tell.
  own = json.dumps({"info": info.to_json(), "grid": grid})
  with files.new_path(out) as temporary:
    files.write_safetensors(temporary, tensors, {"format": "pt", "astjax": own})
  head_eps = info.head.layer_norm_eps if info.head else 1e-5
  have = info.model["layer_norm_eps"], head_eps
  if have == (1e-6, 1e-5):
    return []
  return [f"the official code has epsilons 1e-06 and 1e-05, this model {have}"]


# Each gives arrays by their official names.


def _official_asit(info: ModelInfo, params: Params, args, grid):
  is_first = info.objective.get("preset") == "r1"
  table = tables.ASIT_R1_PTH if is_first else tables.ASIT_R2_PTH
  # How the names of the two networks begin where both are in one file.
  start = "student.module." if args.network == "student" else "teacher."
  return {start + k: v for k, v in convert.revert(params, table).items()}


def _official_ssast(info: ModelInfo, params: Params, args, grid):
  _check_prefix(info)
  # The smallest input that has the grid, which is what it is read for.
  size = np.multiply(grid, info.model["patch_size"])
  params = {**params, convert.INPUT_SIZE: size}
  tensors = convert.revert(params, tables.SSAST_PTH)
  # The original takes no file without this prefix.
  return {f"module.{k}": v for k, v in tensors.items()}


def _official_classifier(info: ModelInfo, params: Params, args, grid):
  head = info.head
  if not head:
    raise UserError("the official AST has a classifier; give --num_classes")
  if head.projection or head.pooling == "all":
    raise UserError("the official classifiers read the last block alone")
  if tuple(info.model["prefix"]) == ("cls",) and head.pooling == "prefix":
    return convert.revert(params, tables.ASIT_PTH)
  _check_prefix(info)
  return convert.revert(params, tables.AST_PTH)


_OFFICIAL = {"asit": _official_asit, "ssast": _official_ssast}


def _check_prefix(info: ModelInfo) -> None:
  prefix = tuple(info.model["prefix"])
  if prefix != ("cls", "dist"):
    raise UserError(f"the official AST has tokens cls and dist, not {prefix}")


if __name__ == "__main__":
  sys.exit(main())
