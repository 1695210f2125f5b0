"""The tasks by name: one paper, one file.

A user's own objective enters itself: `TASKS["mine"] = Mine`, and its module
into `models.OBJECTIVES`; see docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from astjax import errors, models
from astjax.engine.task import Task
from astjax.tasks import asit, ssast, supervised

# A task's fields, or the arguments of what makes it, are `config.task_kw`.
TASKS: dict[str, Callable[..., Task]] = {
  "supervised": supervised.make,
  "ssast": ssast.Ssast,
  "asit": asit.Asit,
}


def build(
  name: str, given: Mapping[str, Any], *, model: Mapping[str, Any], **own: Any
) -> Task:
  """The task of this name from `config.task_kw` (`given`) and `config.model`.

  `own` are the other fields of `Task`.
  """
  make = errors.lookup(TASKS, name, "config.task")
  backbone = models.build(model)
  return errors.call(make, "config.task_kw", given, backbone=backbone, **own)
