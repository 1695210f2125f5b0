"""Metrics against scikit-learn, and where it has no answer."""

import numpy as np
import pytest
import sklearn.metrics

from astjax.ops import metrics


def draw(seed, rows, classes, levels, rate=0.3):
  """Scores on a few levels, so that many tie, and multi-hot targets."""
  rng = np.random.default_rng(seed)
  targets = rng.random((rows, classes)) < rate
  targets[0], targets[1] = True, False  # no class is degenerate
  scores = rng.standard_normal((rows, classes)) + targets
  if levels:
    scores = np.round(scores * levels) / levels
  return scores, targets.astype(np.float32)


@pytest.mark.parametrize("levels", [0, 8, 2, 0.4])
@pytest.mark.parametrize(
  ("rows", "classes", "rate"), [(2, 3, 0.5), (17, 5, 0.1), (300, 4, 0.9)]
)
def test_equals_scikit_learn(levels, rows, classes, rate):
  scores, targets = draw(rows, rows, classes, levels, rate)
  if levels and rows > 2:
    assert len(np.unique(scores)) < 0.7 * scores.size
  for ours, theirs in (
    (metrics.average_precision, sklearn.metrics.average_precision_score),
    (metrics.roc_auc, sklearn.metrics.roc_auc_score),
  ):
    expected = [theirs(targets[:, c], scores[:, c]) for c in range(classes)]
    np.testing.assert_allclose(ours(scores, targets), expected, rtol=1e-12)


def test_all_scores_tie():
  _, targets = draw(0, 40, 3, 0)
  same = np.full(targets.shape, 0.7)
  np.testing.assert_allclose(
    metrics.average_precision(same, targets), targets.mean(0)
  )
  np.testing.assert_allclose(metrics.roc_auc(same, targets), 0.5)


def test_perfect_and_worst_order():
  targets = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
  scores = np.array([[4.0, 4.0], [3.0, 3.0], [2.0, 2.0], [1.0, 1.0]])
  np.testing.assert_allclose(metrics.roc_auc(scores, targets), [1.0, 0.0])
  np.testing.assert_allclose(
    metrics.average_precision(scores, targets), [1.0, (1 / 3 + 2 / 4) / 2]
  )


def test_degenerate_classes():
  # No positive, no negative, both; scikit-learn says 1 and nan for the second.
  targets = np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
  scores = np.array([[0.1, 0.5, 0.2], [0.3, 0.2, 0.3], [0.2, 0.9, 0.8]])
  ap = metrics.average_precision(scores, targets)
  auc = metrics.roc_auc(scores, targets)
  np.testing.assert_allclose(ap, [np.nan, 1.0, 0.5])
  np.testing.assert_allclose(auc, [np.nan, np.nan, 0.5])
  assert sklearn.metrics.average_precision_score(
    targets[:, 1], scores[:, 1]
  ) == pytest.approx(ap[1])


def test_soft_targets_count_from_a_half():
  scores, _ = draw(1, 30, 2, 0)
  soft = np.random.default_rng(2).random((30, 2))
  hard = (soft > 0.5).astype(np.float32)
  for metric in (metrics.average_precision, metrics.roc_auc):
    np.testing.assert_array_equal(metric(scores, soft), metric(scores, hard))


def test_only_the_order_of_scores_counts():
  scores, targets = draw(3, 100, 4, 6)
  shuffle = np.random.default_rng(0).permutation(100)
  for metric in (metrics.average_precision, metrics.roc_auc):
    expected = metric(scores, targets)
    np.testing.assert_allclose(metric(np.exp(scores), targets), expected)
    np.testing.assert_allclose(
      metric(scores[shuffle], targets[shuffle]), expected
    )
  reverse = 1.0 - metrics.roc_auc(-scores, targets)
  np.testing.assert_allclose(reverse, metrics.roc_auc(scores, targets))


@pytest.mark.parametrize(
  ("auc", "expected"),
  [(0.975837, 2.792351), (0.978562, 2.863664), (0.961010, 2.492592)],
)
def test_golden_d_prime(auc, expected):
  assert metrics.d_prime(auc) == pytest.approx(expected, abs=2e-6)


def test_d_prime_is_odd_around_chance():
  assert metrics.d_prime(0.5) == pytest.approx(0.0, abs=1e-12)
  assert metrics.d_prime(0.2) == pytest.approx(-metrics.d_prime(0.8))


def test_accuracy():
  targets = np.eye(4)[[0, 1, 2, 3]]
  scores = np.eye(4)[[0, 1, 2, 0]] - 5.0
  assert metrics.accuracy(scores, targets) == 0.75
  assert metrics.accuracy(targets, targets) == 1.0
  # Ties go to the first class, on both sides.
  assert metrics.accuracy(np.zeros((4, 4)), targets) == 0.25
  assert metrics.accuracy(targets[:1], np.ones((1, 4))) == 1.0


def test_classification():
  scores, targets = draw(5, 200, 6, 4)
  summary, per_class = metrics.classification(scores, targets)
  ap = metrics.average_precision(scores, targets)
  auc = metrics.roc_auc(scores, targets)
  np.testing.assert_array_equal(per_class["AP"], ap)
  np.testing.assert_array_equal(per_class["AUC"], auc)
  np.testing.assert_array_equal(per_class["num_positive"], targets.sum(0))
  assert summary == {
    "mAP": pytest.approx(ap.mean()),
    "mAUC": pytest.approx(auc.mean()),
    # Of the mean AUC, not the mean of each class's.
    "d_prime": pytest.approx(metrics.d_prime(auc.mean())),
    "accuracy": metrics.accuracy(scores, targets),
  }
  mean_of_each = np.mean([metrics.d_prime(a) for a in auc])
  assert summary["d_prime"] != pytest.approx(mean_of_each, abs=1e-4)
  assert all(isinstance(v, float) for v in summary.values())


def test_classification_leaves_unrated_classes_out():
  scores, targets = draw(6, 50, 5, 0)
  expected, _ = metrics.classification(scores[:, :3], targets[:, :3])
  targets[:, 3], targets[:, 4] = 0.0, 1.0
  summary, per_class = metrics.classification(scores, targets)
  for name in ("mAP", "mAUC", "d_prime"):
    assert summary[name] == pytest.approx(expected[name])
  assert np.isnan(per_class["AP"][3])
  assert np.isnan(per_class["AUC"][3:]).all()
  assert per_class["num_positive"][3:].tolist() == [0, 50]


def test_classification_without_any_rated_class():
  summary, per_class = metrics.classification(
    np.zeros((3, 2)), np.array([[0.0, 1.0]] * 3)
  )
  assert all(np.isnan(summary[k]) for k in ("mAP", "mAUC", "d_prime"))
  assert summary["accuracy"] == 0.0
  assert per_class["num_positive"].tolist() == [0, 3]


def test_scores_that_are_no_numbers_have_no_rank():
  # Else a model that has diverged gets a metric that looks like one.
  scores, targets = draw(8, 20, 2, 0)
  expected, _ = metrics.classification(scores[:, 1:], targets[:, 1:])
  scores[3, 0] = np.nan
  _, per_class = metrics.classification(scores, targets)
  assert np.isnan(per_class["AP"][0])
  assert np.isnan(per_class["AUC"][0])
  assert per_class["AUC"][1] == pytest.approx(expected["mAUC"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_classification_of_other_types(dtype):
  scores, targets = draw(7, 60, 3, 4)  # exact in 16 bits
  expected, _ = metrics.classification(scores, targets)
  for kind in (bool, np.int32, np.float64):
    summary, _ = metrics.classification(
      scores.astype(dtype), targets.astype(kind)
    )
    assert summary == expected
