"""Streams of data, ready to run: of the training, of each evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from astjax.data import order, pipeline, sources
from astjax.data.reader import Reader
from astjax.data.source import Source, check_labelled
from astjax.engine import sharding, step
from astjax.engine.task import Task
from astjax.errors import UserError, located
from astjax.ops import frontend, host_ops, recipe
from astjax.run.config import EvalConfig, InputConfig
from astjax.tasks import probes
from astjax.tasks.probes import Probe


@dataclasses.dataclass(frozen=True)
class Split:
  """One stream of data, ready to run.

  With a probe, what is rated are the task's features: the probe learns from
  those of another stream, `known`.
  """

  name: str
  config: InputConfig
  reader: Reader
  host_ops: tuple[recipe.NamedOp, ...]
  device_ops: tuple[recipe.NamedOp, ...]
  row_shapes: Mapping[str, tuple[tuple[int, ...], Any]]
  weights: np.ndarray | None = None
  every: int = 0
  of_best: bool = False
  probe: Probe | None = None
  known: Split | None = None

  @property
  def class_names(self) -> tuple[str, ...]:
    """Of the source."""
    return self.reader.source.class_names

  def one_row(self) -> dict[str, Any]:
    """Zeros, shaped like a batch of one row after the device ops."""

    def run(batch):
      keys = recipe.row_keys(step.train_key(0), 1)
      return recipe.apply_rows(self.device_ops, batch, keys)

    batch = {
      name: jax.ShapeDtypeStruct((1, *shape), dtype)
      for name, (shape, dtype) in self.row_shapes.items()
    }
    return jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, batch)
    )


def build(
  name: str,
  config: InputConfig,
  where: str,
  *,
  mesh: Mesh,
  source: Source | None,
) -> Split:
  """A split from its section of the config.

  Args:
    name: "train", or that of an evaluation.
    config: its section.
    where: how the user calls that, e.g. "config.input".
    mesh: the devices, which share out its batches.
    source: takes the place of the section's own.

  Raises:
    UserError: anything in the section that does not work out.
  """
  sharding.check_batch_size(config.batch_size, mesh, f"{where}.batch_size")
  if source is None:
    source = sources.build(
      config.source,
      where,
      config.source_kw,
      data_dir=config.data_dir,
      split=config.split,
      folds=tuple(str(f) for f in config.folds),
    )
  reader = Reader(source)
  on_host = recipe.parse(
    config.on_host, host_ops.OPS, f"{where}.on_host", reader=reader
  )
  on_device = recipe.parse(config.on_device, frontend.OPS, f"{where}.on_device")
  drawn = [op.name for op in (*on_host, *on_device) if recipe.draws(op)]
  if drawn and name != "train":
    raise UserError(
      f"{where} draws at random ({drawn[0]}); an evaluation must not. What it "
      "does not set, such as on_host, is as in config.input"
    )
  with located(f"{where}.on_host"):
    shapes = pipeline.row_shapes(reader, on_host)
  weights = order.draw_weights(source, config.draw, where)
  split = Split(name, config, reader, on_host, on_device, shapes, weights)
  with located(f"{where}.on_device"):
    split.one_row()
  return split


def probed(
  split: Split,
  given: EvalConfig,
  where: str,
  train: InputConfig,
  make: Callable[[str, InputConfig, str], Split],
) -> Split:
  """The split with its probe and what that learns from.

  Args:
    split: from `build`.
    given: the section of the evaluation.
    where: how the user calls it.
    train: what its section `train` leaves out.
    make: `build` with the rest of its arguments.

  Raises:
    UserError: there are no labels, or other classes in one than in the other.
  """
  probe = probes.build(given.probe, given.probe_kw, where)
  name = f"{split.name}.train"
  config = given.train_input(train, where)
  known = make(name, config, f"{where}.train")
  for part, place in ((split, where), (known, f"{where}.train")):
    if "label" not in part.row_shapes:
      raise UserError(
        f"{place}: a probe needs labels: put multi_hot into its on_host, and "
        f"'label' into keep; it is {part.config.on_host!r}"
      )
    check_labelled(part.reader.source, place)
  check_same_classes(
    where, split.class_names, f"{where}.train", known.class_names
  )
  return dataclasses.replace(split, probe=probe, known=known)


def check_same_classes(
  where: str, names: Sequence[str], other: str, expected: Sequence[str]
) -> None:
  """A UserError that names the first class that differs."""
  if names == expected:
    return
  for i, name in enumerate(names):
    if i >= len(expected) or name != expected[i]:
      break
  else:
    i, name = len(names), "(none)"
  wanted = expected[i] if i < len(expected) else "(none)"
  raise UserError(
    f"{where} has {len(names)} classes, {other} {len(expected)}; number {i} is "
    f"{name!r} there and {wanted!r} in {other}; give both the same label_list"
  )


def check_labels(split: Split, task: Task) -> None:
  """A UserError where the recordings' labels are not what the task needs."""
  name, source = split.name, split.reader.source
  if task.head is not None:
    check_labelled(source, name)
  if not task.one_label:
    return
  for i in range(len(source)):
    if len(source.labels(i)) != 1:
      labels = [source.class_names[j] for j in source.labels(i)]
      raise UserError(
        f"{name}: {source.name(i)} has the labels {labels}; with the loss "
        "softmax_xent every recording needs exactly one: use loss='bce'"
      )
