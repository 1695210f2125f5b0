"""What stands on top of the backbone."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from astjax.models import vit
from astjax.types import Array


class ClassifierHead(nn.Module):
  """Layer norm (epsilon 1e-5) and a linear layer: [B, D] -> logits [B, C].

  A second norm on top of the backbone's own, with torch's epsilon, as in the
  original (its paper mentions only the linear layer). Always in float32: the
  ranking of bfloat16 scores is full of ties.
  """

  num_classes: int
  layer_norm_eps: float = 1e-5

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Logits, float32."""
    x = x.astype(jnp.float32)
    x = vit.layer_norm(self.layer_norm_eps, jnp.float32, "norm")(x)
    return _linear(self.num_classes, fan_in=x.shape[-1], name="linear")(x)


class LayerSumHead(nn.Module):
  """A learned mean of all blocks and two linear layers: SUPERB's classifier.

  The blocks' weights are a softmax of parameters that start at zero, so that
  all are equal. SUPERB projects every token and averages then; a linear layer
  commutes with a mean, so here means are projected. Always in float32. The
  backbone's final norm has no part in it.

  Attributes:
    num_classes: C.
    num_layers: L, blocks of the backbone.
    widths: D, and K between the two linear layers.
  """

  num_classes: int
  num_layers: int
  widths: tuple[int, int]

  def setup(self) -> None:
    """Parameters; the linear layers start as torch's do."""
    zeros = nn.initializers.zeros
    self.layer_weights = self.param("layer_weights", zeros, (self.num_layers,))
    width, hidden = self.widths
    self.projection = _linear(hidden, fan_in=width)
    self.linear = _linear(self.num_classes, fan_in=hidden)

  def mix(self, layers: Array) -> Array:
    """A mean over tokens for each block, [B, L, D] -> [B, D]."""
    weights = nn.softmax(self.layer_weights)[:, None]
    return jnp.sum(weights * layers, axis=1)

  def __call__(self, x: Array) -> Array:
    """[B, D] from `mix` -> logits [B, C], float32."""
    return self.linear(self.projection(x))


def _linear(features, *, fan_in, name=None):
  init = vit.torch_uniform(fan_in)
  return nn.Dense(
    features, kernel_init=init, bias_init=init, dtype=jnp.float32, name=name
  )


class PatchMlpHead(nn.Module):
  """Linear, ReLU, linear: tokens [..., D] -> patches [..., cells].

  SSAST's prediction of hidden patches. Always in float32: its products are the
  logits of a softmax.
  """

  cells: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Patches, float32."""
    width = x.shape[-1]
    x = _linear(width, fan_in=width, name="fc1")(x.astype(jnp.float32))
    return _linear(self.cells, fan_in=width, name="fc2")(nn.relu(x))
