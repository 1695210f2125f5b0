"""Runs a split through the eval step, drops the padding, reduces to numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import scipy.special
from jax.sharding import Mesh

from astjax.engine import sharding
from astjax.engine.step import TrainState
from astjax.engine.task import Task
from astjax.errors import UserError
from astjax.ops import metrics
from astjax.tasks.probes import Probe


def outputs(
  eval_step: Callable,
  state: TrainState,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: Mesh,
  *,
  progress: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
  """Per-example outputs over a split, in its order, without padding rows.

  Args:
    eval_step: from `train_step.make_eval_step`.
    state: parameters and task state to evaluate.
    batches: this process's rows of each batch.
    mesh: the devices.
    progress: called with the number of batches done.

  Returns:
    {name: [n, ...]}, the same on every process.

  Raises:
    UserError: no valid row at all.
  """
  parts: list[dict[str, np.ndarray]] = []
  for batch in batches:
    out = eval_step(
      state.params,
      state.task_state,
      sharding.to_global(batch, mesh),
      state.step,
    )
    out = {k: np.asarray(v) for k, v in out.items()}
    valid = out.pop("valid")
    parts.append({k: v[valid] for k, v in out.items()})
    progress(len(parts))
  if not any(len(p["id"]) for p in parts):
    raise UserError("none of the recordings of this split can be read")
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def probed(
  probe: Probe, known: dict[str, np.ndarray], out: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Outputs of a probe, the same on every process.

  Args:
    probe: from `probes.build`.
    known: `outputs` with `features` and `label`, to learn from.
    out: the same of what is rated.

  Returns:
    `out` with `scores` [n, C] instead of `features`.
  """
  for which, x in (("to learn from", known), ("to rate", out)):
    if not np.isfinite(x["features"]).all():
      raise UserError(f"the features {which} are not finite")
  scores = probe.scores(known["features"], known["label"], out["features"])
  scores = sharding.from_process_0(scores.astype(np.float32))
  return {k: v for k, v in out.items() if k != "features"} | {"scores": scores}


def reduce(
  task: Task | Probe, out: dict[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, Any]]:
  """(metrics with `num_examples`, per-class columns)."""
  summary, per_class = task.summarise(out)
  return summary | {"num_examples": len(out["id"])}, per_class


def scores(out: dict[str, np.ndarray]) -> np.ndarray:
  """What ensembles average: the sigmoid of the logits [n, C], in float64.

  Also for a model trained with softmax, as in the original.
  """
  return scipy.special.expit(out["logits"].astype(np.float64))


def rate(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """mAP, mAUC, d_prime and accuracy of scores [n, C]."""
  return metrics.classification(scores, labels)[0]
