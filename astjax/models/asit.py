"""ASiT: group masked model learning and self-distillation, its module.

One backbone; on its class token and its patch tokens a head whose outputs a
teacher is imitated in, on its patch tokens another one that draws the clean
spectrogram (arXiv 2211.13189). The objectives themselves are in
`tasks/asit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn

from astjax.errors import UserError
from astjax.models import ast, heads
from astjax.types import Array

PARTS = ("cls", "patch", "reconstruction")

# The two releases of the original: `outputs` is (C,) if class and patch tokens
# share an output layer; a width of 0 is the backbone's.
PRESETS = {
  "r1": {"outputs": (8192, 1024), "recon_widths": (768, 128)},
  "r2": {"outputs": (8192,), "recon_widths": (0, 0)},
}
PROJECTION = {"hidden": 2048, "bottleneck": 256}


class ASIT(nn.Module):
  """Backbone, projection head and reconstruction head.

  Attributes:
    backbone: cuts its patches without overlap; its one prefix token is `cls`.
    hidden: of the projection head, as are bottleneck and outputs.
    bottleneck: K.
    outputs: (C,) or (C, C'), see `heads.ProjectionHead`.
    recon_widths: hidden width and channels of the reconstruction head; 0 is the
      width of the backbone.
  """

  backbone: ast.Backbone
  hidden: int
  bottleneck: int
  outputs: tuple[int, ...]
  recon_widths: tuple[int, int]

  def setup(self) -> None:
    """The heads compute in the backbone's type."""
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
    """Runs the backbone and the heads that are asked for.

    Args:
      patches: [B, F', T', ph * pw] literal patches.
      parts: of `PARTS`.
      train: turns drop path on.

    Returns:
      "cls" [B, K] and "patch" [B, N, K], unit vectors to be multiplied with
      `kernels`; "reconstruction", like `patches`. Float32.
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
      self.kernels()
    return found

  def kernels(self) -> dict[str, Array]:
    """{"cls": [K, C], "patch": [K, C']} of the output layers."""
    return self.projection.kernels()


def make(
  backbone: ast.Backbone,
  *,
  preset: Literal["r1", "r2"] = "r2",
  hidden: int = PROJECTION["hidden"],
  bottleneck: int = PROJECTION["bottleneck"],
  outputs: tuple[int, ...] = (),
  recon_widths: tuple[int, ...] = (),
) -> ASIT:
  """The module from plain values.

  Args:
    backbone: the transformer.
    preset: a key of `PRESETS`: "r2" has one output layer for class and patch
      tokens, "r1" two.
    hidden: of the projection head.
    bottleneck: K.
    outputs: C for each output layer; empty is the preset's.
    recon_widths: hidden width and channels of the reconstruction head, 0 is the
      backbone's width; empty is the preset's.

  Raises:
    UserError: sizes or a backbone that do not fit.
  """
  if backbone.stride != backbone.patch_size:
    raise UserError(
      "ASiT is pre-trained on patches that do not overlap: the stride must be "
      f"the patch size {backbone.patch_size}, it is {backbone.stride}"
    )
  if backbone.prefix != ("cls",):
    raise UserError(
      "ASiT has one prefix token: prefix must be ('cls',), it is "
      f"{backbone.prefix}"
    )
  sizes = PRESETS[preset]
  outputs = tuple(outputs) or sizes["outputs"]
  recon_widths = tuple(recon_widths) or sizes["recon_widths"]
  if len(outputs) != len(sizes["outputs"]) or len(recon_widths) != 2:
    raise UserError(
      f"the preset {preset!r} has outputs={sizes['outputs']} and "
      f"recon_widths={sizes['recon_widths']}; got {outputs} and "
      f"{recon_widths}, of another length"
    )
  if min(hidden, bottleneck, *outputs) < 1 or min(recon_widths) < 0:
    raise UserError(
      f"hidden={hidden}, bottleneck={bottleneck} and outputs={outputs} must "
      f"be at least 1, recon_widths={recon_widths} at least 0"
    )
  return ASIT(backbone, hidden, bottleneck, outputs, recon_widths)


def describe(model: ASIT, preset: str) -> dict:
  """The arguments of `make` that are not the preset's."""
  usual = PROJECTION | PRESETS[preset]
  given = {name: getattr(model, name) for name in usual}
  different = {k: v for k, v in given.items() if v != usual[k]}
  return {"preset": preset} | different
