"""Supervised tagging and classification (AST), from scratch or fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from astjax import errors
from astjax.models import ast, heads
from astjax.ops import losses, metrics
from astjax.tasks.base import LossOut, inputs
from astjax.types import Array, Batch, Params
from astjax.weights.model_info import Head

LOSSES = {"bce": losses.bce, "softmax_xent": losses.softmax_xent}


@dataclasses.dataclass(frozen=True)
class Supervised:
  """A classifier on labelled clips (AST paper, section 2).

  Needs `label` and `fbank` or `patches` in the batch.

  Attributes:
    model: backbone and head.
    loss_name: a key of `LOSSES`: "bce" for tags, "softmax_xent" for one class
      per clip.
  """

  model: ast.AST
  loss_name: str
  metric_names = ("loss", "mAP", "mAUC", "d_prime", "accuracy")

  @property
  def one_label(self) -> bool:
    """Softmax cross-entropy shares one unit of probability."""
    return self.loss_name == "softmax_xent"

  @property
  def backbone(self) -> ast.Backbone:
    """Of the model."""
    return self.model.backbone

  @property
  def head(self) -> Head:
    """The classifier, as a saved model describes it."""
    return Head(
      num_classes=self.model.head.num_classes,
      pooling=self.model.pooling,
      layer_norm_eps=self.model.head.layer_norm_eps,
      scores="softmax" if self.one_label else "sigmoid",
    )

  @property
  def objective(self) -> dict:
    """Nothing but the classifier."""
    return {}

  def init_params(self, rng: Array, batch: Batch) -> Params:
    """{"backbone": ..., "head": ...}, float32."""
    return self.model.init(rng, **inputs(batch))["params"]

  def init_state(self, params: Params) -> dict:
    """Nothing is remembered."""
    return {}

  def corrupt(self, batch: Batch, rng: Array, step: Array) -> Batch:
    """The identity."""
    return batch

  def loss(
    self,
    params: Params,
    task_state: dict,
    batch: Batch,
    rng: Array,
    step: Array,
  ) -> tuple[Array, LossOut]:
    """Mean loss over the batch, on logits."""
    logits = self.model.apply(
      {"params": params}, **inputs(batch), train=True, rngs={"drop_path": rng}
    )
    loss = jnp.mean(LOSSES[self.loss_name](logits, _label(batch)))
    return loss, LossOut({"loss": loss}, task_state)

  def after_update(self, params: Params, task_state: dict, step: Array) -> dict:
    """The identity."""
    return task_state

  def evaluate(
    self, params: Params, task_state: dict, batch: Batch, step: Array
  ) -> dict[str, Array]:
    """{"logits": [B, C], "loss": [B]}."""
    logits = self.model.apply({"params": params}, **inputs(batch))
    loss = LOSSES[self.loss_name](logits, _label(batch))
    return {"logits": logits, "loss": loss}

  def features(self, params: Params, task_state: dict, batch: Batch) -> Array:
    """Pooled tokens [B, D]."""
    return self.model.apply(
      {"params": params}, **inputs(batch), method="features"
    )

  def summarise(
    self, outputs: dict[str, np.ndarray]
  ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics of the paper over a whole split; `label` comes with the batch."""
    summary, per_class = metrics.classification(
      outputs["logits"], outputs["label"]
    )
    return {"loss": float(np.mean(outputs["loss"]))} | summary, per_class


def _label(batch: Batch) -> Array:
  if "label" not in batch:
    raise errors.UserError(
      "the batch has no 'label': put multi_hot into input.on_host and keep it"
    )
  return batch["label"]


def make(
  *,
  model: Mapping[str, Any],
  num_classes: int,
  steps_per_epoch: float,
  total_steps: int,
  loss: Literal["bce", "softmax_xent"] = "bce",
  pooling: Literal["prefix", "tokens"] = "prefix",
  head_layer_norm_eps: float = 1e-5,
) -> Supervised:
  """The supervised task from plain config values.

  Args:
    model: arguments of `astjax.models.ast.make_backbone`.
    num_classes: C.
    steps_per_epoch: not used by this task.
    total_steps: not used by this task.
    loss: "bce" or "softmax_xent".
    pooling: "prefix" (AST) or "tokens" (SSAST's fine-tuning).
    head_layer_norm_eps: 1e-5 in the original, 1e-12 in Hugging Face's AST.
  """
  del steps_per_epoch, total_steps
  backbone = errors.call(ast.make_backbone, "config.model", model)
  if pooling == "prefix" and not backbone.prefix:
    raise errors.UserError(
      "pooling='prefix' needs prefix tokens; config.model.prefix is empty"
    )
  head = heads.ClassifierHead(num_classes, layer_norm_eps=head_layer_norm_eps)
  return Supervised(ast.AST(backbone, head, pooling), loss)
