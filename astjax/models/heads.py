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
    init = vit.torch_uniform(x.shape[-1])
    x = x.astype(jnp.float32)
    x = vit.layer_norm(self.layer_norm_eps, jnp.float32, "norm")(x)
    return nn.Dense(
      self.num_classes,
      kernel_init=init,
      bias_init=init,
      dtype=jnp.float32,
      name="linear",
    )(x)


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
    init = vit.torch_uniform(width)
    dense = lambda n, name: nn.Dense(  # noqa: E731
      n, kernel_init=init, bias_init=init, dtype=jnp.float32, name=name
    )
    x = nn.relu(dense(width, "fc1")(x.astype(jnp.float32)))
    return dense(self.cells, "fc2")(x)
