"""The pre-norm vision transformer that all three papers share.

The DeiT blocks of the originals (timm): fused qkv with bias, exact GELU,
optional drop path. Parameters are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from astjax import errors
from astjax.ops import platform
from astjax.types import Array, Params

# Transformer weights: normal with standard deviation 0.02 (the original cuts it
# at +-2, a hundred standard deviations away).
WEIGHT_INIT = nn.initializers.normal(stddev=0.02)


def torch_uniform(fan_in: int) -> Callable:
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's default for Linear and Conv."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Dense(nn.Dense):
  """A linear layer, [..., D] -> [..., D'], of float32 parameters."""

  kernel_init: Callable = WEIGHT_INIT

  def __call__(self, x: Array) -> Array:
    if platform.platform() != "cpu":
      return super().__call__(x)
    # With several leading axes XLA's CPU compiler computes the input of the
    # kernel's gradient twice, once transposed: a quarter of a block's time. On
    # a TPU, merging the axes would move data.
    y = super().__call__(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], self.features)


def layer_norm(epsilon: float, dtype: Any, name: str) -> nn.LayerNorm:
  """Layer norm with the two-pass variance, as torch computes it."""
  return nn.LayerNorm(
    epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name
  )


class PatchEmbed(nn.Module):
  """Patches [B, N, ph * pw] -> tokens [B, N, D].

  The originals' convolution as a product, which spectrograms and literal
  patches share. Its kernel is [ph, pw, D] (frequency, time).
  """

  width: int
  patch_size: tuple[int, int]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, patches: Array) -> Array:
    ph, pw = self.patch_size
    init = torch_uniform(ph * pw)
    kernel = self.param("kernel", init, (ph, pw, self.width))
    bias = self.param("bias", init, (self.width,))
    if patches.shape[-1] != ph * pw:
      raise errors.UserError(
        f"patches have {patches.shape[-1]} cells, the model's patch_size "
        f"{self.patch_size} has {ph * pw}"
      )
    kernel = kernel.reshape(ph * pw, self.width).astype(self.dtype)
    return patches.astype(self.dtype) @ kernel + bias.astype(self.dtype)


class PosEmbed(nn.Module):
  """Learned positions: `prefix` [P, D] and `grid` [F', T', D]."""

  width: int
  num_prefix: int
  grid: tuple[int, int]

  @nn.compact
  def __call__(self) -> tuple[Array, Array]:
    """([P, D], [F' * T', D])."""
    prefix = jnp.zeros((0, self.width))
    if self.num_prefix:
      prefix = self.param("prefix", WEIGHT_INIT, (self.num_prefix, self.width))
    grid = self.param("grid", WEIGHT_INIT, (*self.grid, self.width))
    return prefix, grid.reshape(-1, self.width)


class Mlp(nn.Module):
  """Linear, exact GELU, linear."""

  mlp_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B, N, D] -> [B, N, D]."""
    y = Dense(self.mlp_dim, dtype=self.dtype, name="fc1")(x)
    y = nn.gelu(y, approximate=False)
    return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


_xla, _cudnn = (
  functools.partial(jax.nn.dot_product_attention, implementation=name)
  for name in ("xla", "cudnn")
)


def _per_head(q, k, v):
  """One head after the other, [B, N, H, h] each.

  On a CPU this keeps the [N, N] products in cache: about 2.7 times as fast as
  all heads at once at 1,214 tokens.
  """

  def head(qkv):
    q, k, v = qkv  # [B, N, h]
    scores = jnp.einsum("bqd,bkd->bqk", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
    return jnp.einsum("bqk,bkd->bqd", weights.astype(v.dtype), v)

  qkv = tuple(jnp.moveaxis(x, 2, 0) for x in (q, k, v))
  return jnp.moveaxis(jax.lax.map(head, qkv), 0, 2)


def _auto(q, k, v):
  return (_per_head if platform.platform() == "cpu" else _xla)(q, k, v)


ATTENTION = {"auto": _auto, "xla": _xla, "cudnn": _cudnn, "per_head": _per_head}


class Attention(nn.Module):
  """Multi-head self-attention with one fused qkv projection."""

  num_heads: int
  implementation: str = "auto"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B, N, D] -> [B, N, D]."""
    batch, tokens, width = x.shape
    attend = errors.lookup(ATTENTION, self.implementation, "attention")
    qkv = Dense(3 * width, dtype=self.dtype, name="qkv")(x)
    qkv = qkv.reshape(batch, tokens, 3, self.num_heads, -1)
    x = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])  # [B, N, H, h]
    x = x.reshape(batch, tokens, width)
    return Dense(width, dtype=self.dtype, name="proj")(x)


class DropPath(nn.Module):
  """Stochastic depth: drops a residual branch of some examples [B, N, D]."""

  rate: float | Array

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """Scales what is kept by 1 / (1 - rate), so that the mean stays."""
    if not train or (isinstance(self.rate, float) and self.rate == 0.0):
      return x
    keep = 1.0 - self.rate
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    mask = jax.random.bernoulli(self.make_rng("drop_path"), keep, shape)
    # A rate that is an array (`scan`) must not make float32 of bfloat16.
    kept = (x / keep).astype(x.dtype)
    return jnp.where(mask, kept, jnp.zeros_like(x))


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  num_heads: int
  mlp_dim: int
  drop_path: float | Array = 0.0
  layer_norm_eps: float = 1e-6
  attention: str = "auto"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """[B, N, D] -> [B, N, D]."""
    y = layer_norm(self.layer_norm_eps, self.dtype, "norm1")(x)
    y = Attention(self.num_heads, self.attention, self.dtype, name="attn")(y)
    x = x + DropPath(self.drop_path)(y, train=train)
    y = layer_norm(self.layer_norm_eps, self.dtype, "norm2")(x)
    y = Mlp(self.mlp_dim, self.dtype, name="mlp")(y)
    return x + DropPath(self.drop_path)(y, train=train)


class Encoder(nn.Module):
  """Transformer blocks and the final norm.

  Attributes:
    drop_path: rate of the last block; grows linearly from 0.
    layer_norm_eps: 1e-6 in AST and ASiT, 1e-12 in Hugging Face's AST.
    attention: a key of `ATTENTION`.
    remat: compute the blocks' activations again in the backward pass.
    scan: run the blocks as turns of one loop. A program of one block compiles
      in a fraction of the time; it holds a copy of the parameters, and draws
      other paths to drop.
  """

  depth: int
  num_heads: int
  mlp_dim: int
  drop_path: float = 0.0
  layer_norm_eps: float = 1e-6
  attention: str = "auto"
  remat: bool = False
  scan: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> tuple[Array, list[Array]]:
    """(normalised output, outputs of all blocks), each [B, P + N, D]."""
    if self.scan and not self.is_initializing():
      x, hidden = self._scanned(x, train)
    else:
      block_type = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
      hidden = []
      for i in range(self.depth):
        rate = self.drop_path * i / max(self.depth - 1, 1)
        x = self._block(rate, block_type, name=f"block_{i}")(x, train)
        hidden.append(x)
    return layer_norm(self.layer_norm_eps, self.dtype, "norm")(x), hidden

  def _block(self, drop_path, block_type=Block, **kwargs):
    sizes = (self.num_heads, self.mlp_dim)
    how = (self.layer_norm_eps, self.attention, self.dtype)
    return block_type(*sizes, drop_path, *how, **kwargs)

  def _scanned(self, x, train):
    # The blocks' parameters are stacked here and nowhere else: as one stack
    # [L, ...] in the tree (`nn.scan`), checkpoints, tables of names and rates
    # by layer would all have to know of it.
    drops = train and self.drop_path > 0.0
    each = [
      self.get_variable("params", f"block_{i}") for i in range(self.depth)
    ]
    turns = {"params": jax.tree.map(lambda *p: jnp.stack(p), *each)}
    if drops:
      turns["rate"] = jnp.linspace(0.0, self.drop_path, self.depth)
      turns["key"] = jax.random.split(self.make_rng("drop_path"), self.depth)

    def turn(x, one):
      block = self._block(one["rate"] if drops else 0.0, parent=None)
      rngs = {"drop_path": one["key"]} if drops else {}
      x = block.apply({"params": one["params"]}, x, train, rngs=rngs)
      return x, x

    turn = jax.checkpoint(turn, prevent_cse=False) if self.remat else turn
    x, hidden = jax.lax.scan(turn, x, turns)
    return x, list(hidden)


def attention_maps(
  backbone: nn.Module, params: Params, patches: Array
) -> Array:
  """Where the prefix tokens look in the last block: [B, H, P, F', T'].

  `patches` are [B, F', T', ph * pw]. The weights [B, H, P, P + N] of all tokens
  sum up to 1.
  """
  # Fused attention keeps no weights, so the queries and keys are recorded, and
  # multiplied once more.
  _, recorded = backbone.apply(
    {"params": params},
    patches=patches,
    capture_intermediates=lambda module, _: module.name == "qkv",
  )
  last = f"block_{backbone.encoder.depth - 1}"
  found = recorded["intermediates"]["encoder"][last]["attn"]["qkv"]
  # `Dense` calls the method that it overrides: the outer call is recorded last.
  qkv = found["__call__"][-1]
  qkv = qkv.reshape(*qkv.shape[:2], 3, backbone.encoder.num_heads, -1)
  count = len(backbone.prefix)
  queries, keys = qkv[:, :count, 0], qkv[:, :, 1]
  scores = jnp.einsum("bphd,bnhd->bhpn", queries, keys).astype(jnp.float32)
  weights = jax.nn.softmax(scores * qkv.shape[-1] ** -0.5, axis=-1)
  to_patches = weights[..., count:]
  return to_patches.reshape(*to_patches.shape[:3], *patches.shape[1:3])
