"""The folder of a run: what stands in it beside checkpoints and metrics.

config.json, model.json, init_from.txt, versions.json, parameters.txt,
unreadable.txt, <eval>_classes.csv, average/.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import pathlib
import platform
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from astjax.engine import sharding
from astjax.errors import UserError, file_error, warn
from astjax.run.config import RunConfig, differences
from astjax.run.job import Job
from astjax.types import Params
from astjax.weights import files
from astjax.weights.info import MODEL, ModelInfo

# How late a network file system may show a new file to others.
_SHARED_SECONDS = 20.0
AVERAGE = "average"

_PACKAGES = {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"}
_PACKAGES |= {"tensorflow", "tensorflow-cpu", "soundfile", "soxr"}


def prepare(path: str | os.PathLike) -> pathlib.Path:
  """Makes the folder, or says in one line why it cannot be used."""
  if not str(path):
    raise UserError("no work directory: give one with --workdir=FOLDER")
  workdir = pathlib.Path(path).expanduser().absolute()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as e:
    text = f"cannot write to the work directory {workdir}: {e.strerror}"
    raise file_error(e, f"{text}; expected a folder") from None
  return workdir


def claim(workdir: pathlib.Path, job: Job) -> list[str]:
  """Makes the folder this run's, or finds that it is; see `check_config`."""
  data, length_matters = job.train.data(), job.task.length_matters
  notices = check_config(workdir, job.config, data, length_matters)
  if jax.process_count() > 1:
    # All have read config.json after this, so it may be written.
    multihost_utils.sync_global_devices("config_compared")
    check_shared(workdir)
  # Before anything else is in the folder: a run that is killed right away must
  # still be known.
  if jax.process_index() == 0:
    write_config(workdir, job.config, data)
  return [f"note: {notice}" for notice in notices]


def check_shared(workdir: pathlib.Path) -> None:
  """A UserError if the processes see several folders under this name."""
  # Each would save its part of the checkpoints on a disk of its own.
  path = workdir / f".shared-{sharding.from_process_0(secrets.token_hex(8))}"
  if jax.process_index() == 0:
    path.touch()
  multihost_utils.sync_global_devices("shared_folder")
  give_up = time.monotonic() + _SHARED_SECONDS
  while not (is_there := path.exists()) and time.monotonic() < give_up:
    time.sleep(0.5)
  seen = multihost_utils.process_allgather(np.bool_(is_there))
  if jax.process_index() == 0:
    path.unlink()
  if not seen.all():
    raise UserError(
      f"the work directory {workdir} of process {int(np.argmin(seen))} is not "
      "that of process 0; expected one on a disk that all of them share"
    )


def check_config(
  workdir: pathlib.Path,
  config: RunConfig,
  data: Mapping[str, Any],
  length_matters: bool = False,
) -> list[str]:
  """Lines about what differs from the run here that is no other training.

  `data` is that of the training, from `Stream.data`.

  Raises:
    UserError: the folder belongs to another training.
  """
  path = workdir / "config.json"
  if not path.exists():
    if _has_checkpoints(workdir):
      raise UserError(
        f"{workdir} has checkpoints but no config.json; use a new --workdir"
      )
    return []
  try:
    saved = json.loads(path.read_text(encoding="utf-8"))
    old_config, old_data = saved["config"], saved["data"]
  except (ValueError, KeyError, TypeError):
    raise UserError(f"{path} is damaged; use a new --workdir") from None
  of_training, of_rest = differences(old_config, config, length_matters)
  # A run that ended before its first line of metrics has left nothing to lose.
  is_unused = not (workdir / "metrics.jsonl").exists()
  if is_unused and not _has_checkpoints(workdir):
    return []
  if of_training:
    more = f" (and {len(of_training) - 3} more)" if len(of_training) > 3 else ""
    raise UserError(
      f"the work directory {workdir} belongs to another training: "
      f"{'; '.join(of_training[:3])}{more}; use a new --workdir"
    )
  if old_data != data:
    raise UserError(
      f"the training data is not that of the run in {workdir}: "
      f"{old_data} then, {dict(data)} now; use a new --workdir"
    )
  return of_rest


def _has_checkpoints(workdir):
  saved = workdir / "checkpoints"
  return saved.exists() and any(p.name[:1].isdigit() for p in saved.iterdir())


def write_config(
  workdir: pathlib.Path, config: RunConfig, data: Mapping[str, Any]
) -> None:
  """config.json: what this folder is the run of."""
  value = {"config": config.given, "data": data}
  files.write_json(workdir / "config.json", value)


def write_versions(workdir: pathlib.Path) -> None:
  """versions.json: what the newest start of the run ran on."""
  versions: dict[str, Any] = {"python": platform.python_version()}
  for package in importlib.metadata.distributions():
    if (name := package.name.lower().replace("_", "-")) in _PACKAGES:
      versions[name] = package.version
  versions |= {
    "platform": platform.platform(),
    "devices": sorted({d.device_kind for d in jax.devices()}),
    "num_devices": jax.device_count(),
    "num_processes": jax.process_count(),
  }
  files.write_json(workdir / "versions.json", versions)


def write_start(
  workdir: pathlib.Path, info: ModelInfo, params: Params, origin: Sequence[str]
) -> None:
  """model.json, parameters.txt and init_from.txt, before the first step."""
  # What turns this run's weights into a model, anywhere.
  files.write_json(workdir / MODEL, info.to_json())
  leaves = traverse_util.flatten_dict(params, sep="/")
  rows = [(k, str(tuple(x.shape)), f"{x.size:,}") for k, x in leaves.items()]
  rows.append(("total", "", f"{sum(x.size for x in leaves.values()):,}"))
  a, b, c = (max(map(len, column)) for column in zip(*rows, strict=True))
  table = [f"{n:<{a}}  {shape:<{b}}  {size:>{c}}" for n, shape, size in rows]
  (workdir / "parameters.txt").write_text("\n".join(table) + "\n")
  if origin:
    text = "\n".join(origin) + "\n"
    (workdir / "init_from.txt").write_text(text, encoding="utf-8")


def write_unreadable(
  workdir: pathlib.Path, reports: Mapping[str, Sequence[tuple[str, str]]]
) -> None:
  """Warns of the recordings {split: [(name, reason)]}; lists them in a file."""
  path = workdir / "unreadable.txt"
  found = [(k, *row) for k, rows in reports.items() for row in rows]
  lines = ["\t".join(row) + "\n" for row in found]
  if path.exists():  # what this run met before it was resumed
    old = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = sorted({*old, *lines})
  text = "".join(lines)
  path.write_bytes(text.encode("utf-8", errors="backslashreplace"))
  _, name, reason = found[-1]
  warn(
    f"{len(found)} recording(s) could not be read so far, such as {name}: "
    f"{reason}; replaced in training, left out of evaluations, listed in "
    "unreadable.txt"
  )


def write_per_class(
  workdir: pathlib.Path,
  name: str,
  class_names: Sequence[str],
  columns: Mapping[str, Sequence[Any]],
) -> None:
  """<name>_classes.csv: one line per class."""
  path = workdir / f"{name}_classes.csv"
  with open(path, "w", newline="", encoding="utf-8") as f:
    writer = csv.writer(f)
    writer.writerow(["class", *columns])
    writer.writerows(zip(class_names, *columns.values(), strict=True))
