"""What a run remembers on the host, saved in the same checkpoint as the state.

Order of events: evaluate, record, save.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any


@dataclasses.dataclass
class RunRecord:
  """The best evaluation so far.

  Attributes:
    metric: key that decides, such as "val/mAP".
    lower_is_better: True for losses.
    best: best value so far, None before the first evaluation.
    best_step: its step.
  """

  metric: str
  lower_is_better: bool = False
  best: float | None = None
  best_step: int | None = None

  def update(self, step: int, metrics: dict[str, float]) -> None:
    """Takes note of an evaluation."""
    goodness = self.goodness(metrics)
    if goodness is None:
      return
    if self.best is None or goodness > self._sign() * self.best:
      self.best, self.best_step = metrics[self.metric], step

  def goodness(self, metrics: dict[str, float]) -> float | None:
    """Higher is better; None if the metric is absent or not a number."""
    value = metrics.get(self.metric)
    if value is None or not math.isfinite(value):
      return None
    return self._sign() * value

  def _sign(self) -> float:
    return -1.0 if self.lower_is_better else 1.0

  def to_json(self) -> dict[str, Any]:
    """Plain values."""
    return dataclasses.asdict(self)

  def restore(self, saved: dict[str, Any]) -> None:
    """Takes over saved values, if they are of the same metric."""
    if saved.get("metric") == self.metric:
      self.best, self.best_step = saved["best"], saved["best_step"]
