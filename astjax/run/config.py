"""The sections of a config: names, types and defaults, checked in one place.

A config file gives an `ml_collections.ConfigDict`; here it ends. Below,
everything takes plain keyword arguments. Sections whose keys belong to a
function (`model`, `task_kw`, `optim`, `schedule`, `input.source_kw`) are
checked against that function's signature when it is called.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from flax import traverse_util

from astjax import errors
from astjax.engine.optim import first_step
from astjax.errors import UserError

Section = Mapping[str, Any]
Seed = Annotated[int, errors.Within(lambda n: 0 <= n < 2**32, "0 to 2^32-1")]
Shrinking = Annotated[float, errors.Within(lambda x: 0 < x < 1, "in (0, 1)")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputConfig:
  """`config.input`."""

  source: str  # a name in `data.sources.SOURCES`
  on_host: str  # recipe of `ops.host_ops`
  on_device: str  # recipe of `ops.frontend`
  batch_size: errors.CountOrZero = 0  # B, over all devices and processes
  batch_per_device: errors.CountOrZero = 0  # `parse` makes it a batch_size
  source_kw: Section = dataclasses.field(default_factory=dict)
  data_dir: str = ""  # folder of the recordings
  split: str = ""  # a part of the data; empty takes all
  folds: tuple[str | int, ...] = ()
  # "shuffle" shows every example once per epoch, "balanced" draws rare classes
  # as often as frequent ones.
  draw: str = "shuffle"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """`config.evals.<name>`: what is None is as in `config.input`."""

  on_device: str  # always given, since augmentations are for the training
  source: str | None = None
  source_kw: Section | None = None
  data_dir: str | None = None
  split: str | None = None
  folds: tuple[str | int, ...] | None = None
  batch_size: errors.CountOrZero | None = None
  batch_per_device: errors.CountOrZero | None = None
  on_host: str | None = None
  every_epochs: errors.NotNegative = 0.0  # this and every_steps 0: at the end
  every_steps: errors.CountOrZero = 0
  # Once, at the end, on the best checkpoint instead of the last: for a test set
  # that must not be looked at before.
  of_best: bool = False
  # A name in `probes.PROBES`: how well the task's features tell the labels
  # apart, instead of the task's own metrics. It learns from other recordings:
  # `train` is what differs from those that are rated, as {"split": "train"}.
  probe: str = ""
  probe_kw: Section = dataclasses.field(default_factory=dict)
  train: Section = dataclasses.field(default_factory=dict)

  def input(self, training: InputConfig) -> InputConfig:
    """The complete input of this evaluation."""
    own = {
      f.name: getattr(self, f.name)
      for f in dataclasses.fields(InputConfig)
      if getattr(self, f.name, None) is not None
    }
    return dataclasses.replace(training, **own, draw="shuffle")

  def train_input(self, training: InputConfig, where: str) -> InputConfig:
    """The complete input of what the probe learns from."""
    # Recipes, batch size and the rest are those of what is rated.
    rated = self.input(training)
    given = {k: v for k, v in vars(rated).items() if k != "draw"}
    given |= self.train  # a `draw` in it is refused by `call`
    found = errors.call(InputConfig, f"{where}.train", given, draw=rated.draw)
    if found.batch_per_device:
      raise UserError(f"{where}.train.batch_per_device: give batch_size here")
    data = ("source", "source_kw", "data_dir", "split", "folds")
    if all(getattr(found, k) == getattr(rated, k) for k in data):
      raise UserError(
        f"{where}.train names the recordings that are rated; a probe learns "
        "from others: give it another split, folds or source"
      )
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
  """`config.log`: a line every so many steps; TensorBoard events or not."""

  every_steps: errors.Count = 50
  tensorboard: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
  """`config.checkpoint`: how often, and how many of the newest to keep."""

  every_epochs: errors.NotNegative = 1.0
  every_steps: errors.CountOrZero = 0
  keep: errors.Count = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlateauConfig:
  """`config.plateau`: the rate falls when a metric stops getting better.

  Names and meanings are those of torch's ReduceLROnPlateau. `metric` is of an
  evaluation, such as "val/accuracy"; empty is off.
  """

  # Not a schedule, which is a function of the step, known beforehand: that is
  # why it has a section of its own.
  metric: str = ""
  mode: Literal["max", "min"] = "max"
  factor: Shrinking = 0.5
  patience: errors.CountOrZero = 2
  threshold: errors.BelowOne = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageConfig:
  """`config.average`: weights to average, by epoch, from 1; 0 and 0 is off."""

  first_epoch: errors.CountOrZero = 0
  last_epoch: errors.CountOrZero = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """A whole config; each Section is of the function that takes it."""

  task: str  # a name in `tasks.TASKS`
  model: Section
  input: InputConfig
  schedule: Section  # `engine.optim.make_schedule`
  seed: Seed = 0  # of initialisation, order and every draw
  accumulate: errors.Count = 1  # micro-batches in which a batch is computed
  # Devices over which parameters, moments and a teacher are split; 1 keeps them
  # whole on each device.
  fsdp: int = 1
  epochs: errors.NotNegative = 0.0  # length of the run, as one of these two
  steps: errors.CountOrZero = 0
  task_kw: Section = dataclasses.field(default_factory=dict)
  init_from: str = ""  # a path, a published checkpoint or a Hugging Face name
  init_kw: Section = dataclasses.field(default_factory=dict)  # `load.Options`
  optim: Section = dataclasses.field(default_factory=dict)  # `make_optimizer`
  evals: Mapping[str, EvalConfig] = dataclasses.field(default_factory=dict)
  best: str = ""  # metric that decides on the best checkpoint, as "val/mAP"
  best_is_lowest: bool = False
  ensemble_predictions: bool = False  # rate the mean scores of evaluations too
  plateau: PlateauConfig = PlateauConfig()
  average: AverageConfig = AverageConfig()
  log: LogConfig = LogConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  # The plain config with the user's keys, and whole batches: what is written
  # down of a run.
  given: Section = dataclasses.field(default_factory=dict)


_SECTIONS = {
  "plateau": PlateauConfig,
  "average": AverageConfig,
  "log": LogConfig,
  "checkpoint": CheckpointConfig,
}


def parse(config: Mapping[str, Any], num_devices: int = 1) -> RunConfig:
  """Checks a config, a ConfigDict or a dict, and turns it into dataclasses.

  A `batch_per_device` becomes a `batch_size` by `num_devices`, which counts
  those of all processes.

  Raises:
    UserError: an unknown, missing or wrongly typed key, with the nearest known
      one, or values that make no sense.
  """
  given = to_plain(config)
  sections = dict(given)
  for name in _SECTIONS.keys() & given.keys():
    sections[name] = _section(_SECTIONS[name], given[name], f"config.{name}")
  if "input" in given:
    sections["input"], given["input"] = _with_whole_batch(
      InputConfig, given["input"], "config.input", num_devices
    )
  if isinstance(given.get("evals"), dict):
    sections["evals"], given["evals"] = {}, dict(given["evals"])
    for name, value in given["evals"].items():
      sections["evals"][name], given["evals"][name] = _with_whole_batch(
        EvalConfig, value, f"config.evals.{name}", num_devices
      )
  # The signature of each section is its schema: there is no other description.
  run = errors.call(RunConfig, "config", sections, given=given)
  if (run.epochs > 0) + (run.steps > 0) != 1:
    raise UserError(
      "give the length of the run once, as config.epochs or config.steps (the "
      f"other 0); got epochs={run.epochs}, steps={run.steps}"
    )
  first, last = run.average.first_epoch, run.average.last_epoch
  if (first, last) != (0, 0) and not 1 <= first <= last:
    raise UserError(
      f"config.average: first_epoch={first} and last_epoch={last} are no "
      "range; epochs count from 1"
    )
  for name, part in run.evals.items():
    if not part.probe and (part.train or part.probe_kw):
      raise UserError(
        f"config.evals.{name}: train and probe_kw belong to a probe, such as "
        "probe='knn'; there is none"
      )
  return run


def _section(kind, value, where):
  if not isinstance(value, dict):
    raise UserError(f"{where}={value!r} is not a section with keys")
  return errors.call(kind, where, value)


def _with_whole_batch(kind, plain, where, num_devices):
  """(section, the same as plain), with the batch of all devices together."""
  section = _section(kind, plain, where)
  size, each = section.batch_size, section.batch_per_device
  if (size and each) or (size == 0 and not each):
    raise UserError(
      f"{where}.batch_size={size} and {where}.batch_per_device={each}: give "
      "one of them, and 0 for the other"
    )
  # The size of a batch is part of the training, the number of devices is not: a
  # batch that grew with the machines would train something else after a move.
  plain = {k: v for k, v in plain.items() if k != "batch_per_device"}
  if each:
    plain["batch_size"] = each * num_devices
  return _section(kind, plain, where), plain


def interval(
  section: CheckpointConfig | EvalConfig, steps_per_epoch: float
) -> int:
  """Steps between its events; 0 means never."""
  if section.every_steps or not section.every_epochs:
    return section.every_steps
  return max(1, first_step(section.every_epochs, steps_per_epoch))


def to_plain(value: Any) -> Any:
  """ConfigDicts and tuples of them -> dicts and tuples."""
  if hasattr(value, "to_dict"):
    value = value.to_dict()
  if isinstance(value, Mapping):
    return {k: to_plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(to_plain(v) for v in value)
  return value


# A run may be continued with other values of these. Most change what is seen of
# a training, not the training. The data may move, since its fingerprint is
# compared. `fsdp` and `model.remat` change roundings alone, but `model.scan`
# draws other paths to drop.
_FREE = {
  "log",
  "checkpoint",
  "evals",
  "best",
  "best_is_lowest",
  "average",
  "ensemble_predictions",
  "input.data_dir",
  "fsdp",
  "model.remat",
}


def differences(
  saved: Mapping[str, Any], config: RunConfig, length_matters: bool
) -> tuple[list[str], list[str]]:
  """What changed since a config was saved: (of the training, of the rest).

  `length_matters` is as in `engine.task.Task`.
  """
  try:
    old = _flat(dataclasses.asdict(parse(saved)))
  except UserError:  # of another version: compare it as it is
    old = _flat(to_plain(saved))
  new, free = _flat(dataclasses.asdict(config)), set(_FREE)
  if not (
    length_matters
    or new.get("schedule.decay") == "cosine"
    or new.get("optim.final_weight_decay") is not None
  ):
    free |= {"epochs", "steps"}
  # An evaluation that a plateau looks at decides on the learning rate.
  plateau = f"evals.{config.plateau.metric.split('/')[0]}."
  of_training: list[str] = []
  of_rest: list[str] = []
  for key in sorted(old.keys() | new.keys()):
    if key.startswith("given.") or old.get(key) == new.get(key):
      continue
    is_free = key in free or key.split(".")[0] in free
    if key.startswith(plateau) and not key.endswith(".data_dir"):
      is_free = False
    line = f"config.{key} was {old.get(key)!r}, is {new.get(key)!r}"
    (of_rest if is_free else of_training).append(line)
  return of_training, of_rest


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  """{"input.batch_size": ...}, with lists for tuples as JSON has them."""
  return traverse_util.flatten_dict(json.loads(json.dumps(tree)), sep=".")
