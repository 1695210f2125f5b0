"""A masked autoencoder: an objective that comes from outside of astjax."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from astjax import errors, models, tasks
from astjax.engine.task import LossOut, Task, keys_of_ids
from astjax.models import ast, heads, vit
from astjax.ops import losses, masking
from astjax.tasks.base import cut, inputs


class Mae(nn.Module):
  """The backbone on the visible patches, a small decoder on all of them."""

  backbone: ast.Backbone
  width: int

  @nn.compact
  def __call__(self, patches, index=None, train=False):
    """[B, F', T', cells], hidden ones [B, M] -> their cells [B, M, cells]."""
    batch, *grid, cells = patches.shape
    index = jnp.zeros((batch, 1), jnp.int32) if index is None else index
    numbers = jnp.arange(grid[0] * grid[1])
    is_hidden = jnp.any(index[..., None] == numbers, axis=1)  # [B, N]
    visible = len(numbers) - index.shape[1]
    keep = jnp.argsort(is_hidden, axis=1)[:, :visible]  # [B, K]
    out = self.backbone(patches=patches, keep=keep, train=train)
    token = self.param("mask_token", vit.WEIGHT_INIT, (self.width,))
    x = jnp.tile(token, (batch, len(numbers), 1))
    seen = vit.Dense(self.width, name="narrow")(out["tokens"])
    x = x.at[jnp.arange(batch)[:, None], keep].set(seen)
    x += vit.PosEmbed(self.width, 0, tuple(grid), name="positions")()[1]
    x, _ = vit.Encoder(1, 2, 2 * self.width, name="decoder")(x, train=train)
    hidden = jnp.take_along_axis(x, index[..., None], axis=1)
    return vit.Dense(cells, name="draw")(hidden)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaeTask(Task):
  """Draws hidden patches; the fields are `config.task_kw`."""

  model: Mae = dataclasses.field(init=False)
  num_mask: errors.Count = 384
  decoder_width: errors.Count = 128

  def __post_init__(self):
    self._set(model=Mae(self.backbone, self.decoder_width))

  @property
  def saved_objective(self) -> dict[str, Any]:
    how = {"num_mask": self.num_mask}
    return {"name": "mae", "width": self.decoder_width, "task_kw": how}

  def init_params(self, rng, batch):
    return self.model.init(rng, cut(batch, self.backbone))["params"]

  def corrupt(self, batch, rng, step):
    keys = jax.random.split(rng, len(batch["id"]))
    return batch | {"index": self._draw(keys, batch)}

  def loss(self, params, task_state, batch, rng, step):
    rngs = {"drop_path": rng}
    rated = self._rate(params, batch, batch["index"], train=True, rngs=rngs)
    loss = jnp.mean(rated)
    return loss, LossOut({"loss": loss}, task_state)

  def evaluate(self, params, task_state, batch, step):
    index = self._draw(keys_of_ids(batch), batch)
    return {"loss": self._rate(params, batch, index)}

  def features(self, params, task_state, batch):
    weights = {"params": params["backbone"]}
    return heads.pool(self.backbone.apply(weights, **inputs(batch)), "tokens")

  def _draw(self, keys, batch):
    rows, columns = cut(batch, self.backbone).shape[1:3]
    draw = lambda key: masking.random_mask(
      key, num_patches=rows * columns, count=self.num_mask
    )
    return jax.vmap(draw)(keys)

  def _rate(self, params, batch, index, **kwargs):
    patches = cut(batch, self.backbone)
    drawn = self.model.apply({"params": params}, patches, index, **kwargs)
    flat = patches.reshape(len(patches), -1, patches.shape[-1])
    true = jnp.take_along_axis(flat, index[..., None], axis=1)
    return losses.masked_mse(true, drawn)


tasks.TASKS["mae"] = MaeTask
models.OBJECTIVES["mae"] = models.Objective(Mae)
