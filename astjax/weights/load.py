"""Weights from anywhere, and the start of a model from them.

Three questions stay apart: reading a file (`files`, `pth`), renaming
(`convert`, `tables`) and adapting values (`adapt`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from astjax import models
from astjax.errors import UserError
from astjax.models import ast
from astjax.models.heads import Head
from astjax.types import Params
from astjax.weights import (
  adapt,
  convert,
  fetch,
  files,
  hugging_face,
  orbax_params,
  registry,
)
from astjax.weights import info as saved
from astjax.weights.identify import identify
from astjax.weights.info import PARAMS, Loaded, ModelInfo, Options


def load(source: str | os.PathLike, options: Options | None = None) -> Loaded:
  """Reads weights, strictly: every name has its place, none is missing.

  Args:
    source: a path (`.safetensors`, `.npz`, `.pth`, a folder of Hugging Face, a
      model or a work directory of astjax), a key of `registry.CHECKPOINTS`, or
      a Hugging Face name.
  """
  source, options = os.fspath(source), options or Options()
  path = fetch.fetch(source)
  in_folder = path.name in (PARAMS, *files.HF_WEIGHTS)
  if in_folder and (path.parent / "config.json").is_file():
    path = path.parent
  try:
    if path.is_file():
      return _from_file(path, source, options)
    if (path / PARAMS).exists():
      return _from_native(path, options)
    if (path / "checkpoints").is_dir():
      return _from_workdir(path, options)
    if (path / "config.json").is_file():
      return _from_hugging_face(path, source)
    raise UserError(
      f"neither a model of astjax ({PARAMS}), nor a run of it (checkpoints/), "
      "nor a folder of Hugging Face (config.json)"
    )
  except UserError as e:
    text = str(e)
    raise UserError(text if source in text else f"{source}: {text}") from None


def _from_file(path: pathlib.Path, source: str, options: Options) -> Loaded:
  names, digest = files.read(path), files.sha256(path)
  known = registry.CHECKPOINTS.get(source) or registry.of_file(path.name)
  notes: tuple[str, ...] = ()
  if known and not digest.startswith(known.sha256):
    # Asked for by its name it has to be that file; a file of one's own may have
    # any name.
    if source in registry.CHECKPOINTS:
      raise UserError(
        f"{path} is not the published file: its SHA-256 begins with "
        f"{digest[:8]}, expected {known.sha256}; remove it to fetch it again"
      )
    known = None
    notes = ("it has the name of a published file, but not its SHA-256",)
  own = _metadata(path)
  loaded = identify(
    names, options, digest=digest, file_name=path.name, known=known, **own
  )
  return _noted(loaded, notes, None if own else path.name, known)


def _metadata(path: pathlib.Path) -> dict[str, Any]:
  """What `convert_weights` writes into a file of official names."""
  metadata = files.metadata(path)
  if "astjax" not in metadata:
    return {}
  try:
    value = json.loads(metadata["astjax"])
    rows, columns = map(int, value["grid"])
    info = ModelInfo.from_json(value["info"], "its metadata")
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(f"its metadata is damaged: {e}") from None
  return {"info": info, "grid": (rows, columns)}


def _noted(
  loaded: Loaded,
  notes: Iterable[str],
  name: str | None,
  known: registry.Published | None,
) -> Loaded:
  """With further notes, and what a name and the registry tell of its origin."""
  info = loaded.info
  if name:
    what = f"{known.what}, " if known else ""
    info = dataclasses.replace(info, origin=f"{what}{loaded.kind} ({name})")
  if name and known:
    told = {k: getattr(known, k) for k in ("licence", "expected", "reported")}
    info = dataclasses.replace(info, **told)
  notes = (*loaded.notes, *notes)
  return dataclasses.replace(loaded, info=info, notes=notes)


def _from_hugging_face(path: pathlib.Path, source: str) -> Loaded:
  known = registry.of_mirror(source)
  info, notes = hugging_face.read_config(path, known.scores if known else None)
  # Its files tell all of it, so no option can say anything else.
  loaded = identify(
    files.read_folder(path),
    Options(),
    digest=files.sha256(files.weight_files(path)[0]),
    file_name=path.name,
    known=known,
    info=info,
  )
  return _noted(loaded, notes, source if known else path.name, known)


def _from_native(path: pathlib.Path, options: Options) -> Loaded:
  info, flat = saved.read_model(path)
  if options.network != "teacher" and _has_teacher(info):
    raise UserError(f"a saved model has one network, not a {options.network}")
  return _compared("model of astjax", info, flat, files.sha256(path / PARAMS))


def _from_workdir(path: pathlib.Path, options: Options) -> Loaded:
  """The best checkpoint of a run, else the newest."""
  info = saved.read_info(path / saved.MODEL)
  # The original fine-tunes the teacher, which lies in the state of its task.
  is_teacher = _has_teacher(info) and options.network == "teacher"
  step, flat = orbax_params.read_params(
    path, "task_state/teacher" if is_teacher else "params"
  )
  # Of the arrays, whatever files orbax keeps them in.
  digest = hashlib.sha256()
  for array in flat.values():
    digest.update(orbax_params.raw(array))
  origin = f"{info.origin}, step {step}"
  origin += f", {options.network}" if _has_teacher(info) else ""
  info = dataclasses.replace(info, origin=origin)
  return _compared("run of astjax", info, flat, digest.hexdigest())


def _has_teacher(info: ModelInfo) -> bool:
  return info.pretraining is not None and info.pretraining.teacher


def _compared(kind, info: ModelInfo, flat, digest: str) -> Loaded:
  """Our own weights, with exactly the arrays that their description says."""
  dropped, notes = [], []
  if info.objective and not info.pretraining:
    # Whoever made it added an objective to `models.OBJECTIVES`; a fine-tuning
    # does not need it.
    name = info.objective.get("name")
    what = f"its objective {name!r} is not known here"
    notes = [f"{what}: the backbone alone is taken"]
    info = dataclasses.replace(info, objective={}, head=None, class_names=())
    dropped = [k for k in flat if not k.startswith("backbone/")]
    flat = {k: v for k, v in flat.items() if k not in dropped}
  if convert.GRID not in flat:
    raise UserError(f"- {convert.GRID} is not in the file")
  expected = info.expected_params(flat[convert.GRID].shape[:2])
  params = convert.flatten(convert.check(flat, expected))
  info = dataclasses.replace(info, model=info.backbone().describe())
  return Loaded(kind, info, params, digest, tuple(dropped), tuple(notes))


def start(
  loaded: Loaded,
  fresh_params: Params,
  *,
  backbone: ast.Backbone,
  head: Head | None = None,
  class_names: tuple[str, ...] = (),
  objective: Mapping[str, Any] | None = None,
  options: Options | None = None,
) -> tuple[Params, adapt.Report]:
  """Parameters of a model that starts from loaded weights.

  Backbone, head and class names are the model's, to compare what shapes do not
  show; the last two where the weights' classifier is taken. `objective` is that
  of its `ModelInfo`, if it is a pre-training.
  """
  options = options or Options()
  have, want = dict(loaded.info.model), backbone.describe()
  if options.rows == "time":
    if not loaded.is_image:
      raise UserError("rows='time' is for images, this one is of spectrograms")
    have["patch_size"] = tuple(have["patch_size"])[::-1]
  # The number of heads shows in no shape; the others would end in a long list.
  for name in ("width", "depth", "num_heads", "patch_size"):
    there, here = have.get(name), want.get(name)
    if there != here:
      what = f"the checkpoint ({loaded.info.origin})"
      raise UserError(f"{what} has {name} {there}, the model {here}")
  flat = {k: np.asarray(v) for k, v in convert.flatten(fresh_params).items()}
  params, report = adapt.fit(
    loaded.params,
    flat,
    source_prefix=have.get("prefix", ()),
    model_prefix=want.get("prefix", ()),
    rows=options.rows,
    fresh=options.fresh,
    resize=_resize(loaded.info, objective, options),
  )
  report.dropped |= dict.fromkeys(loaded.dropped, "not used by the model")
  report.notes += loaded.notes
  _compare_epsilon(report, "layer norms have", have, want)
  source = loaded.info.pretraining
  is_blind = source is not None and source.pooling == "tokens"
  if is_blind and head and head.pooling == "prefix":
    report.notes.append(
      f"the prefix tokens of {loaded.info.objective['name']!r} have learned "
      "nothing so far, and pooling='prefix' reads them alone: 'tokens' is the "
      "original's"
    )
  if "head/linear/bias" in report.kept and head and loaded.info.head:
    _compare_heads(loaded.info, head, class_names, report)
  return convert.unflatten(params), report


def _resize(info: ModelInfo, objective, options: Options) -> models.Resize:
  """How positions change for another grid."""
  # A pre-training has one rule, whatever it starts from, and a fine-tuning has
  # the rule of what it starts from: so the originals' programs do it.
  if objective:
    begun = models.OBJECTIVES.get(objective["name"])
    return begun.resize_into if begun else "bilinear"
  rule = info.pretraining.resize if info.pretraining else "bilinear"
  is_corrected = rule == "ssast" and options.positions == "corrected"
  return "bilinear" if is_corrected else rule


def _compare_heads(info, head, class_names, report):
  there, here = info.head.pooling, head.pooling
  if there != here:
    raise UserError(f"the classifier has pooling={there!r}, the model {here!r}")
  ours, theirs = dataclasses.asdict(head), dataclasses.asdict(info.head)
  _compare_epsilon(report, "classifier's layer norm has", theirs, ours)
  pairs = zip(info.class_names, class_names, strict=False)
  for i, (there, here) in enumerate(pairs):
    if there != here:
      raise UserError(f"the checkpoint's class {i} is {there!r}, here {here!r}")


def _compare_epsilon(report, what, theirs, ours):
  have, want = theirs.get("layer_norm_eps"), ours.get("layer_norm_eps")
  if have != want:
    report.notes.append(f"its {what} epsilon {have}, the model's {want}")
