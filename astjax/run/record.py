"""What a run remembers on the host, saved in the same checkpoint as the state.

Order of events: evaluate, record, save.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from astjax.engine.optim import first_step
from astjax.errors import UserError
from astjax.run.config import AverageConfig, PlateauConfig, RunConfig


class Mean:
  """The mean of `count` sets of named arrays, from their sums in float64."""

  def __init__(
    self, count: int = 0, sums: Mapping[str, np.ndarray] | None = None
  ):
    self.count = count
    # Replaced, never changed: a save in the background may hold them.
    self.sums = dict(sums or {})

  def add(self, arrays: Mapping[str, Any], times: int = 1) -> None:
    """One set; `times` is its weight."""
    # Not a running mean on the device: that would depend on how often the run
    # was interrupted, and be wrong in the last two digits after 20 epochs. A
    # float64 has 29 bits more than a float32, enough for the sum of many.
    taken = {k: times * np.asarray(v, np.float64) for k, v in arrays.items()}
    if self.count:
      taken = {k: self.sums[k] + v for k, v in taken.items()}
    self.count, self.sums = self.count + times, taken

  def value(self) -> dict[str, np.ndarray]:
    """{name: float64 array}."""
    return {k: v / self.count for k, v in self.sums.items()}


@dataclasses.dataclass
class Plateau:
  """A learning rate that falls when a metric stops getting better.

  As torch's ReduceLROnPlateau with a relative threshold, no cooldown and no
  floor: the rate falls at the (patience + 1)-th evaluation in a row that is no
  improvement (SSAST pre-trains so). `num_bad` counts those; `scale` is what the
  schedule's rate is multiplied by.
  """

  config: PlateauConfig
  best: float | None = None
  num_bad: int = 0
  scale: float = 1.0

  def update(self, value: float) -> None:
    """Takes note of an evaluation; NaN is no improvement."""
    sign = 1 if self.config.mode == "max" else -1
    best = -sign * math.inf if self.best is None else self.best
    if sign * value > sign * best * (1 + sign * self.config.threshold):
      self.best, self.num_bad = value, 0
      return
    self.num_bad += 1
    if self.num_bad > self.config.patience:
      self.scale *= self.config.factor
      self.num_bad = 0


class WeightAverage:
  """The mean of the parameters at the ends of a range of epochs.

  An epoch ends at the first step at or after its end in the stream; a step that
  ends two epochs counts twice. (AST paper, table 1: epochs 1 to 5 and 6 to 25.)
  """

  def __init__(self, config: AverageConfig, steps_per_epoch: float):
    self.config = config
    self.mean = Mean()
    self._ends = collections.Counter(
      max(1, first_step(epoch, steps_per_epoch))
      for epoch in range(config.first_epoch, config.last_epoch + 1)
    )
    self.last_step = max(self._ends)

  def is_due(self, step: int) -> bool:
    """Whether an epoch of the range ends here."""
    return step in self._ends

  def add(self, step: int, params: Mapping[str, Any]) -> None:
    """The parameters {path: array} at a step that is due."""
    self.mean.add(params, times=self._ends[step])

  def restore(self, step: int, saved: Mapping[str, Any], sums) -> None:
    """Takes over what was saved; a UserError if a passed epoch is not in it."""
    if saved.get("first_epoch") == self.config.first_epoch:
      self.mean = Mean(saved["count"], sums)
    # A mean of fewer epochs than the config says would pass for the whole one.
    passed = sum(n for end, n in self._ends.items() if end <= step)
    if self.mean.count != passed:
      raise UserError(
        f"config.average: of the epochs {self.config.first_epoch} to "
        f"{self.config.last_epoch}, {passed} have passed by step {step}, and "
        f"this run has {self.mean.count}; give its first range, or a later one"
      )


@dataclasses.dataclass
class Ensemble:
  """The mean of "scores" [n, C] of one split over evaluations."""

  data: str  # fingerprint of the split; another one starts anew
  ids: np.ndarray  # [n], rows that every evaluation so far could read
  mean: Mean

  def add(
    self, ids: np.ndarray, scores: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Takes one evaluation: ids [m], ascending, and their scores [m, C].

    Returns (which of these m rows are kept [n], their mean scores [n, C]).
    """
    self.ids, old, new = np.intersect1d(self.ids, ids, return_indices=True)
    if self.mean.count:
      sums = {"scores": self.mean.sums["scores"][old]}
      self.mean = Mean(self.mean.count, sums)
    self.mean.add({"scores": scores[new]})
    return new, self.mean.value()["scores"]


@dataclasses.dataclass
class RunRecord:
  """The best evaluation so far, and what the sections of a config ask for."""

  metric: str  # that decides on the best, such as "val/mAP"
  lower_is_better: bool = False
  best: float | None = None
  best_step: int | None = None
  plateau: Plateau | None = None
  average: WeightAverage | None = None
  wants_ensembles: bool = False
  ensembles: dict[str, Ensemble] = dataclasses.field(default_factory=dict)
  owed: tuple[str, ...] = ()  # evaluations that a signal left out at this step

  def update(self, step: int, metrics: dict[str, float]) -> None:
    """Takes note of an evaluation."""
    # The rate may fall, whether or not the same metric decides on the best.
    if self.plateau and self.plateau.config.metric in metrics:
      self.plateau.update(metrics[self.plateau.config.metric])
    value = metrics.get(self.metric)  # this evaluation may not have it
    if value is None or not math.isfinite(value):
      return
    if self.best is None or (
      value < self.best if self.lower_is_better else value > self.best
    ):
      self.best, self.best_step = value, step

  @property
  def lr_scale(self) -> float:
    """What the schedule's rate is multiplied by."""
    return self.plateau.scale if self.plateau else 1.0

  def ensemble(self, name: str, data: str, ids: np.ndarray) -> Ensemble:
    """The running ensemble of an evaluation, a new one for other data."""
    if name not in self.ensembles or self.ensembles[name].data != data:
      self.ensembles[name] = Ensemble(data, ids, Mean())
    return self.ensembles[name]

  def to_saved(self) -> dict[str, Any]:
    """Plain values, but for `arrays`, a flat dict of NumPy arrays."""
    saved: dict[str, Any] = {
      "metric": self.metric,
      "lower_is_better": self.lower_is_better,
      "best": self.best,
      "best_step": self.best_step,
      "owed": list(self.owed),
      "ensembles": {},
      "arrays": {},
    }
    if self.plateau:
      saved["plateau"] = dict(vars(self.plateau))
      del saved["plateau"]["config"]
    if self.average and self.average.mean.count:
      mean = self.average.mean
      first = self.average.config.first_epoch
      saved["average"] = {"first_epoch": first, "count": mean.count}
      saved["arrays"] |= {f"average/{k}": v for k, v in mean.sums.items()}
    for name, e in self.ensembles.items():
      saved["ensembles"][name] = {"data": e.data, "count": e.mean.count}
      saved["arrays"][f"ensembles/{name}/ids"] = e.ids
      saved["arrays"][f"ensembles/{name}/scores"] = e.mean.sums["scores"]
    return saved

  def restore(self, step: int, saved: dict[str, Any]) -> None:
    """Takes over what `to_saved` gave, as far as the config asks for it."""
    if saved.get("metric") == self.metric:
      self.best, self.best_step = saved["best"], saved["best_step"]
    self.owed = tuple(saved.get("owed", ()))
    if self.plateau and "plateau" in saved:
      self.plateau = Plateau(self.plateau.config, **saved["plateau"])
    arrays = saved.get("arrays", {})
    if self.average:
      names = [k for k in arrays if k.startswith("average/")]
      sums = {k.removeprefix("average/"): arrays[k] for k in names}
      self.average.restore(step, saved.get("average", {}), sums)
    # Once switched off they are gone: they would lack the evaluations since.
    if self.wants_ensembles:
      for name, e in saved.get("ensembles", {}).items():
        ids, scores = (
          arrays[f"ensembles/{name}/{k}"] for k in ("ids", "scores")
        )
        mean = Mean(e["count"], {"scores": scores})
        self.ensembles[name] = Ensemble(e["data"], ids, mean)


def start(run: RunConfig, steps_per_epoch: float) -> RunRecord:
  """The record of a run before its first step."""
  average = run.average.last_epoch
  return RunRecord(
    run.best,
    run.best_is_lowest,
    plateau=Plateau(run.plateau) if run.plateau.metric else None,
    average=WeightAverage(run.average, steps_per_epoch) if average else None,
    wants_ensembles=run.ensemble_predictions,
  )
