"""What benchmarks share: where astjax is, a compiled step, one JSON line."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Benchmarks are of the astjax that they lie beside.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))


def compile_step(
  task_name: str,
  task_kw: Mapping[str, Any],
  model: Mapping[str, Any],
  rows: Mapping[str, Sequence[int]],
  batch_size: int,
  mesh,
  **optimizer: Any,
):
  """The training step of a task, compiled for a batch; nothing runs.

  Args:
    task_name: its name.
    task_kw: its arguments.
    model: as `config.model`.
    rows: {name: shape of a row} of the batch, float32.
    batch_size: B.
    mesh: the devices.
    **optimizer: as `config.optim`.
  """
  # Imported late: a benchmark may say first how many devices there are.
  import jax
  import numpy as np

  from astjax import tasks
  from astjax.engine import optim, sharding
  from astjax.engine.step import init_state, make_train_step, train_key

  task = tasks.build(
    task_name,
    task_kw,
    model=model,
    num_classes=527,
    steps_per_epoch=1000.0,
    total_steps=100_000,
  )
  batch = {
    name: jax.ShapeDtypeStruct((batch_size, *shape), np.float32)
    for name, shape in rows.items()
  }
  batch["id"] = jax.ShapeDtypeStruct((batch_size,), np.int32)
  key = train_key(0)
  params = jax.eval_shape(task.init_params, key, batch)
  tx = optim.make_optimizer(
    params, lambda step: 1e-4, steps_per_epoch=1000.0, **optimizer
  )
  state = jax.eval_shape(lambda p: init_state(task, p, tx), params)
  step = make_train_step(
    task, tx, (), mesh, shardings=sharding.of_state(state, mesh)
  )
  return step.lower(state, batch, 0, key).compile()


def report(benchmark: str, **numbers: Any) -> None:
  """Prints one JSON line."""
  print(json.dumps({"benchmark": benchmark, **numbers}))
