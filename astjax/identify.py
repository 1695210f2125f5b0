"""What a foreign file of weights is: its table, its sizes, its grid.

A bare file does not tell all that a model needs. What it leaves open comes from
the user, from the registry, or is assumed as in the original, and then said.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from astjax import saved_model
from astjax.errors import UserError
from astjax.models import ast
from astjax.ops import patches
from astjax.weights import adapt, convert, maps, model_info, registry
from astjax.weights.model_info import FrontEnd, Head, ModelInfo

_HEAD_BIAS = "head/linear/bias"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
  """What is known of a file beside its tensors.

  Attributes:
    file_name: where the original writes the stride of AudioSet models.
    known: the published checkpoint that it is.
    info: from the JSON beside the tensors.
    grid: (F', T') of its positions.
    stride: (mel bins, frames) of its patches.
    num_mel_bins: F.
    num_heads: 0 means width / 64, as in all published models.
  """

  file_name: str
  known: registry.Published | None = None
  info: ModelInfo | None = None
  grid: tuple[int, int] | None = None
  stride: tuple[int, int] | None = None
  num_mel_bins: int = 128
  num_heads: int = 0


@dataclasses.dataclass(frozen=True)
class Identified:
  """A foreign state dict under the names of this library.

  Attributes:
    kind: what it is, for people.
    info: the model, completed.
    params: parameters by path; a kernel of images is [ph, pw, 3, D].
    dropped: names of the file that the table leaves out.
    notes: what was assumed.
  """

  kind: str
  info: ModelInfo
  params: Mapping[str, np.ndarray]
  dropped: tuple[str, ...]
  notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Outline:
  """What the shapes of the leaves tell."""

  model: Mapping[str, Any]
  is_image: bool
  positions: int
  num_classes: int

  @property
  def num_prefix(self) -> int:
    return len(self.model["prefix"])


def identify(names: Mapping[str, np.ndarray], hints: Hints) -> Identified:
  """Finds the table of a state dict and checks it strictly.

  Raises:
    UserError: nothing known, an incomplete or superfluous name, a shape that
      does not fit, or something that has to be told.
  """
  recognised = maps.recognise(names)
  if recognised is None:
    first = ", ".join(list(names)[:4])
    raise UserError(
      f"these names belong to no known model: {first}, ...; known are AST "
      "(official, Hugging Face), DeiT and ViT (timm, Hugging Face, Google)"
    )
  flat, dropped = convert.rename(recognised.names, recognised.table)
  outline = _outline(flat)
  stride, grid, notes = _layout(outline, hints)
  kind = recognised.kind
  if hints.info is None:
    info, more = _guess(outline, stride, kind, hints)
    notes += more
  else:
    info = _checked(hints.info, outline)
  if not outline.num_classes:
    info = dataclasses.replace(info, head=None, class_names=())
  flat = convert.lay_out(
    flat, outline.num_prefix, grid, may_lack_prefix=kind.startswith("Google")
  )
  expected = saved_model.expected_params(info, grid)
  if outline.is_image:
    kernel = jax.ShapeDtypeStruct(flat[adapt.KERNEL].shape, np.float32)
    expected["backbone"]["patch_embed"]["kernel"] = kernel
  params = convert.check(flat, expected, recognised.table)
  return Identified(
    kind,
    info,
    convert.flatten(params),
    (*dropped, *recognised.outside),
    tuple(notes),
  )


def _outline(flat: Mapping[str, np.ndarray]) -> _Outline:
  norm, fc1 = "backbone/encoder/norm/scale", "backbone/encoder/block_0/mlp/fc1"
  needed = (norm, f"{fc1}/bias", adapt.KERNEL, convert.SEQUENCE)
  convert.refuse([f"- {k} is not in the file" for k in needed if k not in flat])
  blocks = {
    int(m.group(1))
    for path in flat
    if (m := re.match(r"backbone/encoder/block_(\d+)/", path))
  }
  kernel = flat[adapt.KERNEL]
  model = {
    "width": flat[norm].size,
    "depth": max(blocks) + 1,
    "mlp_dim": flat[f"{fc1}/bias"].size,
    "patch_size": kernel.shape[:2],
    "prefix": tuple(
      name for name in ast.PREFIX_TOKENS if f"backbone/{name}_token" in flat
    ),
  }
  return _Outline(
    model=model,
    is_image=kernel.ndim == 4,
    positions=flat[convert.SEQUENCE].shape[0],
    num_classes=flat[_HEAD_BIAS].size if _HEAD_BIAS in flat else 0,
  )


def _layout(outline: _Outline, hints: Hints):
  """(stride, grid, notes) of its patches."""
  patch = outline.model["patch_size"]
  if outline.is_image:
    square = _square(outline.positions, outline.num_prefix)
    return patch, hints.grid or square, []
  if hints.info is not None:
    stride = tuple(hints.info.model["stride"])
    return stride, hints.grid or _grid_of(hints.info), []
  in_name = re.match(r"audioset_(\d+)_(\d+)_", hints.file_name)
  why = "its name tells"
  if hints.stride:
    stride, why = hints.stride, "as given"
  elif hints.known and hints.known.stride:
    stride = hints.known.stride
  elif in_name:
    stride = (int(in_name.group(1)), int(in_name.group(2)))
  else:
    stride, why = (10, 10), "assumed"
  if hints.grid:
    return stride, hints.grid, [f"source stride {_by(stride)} ({why})"]
  count, bins = outline.positions - outline.num_prefix, hints.num_mel_bins
  rows = (bins - patch[0]) // stride[0] + 1 if stride[0] else 0
  if rows < 1 or count < 1 or count % rows:
    raise UserError(
      f"its {count:,} patch positions are no grid of {rows} rows, as {bins} "
      f"mel bins at stride {stride[0]} ({why}) give; give its grid or stride"
    )
  grid = (rows, count // rows)
  note = (
    f"source grid {_by(grid)} (frequency x time) of {bins} mel bins at stride "
    f"{_by(stride)} ({why})"
  )
  return stride, grid, [note]


def _by(pair):
  return f"{pair[0]} x {pair[1]}"


def _square(positions, num_prefix):
  """Images are square: positions with or without the prefix tokens."""
  for rows in (positions - num_prefix, positions):
    side = math.isqrt(max(rows, 0))
    if side and side * side == rows:
      return side, side
  raise UserError(f"{positions} positions are no square grid; give the grid")


def _grid_of(info: ModelInfo) -> tuple[int, int]:
  front_end = model_info.front_end(info.recipe)
  return patches.grid_shape(
    front_end.num_frames,
    front_end.num_mel_bins,
    info.model["patch_size"],
    info.model["stride"],
  )


def _guess(outline: _Outline, stride, kind, hints: Hints):
  """(what a bare file, its name and the registry tell, notes)."""
  width, known, notes = outline.model["width"], hints.known, []
  num_heads = hints.num_heads or (0 if width % 64 else width // 64)
  if not num_heads or width % num_heads:
    raise UserError(
      f"a width of {width} does not tell the number of heads; give num_heads"
    )
  is_hf = kind.startswith("Hugging Face")
  model = dict(outline.model) | {
    "num_heads": num_heads,
    "stride": stride,
    "layer_norm_eps": 1e-12 if is_hf else 1e-6,
  }
  head, recipe = None, ""
  if outline.num_classes:
    if not known:
      notes.append("scores are assumed to be sigmoid, as for tags")
    head = Head(
      num_classes=outline.num_classes,
      layer_norm_eps=1e-12 if is_hf else 1e-5,
      scores=known.scores if known and known.scores else "sigmoid",
    )
  if known and known.statistics:
    recipe = FrontEnd(
      16_000, known.num_frames, hints.num_mel_bins, known.statistics
    ).recipe()
  return ModelInfo(model=model, head=head, recipe=recipe), notes


def _checked(info: ModelInfo, outline: _Outline) -> ModelInfo:
  """The info, if the weights beside it agree with it."""
  said = saved_model.describe(saved_model.backbone_of(info))
  for name, value in outline.model.items():
    if said[name] != value:
      raise UserError(
        f"its config.json says {name}={said[name]}, its weights {value}"
      )
  return dataclasses.replace(info, model=said)
