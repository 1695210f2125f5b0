"""Supervised tagging and classification (AST), from scratch or fine-tuning."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from astjax import errors
from astjax.engine.task import LossOut, Outputs, Summary, Task
from astjax.models import ast
from astjax.models.heads import Epsilon, Head
from astjax.ops import losses, metrics
from astjax.tasks.base import inputs
from astjax.types import Array, Batch, Params

LOSSES = {"bce": losses.bce, "softmax_xent": losses.softmax_xent}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised(Task):
  """A classifier on labelled clips (AST paper, section 2).

  Needs `label` and `fbank` or `patches` in the batch. `loss_name` is a key of
  `LOSSES`.
  """

  head: Head
  loss_name: str
  metric_names = ("loss", "mAP", "mAUC", "d_prime", "accuracy")

  @property
  def one_label(self) -> bool:
    """Softmax cross-entropy shares one unit of probability."""
    return self.loss_name == "softmax_xent"

  @property
  def model(self) -> ast.AST:
    """Backbone and classifier."""
    return ast.classifier(self.backbone, self.head)

  def init_params(self, rng: Array, batch: Batch) -> Params:
    """{"backbone": ..., "head": ...}, float32."""
    return self.model.init(rng, **inputs(batch))["params"]

  def loss(self, params, task_state, batch, rng, step) -> tuple[Array, LossOut]:
    """Mean loss over the batch, on logits."""
    rngs = {"drop_path": rng}
    loss = jnp.mean(self._rate(params, batch, train=True, rngs=rngs)["loss"])
    return loss, LossOut({"loss": loss}, task_state)

  def evaluate(self, params, task_state, batch, step) -> dict[str, Array]:
    """{"logits": [B, C], "loss": [B]}."""
    return self._rate(params, batch)

  def features(self, params, task_state, batch) -> Array:
    """Pooled tokens [B, D]."""
    out: Any = self.model.apply(
      {"params": params}, **inputs(batch), method="outputs"
    )
    return out["features"]

  def summarise(self, outputs: Outputs) -> Summary:
    """Metrics of the paper over a whole split; `label` comes with the batch."""
    logits, label = outputs["logits"], outputs["label"]
    summary, per_class = metrics.classification(logits, label)
    return {"loss": float(np.mean(outputs["loss"]))} | summary, per_class

  def _rate(self, params, batch, **kwargs) -> dict[str, Array]:
    if "label" not in batch:
      raise errors.UserError(
        "the batch has no 'label': put multi_hot into input.on_host and keep it"
      )
    logits = self.model.apply({"params": params}, **inputs(batch), **kwargs)
    loss = LOSSES[self.loss_name](logits, batch["label"])
    return {"logits": logits, "loss": loss}


def make(
  *,
  backbone: ast.Backbone,
  num_classes: int,
  loss: Literal["bce", "softmax_xent"] = "bce",
  pooling: Literal["prefix", "tokens", "all"] = "prefix",
  head_layer_norm_eps: Epsilon = 1e-5,
  projection: errors.CountOrZero = 0,
  steps_per_epoch: float = 1.0,
  total_steps: int = 1,
) -> Supervised:
  """The supervised task from plain config values.

  Args:
    loss: "bce" for tags, "softmax_xent" for one class per clip.
    pooling: which tokens' mean: "prefix" (AST), the patch "tokens" (SSAST's
      fine-tuning) or "all" (SUPERB).
    head_layer_norm_eps: 1e-5 in the original, 1e-12 in Hugging Face's AST.
    projection: above 0, SUPERB's classifier: a learned mean of all blocks, a
      linear layer to this width, one to the classes; without a layer norm.
  """
  del steps_per_epoch, total_steps
  if num_classes < 1:
    raise errors.UserError(
      "the training data has no labels: a pattern needs a group "
      "(?P<label>...), a table a column 'labels', a manifest a label_list"
    )
  if pooling == "prefix" and not backbone.prefix:
    raise errors.UserError(
      "pooling='prefix' needs prefix tokens; config.model.prefix is empty"
    )
  head = Head(
    num_classes=num_classes,
    pooling=pooling,
    layer_norm_eps=head_layer_norm_eps,
    scores="softmax" if loss == "softmax_xent" else "sigmoid",
    projection=projection,
  )
  return Supervised(
    backbone=backbone, num_classes=num_classes, head=head, loss_name=loss
  )
