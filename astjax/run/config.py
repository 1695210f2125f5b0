"""The sections of a config: names, types and defaults, checked in one place.

A config file gives an `ml_collections.ConfigDict`; here it ends. Below,
everything takes plain keyword arguments. Sections whose keys belong to a
function (`model`, `task_kw`, `optim`, `schedule`, `input.source_kw`) are
checked against that function's signature when it is called.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from flax import traverse_util

from astjax import errors
from astjax.errors import (
  BelowOne,
  Count,
  CountOrZero,
  NotNegative,
  UserError,
  Within,
)

Section = Mapping[str, Any]
Seed = Annotated[int, Within(lambda n: 0 <= n < 2**32, "in 0 ... 2^32 - 1")]
Shrinking = Annotated[float, Within(lambda x: 0 < x < 1, "in (0, 1)")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputConfig:
  """`config.input`.

  Attributes:
    source: a name in `data.sources.SOURCES`.
    source_kw: its further arguments.
    data_dir: folder of the recordings.
    split: which split; empty takes all.
    folds: which folds; empty takes all.
    batch_size: B, over all devices and processes; or
    batch_per_device: of each of them; `parse` makes it a batch size.
    on_host: recipe of host ops.
    on_device: recipe of device ops.
    draw: a name in `data.order.DRAWS`: "shuffle" shows every example once per
      epoch, "balanced" draws rare classes as often as frequent ones.
  """

  source: str
  on_host: str
  on_device: str
  batch_size: CountOrZero = 0
  batch_per_device: CountOrZero = 0
  source_kw: Section = dataclasses.field(default_factory=dict)
  data_dir: str = ""
  split: str = ""
  folds: tuple[str | int, ...] = ()
  draw: str = "shuffle"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """`config.evals.<name>`: what is not given is as in `config.input`.

  Attributes:
    on_device: recipe without augmentation; always given.
    every_epochs: how often; 0 with every_steps 0 means at the end only.
    every_steps: the same in steps.
    of_best: once, at the end, on the best checkpoint instead of the last: for a
      test set that must not be looked at before.
    probe: a name in `probes.PROBES`: how well the task's features tell the
      labels apart, instead of the task's own metrics.
    probe_kw: its arguments.
    train: the labelled recordings that the probe learns from: what differs from
      those that are rated, such as {"split": "train"}.
  """

  on_device: str
  source: str | None = None
  source_kw: Section | None = None
  data_dir: str | None = None
  split: str | None = None
  folds: tuple[str | int, ...] | None = None
  batch_size: CountOrZero | None = None
  batch_per_device: CountOrZero | None = None
  on_host: str | None = None
  every_epochs: NotNegative = 0.0
  every_steps: CountOrZero = 0
  of_best: bool = False
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
    rated = self.input(training)
    given = {k: v for k, v in vars(rated).items() if k != "draw"} | self.train
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

  every_steps: Count = 50
  tensorboard: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
  """`config.checkpoint`: how often, and how many of the newest to keep."""

  every_epochs: NotNegative = 1.0
  every_steps: CountOrZero = 0
  keep: Count = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlateauConfig:
  """`config.plateau`: the rate falls when a metric stops getting better.

  The names and their meaning are those of torch's ReduceLROnPlateau.

  Attributes:
    metric: of an evaluation, such as "val/accuracy"; empty is off.
    mode: "min" for losses.
    factor: what the rate is multiplied by.
    patience: evaluations without improvement that change nothing yet.
    threshold: what counts as an improvement, relative to the best so far.
  """

  metric: str = ""
  mode: Literal["max", "min"] = "max"
  factor: Shrinking = 0.5
  patience: CountOrZero = 2
  threshold: BelowOne = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageConfig:
  """`config.average`: weights to average, by epoch, from 1; 0 and 0 is off."""

  first_epoch: CountOrZero = 0
  last_epoch: CountOrZero = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """A whole config.

  Attributes:
    seed: of initialisation, order and every draw.
    accumulate: number of micro-batches in which a batch is computed; one
      update of the weights for all of them.
    fsdp: number of devices over which parameters, moments and a teacher are
      split; 1 keeps them whole on each device.
    epochs: length of the run; 0 uses `steps`.
    steps: length of the run in steps; 0 uses `epochs`.
    task: a name in `tasks.TASKS`; `task_kw` its arguments, `model` the model's.
    init_from: weights to start from: a path, a published checkpoint or a
      Hugging Face name; empty starts at random.
    init_kw: the fields of `pretrained.Options`.
    schedule: arguments of `optim.make_schedule`.
    optim: arguments of `optim.make_optimizer`.
    evals: {name: EvalConfig}.
    best: metric that decides on the best checkpoint, such as "val/mAP".
    best_is_lowest: True for losses.
    ensemble_predictions: also rate the mean of the scores over evaluations.
    given: the plain config with the keys that the user gave and whole batches:
      what is written down of a run. The size of a batch is part of the
      training, the number of devices is not.
  """

  task: str
  model: Section
  input: InputConfig
  schedule: Section
  seed: Seed = 0
  accumulate: Count = 1
  fsdp: int = 1
  epochs: NotNegative = 0.0
  steps: CountOrZero = 0
  task_kw: Section = dataclasses.field(default_factory=dict)
  init_from: str = ""
  init_kw: Section = dataclasses.field(default_factory=dict)
  optim: Section = dataclasses.field(default_factory=dict)
  evals: Mapping[str, EvalConfig] = dataclasses.field(default_factory=dict)
  best: str = ""
  best_is_lowest: bool = False
  ensemble_predictions: bool = False
  plateau: PlateauConfig = PlateauConfig()
  average: AverageConfig = AverageConfig()
  log: LogConfig = LogConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  given: Section = dataclasses.field(default_factory=dict)


def parse(config: Mapping[str, Any], num_devices: int = 1) -> RunConfig:
  """Checks a config and turns it into dataclasses.

  Args:
    config: the user's, a ConfigDict or a dict.
    num_devices: in all processes together; a `batch_per_device` becomes a
      `batch_size` by it.

  Raises:
    UserError: an unknown, missing or wrongly typed key, with the nearest known
      one, or values that make no sense.
  """
  given = to_plain(config)
  sections = dict(given)
  for name, kind in (
    ("plateau", PlateauConfig),
    ("average", AverageConfig),
    ("log", LogConfig),
    ("checkpoint", CheckpointConfig),
  ):
    if name in given:
      sections[name] = _section(kind, given[name], f"config.{name}")
  if "input" in given:
    sections["input"], given["input"] = _with_whole_batch(
      InputConfig, given["input"], "config.input", num_devices
    )
  if isinstance(given.get("evals"), dict):
    evals = {
      name: _with_whole_batch(
        EvalConfig, value, f"config.evals.{name}", num_devices
      )
      for name, value in given["evals"].items()
    }
    sections["evals"] = {name: section for name, (section, _) in evals.items()}
    given["evals"] = {name: plain for name, (_, plain) in evals.items()}
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
    if bool(part.probe) != bool(part.train) or (
      part.probe_kw and not part.probe
    ):
      raise UserError(
        f"config.evals.{name}: a probe needs both probe, such as 'knn', and "
        "train, the labelled recordings to learn from, such as {'split': "
        f"'train'}}; got probe={part.probe!r}, train={dict(part.train)}, "
        f"probe_kw={dict(part.probe_kw)}"
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
  if size and each:
    raise UserError(
      f"{where}.batch_size={size} and {where}.batch_per_device={each} are "
      "both given: set one of them to 0"
    )
  if size == 0 and not each:
    raise UserError(
      f"{where}.batch_size=0 must be at least 1, or stand beside a "
      "batch_per_device"
    )
  plain = {k: v for k, v in plain.items() if k != "batch_per_device"}
  if each:
    plain["batch_size"] = each * num_devices
  return _section(kind, plain, where), plain


def interval(
  every_epochs: float, every_steps: int, steps_per_epoch: float
) -> int:
  """Steps between events; 0 means never."""
  if every_steps:
    return every_steps
  steps = math.ceil(every_epochs * steps_per_epoch - 1e-6)
  return max(1, steps) if every_epochs > 0 else 0


def to_plain(value: Any) -> Any:
  """ConfigDicts and tuples of them -> dicts and tuples."""
  if hasattr(value, "to_dict"):
    value = value.to_dict()
  if isinstance(value, Mapping):
    return {k: to_plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(to_plain(v) for v in value)
  return value


# A run may be continued with other values of these: they change what is seen
# of a training, not the training.
_FREE = (
  "log",
  "checkpoint",
  "evals",
  "best",
  "best_is_lowest",
  "average",
  "ensemble_predictions",
)


def differences(
  old: Mapping[str, Any], new: RunConfig, *, length_matters: bool
) -> tuple[list[str], list[str]]:
  """What changed between two configs: (of the training, of the rest).

  Where and how it is computed may change (`fsdp`, `model.remat`): that is no
  more than a rounding (`model.scan` may not: it draws other paths to drop).
  `input.data_dir` may change (the data is compared by its fingerprint), and the
  length of the run may, unless a schedule depends on it. An evaluation that a
  plateau looks at is part of the training.

  Args:
    old: the plain config of the run so far.
    new: the config that is to go on.
    length_matters: as in `engine.task.Task`.
  """
  try:
    old = _plain(parse(old))
  except UserError:  # of another version: compare it as it is
    old = to_plain(old)
  old, new = _flat(old), _flat(_plain(new))
  free = [*_FREE, "input.data_dir", "fsdp", "model.remat"]
  if not (
    length_matters
    or new.get("schedule.decay") == "cosine"
    or new.get("optim.final_weight_decay") is not None
  ):
    free += ["epochs", "steps"]
  # "evals.val." if the plateau's metric is of val; else nothing begins so.
  decides = f"evals.{new.get('plateau.metric', '').split('/')[0] or ' '}."
  of_training, of_rest = [], []
  for key in sorted(old.keys() | new.keys()):
    if old.get(key) == new.get(key):
      continue
    line = f"config.{key} was {old.get(key)!r}, is {new.get(key)!r}"
    is_free = key in free or key.split(".")[0] in free
    if key.startswith(decides) and not key.endswith(".data_dir"):
      is_free = False
    (of_rest if is_free else of_training).append(line)
  return of_training, of_rest


def _plain(run: RunConfig) -> dict[str, Any]:
  """With the defaults of the sections written out."""
  return {k: v for k, v in dataclasses.asdict(run).items() if k != "given"}


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  """{"input.batch_size": ...}, with lists for tuples as JSON has them."""
  tree = json.loads(json.dumps(tree))
  return traverse_util.flatten_dict(tree, sep=".")
