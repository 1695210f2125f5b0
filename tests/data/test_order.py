"""The stream of examples: a function of (seed, position), on any processes."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from astjax import device_ops, train_step
from astjax.data.order import Order, process_rows
from astjax.errors import UserError

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
  run_key = train_step.train_key(seed)
  for step in (0, 1, 7, 123_456):
    step_key = jax.random.fold_in(run_key, step)
    want = jax.random.key_data(device_ops.row_keys(step_key, batch))
    got = [order.key(step * batch + row) for row in range(batch)]
    np.testing.assert_array_equal(got, want)
    assert got[0].dtype == np.uint32
    last = jax.random.fold_in(step_key, batch - 1)
    np.testing.assert_array_equal(got[-1], jax.random.key_data(last))


def test_every_position_has_its_own_key():
  order = Order(0, 10, 8)
  keys = {tuple(order.key(p).tolist()) for p in range(2000)}
  assert len(keys) == 2000
