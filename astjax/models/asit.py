"""ASiT: group masked model learning and self-distillation, its module.

One backbone; on its class token and its patch tokens a head whose outputs a
teacher is imitated in, on its patch tokens another one that draws the clean
spectrogram (arXiv 2211.13189). The objectives themselves are in
`tasks/asit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn

from astjax import errors
from astjax.models import ast, heads
from astjax.types import Array

PARTS = ("cls", "patch", "reconstruction")

# The two releases of the original. `outputs` is (C,) where class and patch
# tokens share an output layer, (C, C') where each has its own; a width of 0 is
# the backbone's. The last four are fields of `tasks.asit.Asit`.
PRESETS: dict[str, dict[str, Any]] = {
  "r1": {
    "outputs": (8192, 1024),
    "recon_widths": (768, 128),
    "drop_perc": 0.7,
    "local_views": 0,
    "teacher_temp_epochs": 30,
    "loss_weights": (1.0, 1.0, 2.0),
  },
  "r2": {
    "outputs": (8192,),
    "recon_widths": (0, 0),
    "drop_perc": 0.5,
    "local_views": 4,
    "teacher_temp_epochs": 5,
    "loss_weights": (0.5, 0.5, 1.0),
  },
}
PROJECTION = {"hidden": 2048, "bottleneck": 256}


class ASIT(nn.Module):
  """Backbone, `heads.ProjectionHead` and `heads.ReconstructionHead`.

  `recon_widths` are hidden width and channels of the latter; 0 is the width of
  the backbone.
  """

  backbone: ast.Backbone
  hidden: int
  bottleneck: int
  outputs: tuple[int, ...]
  recon_widths: tuple[int, int]

  def setup(self) -> None:
    dtype, width = self.backbone.dtype, self.backbone.width
    self.projection = heads.ProjectionHead(
      self.hidden, self.bottleneck, self.outputs, dtype
    )
    hidden, channels = (n or width for n in self.recon_widths)
    self.reconstruction = heads.ReconstructionHead(
      hidden, channels, self.backbone.patch_size, dtype
    )

  def __call__(
    self,
    patches: Array,
    *,
    parts: Sequence[str] = PARTS,
    train: bool = False,
  ) -> dict[str, Array]:
    """Patches [B, F', T', ph * pw] -> those of `PARTS` asked for, in float32.

    "cls" [B, K] and "patch" [B, N, K] are unit vectors to be multiplied with
    `kernels`; "reconstruction" is shaped like `patches`.
    """
    out = self.backbone(patches=patches, train=train)
    found = {}
    if "cls" in parts:
      found["cls"] = self.projection(out["prefix"][:, 0])
    if "patch" in parts:
      found["patch"] = self.projection(out["tokens"])
    if "reconstruction" in parts:
      cells = self.reconstruction(out["tokens"])
      found["reconstruction"] = cells.reshape(patches.shape)
    if self.is_initializing():
      self.kernels()  # makes their parameters
    return found

  def kernels(self) -> dict[str, Array]:
    """{"cls": [K, C], "patch": [K, C']} of the output layers."""
    return self.projection.kernels()

  def describe(self) -> dict[str, Any]:
    """The arguments of `make` that differ from the preset's, and the preset."""
    preset = "r1" if len(self.outputs) == 2 else "r2"
    usual = PROJECTION | PRESETS[preset]
    names = (*PROJECTION, "outputs", "recon_widths")
    own = {k: getattr(self, k) for k in names if getattr(self, k) != usual[k]}
    return {"preset": preset} | own


def make(
  backbone: ast.Backbone,
  *,
  preset: Literal["r1", "r2"] = "r2",
  hidden: errors.Count = PROJECTION["hidden"],
  bottleneck: errors.Count = PROJECTION["bottleneck"],
  outputs: tuple[errors.Count, ...] = (),
  recon_widths: tuple[errors.CountOrZero, ...] = (),
) -> ASIT:
  """The module from plain values; empty ones are the preset's."""
  if backbone.stride != backbone.patch_size:
    raise errors.UserError(
      "ASiT's patches do not overlap: the stride must be the patch size "
      f"{backbone.patch_size}, it is {backbone.stride}"
    )
  if backbone.prefix != ("cls",):
    raise errors.UserError(
      f"ASiT's prefix must be ('cls',), it is {backbone.prefix}"
    )
  sizes: list[Any] = []
  for name, value in (("outputs", outputs), ("recon_widths", recon_widths)):
    usual = PRESETS[preset][name]
    sizes.append(tuple(value) or usual)
    if len(sizes[-1]) != len(usual):
      raise errors.UserError(
        f"the preset {preset!r} has {name}={usual}, got {value}: other lengths"
      )
  return ASIT(backbone, hidden, bottleneck, *sizes)
