"""Audio Spectrogram Transformer (arXiv 2104.01778), sections 2.1 and 2.2."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from astjax import errors
from astjax.models import heads, vit
from astjax.ops import patches, platform, xp
from astjax.types import Array

# The DeiT models whose shapes the paper uses. 224 and 384 name the image size
# of the ImageNet weights (position grids of 14x14 and 24x24).
VARIANTS = {
  "tiny224": {"width": 192, "depth": 12, "num_heads": 3},
  "small224": {"width": 384, "depth": 12, "num_heads": 6},
  "base224": {"width": 768, "depth": 12, "num_heads": 12},
  "base384": {"width": 768, "depth": 12, "num_heads": 12},
}

PREFIX_TOKENS = ("cls", "dist")


def cut(backbone: nn.Module, fbank: Array) -> Array:
  """Log-mels [..., T, F] -> a backbone's patches [..., F', T', ph * pw]."""
  return patches.patchify(
    fbank, patch_size=backbone.patch_size, stride=backbone.stride, xp=xp.JAX
  )


class Backbone(nn.Module):
  """Log-mel spectrogram -> tokens; the part that moves between tasks.

  `patch_size` and `stride` are (mel bins, frames); a smaller stride overlaps.
  `prefix` are the names of the prefix tokens: AST's published weights have
  ("cls", "dist"), ASiT ("cls",).
  """

  width: int
  patch_size: tuple[int, int]
  stride: tuple[int, int]
  prefix: tuple[str, ...]
  encoder: vit.Encoder

  @property
  def dtype(self) -> Any:
    """Of the computation and the tokens; parameters are float32."""
    return self.encoder.dtype

  def describe(self) -> dict[str, Any]:
    """The arguments of `make_backbone` that a saved model needs."""
    encoder = self.encoder
    return {
      "width": self.width,
      "depth": encoder.depth,
      "num_heads": encoder.num_heads,
      "mlp_dim": encoder.mlp_dim,
      "patch_size": self.patch_size,
      "stride": self.stride,
      "prefix": self.prefix,
      "layer_norm_eps": encoder.layer_norm_eps,
    }

  def plain(self) -> Backbone:
    """The same function, of which every product can be counted once."""
    return self.clone(encoder=self.encoder.clone(remat=False, attention="xla"))

  @nn.compact
  def __call__(
    self,
    fbank: Array | None = None,
    *,
    patches: Array | None = None,
    keep: Array | None = None,
    mask: Array | None = None,
    mask_token: Array | None = None,
    train: bool = False,
    hidden: bool = False,
  ) -> dict[str, Any]:
    """Runs the transformer.

    Args:
      fbank: [B, T, F] standardised log-mels.
      patches: [B, F', T', ph * pw], instead of `fbank`, cut with the same patch
        size and stride.
      keep: [B, K] numbers f' * T' + t' of the patches that it runs on; all of
        them by default.
      mask: [B, N] bool, True where a token is replaced by `mask_token` [D].
      train: turns drop path on, which draws from the rng "drop_path".
      hidden: also return the outputs of all blocks, before the final norm.

    Returns:
      {"prefix": [B, P, D], "tokens": [B, N or K, D]} and, if asked, "hidden":
      a tuple of [B, P + N, D]; N is frequency-major, f' * T' + t'.

    Raises:
      UserError: an input of another size than the position grid.
    """
    if patches is None:
      patches = cut(self, fbank)
    batch, *grid, cells = patches.shape
    self._check_grid(tuple(grid))
    x = vit.PatchEmbed(
      self.width, self.patch_size, self.dtype, name="patch_embed"
    )(patches.reshape(batch, -1, cells))  # [B, N, D]
    if mask is not None:
      x = jnp.where(mask[..., None], jnp.asarray(mask_token, x.dtype), x)
    pos_prefix, pos_grid = vit.PosEmbed(
      self.width, len(self.prefix), tuple(grid), name="pos_embed"
    )()
    x = x + pos_grid.astype(x.dtype)
    if keep is not None:  # after the positions: a token knows its place
      x = jnp.take_along_axis(x, keep[..., None], axis=1)  # [B, K, D]
    if self.prefix:
      tokens = [
        self.param(f"{name}_token", vit.WEIGHT_INIT, (self.width,))
        for name in self.prefix
      ]
      front = (jnp.stack(tokens) + pos_prefix).astype(x.dtype)  # [P, D]
      front = jnp.broadcast_to(front, (x.shape[0], *front.shape))
      x = jnp.concatenate([front, x], axis=1)  # [B, P + N, D]
    x, blocks = self.encoder(x, train=train)
    num_prefix = len(self.prefix)
    out = {"prefix": x[:, :num_prefix], "tokens": x[:, num_prefix:]}
    return out | {"hidden": tuple(blocks)} if hidden else out

  def _check_grid(self, grid):
    if self.is_initializing():
      return
    have = self.get_variable("params", "pos_embed")["grid"].shape[:2]
    if have != grid:
      raise errors.UserError(
        f"the input gives a grid of {grid[0]} x {grid[1]} patches (frequency x "
        f"time), the position embedding has {have[0]} x {have[1]}"
      )


class AST(nn.Module):
  """Backbone, pooling (`heads.POOLINGS`) and classifier: -> logits [B, C]."""

  backbone: Backbone
  head: heads.ClassifierHead | heads.LayerSumHead
  pooling: str = "prefix"

  def __call__(self, fbank: Array | None = None, **kwargs) -> Array:
    """Logits [B, C]; arguments are those of `Backbone`."""
    return self.outputs(fbank, **kwargs)["logits"]

  def outputs(self, fbank: Array | None = None, **kwargs) -> dict[str, Array]:
    """The backbone's output with `features` [B, D] and `logits` [B, C]."""
    if isinstance(self.head, heads.LayerSumHead):
      out = self.backbone(fbank, hidden=True, **kwargs)
      features = self.head.mix(out, self.pooling)
    else:
      out = self.backbone(fbank, **kwargs)
      features = heads.pool(out, self.pooling)
    return out | {"features": features, "logits": self.head(features)}


def classifier(backbone: Backbone, head: heads.Head) -> AST:
  """The backbone with a classifier."""
  if not head.projection:
    top = heads.ClassifierHead(head.num_classes, head.layer_norm_eps)
    return AST(backbone, top, head.pooling)
  widths, depth = (backbone.width, head.projection), backbone.encoder.depth
  mixed = heads.LayerSumHead(head.num_classes, depth, widths)
  return AST(backbone, mixed, head.pooling)


_Pair = tuple[errors.Count, errors.Count]


def make_backbone(
  variant: str = "base384",
  *,
  width: errors.CountOrZero = 0,
  depth: errors.CountOrZero = 0,
  num_heads: errors.CountOrZero = 0,
  mlp_dim: errors.CountOrZero = 0,
  patch_size: _Pair = (16, 16),
  stride: _Pair = (10, 10),
  prefix: tuple[str, ...] = PREFIX_TOKENS,
  drop_path: errors.BelowOne = 0.0,
  layer_norm_eps: float = 1e-6,
  attention: str = "auto",
  remat: bool = False,
  scan: bool = False,
  dtype: Literal["float32", "bfloat16"] = "float32",
) -> Backbone:
  """A backbone from plain config values; `Backbone` and `vit.Encoder` say more.

  A width, depth or num_heads of 0 is the variant's, an mlp_dim of 0 is
  4 * width.

  Raises:
    UserError: an unknown variant, attention or prefix, or sizes that clash.
  """
  shape = errors.lookup(VARIANTS, variant, "variant")
  errors.lookup(vit.ATTENTION, attention, "attention")
  width, num_heads = width or shape["width"], num_heads or shape["num_heads"]
  if width % num_heads:
    raise errors.UserError(
      f"width {width} must be a multiple of num_heads {num_heads}"
    )
  if attention == "cudnn" and platform.platform() != "gpu":
    raise errors.UserError(
      "attention='cudnn' needs an NVIDIA GPU, the devices are "
      f"{platform.platform()}; use 'auto'"
    )
  if tuple(prefix) not in (PREFIX_TOKENS, PREFIX_TOKENS[:1], ()):
    raise errors.UserError(
      f"prefix {tuple(prefix)} is unknown: use ('cls', 'dist'), ('cls',) or ()"
    )
  encoder = vit.Encoder(
    depth=depth or shape["depth"],
    num_heads=num_heads,
    mlp_dim=mlp_dim or 4 * width,
    drop_path=drop_path,
    layer_norm_eps=layer_norm_eps,
    attention=attention,
    remat=remat,
    scan=scan,
    dtype=getattr(jnp, dtype),
  )
  # A config or a saved model may have lists.
  return Backbone(width, (*patch_size,), (*stride,), (*prefix,), encoder)
