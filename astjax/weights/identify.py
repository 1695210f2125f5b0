"""What a foreign file of weights is: its table, its sizes, its grid.

A bare file does not tell all that a model needs. What it leaves open comes from
the user, from the registry, or is assumed as in the original, and then said.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

from astjax.errors import UserError
from astjax.models import asit, ast, ssast
from astjax.models.heads import Head
from astjax.ops import patches
from astjax.weights import adapt, convert, registry, saved_model, tables
from astjax.weights import info as model_info
from astjax.weights.info import FrontEnd, ModelInfo

_HEAD_BIAS = "head/linear/bias"

# Sampling rates of ASiT's two releases, by the preset; nothing else differs.
_ASIT_RATES = {"r1": 32_000, "r2": 16_000}


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
    pooling: of its classifier.
    network: which one of two (ASiT's teacher and student).
  """

  file_name: str
  known: registry.Published | None = None
  info: ModelInfo | None = None
  grid: tuple[int, int] | None = None
  stride: tuple[int, int] | None = None
  num_mel_bins: int = 128
  num_heads: int = 0
  pooling: Literal["prefix", "tokens"] = "prefix"
  network: str = "teacher"


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
  """What the names and shapes of the leaves tell."""

  model: Mapping[str, Any]
  objective: Mapping[str, Any]
  pretrained_by: str
  input_size: tuple[int, int] | None
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
  recognised = tables.recognise(names, hints.network)
  if recognised is None:
    first = ", ".join(list(names)[:4])
    raise UserError(
      f"these names belong to no known model: {first}, ...; known are AST "
      "(official, Hugging Face), SSAST (official), ASiT (official), DeiT and "
      "ViT (timm, Hugging Face, Google)"
    )
  flat, dropped = convert.rename(recognised.names, recognised.table)
  input_size = flat.pop(convert.INPUT_SIZE, None)
  outline = _outline(flat, input_size, recognised.pretrained_by)
  stride, grid, notes = _layout(outline, hints)
  if recognised.network:
    notes.append(f"of two networks the {recognised.network}")
  kind = recognised.kind
  if hints.info is None:
    info, more = _guess(outline, stride, grid, kind, hints)
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


def _outline(
  flat: Mapping[str, np.ndarray],
  input_size: np.ndarray | None,
  pretrained_by: str,
) -> _Outline:
  norm, fc1 = "backbone/encoder/norm/scale", "backbone/encoder/block_0/mlp/fc1"
  is_time_major = convert.TIME_SEQUENCE in flat
  sequence = convert.TIME_SEQUENCE if is_time_major else convert.SEQUENCE
  needed = (norm, f"{fc1}/bias", adapt.KERNEL, sequence)
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
  parts = {path.split("/")[0] for path in flat} - {"backbone", "head"}
  objective: Mapping[str, Any] = {}
  if pretrained_by == "SSAST":
    found = [k for k in ssast.HEADS if k in parts]
    objective = {"name": "ssast", "heads": found or list(ssast.HEADS)}
  elif pretrained_by == "ASiT" and parts:
    objective = _asit_objective(flat, model["width"])
  return _Outline(
    model=model,
    objective=objective,
    pretrained_by=pretrained_by,
    input_size=None if input_size is None else tuple(input_size.tolist()),
    is_image=kernel.ndim == 4,
    positions=flat[sequence].shape[0],
    num_classes=flat[_HEAD_BIAS].size if _HEAD_BIAS in flat else 0,
  )


def _asit_objective(flat, width):
  """The release by its output layers, and sizes that are not the release's."""
  is_first = any(f"projection/{k}/weight_v" in flat for k in ("cls", "patch"))
  preset = "r1" if is_first else "r2"
  usual = dict(asit.PROJECTION | asit.PRESETS[preset])
  layers = ("cls", "patch") if is_first else ("last",)
  paths = {
    "hidden": ("projection/fc1/bias",),
    "bottleneck": ("projection/fc3/bias",),
    "outputs": tuple(f"projection/{k}/weight_v" for k in layers),
    "recon_widths": ("reconstruction/fc1/bias", "reconstruction/fc3/bias"),
  }
  usual["recon_widths"] = tuple(n or width for n in usual["recon_widths"])
  found: dict[str, Any] = {}
  for name, of in paths.items():
    sizes = tuple(flat[path].shape[-1] for path in of if path in flat)
    value = sizes if isinstance(usual[name], tuple) else sum(sizes)
    # What is missing is told when all is compared.
    if len(sizes) == len(of) and value != usual[name]:
      found[name] = value
  return {"name": "asit", "preset": preset} | found


def _layout(outline: _Outline, hints: Hints):
  """(stride, grid, notes) of its patches."""
  patch = outline.model["patch_size"]
  if outline.is_image:
    square = _square(outline.positions, outline.num_prefix)
    return patch, hints.grid or square, []
  if hints.info is not None:
    stride = tuple(hints.info.model["stride"])
    return stride, hints.grid or _grid_of(hints.info), []
  stride, why = _stride(outline, hints)
  if outline.input_size:
    bins, frames = outline.input_size
    grid = patches.grid_shape(frames, bins, patch, stride)
    if hints.grid and tuple(hints.grid) != grid:
      raise UserError(
        f"the file is of a grid of {_by(grid)} patches, not {_by(hints.grid)}"
      )
    return stride, grid, [_of_grid(grid, bins, stride, why)]
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
  return stride, grid, [_of_grid(grid, bins, stride, why)]


def _stride(outline: _Outline, hints: Hints):
  """(stride, how it is known) of patches of sounds."""
  patch = outline.model["patch_size"]
  if by := outline.pretrained_by:
    if hints.stride and tuple(hints.stride) != patch:
      raise UserError(
        f"{by} is pre-trained on patches that do not overlap: the stride is "
        f"{_by(patch)}, not {_by(hints.stride)}"
      )
    return patch, f"{by}'s patches do not overlap"
  if hints.stride:
    return hints.stride, "as given"
  if hints.known and hints.known.stride:
    return hints.known.stride, "its name tells"
  if found := re.match(r"audioset_(\d+)_(\d+)_", hints.file_name):
    return (int(found.group(1)), int(found.group(2))), "its name tells"
  # Patches as high as the spectrogram are those of SSAST's frame models.
  is_frame = patch[0] == hints.num_mel_bins != patch[1]
  return (patch[0], 1) if is_frame else (10, 10), "assumed"


def _of_grid(grid, bins, stride, why):
  return (
    f"source grid {_by(grid)} (frequency x time) of {bins} mel bins at stride "
    f"{_by(stride)} ({why})"
  )


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


def _guess(outline: _Outline, stride, grid, kind, hints: Hints):
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
      if kind == "official AST" and hints.pooling == "prefix":
        notes.append("pooling is assumed to be 'prefix', as in AST")
    head = Head(
      num_classes=outline.num_classes,
      pooling=hints.pooling,
      layer_norm_eps=1e-12 if is_hf else 1e-5,
      scores=known.scores if known and known.scores else "sigmoid",
    )
  if known and known.statistics:
    size = (hints.num_mel_bins, known.num_frames)
    bins, frames = outline.input_size or size
    recipe = FrontEnd(16_000, frames, bins, known.statistics).recipe()
  elif preset := outline.objective.get("preset"):
    rate, (height, width) = _ASIT_RATES[preset], model["patch_size"]
    recipe = FrontEnd(
      sample_rate=rate,
      num_frames=grid[1] * width,
      num_mel_bins=grid[0] * height,
      statistics=registry.AUDIOSET_STATISTICS,
      channel="first",
      padding="waveform",
    ).recipe()
    notes.append(f"front-end of its release, at {rate:,} Hz")
  info = ModelInfo(
    model=model, head=head, objective=outline.objective, recipe=recipe
  )
  return info, notes


def _checked(info: ModelInfo, outline: _Outline) -> ModelInfo:
  """The info, if the weights beside it agree with it."""
  said = saved_model.describe(saved_model.backbone_of(info))
  for name, value in outline.model.items():
    if said[name] != value:
      raise UserError(
        f"its config.json says {name}={said[name]}, its weights {value}"
      )
  return dataclasses.replace(info, model=said)
