"""How well features tell classes apart: small classifiers on top of them.

A probe learns from features of labelled recordings and scores the features of
others; what made the features stays as it is. NumPy and scikit-learn.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.special

from astjax import errors
from astjax.engine.task import Outputs, Summary
from astjax.errors import UserError, warn
from astjax.ops import metrics

_BLOCK = 1024  # clips whose similarities to all others are in memory at once


@dataclasses.dataclass(frozen=True)
class Probe:
  """A kind of probe.

  `scores` takes features [n, D] and multi-hot labels [n, C] to learn from, and
  features [m, D], for which it gives scores [m, C] in [0, 1].
  """

  scores: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
  metric_names = ("accuracy", "mAP")

  def summarise(self, outputs: Outputs) -> Summary:
    """Of `scores` and `label` [m, C]."""
    found, per_class = metrics.classification(
      outputs["scores"], outputs["label"]
    )
    return {k: found[k] for k in self.metric_names}, per_class


def knn(k: errors.Count = 20, temperature: errors.Positive = 0.07) -> Probe:
  """The k nearest neighbours by cosine similarity, weighted.

  A neighbour of similarity s votes for its labels with exp(s / temperature), as
  in DINO's evaluations (arXiv 2104.14294). None of the three papers here rates
  features so; the numbers are our choice, after DINO's.
  """

  def scores(known, labels, asked):
    known, asked = _normalised(known), _normalised(asked)
    count = min(k, len(known))
    parts = []
    for i in range(0, len(asked), _BLOCK):
      similarity = asked[i : i + _BLOCK] @ known.T
      near = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
      nearness = np.take_along_axis(similarity, near, axis=1)  # [m, k]
      votes = scipy.special.softmax(nearness / temperature, axis=1)
      parts.append(np.einsum("mk,mkc->mc", votes, labels[near]))
    return np.concatenate(parts)

  return Probe(scores)


def _normalised(features):
  features = np.asarray(features, np.float64)
  length = np.linalg.norm(features, axis=1, keepdims=True)
  return features / np.maximum(length, 1e-12)


def linear(c: errors.Positive = 1.0, max_iter: errors.Count = 1000) -> Probe:
  """Logistic regression of scikit-learn on standardised features.

  One softmax over the classes where every recording to learn from has one
  label; else one regression for each class. Features are standardised by the
  mean and deviation of those to learn from.

  `c` is the inverse strength of the L2 penalty, `max_iter` that of L-BFGS.
  """
  try:  # before the run rather than at its first evaluation
    from sklearn import exceptions, linear_model, preprocessing
  except ModuleNotFoundError:
    raise UserError(
      "the linear probe needs scikit-learn: pip install 'astjax[probe]'"
    ) from None

  def scores(known, labels, asked):
    scaler = preprocessing.StandardScaler()
    known = scaler.fit_transform(np.asarray(known, np.float64))
    asked = scaler.transform(np.asarray(asked, np.float64))

    def regress(target):
      """(the classes that there are, probabilities of each [m, ...])."""
      classes = np.unique(target)
      if len(classes) == 1:  # nothing to tell apart
        return classes, np.ones((len(asked), 1))
      model = linear_model.LogisticRegression(C=c, max_iter=max_iter)
      with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        model.fit(known, target)
      if model.n_iter_.max() >= max_iter:
        warn(f"the linear probe has not converged in {max_iter} iterations")
      return classes, model.predict_proba(asked)

    positive = np.asarray(labels) > 0.5
    out = np.zeros((len(asked), labels.shape[1]))
    if (positive.sum(axis=1) == 1).all():
      classes, found = regress(positive.argmax(axis=1))
      out[:, classes] = found
      return out
    for i, column in enumerate(positive.T):
      classes, found = regress(column)
      out[:, i] = found[:, -1] if classes[-1] else 0.0
    return out

  return Probe(scores)


PROBES: dict[str, Callable[..., Probe]] = {"knn": knn, "linear": linear}


def build(name: str, given: Mapping[str, Any], where: str) -> Probe:
  """The probe of this name; `given` is `probe_kw` of the section `where`."""
  make = errors.lookup(PROBES, name, f"{where}.probe")
  return errors.call(make, f"{where}.probe_kw", given)
