"""What stands on top of the backbone: classifiers and pre-training heads."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import scipy.special

from astjax import errors
from astjax.errors import Count, CountOrZero, Within
from astjax.models import vit
from astjax.types import Array

Epsilon = Annotated[float, Within(lambda x: 0 < x < 1, "in (0, 1)")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
  """A classifier as a saved model describes it.

  Attributes:
    scores: "sigmoid" for tags, "softmax" for one class a clip.
    projection: 0 for a `ClassifierHead` on the last block; K of a
      `LayerSumHead`, which has no layer norm.
  """

  num_classes: Count
  pooling: Literal["prefix", "tokens", "all"] = "prefix"
  layer_norm_eps: Epsilon = 1e-5
  scores: Literal["sigmoid", "softmax"] = "sigmoid"
  projection: CountOrZero = 0

  def probabilities(self, logits: np.ndarray) -> np.ndarray:
    """Logits [..., C] as scores in [0, 1]."""
    if self.scores == "softmax":
      return scipy.special.softmax(logits, axis=-1)
    return scipy.special.expit(logits)


# What is averaged: AST's prefix tokens, SSAST's patch tokens, or both (SUPERB).
POOLINGS = {
  "prefix": ("prefix",),
  "tokens": ("tokens",),
  "all": ("prefix", "tokens"),
}


def pool(out: dict[str, Any], pooling: str) -> Array:
  """The mean [B, D] over some of a backbone's tokens.

  In float32, whatever the backbone computes in: the ranking of bfloat16 scores
  is full of ties, and mAP is a ranking.
  """
  names = errors.lookup(POOLINGS, pooling, "pooling")
  chosen = jnp.concatenate([out[name] for name in names], axis=1)
  return jnp.mean(chosen.astype(jnp.float32), axis=1)


class ClassifierHead(nn.Module):
  """Layer norm and a linear layer: [B, D] -> logits [B, C], in float32.

  A second norm on top of the backbone's own, as in the original's code (the
  paper mentions the linear layer alone).
  """

  num_classes: int
  layer_norm_eps: float = 1e-5

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = x.astype(jnp.float32)
    x = vit.layer_norm(self.layer_norm_eps, jnp.float32, "norm")(x)
    return _linear(self.num_classes, fan_in=x.shape[-1], name="linear")(x)


class LayerSumHead(nn.Module):
  """SUPERB's classifier: a learned mean of all blocks, two linear layers.

  The weights of the L blocks are the softmax of parameters that start at zero.
  The backbone's final norm has no part in it. In float32. `widths` are D, and
  K between the two linear layers.
  """

  num_classes: int
  num_layers: int
  widths: tuple[int, int]

  def setup(self) -> None:
    zeros = nn.initializers.zeros
    self.layer_weights = self.param("layer_weights", zeros, (self.num_layers,))
    width, hidden = self.widths
    self.projection = _linear(hidden, fan_in=width)
    self.linear = _linear(self.num_classes, fan_in=hidden)

  def mix(self, out: dict[str, Any], pooling: str) -> Array:
    """What a backbone gives with `hidden` -> [B, D], pooled block by block."""
    count = out["prefix"].shape[1]
    layers = [
      pool({"prefix": x[:, :count], "tokens": x[:, count:]}, pooling)
      for x in out["hidden"]
    ]
    weights = nn.softmax(self.layer_weights)[:, None]
    return jnp.sum(weights * jnp.stack(layers, axis=1), axis=1)

  def __call__(self, x: Array) -> Array:
    """[B, D] from `mix` -> logits [B, C]."""
    # SUPERB projects each token and averages then. A linear layer commutes
    # with a mean, and one product for each clip is cheaper.
    return self.linear(self.projection(x))


def _linear(features, *, fan_in, name=None):
  init = vit.torch_uniform(fan_in)
  return vit.Dense(
    features, kernel_init=init, bias_init=init, dtype=jnp.float32, name=name
  )


class PatchMlpHead(nn.Module):
  """SSAST's prediction of hidden patches: tokens [..., D] -> [..., cells].

  In float32: products of its outputs are the logits of a softmax.
  """

  cells: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = x.shape[-1]
    x = _linear(width, fan_in=width, name="fc1")(x.astype(jnp.float32))
    return _linear(self.cells, fan_in=width, name="fc2")(nn.relu(x))


class WeightNorm(nn.Module):
  """The kernel [K, C] of an output layer whose columns have length 1.

  With `has_scale` the length of each column is a parameter, 1 at first.
  """

  width: int
  features: int
  has_scale: bool

  @nn.compact
  def __call__(self) -> Array:
    init = vit.torch_uniform(self.width)
    v = self.param("weight_v", init, (self.width, self.features))
    kernel = v / jnp.linalg.norm(v, axis=0)
    if self.has_scale:  # elsewhere it is 1 for ever, and no parameter
      ones = nn.initializers.ones
      kernel *= self.param("weight_g", ones, (self.features,))
    return kernel


class ProjectionHead(nn.Module):
  """ASiT's (and DINO's) head: an MLP to unit vectors, and what reads them.

  The outputs are products of the unit vectors [..., K] with one of `kernels`:
  cosines, times a scale. They are not computed here, because those of all
  tokens at once would not fit (see `losses.distill_tokens`).

  `outputs` are (C of the class token, C' of the patch tokens) of two layers,
  `cls` and `patch`; or (C,) of one for both, `last`, whose scale is a
  parameter. `dtype` is that of the MLP; the rest is float32.
  """

  hidden: int
  bottleneck: int
  outputs: tuple[int, ...]
  dtype: Any = jnp.float32

  def setup(self) -> None:
    self.fc1 = vit.Dense(self.hidden, dtype=self.dtype)
    self.fc2 = vit.Dense(self.hidden, dtype=self.dtype)
    self.fc3 = vit.Dense(self.bottleneck, dtype=self.dtype)
    if len(self.outputs) == 1:
      self.last = WeightNorm(self.bottleneck, self.outputs[0], has_scale=True)
    else:
      cls, patch = self.outputs
      self.cls = WeightNorm(self.bottleneck, cls, has_scale=False)
      self.patch = WeightNorm(self.bottleneck, patch, has_scale=False)

  def __call__(self, x: Array) -> Array:
    """Tokens [..., D] -> unit vectors [..., K], float32."""
    x = nn.gelu(self.fc1(x), approximate=False)
    x = nn.gelu(self.fc2(x), approximate=False)
    x = self.fc3(x).astype(jnp.float32)
    # The root of a maximum has a gradient where a vector is zero; a norm none.
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, 1e-24))

  def kernels(self) -> dict[str, Array]:
    """{"cls": [K, C], "patch": [K, C']}, float32."""
    if len(self.outputs) == 1:
      kernel = self.last()
      return {"cls": kernel, "patch": kernel}
    return {"cls": self.cls(), "patch": self.patch()}


class ReconstructionHead(nn.Module):
  """Tokens [..., D] -> the cells of their patches [..., ph * pw], in float32.

  Three linear layers in `dtype`, each with a GELU after it (the last one too),
  and the original's transposed convolution, from `channels`, as a product.
  """

  hidden: int
  channels: int
  patch_size: tuple[int, int]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    widths = (self.hidden, self.hidden, self.channels)
    for i, width in enumerate(widths, 1):
      x = vit.Dense(width, dtype=self.dtype, name=f"fc{i}")(x)
      x = nn.gelu(x, approximate=False)
    ph, pw = self.patch_size
    init = vit.torch_uniform(ph * pw)
    kernel = self.param("kernel", init, (self.channels, ph, pw))
    bias = self.param("bias", init, (1,))
    kernel = kernel.reshape(self.channels, ph * pw)
    return x.astype(jnp.float32) @ kernel + bias
