"""Audio Spectrogram Transformer (arXiv 2104.01778), sections 2.1 and 2.2."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from astjax import errors
from astjax.models import heads, vit
from astjax.ops import patches as patch_ops
from astjax.ops import platform, xp
from astjax.types import Array, Params

# The DeiT models whose shapes the paper uses. 224 and 384 name the image size
# of the ImageNet weights (position grids of 14x14 and 24x24).
VARIANTS = {
  "tiny224": {"width": 192, "depth": 12, "num_heads": 3},
  "small224": {"width": 384, "depth": 12, "num_heads": 6},
  "base224": {"width": 768, "depth": 12, "num_heads": 12},
  "base384": {"width": 768, "depth": 12, "num_heads": 12},
}

PREFIX_TOKENS = ("cls", "dist")


class Backbone(nn.Module):
  """Log-mel spectrogram -> tokens; the part that moves between tasks.

  Attributes:
    width, depth, num_heads: D, number of blocks, H.
    mlp_dim: hidden width of the MLP; 0 means 4 * width.
    patch_size, stride: (mel bins, frames); a smaller stride overlaps.
    prefix: names of the prefix tokens: ("cls", "dist"), ("cls",) or ().
    drop_path: rate of the last block; grows linearly from 0.
    layer_norm_eps: 1e-6 in AST and ASiT, 1e-12 in Hugging Face's AST.
    attention: a name in `vit.ATTENTION`.
    remat: recompute block activations in the backward pass.
    scan: the blocks as a loop, see `vit.Encoder`.
    dtype: of the computation; parameters are float32.
  """

  width: int
  depth: int
  num_heads: int
  mlp_dim: int = 0
  patch_size: tuple[int, int] = (16, 16)
  stride: tuple[int, int] = (10, 10)
  prefix: tuple[str, ...] = PREFIX_TOKENS
  drop_path: float = 0.0
  layer_norm_eps: float = 1e-6
  attention: str = "auto"
  remat: bool = False
  scan: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    fbank: Array | None = None,
    *,
    patches: Array | None = None,
    mask: Array | None = None,
    mask_token: Array | None = None,
    train: bool = False,
    hidden: bool = False,
  ) -> dict[str, Any]:
    """Runs the transformer.

    Args:
      fbank: [B, T, F] standardised log-mels.
      patches: instead of `fbank`, [B, F', T', ph * pw] literal patches, cut
        with the same patch size and stride.
      mask: [B, N] bool, True where a token is replaced by `mask_token`.
      mask_token: [D], handed in by the task that owns it.
      train: turns drop path on (needs a "drop_path" rng if its rate is > 0).
      hidden: also return the outputs of all blocks, before the final norm.

    Returns:
      {"prefix": [B, P, D], "tokens": [B, N, D]} and, if asked, "hidden":
      a tuple of [B, P + N, D]; N is frequency-major, f' * T' + t'.

    Raises:
      UserError: a spectrogram smaller than a patch, or of another size than
        the position grid.
    """
    if patches is None:
      patches = patch_ops.patchify(
        fbank,
        patch_size=self.patch_size,
        stride=self.stride,
        xp=xp.JAX,
      )
    batch, *grid, cells = patches.shape
    self._check_grid(tuple(grid))
    x = vit.PatchEmbed(
      self.width, self.patch_size, self.dtype, name="patch_embed"
    )(patches.reshape(batch, -1, cells))  # [B, N, D]
    if mask is not None:
      token = mask_token.astype(x.dtype)
      x = jnp.where(mask[..., None], token, x)
    pos_prefix, pos_grid = vit.PosEmbed(
      self.width, len(self.prefix), tuple(grid), name="pos_embed"
    )()
    x = x + pos_grid.astype(x.dtype)
    if self.prefix:
      tokens = [
        self.param(f"{name}_token", vit.WEIGHT_INIT, (self.width,))
        for name in self.prefix
      ]
      front = (jnp.stack(tokens) + pos_prefix).astype(x.dtype)  # [P, D]
      front = jnp.broadcast_to(front, (x.shape[0], *front.shape))
      x = jnp.concatenate([front, x], axis=1)  # [B, P + N, D]
    x, blocks = vit.Encoder(
      depth=self.depth,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim or 4 * self.width,
      drop_path=self.drop_path,
      layer_norm_eps=self.layer_norm_eps,
      attention=self.attention,
      remat=self.remat,
      scan=self.scan,
      dtype=self.dtype,
      name="encoder",
    )(x, train=train)
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
  """Backbone, pooling and classifier: [B, T, F] -> logits [B, C].

  Attributes:
    backbone: the transformer.
    head: the classifier, on the last block's output (`ClassifierHead`) or on
      those of all blocks (`LayerSumHead`).
    pooling: a key of `POOLINGS`.
  """

  backbone: Backbone
  head: heads.ClassifierHead | heads.LayerSumHead
  pooling: str = "prefix"

  def __call__(self, fbank: Array | None = None, **kwargs) -> Array:
    """Logits [B, C]; arguments as of `Backbone`."""
    return self.outputs(fbank, **kwargs)["logits"]

  def features(self, fbank: Array | None = None, **kwargs) -> Array:
    """Pooled tokens [B, D], before the head."""
    return self.outputs(fbank, **kwargs)["features"]

  def outputs(self, fbank: Array | None = None, **kwargs) -> dict[str, Array]:
    """The backbone's output with `features` [B, D] and `logits` [B, C]."""
    of_all = isinstance(self.head, heads.LayerSumHead)
    out = self.backbone(fbank, hidden=of_all, **kwargs)
    if of_all:
      features = self.head.mix(pool_layers(out, self.pooling))
    else:
      features = pool(out, self.pooling)
    return out | {"features": features, "logits": self.head(features)}


def classifier(backbone: Backbone, head: heads.Head) -> AST:
  """The backbone with a classifier."""
  if head.projection:
    widths = (backbone.width, head.projection)
    top = heads.LayerSumHead(head.num_classes, backbone.depth, widths)
  else:
    top = heads.ClassifierHead(head.num_classes, head.layer_norm_eps)
  return AST(backbone, top, head.pooling)


# What is averaged: AST's prefix tokens, SSAST's patch tokens, or both (SUPERB).
POOLINGS = {
  "prefix": ("prefix",),
  "tokens": ("tokens",),
  "all": ("prefix", "tokens"),
}


def pool(tokens: dict[str, Array], pooling: str) -> Array:
  """Mean over the tokens that a pooling takes, [B, D] float32."""
  names = errors.lookup(POOLINGS, pooling, "pooling")
  chosen = jnp.concatenate([tokens[name] for name in names], axis=1)
  return jnp.mean(chosen.astype(jnp.float32), axis=1)


def pool_layers(out: dict[str, Any], pooling: str) -> Array:
  """The same for each block, before the final norm: [B, L, D]."""
  count = out["prefix"].shape[1]
  pooled = [
    pool({"prefix": x[:, :count], "tokens": x[:, count:]}, pooling)
    for x in out["hidden"]
  ]
  return jnp.stack(pooled, axis=1)


def attention_maps(backbone: Backbone, params: Params, patches: Array) -> Array:
  """Where the prefix tokens look in the last block: [B, H, P, F', T'].

  The forward pass is as always; what the block's attention reads is recorded on
  the way.

  Args:
    backbone: the transformer.
    params: its own.
    patches: [B, F', T', ph * pw] literal patches.
  """
  _, recorded = backbone.apply(
    {"params": params},
    patches=patches,
    capture_intermediates=lambda module, _: module.name == "norm1",
  )
  last = f"block_{backbone.depth - 1}"
  x = recorded["intermediates"]["encoder"][last]["norm1"]["__call__"][0]
  weights = vit.attention_weights(
    params["encoder"][last]["attn"], x, backbone.num_heads
  )
  count = len(backbone.prefix)
  to_patches = weights[:, :, :count, count:]  # [B, H, P, N]
  return to_patches.reshape(*to_patches.shape[:3], *patches.shape[1:3])


def make_backbone(
  variant: str = "base384",
  *,
  width: int = 0,
  depth: int = 0,
  num_heads: int = 0,
  mlp_dim: int = 0,
  patch_size: tuple[int, int] = (16, 16),
  stride: tuple[int, int] = (10, 10),
  prefix: tuple[str, ...] = PREFIX_TOKENS,
  drop_path: float = 0.0,
  layer_norm_eps: float = 1e-6,
  attention: str = "auto",
  remat: bool = False,
  scan: bool = False,
  dtype: str = "float32",
) -> Backbone:
  """A backbone from plain config values.

  Args:
    variant: a name in `VARIANTS`.
    width: overrides the variant's, as do depth and num_heads; 0 keeps it.
    depth: number of blocks.
    num_heads: attention heads; must divide the width.
    mlp_dim: 0 means 4 * width.
    patch_size: (mel bins, frames).
    stride: (mel bins, frames).
    prefix: prefix tokens, from `PREFIX_TOKENS`.
    drop_path: rate of the last block.
    layer_norm_eps: epsilon of the backbone's layer norms.
    attention: a name in `vit.ATTENTION`.
    remat: recompute activations to save memory.
    scan: the blocks as a loop, which compiles faster, see `vit.Encoder`.
    dtype: "float32" or "bfloat16" computation.

  Raises:
    UserError: unknown variant, prefix, attention or dtype, or sizes that do
      not fit.
  """
  shape = dict(errors.lookup(VARIANTS, variant, "variant"))
  given = {"width": width, "depth": depth, "num_heads": num_heads}
  shape |= {k: v for k, v in given.items() if v}
  if min(shape.values()) < 1 or shape["width"] % shape["num_heads"]:
    raise errors.UserError(
      f"width {shape['width']} must be a positive multiple of num_heads "
      f"{shape['num_heads']}, and depth {shape['depth']} at least 1"
    )
  sizes = (*patch_size, *stride)
  if min(sizes) < 1 or mlp_dim < 0:
    raise errors.UserError(
      f"patch_size {tuple(patch_size)} and stride {tuple(stride)} must be "
      f"positive, and mlp_dim {mlp_dim} at least 0"
    )
  if attention == "cudnn" and platform.platform() != "gpu":
    raise errors.UserError(
      "attention='cudnn' needs an NVIDIA GPU, the devices are "
      f"{platform.platform()}; use 'auto'"
    )
  if tuple(prefix) not in (("cls", "dist"), ("cls",), ()):
    raise errors.UserError(
      f"prefix {tuple(prefix)} is unknown: use ('cls', 'dist'), ('cls',) or ()"
    )
  if not 0.0 <= drop_path < 1.0:
    raise errors.UserError(f"drop_path must be in [0, 1), got {drop_path}")
  errors.lookup(vit.ATTENTION, attention, "attention")
  dtypes = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
  return Backbone(
    **shape,
    mlp_dim=mlp_dim,
    patch_size=tuple(patch_size),
    stride=tuple(stride),
    prefix=tuple(prefix),
    drop_path=drop_path,
    layer_norm_eps=layer_norm_eps,
    attention=attention,
    remat=remat,
    scan=scan,
    dtype=errors.lookup(dtypes, dtype, "dtype"),
  )
