"""Metrics against the original's (scikit-learn's) numbers."""

import numpy as np
import pytest

from astjax.ops import metrics
from tests.parity.conftest import assert_close


@pytest.mark.fixtures("metrics*")
def test_metrics(fixture):
  shape = tuple(fixture.meta["shape"])
  z = fixture.seeded.seeded_array("pred", shape, fixture.seed)
  noise = fixture.seeded.seeded_array("targ", shape, fixture.seed)
  scores = 1.0 / (1.0 + np.exp(-z))
  target = noise + 0.7 * z > fixture.meta["threshold"]
  summary, per_class = metrics.classification(scores, target)
  assert_close(per_class["AP"], fixture["ap"], 1e-6)
  assert_close(per_class["AUC"], fixture["auc"], 1e-6)
  for name in ("mAP", "mAUC", "d_prime"):
    assert_close(summary[name], fixture[name], 1e-6)
