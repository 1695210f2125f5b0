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
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging

from astjax import pretrained
from astjax.errors import UserError
from astjax.models import ast, heads
from astjax.ops import patches
from astjax.types import Params
from astjax.weights import (
  adapt,
  convert,
  hugging_face,
  maps,
  model_info,
  registry,
)
from astjax.weights.model_info import FrontEnd, Head, ModelInfo


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
  add("--num_classes", type=int, default=0, help="a fresh classifier")
  add("--labels", help="file with one class name a line, or AudioSet's CSV")
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
  _check_out(out, args.format)
  labels = _labels(args)
  has_new_head = bool(labels or args.num_classes)
  options = pretrained.Options(
    rows=args.rows,
    fresh=(adapt.HEAD,) if has_new_head else (),
    grid=args.source_grid,
    stride=args.source_stride,
    num_mel_bins=args.source_mel_bins,
    num_heads=args.num_heads,
  )
  loaded = pretrained.load(args.source, options)
  info, grid = _target(loaded, args, labels)
  backbone, fresh = _fresh(info, grid, args.seed)
  params, report = pretrained.start(
    loaded, fresh, backbone=backbone, class_names=(), options=options
  )
  print(f"source: {loaded.info.origin}, SHA-256 {loaded.digest[:16]}...")
  if info.licence:
    print(f"licence of the weights: {info.licence}")
  if info.expected:
    print(f"published result: {info.expected}")
  report.notes += _write(args.format, out, info, params)
  print("\n".join(report.lines()))
  count = sum(x.size for x in jax.tree.leaves(params))
  print(
    f"wrote {out}: {count:,} parameters, grid {grid[0]} x {grid[1]} "
    "(frequency x time)"
  )


def _check_out(out: pathlib.Path, kind: str) -> None:
  if kind == "official" and out.suffix != ".safetensors":
    raise UserError(f"{out}: official names go into a file named .safetensors")
  if out.exists() and (out.is_file() or any(out.iterdir())):
    raise UserError(f"{out} is there already; give a new name")


def _labels(args) -> tuple[str, ...]:
  if not args.labels:
    return ()
  from astjax.data import listings

  labels = tuple(listings.read_label_list(args.labels)[0])
  if args.num_classes and args.num_classes != len(labels):
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
  stride = args.stride or ((10, 10) if loaded.is_image else model["stride"])
  model["stride"] = tuple(stride)
  if args.prefix is not None:
    model["prefix"] = tuple(p for p in args.prefix.split(",") if p)
  patch = tuple(model["patch_size"])
  patch = patch[::-1] if args.rows == "time" else patch
  model["patch_size"] = patch
  if loaded.is_image and not args.input:
    raise UserError(
      "a checkpoint of images needs the size of the spectrograms: give "
      "--input=128x1024 (mel bins x frames)"
    )
  known = model_info.front_end(info.recipe) if info.recipe else None
  grid = loaded.params[convert.GRID].shape[:2]
  size = args.input or (known and (known.num_mel_bins, known.num_frames))
  if size:
    grid = patches.grid_shape(size[1], size[0], patch, model["stride"])
  head = info.head
  names = info.class_names
  if labels or args.num_classes:
    head, names = Head(num_classes=len(labels) or args.num_classes), labels
  if args.scores and head:
    head = dataclasses.replace(head, scores=args.scores)
  info = dataclasses.replace(
    info,
    model=model,
    head=head,
    class_names=names,
    recipe=_recipe(known, size, args),
    reported=None if labels or args.num_classes else info.reported,
  )
  return info, grid


def _recipe(known: FrontEnd | None, size, args) -> str:
  """The front-end, as far as the source and the flags tell; else nothing."""
  if (args.mean is None) != (args.std is None):
    raise UserError("--mean and --std belong together")
  if args.std is not None and args.std <= 0:
    raise UserError(f"--std={args.std} must be above 0")
  if known is None and (size is None or args.mean is None):
    return ""
  front_end = known or FrontEnd(16_000, size[1], size[0], None)
  changes = {"num_mel_bins": size[0], "num_frames": size[1]}
  if args.mean is not None:
    changes["statistics"] = (args.mean, args.std)
  if args.sample_rate is not None:
    changes["sample_rate"] = args.sample_rate
  return dataclasses.replace(front_end, **changes).recipe()


def _fresh(
  info: ModelInfo, grid: tuple[int, int], seed: int
) -> tuple[ast.Backbone, Params]:
  backbone = ast.make_backbone(**info.model)
  cells = np.zeros((1, *grid, np.prod(backbone.patch_size)), np.float32)
  key = jax.random.key(seed)
  if info.head is None:
    init = jax.jit(lambda x: backbone.init(key, patches=x)["params"])
    return backbone, {"backbone": init(cells)}
  head = heads.ClassifierHead(
    info.head.num_classes, layer_norm_eps=info.head.layer_norm_eps
  )
  model = ast.AST(backbone, head, info.head.pooling)
  return backbone, jax.jit(lambda x: model.init(key, patches=x)["params"])(
    cells
  )


def _write(kind, out, info: ModelInfo, params: Params) -> list[str]:
  """Writes it; returns what should be known about the result."""
  if kind == "astjax":
    model_info.save(out, info, params)
    return [] if info.recipe else ["the front-end is unknown and left out"]
  if kind == "hf":
    return hugging_face.save(out, info, params)
  if tuple(info.model["prefix"]) != ("cls", "dist") or info.head is None:
    raise UserError(
      "the official AST has the tokens cls and dist, and a classifier; this "
      f"model has {tuple(info.model['prefix'])} and "
      f"{'no' if info.head is None else 'a'} classifier"
    )
  tensors = convert.revert(params, maps.AST_PTH)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
      part = pathlib.Path(temporary) / out.name
      model_info.write_safetensors(part, tensors, {"format": "pt"})
      os.replace(part, out)
  except OSError as e:
    raise UserError(f"cannot write {out}: {e.strerror or e}") from None
  return ["v.head and v.head_dist, which AST never uses, are not written"]


if __name__ == "__main__":
  sys.exit(main())
