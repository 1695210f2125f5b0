"""The stream of examples: a function of (seed, position), on any processes."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from astjax.data import order as order_lib
from astjax.data.order import Order, process_rows
from astjax.engine.step import train_key
from astjax.errors import UserError
from astjax.ops.recipe import row_keys

SEEDS = [0, 1, 2**31, 2**32 - 1]


def _epoch(order: Order, number: int) -> list[int]:
  n = order.num_examples
  return [order.index(number * n + i) for i in range(n)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("n", "batch"), [(1, 4), (10, 4), (24, 8), (101, 16)])
def test_every_epoch_is_a_permutation(seed, n, batch):
  order = Order(seed, n, batch)
  for number in (0, 1, 2, 50):
    assert sorted(_epoch(order, number)) == list(range(n))


@pytest.mark.parametrize("seed", SEEDS)
def test_epochs_and_seeds_differ(seed):
  order = Order(seed, 40, 8)
  epochs = [tuple(_epoch(order, i)) for i in range(6)]
  assert len(set(epochs)) == 6
  assert tuple(range(40)) not in epochs
  assert _epoch(Order((seed + 1) % 2**32, 40, 8), 0) != list(epochs[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_is_a_function_of_seed_and_position(seed):
  """Neither the batch size nor what was asked for before plays a part."""
  forwards = Order(seed, 17, 4)
  want = [forwards.index(p) for p in range(100)]
  backwards = Order(seed, 17, 32)
  got = [backwards.index(p) for p in reversed(range(100))]
  assert got[::-1] == want
  late = Order(seed, 17, 4)
  assert late.index(np.int64(99)) == want[99]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize(("n", "batch"), [(24, 8), (24, 24), (21, 4), (5, 8)])
def test_processes_see_each_example_once_per_epoch(count, n, batch):
  epochs = 3 * batch  # after as many, the last batch is full again
  parts = [process_rows(batch, i, count) for i in range(count)]
  stream = []
  order = Order(3, n, batch)
  for step in range(epochs * n // batch):
    rows = [row for part in parts for row in part]
    assert rows == list(range(batch))  # disjoint, complete, in order
    stream += [order.index(step * batch + row) for row in rows]
  for epoch in np.reshape(stream, (epochs, n)):
    assert sorted(epoch) == list(range(n))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_have_equal_disjoint_rows(count):
  parts = [process_rows(12, i, count) for i in range(count)]
  assert {len(part) for part in parts} == {12 // count}
  assert sorted(itertools.chain(*parts)) == list(range(12))


@pytest.mark.parametrize(("batch", "count"), [(6, 4), (1, 2), (7, 3)])
def test_rows_that_do_not_divide_are_refused(batch, count):
  with pytest.raises(UserError) as error:
    process_rows(batch, 0, count)
  text = str(error.value)
  assert str(batch) in text and f"{count} processes" in text
  assert "\n" not in text


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_keys_are_those_of_jax(seed, batch):
  order = Order(seed, 10, batch)
  run_key = train_key(seed)
  for step in (0, 1, 7, 123_456):
    step_key = jax.random.fold_in(run_key, step)
    want = jax.random.key_data(row_keys(step_key, batch))
    got = [order.key(step * batch + row) for row in range(batch)]
    np.testing.assert_array_equal(got, want)
    assert got[0].dtype == np.uint32
    last = jax.random.fold_in(step_key, batch - 1)
    np.testing.assert_array_equal(got[-1], jax.random.key_data(last))


def test_every_position_has_its_own_key():
  order = Order(0, 10, 8)
  keys = {tuple(order.key(p).tolist()) for p in range(2000)}
  assert len(keys) == 2000


# Draws with weights.


class Labelled:
  """Examples with these labels, of which nothing is read."""

  def __init__(self, labels, num_classes, shares=()):
    self._labels = labels
    self.class_names = tuple(str(i) for i in range(num_classes))
    self.shares = shares

  def __len__(self):
    return len(self._labels)

  def labels(self, index):
    return self._labels[index]


def unbalanced(size=400, num_classes=7, seed=0):
  """Class k is twice as frequent as class k + 1; one or two labels each."""
  rng = np.random.default_rng(seed)
  share = 0.5 ** np.arange(num_classes)
  pick = lambda n: rng.choice(
    num_classes, n, replace=False, p=share / share.sum()
  )
  return [tuple(sorted(pick(rng.integers(1, 3)))) for _ in range(size)]


def by_formula(labels, num_classes):
  """The original's weights, one loop after the other."""
  counts = [0] * num_classes
  for row in labels:
    for k in row:
      counts[k] += 1
  return [sum(1000 / (counts[k] + 0.01) for k in row) for row in labels]


def test_a_hundred_thousand_balanced_draws():
  labels = unbalanced()
  source = Labelled(labels, 7)
  weights = order_lib.draw_weights(source, "balanced", "config.input")
  np.testing.assert_allclose(weights, by_formula(labels, 7), rtol=1e-12)
  order = Order(0, len(labels), 8, weights)
  draws = 100_000
  seen = np.bincount(
    [order.index(p) for p in range(draws)], minlength=len(labels)
  )
  expected = weights / weights.sum() * draws
  chi2 = np.sum((seen - expected) ** 2 / expected)
  dof = len(labels) - 1
  assert abs(chi2 - dof) < 4 * np.sqrt(2 * dof)
  # Rare classes come about as often as frequent ones.
  of_class = np.zeros(7)
  for row, count in zip(labels, seen, strict=True):
    of_class[list(row)] += count
  assert of_class.max() / of_class.min() < 4
  plain = np.bincount([k for row in labels for k in row])
  assert plain.max() / plain.min() > 10


def test_drawn_streams_are_functions_of_seed_and_position():
  weights = np.arange(1.0, 21.0)
  first = [Order(3, 20, 4, weights).index(p) for p in range(200)]
  late = Order(3, 20, 16, weights)
  assert [late.index(p) for p in reversed(range(200))][::-1] == first
  other = [Order(4, 20, 4, weights).index(p) for p in range(200)]
  assert other != first


def test_what_has_no_weight_is_never_drawn():
  weights = np.array([0.0, 1.0, 0.0, 2.0, 0.0])
  order = Order(0, 5, 4, weights)
  assert {order.index(p) for p in range(2_000)} == {1, 3}


@pytest.mark.parametrize("draw", ["shuffle", "balanced"])
def test_shares_of_parts(draw):
  labels = unbalanced(300)
  shares = ((range(0, 100), 3.0), (range(100, 300), 1.0))
  source = Labelled(labels, 7, shares)
  weights = order_lib.draw_weights(source, draw, "config.input")
  assert weights[:100].sum() == pytest.approx(3 * weights[100:].sum())
  within = weights[:100] / weights[:100].sum()
  plain = np.ones(300) if draw == "shuffle" else by_formula(labels, 7)
  np.testing.assert_allclose(within, np.array(plain)[:100] / sum(plain[:100]))


def test_shuffling_needs_no_weights():
  source = Labelled(unbalanced(20), 7)
  assert order_lib.draw_weights(source, "shuffle", "config.input") is None


def test_an_unknown_draw():
  with pytest.raises(UserError, match="Did you mean 'balanced'"):
    order_lib.draw_weights(Labelled([(0,)], 1), "balancd", "config.input")


def test_nothing_to_balance():
  with pytest.raises(UserError, match="no recording has a label"):
    order_lib.draw_weights(Labelled([()], 1), "balanced", "config.input")
