"""The tasks by name: one paper, one file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from astjax import errors
from astjax.engine.task import Task
from astjax.tasks import asit, ssast, supervised

TASKS = {
  "supervised": supervised.make,
  "ssast": ssast.make,
  "asit": asit.make,
}


def build(name: str, given: Mapping[str, Any], **own: Any) -> Task:
  """The task of this name.

  Args:
    name: a key of `TASKS`.
    given: the user's `config.task_kw`, checked against the task's `make`.
    **own: model, num_classes, steps_per_epoch and total_steps.
  """
  make = errors.lookup(TASKS, name, "config.task")
  return errors.call(make, "config.task_kw", given, **own)
