"""Flax linen modules, and the tables that find them by name.

A user's own backbone or objective enters itself: `BACKBONES["mine"] = make`,
`OBJECTIVES["mine"] = Objective(make)`; see docs/extending.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn

from astjax import errors
from astjax.models import asit, ast, ssast

Resize = Literal["bilinear", "ssast", "bicubic"]


@dataclasses.dataclass(frozen=True)
class Objective:
  """What saving, loading and fine-tuning ask of a pre-training.

  Attributes:
    make: (backbone, **description) -> the module with its heads, which starts
      by `module.init(key, patches)`, patches [B, F', T', ph * pw].
    teacher: whether the state of its task has a second network of the same
      parameters at "teacher", which is the one to go on with.
    pooling: which tokens have learned something, a key of `heads.POOLINGS`.
    resize: how positions change when a fine-tuning starts from it.
    resize_into: how they change when it starts from any weights itself.
  """

  make: Callable[..., nn.Module]
  teacher: bool = False
  pooling: str = "tokens"
  resize: Resize = "bilinear"
  resize_into: Resize = "bilinear"


OBJECTIVES = {
  "ssast": Objective(ssast.make, resize="ssast"),
  "asit": Objective(
    asit.make, teacher=True, pooling="prefix", resize_into="bicubic"
  ),
}
BACKBONES: dict[str, Callable[..., nn.Module]] = {"ast": ast.make_backbone}


def build(
  given: Mapping[str, Any], where: str = "config.model"
) -> ast.Backbone:
  """The backbone that `config.model`, or a saved model's `model`, describes.

  `name` in it says which of `BACKBONES`; the rest are that one's arguments.
  """
  given = dict(given)
  make = errors.lookup(BACKBONES, given.pop("name", "ast"), f"{where}.name")
  return errors.call(make, where, given)
