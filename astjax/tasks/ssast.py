"""SSAST (arXiv 2110.09784): learning from clips without labels.

Most patches of a spectrogram are hidden; from what the transformer makes of the
rest, one head has to tell which hidden patch is which (discriminative), another
one to draw it (generative).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from astjax import errors
from astjax.engine.task import LossOut, Task, keys_of_ids
from astjax.models import heads as head_lib
from astjax.models import ssast
from astjax.ops import losses, masking
from astjax.ops.recipe import row_keys
from astjax.tasks.base import cut, in_turn, inputs
from astjax.types import Array, Batch, Params

OBJECTIVES = {
  "joint": ssast.HEADS,
  "discriminative": ssast.HEADS[:1],
  "generative": ssast.HEADS[1:],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ssast(Task):
  """Masked spectrogram patch modelling; the defaults are the original's.

  Needs `fbank` or `patches` (cut without overlap) in the batch, no labels.

  Attributes:
    objective: "joint" is the sum of the two others.
    num_mask: M, hidden patches of a clip.
    eval_num_mask: of evaluations; 0 takes `num_mask` (the original evaluates
      with 400 whatever it trains with).
    masking: "auto" hides clusters, or single patches where a patch has all mel
      bins (frames).
    reference_quirks: clusters as in the original's code rather than as in the
      paper, see `masking.cluster_mask`.
    passes: of the joint objective: 2 hides anew for each part, as the original
      does, 1 has both predict from one pass, as in the paper, at half the cost.
    mse_weight: lambda, of the generative part in the joint objective.
    softmax_over: "predictions" is the original's, "patches" the paper's.
  """

  model: ssast.SSAST = dataclasses.field(init=False)
  objective: Literal["joint", "discriminative", "generative"] = "joint"
  num_mask: errors.Count = 400
  eval_num_mask: errors.CountOrZero = 0
  masking: Literal["auto", "clusters", "random"] = "auto"
  reference_quirks: bool = True
  passes: Literal[1, 2] = 2
  mse_weight: errors.Positive = 10.0
  softmax_over: Literal["predictions", "patches"] = "predictions"

  def __post_init__(self):
    self._set(model=ssast.make(self.backbone, OBJECTIVES[self.objective]))

  @property
  def metric_names(self) -> tuple[str, ...]:
    """Of the objectives that there are."""
    names = {"discriminative": ("nce", "accuracy"), "generative": ("mse",)}
    return ("loss", *(n for head in self.model.heads for n in names[head]))

  @property
  def saved_objective(self) -> dict[str, Any]:
    """Its heads, and how it was trained."""
    names = ("num_mask", "masking", "reference_quirks", "softmax_over")
    how = {name: getattr(self, name) for name in names}
    return {"name": "ssast", "heads": self.model.heads, "task_kw": how}

  def init_params(self, rng: Array, batch: Batch) -> Params:
    """{"backbone", "mask_token", "discriminative", "generative"}, float32."""
    return self.model.init(rng, cut(batch, self.backbone))["params"]

  def corrupt(self, batch: Batch, rng: Array, step: Array) -> Batch:
    """Adds `mask_index` [B, V, M], a mask for every pass."""
    grid = cut(batch, self.backbone).shape[1:3]
    keys = row_keys(rng, len(batch["id"]))
    return batch | {"mask_index": self._draw(keys, grid, self.num_mask)}

  def loss(self, params, task_state, batch, rng, step) -> tuple[Array, LossOut]:
    """Mean over the batch of the weighted sum of the objectives."""
    patches, index = cut(batch, self.backbone), batch["mask_index"]

    def one_pass(view, heads, params):
      rngs = {"drop_path": jax.random.fold_in(rng, view)}
      rated = self._rate(
        params, patches, index[:, view], heads, train=True, rngs=rngs
      )
      means = jax.tree.map(jnp.mean, rated)
      return means["loss"], means

    parts = [functools.partial(one_pass, *p) for p in enumerate(self._passes)]
    loss, metrics = in_turn(parts, params)
    return loss, LossOut(metrics, task_state)

  def evaluate(self, params, task_state, batch, step) -> dict[str, Array]:
    """{metric: [B]}; every clip has its masks for ever, drawn from its id."""
    keys, count = keys_of_ids(batch), self.eval_num_mask or self.num_mask
    patches = cut(batch, self.backbone)
    index = self._draw(keys, patches.shape[1:3], count)
    rated: dict[str, Array] = {}
    loss: Array = 0.0
    for view, heads in enumerate(self._passes):
      rated |= self._rate(params, patches, index[:, view], heads)
      loss += rated["loss"]
    return rated | {"loss": loss}

  def features(self, params, task_state, batch) -> Array:
    """The mean of the tokens [B, D], nothing hidden."""
    tokens = self.backbone.apply(
      {"params": params["backbone"]}, **inputs(batch)
    )
    return head_lib.pool(tokens, "tokens")

  def _draw(self, keys: Array, grid: tuple[int, int], count: int) -> Array:
    """[B] keys -> masks [B, V, M]."""

    def mask(key):
      if self.masking == "clusters" or (self.masking == "auto" and grid[0] > 1):
        return masking.cluster_mask(
          key, grid=grid, count=count, reference_quirks=self.reference_quirks
        )
      return masking.random_mask(key, num_patches=math.prod(grid), count=count)

    views = len(self._passes)
    return jax.vmap(lambda key: jax.vmap(mask)(row_keys(key, views)))(keys)

  @property
  def _passes(self) -> list[tuple[str, ...]]:
    """Which heads predict in each pass."""
    heads = self.model.heads
    return [heads] if self.passes == 1 else [(head,) for head in heads]

  def _rate(self, params, patches, index, heads, **kwargs) -> dict[str, Array]:
    """{metric: [B]} of one pass under the masks `index` [B, M]."""
    weights = {"params": params}
    out: Any = self.model.apply(weights, patches, index, heads=heads, **kwargs)
    flat = patches.reshape(len(patches), -1, patches.shape[-1])  # [B, N, K]
    hidden = jnp.take_along_axis(flat, index[..., None], axis=1)  # [B, M, K]
    rated: dict[str, Array] = {}
    loss: Array = 0.0
    if "discriminative" in out:
      rated["nce"], hits = losses.info_nce(
        hidden, out["discriminative"], over=self.softmax_over
      )
      # As in the original: its softmax is over predictions, its argmax over
      # patches.
      rated["accuracy"] = jnp.mean(hits.astype(jnp.float32), axis=-1)
      loss += rated["nce"]
    if "generative" in out:
      rated["mse"] = losses.masked_mse(hidden, out["generative"])
      weight = self.mse_weight if self.objective == "joint" else 1.0
      loss += weight * rated["mse"]
    return {"loss": loss} | rated
