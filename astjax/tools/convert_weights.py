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
import math
import pathlib
import re
import sys
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from absl import logging

from astjax.errors import UserError
from astjax.models import ast, ssast
from astjax.models.heads import Head
from astjax.ops import patches
from astjax.types import Params
from astjax.weights import (
  adapt,
  convert,
  files,
  hugging_face,
  load,
  registry,
  saved_model,
  tables,
)
from astjax.weights import info as model_info
from astjax.weights.info import FrontEnd, ModelInfo

# How the names of ASiT's two networks begin where both are in one file.
_OF_NETWORK = {"teacher": "teacher.", "student": "student.module."}


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  args = _parser().parse_args(argv)
  logging.set_verbosity(logging.ERROR)  # orbax warns of reading only
  try:
    if args.list:
      print(_list())
      return 0
    if not args.source or not args.out:
      raise UserError("give SOURCE and OUT, or --list")
    _convert(args)
  except UserError as e:
    print(f"astjax: error: {' '.join(str(e).split())}", file=sys.stderr)
    return 1
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("source", nargs="?", metavar="SOURCE")
  add("out", nargs="?", metavar="OUT", help="a new folder; a file for official")
  add("--list", action="store_true", help="list the published checkpoints")
  add("--format", choices=("astjax", "hf", "official"), default="astjax")
  model = parser.add_argument_group("the model that is written")
  add = model.add_argument
  add(
    "--variant", choices=sorted(ast.VARIANTS), help="only a check of the size"
  )
  add("--input", type=_pair, metavar="128x1024", help="mel bins x frames")
  add("--stride", type=_pair, metavar="10x10", help="mel bins x frames")
  add("--prefix", help="tokens, such as cls,dist; as in the source by default")
  add("--rows", choices=("frequency", "time"), default="frequency",
      help="what rows of the source's patches become")  # fmt: skip
  add("--positions", choices=("original", "corrected"), default="original",
      help="how SSAST's change for another grid")  # fmt: skip
  add("--num_classes", type=int, help="a fresh classifier of so many")
  add("--labels", help="class names, one a line, or AudioSet's CSV; if there "
      "are not as many classes, also a fresh classifier")  # fmt: skip
  add("--scores", choices=("sigmoid", "softmax"), help="of the classifier")
  add("--sample_rate", type=int, help="Hz")
  add("--mean", type=float, help="of the log-mels, to standardise")
  add("--std", type=float, help="likewise")
  add("--seed", type=int, default=0, help="of what is made fresh")
  source = parser.add_argument_group("what a bare file does not tell")
  add = source.add_argument
  add("--source_grid", type=_pair, metavar="12x101", help="frequency x time")
  add("--source_stride", type=_pair, metavar="10x10", help="mel bins x frames")
  add("--source_mel_bins", type=int, default=128)
  add("--num_heads", type=int, default=0, help="default: width / 64")
  add("--source_pooling", choices=("prefix", "tokens"), default="prefix",
      help="of its classifier")  # fmt: skip
  add("--network", choices=files.NETWORKS, default=files.NETWORKS[0],
      help="of ASiT's two; also under whose names official writes")  # fmt: skip
  return parser


def _pair(text: str) -> tuple[int, int]:
  match = re.fullmatch(r"(\d+)[x,](\d+)", text)
  if not match or "0" in match.groups():
    raise argparse.ArgumentTypeError(f"{text!r} is no pair like 128x1024")
  return int(match.group(1)), int(match.group(2))


def _list() -> str:
  lines = []
  for name, c in registry.CHECKPOINTS.items():
    lines.append(f"{name}\n  {c.what}; {c.licence}")
    lines.append(f"  {c.expected}" if c.expected else "  no metric reported")
    lines.append(f"  {c.url}")
    if c.sha256:
      lines.append(f"  SHA-256 begins with {c.sha256}")
    if c.mirror:
      lines.append(f"  also as {c.mirror}")
  return "\n".join(lines)


def _convert(args) -> None:
  out = pathlib.Path(args.out).expanduser()
  if args.format == "official" and out.suffix != ".safetensors":
    raise UserError(f"{out}: official names go into a file named .safetensors")
  if out.is_file() or (out.is_dir() and any(out.iterdir())):
    raise UserError(f"{out} is there already; give a new name")
  labels = _labels(args)
  options = load.Options(
    rows=args.rows,
    grid=args.source_grid,
    stride=args.source_stride,
    num_mel_bins=args.source_mel_bins,
    num_heads=args.num_heads,
    pooling=args.source_pooling,
    positions=args.positions,
    network=args.network,
  )
  loaded = load.load(args.source, options)
  info, grid = _target(loaded, args, labels)
  old = loaded.info.head
  is_kept = (
    args.num_classes is None
    and info.head is not None
    and old is not None
    and info.head.num_classes == old.num_classes
  )
  init = jax.jit(partial(saved_model.init_params, info, grid))
  params, report = load.start(
    loaded,
    init(jax.random.key(args.seed)),
    backbone=saved_model.backbone_of(info),
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
  print(
    f"wrote {out}: {count:,} parameters, grid {grid[0]} x {grid[1]} "
    "(frequency x time)"
  )


def _labels(args) -> tuple[str, ...]:
  if not args.labels:
    return ()
  from astjax.data import tables

  labels = tuple(tables.read_label_list(args.labels)[0])
  if args.num_classes not in (None, len(labels)):
    raise UserError(
      f"--num_classes={args.num_classes}, but {args.labels} has {len(labels)}"
    )
  return labels


def _target(loaded, args, labels) -> tuple[ModelInfo, tuple[int, int]]:
  """The model to write: the source's, with what the flags change."""
  info = loaded.info
  model = dict(info.model)
  if args.variant:
    model |= ast.VARIANTS[args.variant]
  if args.prefix is not None:
    model["prefix"] = tuple(p for p in args.prefix.split(",") if p)
  patch = tuple(model["patch_size"])
  if loaded.is_image:
    if not args.input:
      raise UserError(
        "a checkpoint of images needs the size of the spectrograms: give "
        "--input=128x1024 (mel bins x frames)"
      )
    patch = patch[::-1] if args.rows == "time" else patch
    model["stride"] = (10, 10)
  model["patch_size"] = patch
  if args.stride:
    model["stride"] = args.stride
  head, names = info.head, labels or info.class_names
  objective = info.objective
  if args.num_classes is not None and args.num_classes < 1:
    raise UserError(f"--num_classes={args.num_classes} must be at least 1")
  count = len(labels) or args.num_classes
  if count and (head is None or head.num_classes != count or args.num_classes):
    # As in SSAST's fine-tuning: its prefix tokens predicted nothing so far.
    is_ssast = objective.get("name") == "ssast"
    pooling = "tokens" if is_ssast else "prefix"
    head, names = Head(num_classes=count, pooling=pooling), labels
    objective = {}
  if args.scores:
    if head is None:
      raise UserError("--scores is of a classifier; this model has none")
    head = dataclasses.replace(head, scores=args.scores)
  recipe, size = _recipe(info, args)
  grid = tuple(loaded.params[convert.GRID].shape[:2])
  if size:
    grid = patches.grid_shape(size[1], size[0], patch, model["stride"])
  elif args.stride:
    raise UserError("--stride needs --input=128x1024 (mel bins x frames)")
  info = dataclasses.replace(
    info,
    model=model,
    head=head,
    objective=objective,
    class_names=names,
    recipe=recipe,
  )
  return info, grid


def _recipe(info: ModelInfo, args):
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
  if info.recipe and (changes or args.stride):
    front_end = model_info.front_end(info.recipe)
    front_end = dataclasses.replace(front_end, **changes)
    size = (front_end.num_mel_bins, front_end.num_frames)
    return front_end.recipe(), size
  if info.recipe or not changes:
    return info.recipe, None
  if not args.input:
    raise UserError(
      "the source's front-end is unknown: --mean, --std and --sample_rate need "
      "--input=128x1024 (mel bins x frames)"
    )
  if args.mean is None:
    return "", args.input
  front_end = FrontEnd(args.sample_rate or 16_000, *args.input[::-1], None)
  return dataclasses.replace(front_end, **changes).recipe(), args.input


def _write(args, out, info: ModelInfo, grid, params: Params) -> list[str]:
  """Writes it; returns what should be known about the result."""
  if args.format == "astjax":
    model_info.save(out, info, params)
    return [] if info.recipe else ["the front-end is unknown and left out"]
  if args.format == "hf":
    return hugging_face.save(out, info, params)
  if info.objective.get("name") == "asit":
    tensors, notes = _official_asit(info, params, args.network)
  else:
    tensors, notes = _official(info, grid, params)
  # For this library: what the official names do not tell.
  own = json.dumps({"info": info.to_json(), "grid": grid})
  with files.new_path(out) as temporary:
    files.write_safetensors(temporary, tensors, {"format": "pt", "astjax": own})
  return notes


def _official_asit(info: ModelInfo, params: Params, network: str):
  """({official name: array}, notes) of a pre-trained ASiT."""
  is_first = info.objective.get("preset") == "r1"
  table = tables.ASIT_R1_PTH if is_first else tables.ASIT_R2_PTH
  tensors = convert.revert(params, table)
  start, epsilon = _OF_NETWORK[network], info.model["layer_norm_eps"]
  notes = [
    f"names of the {'first' if is_first else 'second'} release, as its "
    f"{network}; its checkpoint.pth has them under {network!r}"
  ]
  if epsilon != 1e-6:
    notes.append(f"the official code has epsilon 1e-06, this model {epsilon:g}")
  return {start + name: value for name, value in tensors.items()}, notes


def _official(info: ModelInfo, grid, params: Params):
  """({official name: array}, notes) of a classifier or a pre-trained SSAST."""
  prefix, head = tuple(info.model["prefix"]), info.head
  is_asit = prefix == ("cls",) and head and head.pooling == "prefix"
  if prefix != ("cls", "dist") and not is_asit:
    raise UserError(
      f"the official AST has the tokens cls and dist, this model has {prefix}"
    )
  if not head and not info.objective:
    raise UserError(
      "the official AST has a classifier, this model has none; give "
      "--num_classes"
    )
  if head and (head.projection or head.pooling == "all"):
    raise UserError(
      "the official classifiers read the prefix or the patch tokens of the "
      f"last block alone; this model's has pooling={head.pooling!r} and "
      f"projection={head.projection}"
    )
  notes = ["v.head and v.head_dist, which AST never uses, are not written"]
  have = (info.model["layer_norm_eps"], head.layer_norm_eps if head else 1e-5)
  epsilons = []
  if have != (1e-6, 1e-5):
    epsilons.append(
      "the official code has epsilons 1e-06 and 1e-05 (classifier), this model "
      f"{have[0]:g} and {have[1]:g}"
    )
  notes += epsilons
  if is_asit:
    notes = ["names of a fine-tuned ASiT: a class token, time before frequency"]
    return convert.revert(params, tables.ASIT_PTH), [*notes, *epsilons]
  if head:
    if head.pooling == "tokens":
      notes.append(
        "pooling='tokens' is ft_avgtok of the official SSAST; the official AST "
        "would take the mean of the prefix tokens"
      )
    return convert.revert(params, tables.AST_PTH), notes
  patch = tuple(info.model["patch_size"])
  size = np.array([g * p for g, p in zip(grid, patch, strict=True)])
  tensors = convert.revert(
    {**params, convert.INPUT_SIZE: size}, tables.SSAST_PTH
  )
  if absent := [k for k in ssast.HEADS if k not in params]:
    notes.append(f"the official SSAST has a {absent[0]} head, this model none")
  if math.prod(patch) != 256:
    notes.append(f"the official SSAST has patches of 256 cells, not {patch}")
  # The original takes no file without this prefix.
  return {f"module.{k}": v for k, v in tensors.items()}, notes


if __name__ == "__main__":
  sys.exit(main())
