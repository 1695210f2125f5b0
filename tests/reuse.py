"""Steps that one test has traced are used again by the next.

Most of the time of a tiny training goes into tracing, and most of them take the
same step. Only what `make_train_step` and `make_eval_step` return is kept, by
the values of all that goes into it: what reads, saves or decides is made anew.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax

from astjax.engine import step
from astjax.run import job

_METHODS = ("init_params", "init_state", "corrupt", "evaluate", "features")
_METHODS += ("loss", "after_update")
_KEPT = 64  # of each kind, so that a worker does not grow without end


def install() -> None:
  """For this process, before anything has imported the functions by name."""
  job.Job.optimizer = _kept(job.Job.optimizer, _of_optimizer)
  job.Job.param_shapes = property(_kept(job.Job.param_shapes.func, _of_job))
  job.abstract_state = _kept(job.abstract_state, _of_start)
  job._make_start = _kept(job._make_start, lambda job, *_: _of_start(job))
  step.make_train_step = _kept(step.make_train_step, _of_train_step)
  step.make_eval_step = _kept(step.make_eval_step, _of_eval_step)


def _kept(make: Callable, key_of: Callable[..., Hashable]) -> Callable:
  made: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

  @functools.wraps(make)
  def kept(*args, **kwargs):
    key = key_of(*args, **kwargs)
    if key not in made:
      made[key] = make(*args, **kwargs)
      if len(made) > _KEPT:
        made.popitem(last=False)
    return made[key]

  return kept


def _of_optimizer(self, params):
  shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), params)
  run = self.config
  parts = [run.optim, run.schedule, run.input.batch_size, shapes]
  usual = {"decay": "constant", "warmup": "none"} | dict(run.schedule)
  timed = {"final_weight_decay", "freeze_epochs"} & {*run.optim}
  if timed or (usual["decay"], usual["warmup"]) != ("constant", "none"):
    parts += [self.steps_per_epoch, self.total_steps]
  return repr(parts)


def _of_job(self):
  row = tuple((k, x.shape, str(x.dtype)) for k, x in self.train.row.items())
  return *_of(self.task), self.config.seed, self.mesh, row


def _of_start(self):
  return *_of_job(self), self.optimizer(self.param_shapes)


def _of_train_step(task, tx, ops, mesh, *, shardings=None, **how):
  # An optimiser is a pair of functions, which `_of_optimizer` keeps the same.
  what = _of(task), tx, _of_ops(ops), mesh, _of_tree(shardings)
  return *what, *sorted(how.items())


def _of_eval_step(task, ops, mesh, *, shardings=None, **how):
  what = _of(task), _of_ops(ops), mesh, _of_tree(shardings)
  return *what, *sorted(how.items())


def _of(task):
  """A task and its methods, which tests replace."""
  own = type(task)
  # A field that equality left out would share the steps of two tasks.
  methods = (getattr(own, name, None) for name in _METHODS)
  return task, repr(task), own, *methods


def _of_ops(ops):
  return tuple((o.name, o.fold, repr(o.arguments), type(o.op)) for o in ops)


def _of_tree(shardings):
  leaves, treedef = jax.tree.flatten(shardings)
  return *leaves, treedef
