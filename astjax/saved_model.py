"""From what is known about a saved model to its Flax module and its shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from astjax.errors import call, lookup
from astjax.models import ast, heads, ssast
from astjax.types import Array, Params
from astjax.weights.model_info import Head, ModelInfo


def describe(backbone: ast.Backbone) -> dict[str, Any]:
  """The arguments of `make_backbone` that a saved model needs."""
  sizes = {k: getattr(backbone, k) for k in ("width", "depth", "num_heads")}
  return sizes | {
    "mlp_dim": backbone.mlp_dim or 4 * backbone.width,
    "patch_size": tuple(backbone.patch_size),
    "stride": tuple(backbone.stride),
    "prefix": tuple(backbone.prefix),
    "layer_norm_eps": backbone.layer_norm_eps,
  }


def backbone_of(info: ModelInfo) -> ast.Backbone:
  """The backbone.

  Raises:
    UserError: sizes that do not fit.
  """
  return call(ast.make_backbone, "config.json: model", info.model)


def _ssast(
  backbone: ast.Backbone,
  *,
  heads: tuple[str, ...] = ssast.HEADS,
  task_kw: Mapping[str, Any] | None = None,
) -> nn.Module:
  del task_kw  # how it was trained: for `tools/reconstruct`
  return ssast.make_ssast(backbone, heads)


# By the name in `ModelInfo.objective`.
OBJECTIVES = {"ssast": _ssast}


def classifier(backbone: ast.Backbone, head: Head) -> ast.AST:
  """The backbone with a classifier."""
  if head.projection:
    widths = (backbone.width, head.projection)
    top = heads.LayerSumHead(head.num_classes, backbone.depth, widths)
  else:
    top = heads.ClassifierHead(head.num_classes, head.layer_norm_eps)
  return ast.AST(backbone, top, head.pooling)


def module_of(info: ModelInfo) -> nn.Module:
  """`AST`, a pre-training module, or `Backbone` if there is neither.

  Raises:
    UserError: sizes that do not fit.
  """
  backbone = backbone_of(info)
  if info.objective:
    given = dict(info.objective)
    where = "config.json: objective"
    make = lookup(OBJECTIVES, given.pop("name", ""), where)
    return call(make, where, given, backbone=backbone)
  if info.head is None:
    return backbone
  return classifier(backbone, info.head)


def init_params(info: ModelInfo, grid: tuple[int, int], key: Array) -> Params:
  """Fresh parameters {"backbone": ..., ...} for a grid (F', T')."""
  module = module_of(info)
  height, width = backbone_of(info).patch_size
  patches = np.zeros((1, *grid, height * width), np.float32)
  if info.objective:
    index = np.zeros((1, 1), np.int32)
    return dict(module.init(key, patches, index)["params"])
  params = module.init(key, patches=patches)["params"]
  return {"backbone": params} if info.head is None else dict(params)


def expected_params(info: ModelInfo, grid: tuple[int, int]) -> Params:
  """The shapes of `init_params`.

  Raises:
    UserError: sizes that do not fit.
  """
  return jax.eval_shape(lambda: init_params(info, grid, jax.random.key(0)))
