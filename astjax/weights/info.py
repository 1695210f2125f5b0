"""What turns weights into a model: `config.json` beside `params.safetensors`.

In the file of weights names are the parameters' paths. A run's folder has the
same description as `model.json`, so that a checkpoint can be used without the
data it was trained on.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

from astjax import models
from astjax.errors import Count, CountOrZero, UserError, call, lookup
from astjax.models import ast
from astjax.models.heads import Head
from astjax.types import Array, Params
from astjax.weights import adapt, convert, files

FORMAT = "astjax 1"
PARAMS, CONFIG = "params.safetensors", "config.json"
MODEL = "model.json"  # the same of a work directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
  """All that turns weights into a model; what is empty is unknown."""

  model: Mapping[str, Any]  # arguments of `models.build`
  head: Head | None = None
  # Of a pre-trained model, the parts that travel along: {"name": "ssast",
  # "heads": names}, or {"name": "asit", "preset": its release, and sizes that
  # are not the preset's}.
  objective: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  class_names: tuple[str, ...] = ()
  # From a recording to the model's input, host and device ops in one string:
  # what the model was trained behind, whatever ops that had.
  recipe: str = ""
  origin: str = ""  # where the weights come from, for people
  licence: str = ""  # of the weights
  expected: str = ""  # the metric that their publishers report
  reported: tuple[str, float] | None = None  # the same for programs

  def __post_init__(self):
    # JSON gives lists.
    object.__setattr__(self, "class_names", tuple(self.class_names))
    if self.reported:
      object.__setattr__(self, "reported", tuple(self.reported))
    count = self.head.num_classes if self.head else 0
    if self.class_names and len(self.class_names) != count:
      raise UserError(
        f"{len(self.class_names)} class names for {count} classes"
      )
    has_tokens = self.model.get("prefix", True)
    if self.head and self.head.pooling == "prefix" and not has_tokens:
      raise UserError("pooling='prefix' needs prefix tokens, there are none")

  @classmethod
  def from_json(cls, value: Mapping[str, Any], where: str) -> ModelInfo:
    """The inverse of `to_json`.

    Raises:
      UserError: another format, or something that makes no model.
    """
    value = dict(value)
    if value.pop("format", None) != FORMAT:
      raise UserError(f"{where} is not of the format {FORMAT!r}")
    if value.get("head") is not None:
      if not isinstance(value["head"], dict):
        raise UserError(f"{where}: head is no object")
      value["head"] = call(Head, f"{where}: head", value["head"])
    return call(cls, where, value)

  def to_json(self) -> dict[str, Any]:
    """What `config.json` holds."""
    return {"format": FORMAT} | dataclasses.asdict(self)

  @property
  def pretraining(self) -> models.Objective | None:
    """What is known of its objective; None without one, or if unknown here."""
    return models.OBJECTIVES.get(self.objective.get("name", ""))

  def backbone(self) -> ast.Backbone:
    """The transformer; a UserError for sizes that do not fit."""
    return models.build(self.model, "config.json: model")

  def module(self) -> nn.Module:
    """`AST`, a pre-training module, or the backbone if there is neither."""
    if self.objective:
      where = "config.json: objective"
      given = dict(self.objective)
      given.pop("task_kw", None)  # how it was trained: for `tools/reconstruct`
      found = lookup(models.OBJECTIVES, given.pop("name", ""), where)
      return call(found.make, where, given, backbone=self.backbone())
    if self.head is None:
      return self.backbone()
    return ast.classifier(self.backbone(), self.head)

  def init_params(self, grid: tuple[int, int], key: Array) -> Params:
    """Fresh parameters {"backbone": ..., ...} for a grid (F', T')."""
    module = self.module()
    height, width = self.backbone().patch_size
    patches = np.zeros((1, *grid, height * width), np.float32)
    if self.objective:
      return dict(module.init(key, patches)["params"])
    params = module.init(key, patches=patches)["params"]
    return {"backbone": params} if self.head is None else dict(params)

  def expected_params(self, grid: tuple[int, int]) -> Params:
    """The shapes of `init_params`."""
    return jax.eval_shape(lambda: self.init_params(grid, jax.random.key(0)))


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Weights at the shapes of their file, and what is known about them."""

  kind: str  # for people
  info: ModelInfo
  # By path, float32; a patch kernel for images keeps its channels,
  # [ph, pw, 3, D].
  params: Mapping[str, np.ndarray]
  # SHA-256 of the file (the first of several), or of a run's parameters.
  digest: str
  dropped: tuple[str, ...] = ()  # names that have no place in the model
  notes: tuple[str, ...] = ()  # what was assumed about it

  @property
  def is_image(self) -> bool:
    """Whether its patches are of images."""
    return self.params[adapt.KERNEL].ndim == 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How weights are read and taken over (`config.init_kw`)."""

  # What rows of an image's patches become: AST's choice, or ASiT's.
  rows: Literal["frequency", "time"] = "frequency"
  # Expressions for whole paths that stay fresh though the checkpoint has them.
  fresh: tuple[str, ...] = (adapt.HEAD,)
  # Where a bare file cannot tell:
  grid: tuple[Count, Count] | None = None  # (F', T') of its positions
  stride: tuple[Count, Count] | None = None  # (mel bins, frames)
  num_mel_bins: Count = 128  # F of the spectrograms it was trained on
  num_heads: CountOrZero = 0  # 0 means width / 64, as in all published models
  # Of its classifier; "tokens" after SSAST's fine-tuning.
  pooling: Literal["prefix", "tokens"] = "prefix"
  # How SSAST's are taken to another grid: as its original does it, with two
  # slips, or as the original AST does.
  positions: Literal["original", "corrected"] = "original"
  # Of a pre-training's two networks; ASiT's original fine-tunes the teacher.
  network: Literal["teacher", "student"] = "teacher"


def save_model(
  folder: str | os.PathLike, info: ModelInfo, params: Params
) -> None:
  """Writes a model's folder, complete or not at all."""
  with files.new_path(folder) as temporary:
    temporary.mkdir()
    files.write_safetensors(temporary / PARAMS, convert.flatten(params))
    files.write_json(temporary / CONFIG, info.to_json())


def read_model(
  folder: str | os.PathLike,
) -> tuple[ModelInfo, dict[str, np.ndarray]]:
  """Reads a model's folder: (info, parameters by path), compared by `load`."""
  folder = pathlib.Path(folder)
  return read_info(folder / CONFIG), files.read(folder / PARAMS)


def read_info(path: pathlib.Path) -> ModelInfo:
  """Reads a `config.json`, or the `model.json` of a run."""
  return ModelInfo.from_json(files.read_json(path), str(path))
