"""What is known about a saved model: Flax module, shapes, recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from astjax import models
from astjax.errors import call, lookup
from astjax.models import ast
from astjax.ops import recipe as recipes
from astjax.types import Array, Params
from astjax.weights.info import ModelInfo


def describe(backbone: ast.Backbone) -> dict[str, Any]:
  """The arguments of `make_backbone` that a saved model needs."""
  return backbone.describe()


def backbone_of(info: ModelInfo) -> ast.Backbone:
  """The backbone.

  Raises:
    UserError: sizes that do not fit.
  """
  return models.build(info.model, "config.json: model")


def module_of(info: ModelInfo) -> nn.Module:
  """`AST`, a pre-training module, or `Backbone` if there is neither.

  Raises:
    UserError: sizes that do not fit.
  """
  backbone = backbone_of(info)
  if info.objective:
    given = dict(info.objective)
    given.pop("task_kw", None)  # how it was trained: for `tools/reconstruct`
    where = "config.json: objective"
    make = lookup(models.OBJECTIVES, given.pop("name", ""), where).make
    return call(make, where, given, backbone=backbone)
  if info.head is None:
    return backbone
  return ast.classifier(backbone, info.head)


def init_params(info: ModelInfo, grid: tuple[int, int], key: Array) -> Params:
  """Fresh parameters {"backbone": ..., ...} for a grid (F', T')."""
  module = module_of(info)
  height, width = backbone_of(info).patch_size
  patches = np.zeros((1, *grid, height * width), np.float32)
  if info.objective:
    return dict(module.init(key, patches)["params"])
  params = module.init(key, patches=patches)["params"]
  return {"backbone": params} if info.head is None else dict(params)


def expected_params(info: ModelInfo, grid: tuple[int, int]) -> Params:
  """The shapes of `init_params`.

  Raises:
    UserError: sizes that do not fit.
  """
  return jax.eval_shape(lambda: init_params(info, grid, jax.random.key(0)))


def inference_recipe(
  ops: Sequence[recipes.NamedOp], texts: Sequence[str]
) -> str:
  """From a recording to the model's input: nothing drawn, no label.

  Where training takes views, inference takes one clip of a global view's
  length, and what belongs to local views is left out.

  Args:
    ops: of all recipes, in order.
    texts: the recipes of the host and of the device.
  """
  calls = [call for text in texts for call in recipes.calls(text, "recipe")]
  kept = [
    (op, text)
    for op, text in zip(ops, calls, strict=True)
    if not _is_local(*text)
  ]
  by_name = {op.name: op.op for op, _ in kept}
  written = []
  for op, text in kept:
    if op.name == "views" or (op.name == "fit" and "cut_frames" in by_name):
      written.append(recipes.text("fit", [], _length(by_name)))
    elif not recipes.draws(op) and op.name not in _OF_TRAINING:
      written.append(recipes.text(*text))
  return "|".join(written)


# A fitted recording has the frames that `cut_frames` leaves.
_OF_TRAINING = ("multi_hot", "keep", "cut_frames")


def _is_local(name: str, args: list, kwargs: dict[str, Any]) -> bool:
  return any(str(v).endswith("_local") for v in (*args, *kwargs.values()))


def _length(ops: Mapping[str, Any]) -> dict[str, Any]:
  """Arguments of a `fit` to the frames that the model was trained on."""
  spec = ops["fbank"].spec
  if "cut_frames" in ops:
    num_frames = ops["cut_frames"].num_frames
  else:
    num_frames = spec.num_frames(ops["views"].num_samples)
  names = ("sample_rate", "frame_length_ms", "frame_shift_ms")
  usual = {f.name: f.default for f in dataclasses.fields(spec)}
  unusual = {k: getattr(spec, k) for k in names if getattr(spec, k) != usual[k]}
  return {"num_frames": num_frames} | unusual
