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
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from astjax.engine import sharding
from astjax.errors import UserError, file_error
from astjax.run.config import RunConfig, differences
from astjax.types import Params
from astjax.weights import files
from astjax.weights.info import MODEL, ModelInfo, save_model

# How late a network file system may show a new file to others.
_SHARED_SECONDS = 20.0
AVERAGE = "average"

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_PACKAGES += ("tensorflow", "tensorflow-cpu", "soundfile", "soxr")


def prepare(path: str | os.PathLike) -> pathlib.Path:
  """Makes the folder, or says in one line why it cannot be used."""
  if not str(path):
    raise UserError("no work directory: give one with --workdir=FOLDER")
  workdir = pathlib.Path(path).expanduser().absolute()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except (FileExistsError, NotADirectoryError):
    raise UserError(
      f"the work directory {workdir} is, or lies below, a file; expected a "
      "folder"
    ) from None
  except OSError as e:
    raise file_error(
      e, f"cannot write to the work directory {workdir}: {e.strerror}"
    ) from None
  return workdir


def claim(
  workdir: pathlib.Path,
  config: RunConfig,
  data: Mapping[str, Any],
  *,
  length_matters: bool,
) -> list[str]:
  """Makes the folder this run's, or finds that it is; see `check_config`."""
  notices = check_config(workdir, config, data, length_matters=length_matters)
  if jax.process_count() > 1:
    # All have read config.json by then, so it may be written.
    multihost_utils.sync_global_devices("config_compared")
    check_shared(workdir)
  # Before anything else is in the folder: a run that is killed right away must
  # still be known.
  if jax.process_index() == 0:
    write_config(workdir, config, data)
  return notices


def check_shared(workdir: pathlib.Path) -> None:
  """Looks whether several processes see one folder under this name.

  Raises:
    UserError: one of them does not see what process 0 has put there.
  """
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
      f"the work directory {workdir} of process {int(np.argmin(seen))} is "
      "another folder than that of process 0; expected one on a disk that all "
      "of them share"
    )


def check_config(
  workdir: pathlib.Path,
  config: RunConfig,
  data: Mapping[str, Any],
  *,
  length_matters: bool = False,
) -> list[str]:
  """Compares with the config that this folder belongs to.

  A run that ended before its first line of metrics has left nothing to lose:
  its folder is free for another one.

  Args:
    workdir: the folder.
    config: of this run.
    data: of the training, from `Stream.data`.
    length_matters: as in `engine.task.Task`.

  Returns:
    Notices of changed log, evaluation and checkpoint settings.

  Raises:
    UserError: the folder belongs to another training.
  """
  path = workdir / "config.json"
  if not path.exists():
    saved = workdir / "checkpoints"
    if saved.exists() and any(p.name.isdigit() for p in saved.iterdir()):
      raise UserError(
        f"{workdir} has checkpoints but no config.json, so it is not known "
        "what they are of; use a new --workdir"
      )
    return []
  try:
    saved = json.loads(path.read_text(encoding="utf-8"))
    old_config, old_data = saved["config"], saved["data"]
  except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
    raise UserError(
      f"{path} is damaged, so it is not known what the run in {workdir} is; "
      "use a new --workdir"
    ) from None
  of_training, of_rest = differences(
    old_config, config, length_matters=length_matters
  )
  if (of_training or old_data != data) and _is_unused(workdir):
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


def _is_unused(workdir):
  saved = workdir / "checkpoints"
  steps = saved.iterdir() if saved.exists() else ()
  log = workdir / "metrics.jsonl"
  return not log.exists() and not any(p.name[:1].isdigit() for p in steps)


def write_config(
  workdir: pathlib.Path, config: RunConfig, data: Mapping[str, Any]
) -> None:
  """config.json: what this folder is the run of."""
  text = json.dumps({"config": config.given, "data": data}, indent=2)
  with files.written_whole(workdir / "config.json") as temporary:
    temporary.write_text(text + "\n", encoding="utf-8")


def write_versions(workdir: pathlib.Path) -> None:
  """versions.json: what the newest start of the run ran on."""
  versions = {"python": platform.python_version()}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  versions |= {
    "platform": platform.platform(),
    "devices": sorted({d.device_kind for d in jax.devices()}),
    "num_devices": jax.device_count(),
    "num_processes": jax.process_count(),
  }
  files.write_json(workdir / "versions.json", versions)


def write_model(workdir: pathlib.Path, info: Mapping[str, Any]) -> None:
  """model.json: what turns this run's weights into a model, anywhere."""
  files.write_json(workdir / MODEL, info)


def write_average(
  workdir: pathlib.Path, info: ModelInfo, params: Params
) -> None:
  """average/: the averaged weights as a model, in place of an older one."""
  shutil.rmtree(workdir / AVERAGE, ignore_errors=True)
  save_model(workdir / AVERAGE, info, params)


def write_init_from(workdir: pathlib.Path, lines: Sequence[str]) -> None:
  """init_from.txt: what the run started from."""
  text = "\n".join(lines) + "\n"
  (workdir / "init_from.txt").write_text(text, encoding="utf-8")


def write_parameters(workdir: pathlib.Path, params: Params) -> int:
  """parameters.txt, a table of names and shapes; returns their number."""
  leaves = traverse_util.flatten_dict(params, sep="/")
  rows = [(k, str(tuple(x.shape)), f"{x.size:,}") for k, x in leaves.items()]
  total = sum(x.size for x in leaves.values())
  rows.append(("total", "", f"{total:,}"))
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  lines = [
    f"{n:<{widths[0]}}  {s:<{widths[1]}}  {c:>{widths[2]}}" for n, s, c in rows
  ]
  (workdir / "parameters.txt").write_text("\n".join(lines) + "\n")
  return total


def write_unreadable(
  workdir: pathlib.Path, reports: Mapping[str, Sequence[tuple[str, str]]]
) -> None:
  """unreadable.txt: one line per recording, with the split and the reason."""
  path = workdir / "unreadable.txt"
  lines = [
    f"{split}\t{name}\t{reason}\n"
    for split, rows in reports.items()
    for name, reason in rows
  ]
  if path.exists():  # what this run met before it was resumed
    old = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = sorted({*old, *lines})
  text = "".join(lines)
  path.write_bytes(text.encode("utf-8", errors="backslashreplace"))


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
