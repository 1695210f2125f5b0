"""Streams of data, ready to run: of the training, of each evaluation."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from astjax.data import order, pipeline, sources
from astjax.data.reader import Reader
from astjax.data.source import Source, check_labelled, fingerprint
from astjax.engine import sharding, step
from astjax.engine.task import Task
from astjax.errors import UserError, located
from astjax.ops import frontend, host_ops, recipe
from astjax.run.config import EvalConfig, InputConfig
from astjax.tasks import probes
from astjax.tasks.probes import Probe


@dataclasses.dataclass(frozen=True)
class Stream:
  """Recordings, and what makes batches of them."""

  name: str  # "train", or that of an evaluation
  config: InputConfig
  reader: Reader
  host_ops: tuple[recipe.NamedOp, ...]
  device_ops: tuple[recipe.NamedOp, ...]
  # {name: (shape, type)} of one row, before the device ops
  row_shapes: Mapping[str, tuple[tuple[int, ...], Any]]
  row: Mapping[str, jax.ShapeDtypeStruct]  # a batch of one, after them
  weights: np.ndarray | None = None  # of the draws, if they are not even
  every: int = 0  # steps between two evaluations; 0 is at the end only
  of_best: bool = False
  # With a probe, what is rated are the task's features: the probe learns from
  # those of another stream.
  probe: Probe | None = None
  known: Stream | None = None

  @property
  def class_names(self) -> tuple[str, ...]:
    """[C]."""
    return self.reader.source.class_names

  def data(self) -> dict[str, Any]:
    """Fingerprint and size of the recordings, as `config.json` keeps them."""
    source = self.reader.source
    return {"fingerprint": fingerprint(source), "num_examples": len(source)}

  def batches(self) -> pipeline.Batches:
    """One pass in the source's order: this process's rows of each batch."""
    return pipeline.eval_batches(self.reader, self.host_ops, **self._share())

  def train_batches(
    self, seed: int, first_step: int, last_step: int
  ) -> pipeline.Batches:
    """Rows of this process, of the steps first_step ... last_step - 1."""
    return pipeline.train_batches(
      self.reader,
      self.host_ops,
      seed=seed,
      first_step=first_step,
      last_step=last_step,
      weights=self.weights,
      **self._share(),
    )

  def _share(self):
    index, count = jax.process_index(), jax.process_count()
    size = self.config.batch_size
    return {"batch_size": size, "process_index": index, "process_count": count}

  def one_row(self) -> dict[str, Any]:
    """Zeros, shaped like a batch of one row after the device ops."""
    return {k: jnp.zeros(x.shape, x.dtype) for k, x in self.row.items()}


def build(
  name: str,
  config: InputConfig,
  where: str,
  *,
  mesh: Mesh,
  source: Source | None,
) -> Stream:
  """A stream from its section of the config, which is named `where`."""
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
  # A random evaluation could not be compared with the one before.
  drawn = [op.name for op in (*on_host, *on_device) if recipe.draws(op)]
  if drawn and name != "train":
    raise UserError(
      f"{where} draws at random ({drawn[0]}); an evaluation must not. What it "
      "does not set, such as on_host, is as in config.input"
    )
  with located(f"{where}.on_host"):
    shapes = pipeline.row_shapes(reader, on_host)
  weights = order.draw_weights(source, config.draw, where)
  with located(f"{where}.on_device"):
    row = _after(on_device, shapes)
  return Stream(name, config, reader, on_host, on_device, shapes, row, weights)


def _after(device_ops, row_shapes):
  """Traces the ops on one row, so that a recipe that does not fit fails."""

  def run(row):
    keys = recipe.row_keys(step.train_key(0), 1)
    return recipe.apply_rows(device_ops, row, keys)

  row = {
    name: jax.ShapeDtypeStruct((1, *shape), dtype)
    for name, (shape, dtype) in row_shapes.items()
  }
  return jax.eval_shape(run, row)


def with_probe(
  stream: Stream,
  given: EvalConfig,
  where: str,
  train: InputConfig,
  make: Callable[[str, InputConfig, str], Stream],
) -> Stream:
  """The stream with its probe and, by `make`, what the probe learns from."""
  probe = probes.build(given.probe, given.probe_kw, where)
  config = given.train_input(train, where)
  known = make(f"{stream.name}.train", config, f"{where}.train")
  for part, place in ((stream, where), (known, f"{where}.train")):
    if "label" not in part.row_shapes:
      raise UserError(
        f"{place}: a probe needs labels: put multi_hot into its on_host, and "
        f"'label' into keep; it is {part.config.on_host!r}"
      )
    check_labelled(part.reader.source, place)
  check_same_classes(
    where, stream.class_names, f"{where}.train", known.class_names
  )
  return dataclasses.replace(stream, probe=probe, known=known)


def unreadable(streams: Sequence[Stream]) -> dict[str, list]:
  """{name: [(recording, reason)]} of all processes, and of what probes know."""
  known = [s.known for s in streams if s.known]
  return sharding.union({s.name: s.reader.report() for s in [*streams, *known]})


def check_same_classes(
  where: str, names: Sequence[str], other: str, expected: Sequence[str]
) -> None:
  """A UserError that names the first class that differs."""
  for i, (name, wanted) in enumerate(itertools.zip_longest(names, expected)):
    if name != wanted:
      raise UserError(
        f"{where} has {len(names)} classes, {other} {len(expected)}; number "
        f"{i} is {name!r} there, {wanted!r} here; give both one label_list"
      )


def check_labels(stream: Stream, task: Task) -> None:
  """A UserError where the recordings' labels are not what the task needs."""
  # Not when the source is built: pre-training wants no labels.
  name, source = stream.name, stream.reader.source
  if task.head is not None:
    check_labelled(source, name)
  for i in range(len(source)) if task.one_label else ():
    if len(source.labels(i)) != 1:
      labels = [source.class_names[j] for j in source.labels(i)]
      raise UserError(
        f"{name}: {source.name(i)} has the labels {labels}; with the loss "
        "softmax_xent every recording needs exactly one: use loss='bce'"
      )
