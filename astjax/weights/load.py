"""A checkpoint from anywhere, and the start of a model from it.

Three questions stay apart: reading a file (`weights/readers`, `weights/pth`),
renaming (`weights/convert`, `weights/maps`) and adapting values
(`weights/adapt`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Literal

import numpy as np

from astjax.errors import UserError
from astjax.models import ast
from astjax.models.heads import Head
from astjax.types import Params
from astjax.weights import (
  adapt,
  convert,
  fetch,
  hugging_face,
  identify,
  orbax_params,
  registry,
  saved_model,
)
from astjax.weights import files as weight_files
from astjax.weights import info as model_info
from astjax.weights.info import ModelInfo


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Weights at the shapes of their file, and what is known about them.

  Attributes:
    kind: what it is, for people.
    info: model, classifier, class names and front-end, as far as known.
    params: parameters by path, float32; a patch kernel for images keeps its
      channels, [ph, pw, 3, D].
    digest: SHA-256 of the file (of the first, if there are several), or of a
      run's parameters.
    dropped: names of the file that the table leaves out.
    notes: what was assumed about it.
  """

  kind: str
  info: ModelInfo
  params: Mapping[str, np.ndarray]
  digest: str
  dropped: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()

  @property
  def is_image(self) -> bool:
    """Whether its patches are of images."""
    return self.params[adapt.KERNEL].ndim == 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How a checkpoint is read and taken over (`config.init_kw`).

  Attributes:
    rows: whether rows of an image's patches become frequency (AST's choice) or
      time (ASiT's).
    fresh: expressions for whole paths of parameters that stay fresh although
      the checkpoint has them; by default the classifier.
    grid: (F', T') of its positions, where a bare file cannot tell.
    stride: (mel bins, frames) of its patches, likewise.
    num_mel_bins: likewise.
    num_heads: likewise; 0 means width / 64, as in all published models.
    pooling: of its classifier, likewise: "tokens" after SSAST's fine-tuning.
    positions: how SSAST's are taken to another grid: as its original does it,
      with two slips, or as the original AST does.
    network: which one of a pre-trained ASiT's two, from files and runs that
      have both; its original fine-tunes the teacher.
  """

  rows: Literal["frequency", "time"] = "frequency"
  fresh: tuple[str, ...] = (adapt.HEAD,)
  grid: tuple[int, int] | None = None
  stride: tuple[int, int] | None = None
  num_mel_bins: int = 128
  num_heads: int = 0
  pooling: Literal["prefix", "tokens"] = "prefix"
  positions: Literal["original", "corrected"] = "original"
  network: Literal["teacher", "student"] = "teacher"

  def __post_init__(self):
    sizes = (*(self.grid or ()), *(self.stride or ()), self.num_mel_bins)
    if min(sizes) < 1:
      raise UserError(
        f"grid {self.grid}, stride {self.stride} and num_mel_bins "
        f"{self.num_mel_bins} must be positive"
      )
    if self.num_heads < 0:
      raise UserError(f"num_heads {self.num_heads} must be at least 0")


def load(
  source: str | os.PathLike, options: Options | None = None
) -> Checkpoint:
  """Reads a checkpoint, strictly: every name has its place, none is missing.

  Args:
    source: a path (`.safetensors`, `.npz`, `.pth`, a folder of Hugging Face, a
      model or a work directory of astjax), a key of `registry.CHECKPOINTS`, or
      a Hugging Face name.
    options: what a bare file does not tell.

  Raises:
    UserError: it cannot be found, read or understood.
  """
  source = os.fspath(source)
  path = fetch.fetch(source)
  options = options or Options()
  in_folder = path.name in (model_info.PARAMS, *weight_files.HF_WEIGHTS)
  if in_folder and (path.parent / "config.json").is_file():
    path = path.parent
  try:
    if path.is_file():
      return _from_file(path, source, options)
    if (path / model_info.PARAMS).exists():
      return _from_native(path, options)
    if (path / "checkpoints").is_dir():
      return _from_workdir(path, options)
    if (path / "config.json").is_file():
      return _from_hugging_face(path, source)
    raise UserError(
      f"neither a model of astjax ({model_info.PARAMS}), nor a run of it "
      "(checkpoints/), nor a folder of Hugging Face (config.json)"
    )
  except UserError as e:
    text = str(e)
    raise UserError(text if source in text else f"{source}: {text}") from None


def _from_file(path: pathlib.Path, source: str, options: Options) -> Checkpoint:
  names, digest = weight_files.read(path), weight_files.sha256(path)
  known = registry.CHECKPOINTS.get(source) or registry.of_file(path.name)
  notes: tuple[str, ...] = ()
  if known and not digest.startswith(known.sha256):
    if source in registry.CHECKPOINTS:
      raise UserError(
        f"{path} is not the published file: its SHA-256 begins with "
        f"{digest[:8]}, expected {known.sha256}; remove it to fetch it again"
      )
    known = None
    notes = ("it has the name of a published file, but not its SHA-256",)
  info, grid = _metadata(path)
  hints = identify.Hints(
    file_name=path.name,
    known=known,
    info=info,
    grid=options.grid or grid,
    stride=options.stride,
    num_mel_bins=options.num_mel_bins,
    num_heads=options.num_heads,
    pooling=options.pooling,
    network=options.network,
  )
  found = identify.identify(names, hints)
  info = found.info if info else _published(found, known, path.name)
  return Checkpoint(
    found.kind, info, found.params, digest, found.dropped, found.notes + notes
  )


def _metadata(path):
  """What `convert_weights` writes into a file of official names."""
  metadata = weight_files.metadata(path)
  if "astjax" not in metadata:
    return None, None
  try:
    value = json.loads(metadata["astjax"])
    info = model_info.parse(value["info"], "its metadata")
    return info, tuple(int(n) for n in value["grid"])
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(f"its metadata is damaged: {e}") from None


def _published(found, known, file_name) -> ModelInfo:
  what = f"{known.what}, " if known else ""
  return dataclasses.replace(
    found.info,
    origin=f"{what}{found.kind} ({file_name})",
    licence=known.licence if known else "",
    expected=known.expected if known else "",
    reported=known.reported if known else None,
  )


def _from_hugging_face(path: pathlib.Path, source: str) -> Checkpoint:
  known = registry.of_mirror(source)
  info, notes = hugging_face.read_config(path, known.scores if known else "")
  files = weight_files.weight_files(path)
  hints = identify.Hints(file_name=path.name, known=known, info=info)
  found = identify.identify(weight_files.read_folder(path), hints)
  return Checkpoint(
    found.kind,
    _published(found, known, source if known else path.name),
    found.params,
    weight_files.sha256(files[0]),
    found.dropped,
    found.notes + tuple(notes),
  )


def _from_native(path: pathlib.Path, options: Options) -> Checkpoint:
  info, flat = model_info.load(path)
  if options.network != "teacher" and info.objective.get("name") == "asit":
    raise UserError(
      f"{path} is a saved model with one network ({info.origin}); "
      f"network={options.network!r} is for runs and checkpoints that have two"
    )
  digest = weight_files.sha256(path / model_info.PARAMS)
  return _checked("model of astjax", info, flat, digest)


def _from_workdir(path: pathlib.Path, options: Options) -> Checkpoint:
  """The best checkpoint of a run, else the newest."""
  config = weight_files.read_json(path / model_info.MODEL)
  info = model_info.parse(config, str(path / model_info.MODEL))
  has_two = info.objective.get("name") == "asit"
  is_teacher = has_two and options.network == "teacher"
  part = "task_state/teacher" if is_teacher else "params"
  step, flat = orbax_params.read_params(path, part)
  digest = hashlib.sha256()
  for array in flat.values():
    digest.update(np.ascontiguousarray(array))
  origin = f"{info.origin}, step {step}"
  origin += f", {options.network}" if has_two else ""
  info = dataclasses.replace(info, origin=origin)
  return _checked("run of astjax", info, flat, digest.hexdigest())


def _checked(kind, info, flat, digest) -> Checkpoint:
  if convert.GRID not in flat:
    raise UserError(f"- {convert.GRID} is not in the file")
  expected = saved_model.expected_params(info, flat[convert.GRID].shape[:2])
  params = convert.flatten(convert.check(flat, expected))
  model = saved_model.describe(saved_model.backbone_of(info))
  return Checkpoint(
    kind, dataclasses.replace(info, model=model), params, digest
  )


def start(
  loaded: Checkpoint,
  fresh_params: Params,
  *,
  backbone: ast.Backbone,
  head: Head | None = None,
  class_names: tuple[str, ...] = (),
  options: Options | None = None,
) -> tuple[Params, adapt.Report]:
  """Parameters of a model that starts from a checkpoint.

  Args:
    loaded: from `load`.
    fresh_params: the model's own, of its shapes.
    backbone: the model's, to compare what shapes do not show.
    head: the model's classifier, compared if the checkpoint's is taken.
    class_names: likewise.
    options: what becomes of it.

  Raises:
    UserError: the two do not fit.
  """
  options = options or Options()
  model = loaded.info.model
  if options.rows == "time" and not loaded.is_image:
    raise UserError(
      "rows='time' is for checkpoints of images, this one is of spectrograms: "
      "leave rows at 'frequency' (config.init_kw.rows)"
    )
  want = saved_model.describe(backbone)
  patch = tuple(model["patch_size"])
  have = model | {
    "patch_size": patch[::-1] if options.rows == "time" else patch
  }
  for name in ("width", "depth", "num_heads", "patch_size"):
    if have[name] != want[name]:
      raise UserError(
        f"the checkpoint ({loaded.info.origin}) has {name} {have[name]}, the "
        f"model {want[name]}"
      )
  flat = {k: np.asarray(v) for k, v in convert.flatten(fresh_params).items()}
  params, report = adapt.fit(
    loaded.params,
    flat,
    source_prefix=model["prefix"],
    model_prefix=backbone.prefix,
    rows=options.rows,
    fresh=options.fresh,
    resize=_resize(loaded.info, fresh_params, options),
  )
  report.dropped |= dict.fromkeys(loaded.dropped, "not used by the model")
  report.notes += loaded.notes
  _compare_epsilon(report, "layer norms have", model, want)
  is_ssast = loaded.info.objective.get("name") == "ssast"
  if is_ssast and head and head.pooling == "prefix":
    report.notes.append(
      "the prefix tokens of an SSAST have learned nothing so far, and "
      "pooling='prefix' reads them alone: 'tokens' is the original's"
    )
  if "head/linear/bias" in report.kept and head and loaded.info.head:
    _compare_heads(loaded.info, head, class_names, report)
  return convert.unflatten(params), report


def _resize(info, fresh_params, options):
  """How positions change; a pre-training that goes on is no fine-tuning."""
  if "reconstruction" in fresh_params:  # ASiT's pre-training, whatever it has
    return adapt.resize_bicubic
  is_ssast = info.objective.get("name") == "ssast"
  goes_on = "mask_token" in fresh_params
  if is_ssast and not goes_on and options.positions == "original":
    return adapt.resize_ssast_grid
  return adapt.resize_grid


def _compare_heads(info, head, class_names, report):
  if info.head.pooling != head.pooling:
    raise UserError(
      "the checkpoint's classifier was trained on "
      f"pooling={info.head.pooling!r}, the model has {head.pooling!r}: it "
      "cannot be taken"
    )
  ours, theirs = dataclasses.asdict(head), dataclasses.asdict(info.head)
  _compare_epsilon(report, "classifier's layer norm has", theirs, ours)
  pairs = zip(info.class_names, class_names, strict=False)
  for i, (there, here) in enumerate(pairs):
    if there != here:
      raise UserError(
        f"the checkpoint's class {i} is {there!r}, the data's {here!r}: its "
        "classifier cannot be taken"
      )


def _compare_epsilon(report, what, theirs, ours):
  have, want = theirs["layer_norm_eps"], ours["layer_norm_eps"]
  if have != want:
    report.notes.append(f"its {what} epsilon {have:g}, the model's {want:g}")
