"""Audio Spectrogram Transformer (arXiv 2104.01778), sections 2.1 and 2.2."""

from __future__ import annotations

from typing import Any, Literal

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
    width: D.
    patch_size, stride: (mel bins, frames); a smaller stride overlaps.
    prefix: names of the prefix tokens: ("cls", "dist"), ("cls",) or ().
    encoder: the blocks.
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
      patches: instead of `fbank`, [B, F', T', ph * pw] literal patches, cut
        with the same patch size and stride.
      keep: [B, K] numbers f' * T' + t' of the patches that it runs on; all of
        them by default.
      mask: [B, N] bool, True where a token is replaced by `mask_token`.
      mask_token: [D], handed in by the task that owns it.
      train: turns drop path on (needs a "drop_path" rng if its rate is > 0).
      hidden: also return the outputs of all blocks, before the final norm.

    Returns:
      {"prefix": [B, P, D], "tokens": [B, N or K, D]} and, if asked, "hidden":
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
        backend=xp.JAX,
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
    top = heads.LayerSumHead(head.num_classes, backbone.encoder.depth, widths)
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
  """Mean over the tokens that a pooling takes, [B, D].

  In float32, whatever the backbone computes in: the ranking of bfloat16 scores
  is full of ties, and mAP is a ranking.
  """
  names = errors.lookup(POOLINGS, pooling, "pooling")
  chosen = jnp.concatenate([tokens[name] for name in names], axis=1)
  return jnp.mean(chosen.astype(jnp.float32), axis=1)


def pool_layers(out: dict[str, Any], pooling: str) -> Array:
  """Mean over the tokens of each block, before the final norm: [B, L, D]."""
  count = out["prefix"].shape[1]
  pooled = [
    pool({"prefix": x[:, :count], "tokens": x[:, count:]}, pooling)
    for x in out["hidden"]
  ]
  return jnp.stack(pooled, axis=1)


def attention_maps(backbone: Backbone, params: Params, patches: Array) -> Array:
  """Where the prefix tokens look in the last block: [B, H, P, F', T'].

  `patches` are literal ones, [B, F', T', ph * pw].
  """
  # Fused attention keeps no weights, so what it reads is recorded, and the
  # product of queries and keys computed once more.
  _, recorded = backbone.apply(
    {"params": params},
    patches=patches,
    capture_intermediates=lambda module, _: module.name == "norm1",
  )
  last = f"block_{backbone.encoder.depth - 1}"
  x = recorded["intermediates"]["encoder"][last]["norm1"]["__call__"][0]
  weights = vit.attention_weights(
    params["encoder"][last]["attn"], x, backbone.encoder.num_heads
  )
  count = len(backbone.prefix)
  to_patches = weights[:, :, :count, count:]  # [B, H, P, N]
  return to_patches.reshape(*to_patches.shape[:3], *patches.shape[1:3])


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
  """A backbone from plain config values, as of `Backbone` and `vit.Encoder`.

  What is 0 of width, depth and num_heads is the variant's; an mlp_dim of 0 is
  4 * width.

  Raises:
    UserError: an unknown variant, attention or prefix, or sizes that do not
      fit.
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
  return Backbone(
    width, tuple(patch_size), tuple(stride), tuple(prefix), encoder
  )
