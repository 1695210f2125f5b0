"""SSAST: masked spectrogram patch modelling (arXiv 2110.09784), its module.

The backbone sees learned mask tokens where patches are hidden; two small heads
predict the hidden patches. The objectives are in `tasks/ssast.py`.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from astjax.errors import UserError
from astjax.models import ast, heads
from astjax.types import Array

HEADS = ("discriminative", "generative")


class SSAST(nn.Module):
  """Backbone, mask token and those of `HEADS` that there are."""

  backbone: ast.Backbone
  heads: tuple[str, ...] = HEADS

  def setup(self) -> None:
    # The mask token has the original's deviation: Xavier's on [1, 1, D].
    width, (ph, pw) = self.backbone.width, self.backbone.patch_size
    init = nn.initializers.normal(stddev=width**-0.5)
    self.mask_token = self.param("mask_token", init, (width,))
    if "discriminative" in self.heads:
      self.discriminative = heads.PatchMlpHead(ph * pw)
    if "generative" in self.heads:
      self.generative = heads.PatchMlpHead(ph * pw)

  def __call__(
    self,
    patches: Array,
    index: Array | None = None,
    *,
    heads: tuple[str, ...] | None = None,
    train: bool = False,
  ) -> dict[str, Array]:
    """What each head makes of the hidden patches, {head: [B, M, ph * pw]}.

    `index` [B, M] numbers the hidden ones of `patches` [B, F', T', ph * pw] as
    f' * T' + t'; by default it is the first alone.
    """
    if index is None:
      index = jnp.zeros((len(patches), 1), jnp.int32)
    numbers = jnp.arange(patches.shape[1] * patches.shape[2])
    out = self.backbone(
      patches=patches,
      mask=jnp.any(index[..., None] == numbers, axis=1),
      mask_token=self.mask_token,
      train=train,
    )
    hidden = jnp.take_along_axis(out["tokens"], index[..., None], axis=1)
    return {name: getattr(self, name)(hidden) for name in heads or self.heads}


def make(backbone: ast.Backbone, heads: tuple[str, ...] = HEADS) -> SSAST:
  """The module on a backbone, whose patches may not overlap."""
  if backbone.stride != backbone.patch_size:
    raise UserError(
      "SSAST hides whole patches, which may not overlap: the stride must be "
      f"the patch_size {backbone.patch_size}, got {backbone.stride}"
    )
  if tuple(heads) not in (HEADS, HEADS[:1], HEADS[1:]):
    raise UserError(f"heads {tuple(heads)} are not among {HEADS}")
  return SSAST(backbone, tuple(heads))
