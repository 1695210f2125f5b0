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

from astjax.errors import UserError
from astjax.models import asit, ast, ssast
from astjax.models.heads import Head
from astjax.ops import patches
from astjax.weights import adapt, convert, registry, tables
from astjax.weights.adapt import by
from astjax.weights.front_end import FrontEnd
from astjax.weights.info import Loaded, ModelInfo, Options

_HEAD_BIAS = "head/linear/bias"

# Sampling rates of ASiT's two releases, by the preset; nothing else differs.
_ASIT_RATES = {"r1": 32_000, "r2": 16_000}


def identify(
  names: Mapping[str, np.ndarray],
  options: Options,
  *,
  digest: str,
  file_name: str,
  known: registry.Published | None = None,
  info: ModelInfo | None = None,
  grid: tuple[int, int] | None = None,
) -> Loaded:
  """Finds the table of a state dict and checks it strictly.

  The original writes the stride of AudioSet models into `file_name`. `info` and
  the `grid` (F', T') of the positions are from JSON beside the arrays.
  """
  found = tables.recognise(names, options.network)
  if found is None:
    raise UserError(
      f"these names belong to no known model: {', '.join([*names][:4])}, ...; "
      "known are AST, SSAST, ASiT, DeiT and ViT (docs/weights.md)"
    )
  bare = _Bare(found, options, file_name, known)
  grid = options.grid or grid
  if bare.is_image:
    grid = grid or bare.square()
  elif info:
    grid = grid or _grid_of(info)
  else:
    grid = bare.layout()
  if found.network:
    bare.notes.append(f"of two networks the {found.network}")
  info = bare.agreeing(info) if info else bare.guess(grid)
  is_google = found.kind.startswith("Google")
  num_prefix = len(bare.model["prefix"])
  flat = convert.lay_out(bare.flat, num_prefix, grid, may_lack_prefix=is_google)
  expected = info.expected_params(grid)
  if bare.is_image:  # three channels, which `adapt` sums
    kernel = jax.ShapeDtypeStruct(flat[adapt.KERNEL].shape, np.float32)
    expected["backbone"]["patch_embed"]["kernel"] = kernel
  params = convert.flatten(convert.check(flat, expected, found.table))
  dropped = (*bare.dropped, *found.outside)
  return Loaded(found.kind, info, params, digest, dropped, tuple(bare.notes))


class _Bare:
  """The arrays of a file under our names, and what is told beside them."""

  def __init__(
    self,
    found: tables.Recognised,
    options: Options,
    file_name: str,
    known: registry.Published | None,
  ):
    self.kind, self.pretrained_by = found.kind, found.pretrained_by
    self.options, self.file_name, self.known = options, file_name, known
    # Positions are one sequence.
    self.flat, self.dropped = convert.rename(found.names, found.table)
    size = self.flat.pop(convert.INPUT_SIZE, None)
    self._input_size = None if size is None else tuple(size.tolist())
    self.model = _sizes(self.flat)
    self.is_image = self.flat[adapt.KERNEL].ndim == 4
    self._num_positions = len(self.flat[convert.sequence_of(self.flat)])
    self.notes: list[str] = []  # what was assumed

  @property
  def _num_patches(self) -> int:
    return self._num_positions - len(self.model["prefix"])

  def square(self) -> tuple[int, int]:
    """The grid of an image, whose positions may lack the prefix tokens."""
    for count in (self._num_patches, self._num_positions):
      side = math.isqrt(max(count, 0))
      if side and side * side == count:
        return side, side
    raise UserError("its positions are no square grid; give the grid")

  def layout(self) -> tuple[int, int]:
    """The grid (F', T') of a model of sounds."""
    (stride, why), given = self._stride(), self.options.grid
    patch, count = self.model["patch_size"], self._num_patches
    bins, frames = self._input_size or (self.options.num_mel_bins, None)
    if frames is not None:  # SSAST's file says the size of its input
      grid = patches.grid_shape(frames, bins, patch, stride)
      if given and tuple(given) != grid:
        raise UserError(f"the file is of a grid of {by(grid)}, not {by(given)}")
    elif given:
      self.notes.append(f"source stride {by(stride)} ({why})")
      return given
    else:
      rows = (bins - patch[0]) // stride[0] + 1
      if rows < 1 or count < 1 or count % rows:
        raise UserError(
          f"its {count:,} patch positions are no grid of {rows} rows ({bins} "
          f"mel bins, stride {stride[0]} {why}); give its grid or stride"
        )
      grid = (rows, count // rows)
    self.notes.append(f"source grid {by(grid)} at stride {by(stride)} ({why})")
    return grid

  def _stride(self) -> tuple[tuple[int, int], str]:
    """(stride, how it is known) of patches of sounds."""
    patch, given = self.model["patch_size"], self.options.stride
    if self.pretrained_by:
      if given and tuple(given) != patch:
        why = f"{self.pretrained_by}'s patches do not overlap"
        raise UserError(f"{why}: the stride is {by(patch)}, not {by(given)}")
      return patch, f"{self.pretrained_by}'s patches do not overlap"
    if given:
      return given, "as given"
    if self.known and self.known.stride:
      return self.known.stride, "its name tells"
    if found := re.match(r"audioset_([1-9]\d*)_([1-9]\d*)_", self.file_name):
      return (int(found.group(1)), int(found.group(2))), "its name tells"
    # Patches as high as the spectrogram are those of SSAST's frame models.
    is_frame = patch[0] == self.options.num_mel_bins != patch[1]
    return (patch[0], 1) if is_frame else (10, 10), "assumed"

  def agreeing(self, info: ModelInfo) -> ModelInfo:
    """The info from beside the weights, which have to agree with it."""
    said = info.backbone().describe()
    for name, value in self.model.items():
      if said[name] != value:
        raise UserError(
          f"config.json says {name}={said[name]}, its weights {value}"
        )
    if _HEAD_BIAS not in self.flat:
      info = dataclasses.replace(info, head=None, class_names=())
    return dataclasses.replace(info, model=said)

  def guess(self, grid: tuple[int, int]) -> ModelInfo:
    """What a bare file, its name and the registry tell."""
    width, patch = self.model["width"], self.model["patch_size"]
    # 64 numbers a head, as in all models that are known here.
    num_heads = self.options.num_heads or (0 if width % 64 else width // 64)
    if not num_heads:
      raise UserError(
        f"a width of {width} does not tell the number of heads; give num_heads"
      )
    objective = _objective(self.flat, self.pretrained_by, width)
    return ModelInfo(
      model=self.model
      | {
        "num_heads": num_heads,
        "stride": patch if self.is_image else self._stride()[0],
        "layer_norm_eps": 1e-12 if self._is_hf else 1e-6,
      },
      head=self._head(),
      objective=objective,
      recipe=self._recipe(objective, grid),
    )

  @property
  def _is_hf(self) -> bool:
    return self.kind.startswith("Hugging Face")

  def _head(self) -> Head | None:
    if _HEAD_BIAS not in self.flat:
      return None
    if not self.known:
      self.notes.append("scores are assumed to be sigmoid, as for tags")
      if self.kind == "official AST" and self.options.pooling == "prefix":
        self.notes.append("pooling is assumed to be 'prefix', as in AST")
    return Head(
      num_classes=self.flat[_HEAD_BIAS].size,
      pooling=self.options.pooling,
      layer_norm_eps=1e-12 if self._is_hf else 1e-5,
      scores=self.known.scores if self.known else "sigmoid",
    )

  def _recipe(self, objective, grid) -> str:
    known, preset = self.known, objective.get("preset")
    if known and known.statistics:
      size = (self.options.num_mel_bins, known.num_frames)
      bins, frames = self._input_size or size
      return FrontEnd(16_000, frames, bins, known.statistics).recipe()
    if not preset:
      return ""
    rate, (height, width) = _ASIT_RATES[preset], self.model["patch_size"]
    self.notes.append(f"front-end of its release, at {rate:,} Hz")
    return FrontEnd(
      sample_rate=rate,
      num_frames=grid[1] * width,
      num_mel_bins=grid[0] * height,
      statistics=registry.AUDIOSET_STATISTICS,
      channel="first",
      padding="waveform",
    ).recipe()


def _sizes(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The arguments of `make_backbone` that names and shapes tell."""
  norm, fc1 = "backbone/encoder/norm/scale", "backbone/encoder/block_0/mlp/fc1"
  needed = (norm, f"{fc1}/bias", adapt.KERNEL, convert.sequence_of(flat))
  convert.refuse([f"- {k} is not in the file" for k in needed if k not in flat])
  blocks = re.findall(r"^backbone/encoder/block_(\d+)/", "\n".join(flat), re.M)
  return {
    "width": flat[norm].size,
    "depth": max(map(int, blocks)) + 1,
    "mlp_dim": flat[f"{fc1}/bias"].size,
    "patch_size": flat[adapt.KERNEL].shape[:2],
    "prefix": tuple(
      name for name in ast.PREFIX_TOKENS if f"backbone/{name}_token" in flat
    ),
  }


def _objective(flat, pretrained_by, width) -> dict[str, Any]:
  """Its pre-training, as `ModelInfo.objective` describes it."""
  parts = {path.split("/")[0] for path in flat} - {"backbone", "head"}
  if not parts or not pretrained_by:
    return {}
  if pretrained_by == "SSAST":
    heads = [k for k in ssast.HEADS if k in parts]
    return {"name": "ssast", "heads": heads or list(ssast.HEADS)}
  # ASiT: the release by its output layers, sizes that are not the release's.
  is_first = any(f"projection/{k}/weight_v" in flat for k in ("cls", "patch"))
  preset = "r1" if is_first else "r2"
  usual: dict[str, Any] = dict(asit.PROJECTION | asit.PRESETS[preset])
  usual["recon_widths"] = tuple(n or width for n in usual["recon_widths"])
  layers = ("cls", "patch") if is_first else ("last",)
  paths = {
    "hidden": ("projection/fc1/bias",),
    "bottleneck": ("projection/fc3/bias",),
    "outputs": tuple(f"projection/{k}/weight_v" for k in layers),
    "recon_widths": ("reconstruction/fc1/bias", "reconstruction/fc3/bias"),
  }
  found: dict[str, Any] = {}
  for name, of in paths.items():
    sizes = tuple(flat[path].shape[-1] for path in of if path in flat)
    value = sizes if isinstance(usual[name], tuple) else sum(sizes)
    # Missing arrays are told by `check`, which compares all of them.
    if len(sizes) == len(of) and value != usual[name]:
      found[name] = value
  return {"name": "asit", "preset": preset} | found


def _grid_of(info: ModelInfo) -> tuple[int, int]:
  front_end = FrontEnd.from_recipe(info.recipe)
  return patches.grid_shape(
    front_end.num_frames,
    front_end.num_mel_bins,
    info.model["patch_size"],
    info.model["stride"],
  )
