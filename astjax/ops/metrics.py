"""Metrics of the AST paper: mAP, mAUC, d-prime and accuracy, in NumPy.

Average precision is the step-wise area (no interpolation) and the area under
the ROC curve counts ties as a half, both as scikit-learn computes them; the
tests compare the two.
"""

from __future__ import annotations

import numpy as np
import scipy.special


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """[C], NaN where a class has no positive; of [n, C], positive where > 0.5."""
  columns = _columns(scores, targets)
  return np.array([_average_precision(s, t) for s, t in columns])


def roc_auc(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """[C], area under the ROC curve; NaN without positives or negatives."""
  return np.array([_roc_auc(s, t) for s, t in _columns(scores, targets)])


def _columns(scores: np.ndarray, targets: np.ndarray) -> zip:
  return zip(np.asarray(scores).T, np.asarray(targets).T > 0.5, strict=True)


def _counts(score, positive):
  """True and false positives at each distinct threshold, best score first."""
  order = np.argsort(-score, kind="stable")
  score, positive = score[order], positive[order]
  last_of_tie = np.append(score[1:] != score[:-1], True)
  true = np.cumsum(positive)[last_of_tie]
  seen = np.flatnonzero(last_of_tie) + 1
  return true, seen - true


def _average_precision(score, positive):
  if not positive.any() or np.isnan(score).any():
    return np.nan
  true, false = _counts(score, positive)
  gained = np.diff(true, prepend=0)
  return float(np.sum(gained * true / (true + false)) / positive.sum())


def _roc_auc(score, positive):
  if positive.all() or not positive.any() or np.isnan(score).any():
    return np.nan
  true, false = _counts(score, positive)
  true, false = np.append(0, true), np.append(0, false)
  return float(np.trapezoid(true / true[-1], false / false[-1]))


def d_prime(mean_auc: float) -> float:
  """sqrt(2) * inverse normal cdf of the *mean* AUC, as in the original."""
  return float(np.sqrt(2.0) * scipy.special.ndtri(mean_auc))


def accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
  """Share of rows whose highest score is on the highest target."""
  return float(np.mean(np.argmax(scores, -1) == np.argmax(targets, -1)))


def classification(
  logits: np.ndarray, targets: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """All of them at once, of logits [n, C] and multi-hot targets [n, C].

  Returns:
    ({"mAP", "mAUC", "d_prime", "accuracy"}, per class {"AP", "AUC",
    "num_positive"}). Means are unweighted, over the classes with at least one
    positive and one negative; NaN if there is none.
  """
  logits = np.asarray(logits, np.float64)
  per_class = {
    "AP": average_precision(logits, targets),
    "AUC": roc_auc(logits, targets),
    "num_positive": np.sum(np.asarray(targets) > 0.5, axis=0),
  }
  rated = ~np.isnan(per_class["AUC"])
  mean = lambda x: float(np.mean(x[rated])) if rated.any() else float("nan")  # noqa: E731
  mean_auc = mean(per_class["AUC"])
  summary = {
    "mAP": mean(per_class["AP"]),
    "mAUC": mean_auc,
    "d_prime": d_prime(mean_auc),
    "accuracy": accuracy(logits, targets),
  }
  return summary, per_class
