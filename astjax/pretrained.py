"""A checkpoint from anywhere as parameters, and as the start of a model.

Three questions stay apart: reading a file (`readers`, `pth`), renaming
(`convert`, `maps`) and adapting values (`adapt`). Here they meet the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import pathlib
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from astjax import checkpoint, workdir
from astjax.errors import UserError, call
from astjax.models import ast, heads
from astjax.ops import patches
from astjax.types import Params
from astjax.weights import (
  adapt,
  convert,
  fetch,
  hugging_face,
  maps,
  model_info,
  readers,
  registry,
)
from astjax.weights.model_info import FrontEnd, Head, ModelInfo


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Weights at the shapes of their file, and what is known about them.

  Attributes:
    kind: what it is, for people.
    info: model, classifier, class names and front-end, as far as known.
    params: parameters by path, float32; a patch kernel for images keeps its
      channels, [ph, pw, 3, D].
    dropped: names of the file that the table leaves out.
    digest: SHA-256 of the file (of the first, if there are several), or of a
      run's parameters.
  """

  kind: str
  info: ModelInfo
  params: Mapping[str, np.ndarray]
  dropped: tuple[str, ...]
  digest: str

  @property
  def is_image(self) -> bool:
    """Whether its patches are of images."""
    return self.params[adapt.KERNEL].ndim == 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How a checkpoint is read and taken over (`config.init_kw`).

  Attributes:
    rows: whether rows of its patches become frequency (the original's choice
      for images) or time.
    fresh: expressions for whole paths of parameters that stay fresh although
      the checkpoint has them; by default the classifier.
    grid: (F', T') of its positions, where a bare file cannot tell.
    stride: (mel bins, frames) of its patches, likewise.
    num_mel_bins: likewise.
    num_heads: likewise; 0 means width / 64, as in all published models.
  """

  rows: Literal["frequency", "time"] = "frequency"
  fresh: tuple[str, ...] = (adapt.HEAD,)
  grid: tuple[int, int] | None = None
  stride: tuple[int, int] | None = None
  num_mel_bins: int = 128
  num_heads: int = 0

  def __post_init__(self):
    sizes = (*(self.grid or ()), *(self.stride or ()), self.num_mel_bins)
    if min(sizes) < 1 or self.num_heads < 0:
      raise UserError(
        f"grid {self.grid}, stride {self.stride} and num_mel_bins "
        f"{self.num_mel_bins} must be positive, num_heads {self.num_heads} at "
        "least 0"
      )


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
  in_folder = path.name in (model_info.PARAMS, "model.safetensors")
  if in_folder and (path.parent / "config.json").is_file():
    path = path.parent
  known = registry.CHECKPOINTS.get(source) or registry.of_file(path.name)
  given = _Given(options or Options(), path.name, known)
  try:
    if not path.is_dir():
      return _from_names(readers.read(path), None, given, readers.sha256(path))
    if (path / model_info.PARAMS).exists():
      return _from_native(path)
    if (path / "checkpoints").is_dir():
      return _from_workdir(path)
    if not (path / "config.json").is_file():
      raise UserError(
        f"neither a model of astjax ({model_info.PARAMS}) nor one of Hugging "
        "Face (config.json)"
      )
    info = hugging_face.read_config(path)
    files = readers.weight_files(path)
    names = readers.read_folder(path)
    return _from_names(names, info, given, readers.sha256(files[0]))
  except UserError as e:
    text = str(e)
    raise UserError(text if source in text else f"{source}: {text}") from None


@dataclasses.dataclass(frozen=True)
class _Given:
  """What the user, the file's name and the registry say."""

  options: Options
  file_name: str
  known: registry.Published | None


def _from_native(path: pathlib.Path) -> Checkpoint:
  info, flat = model_info.load(path)
  if convert.GRID not in flat:
    raise UserError(f"- {convert.GRID} is not in the file")
  expected = expected_params(info, flat[convert.GRID].shape[:2])
  params = convert.flatten(convert.check(flat, expected))
  digest = readers.sha256(path / model_info.PARAMS)
  return Checkpoint("astjax", info, params, (), digest)


def _from_workdir(path: pathlib.Path) -> Checkpoint:
  """The best checkpoint of a run, else the newest."""
  config = readers.read_json(path / workdir.MODEL)
  info = model_info.parse(config, str(path / workdir.MODEL))
  step, flat = checkpoint.read_params(path)
  expected = expected_params(info, flat[convert.GRID].shape[:2])
  params = convert.flatten(convert.check(flat, expected))
  info = dataclasses.replace(info, origin=f"step {step} of {path}")
  digest = hashlib.sha256()
  for array in params.values():
    digest.update(np.ascontiguousarray(array))
  return Checkpoint("run of astjax", info, params, (), digest.hexdigest())


def _from_names(names, info, given: _Given, digest) -> Checkpoint:
  recognised = maps.recognise(names)
  if recognised is None:
    first = ", ".join(list(names)[:4])
    raise UserError(
      f"these names belong to no known model: {first}, ...; known are AST "
      "(official, Hugging Face), DeiT and ViT (timm, Hugging Face, Google)"
    )
  kind, table, names = recognised
  flat, dropped = convert.rename(names, table)
  outline = _outline(flat)
  is_image = outline.pop("channels") > 1
  num_prefix = len(outline["prefix"])
  positions = flat[convert.SEQUENCE].shape[0]
  if info is not None and not is_image:
    grid = _grid_of(info)
  elif is_image:
    grid = given.options.grid or _square(positions, num_prefix)
    outline["stride"] = outline["patch_size"]
  else:
    stride, grid = _audio_grid(positions - num_prefix, outline, given)
    outline["stride"] = stride
  if info is None:
    info = _guessed(flat, outline, grid, given, kind)
  else:
    _check_config(info, outline)
  flat = convert.lay_out(flat, num_prefix, grid)
  expected = expected_params(info, grid, with_head="head/linear/bias" in flat)
  if is_image:
    shape = flat[adapt.KERNEL].shape
    expected["backbone"]["patch_embed"]["kernel"] = jax.ShapeDtypeStruct(
      shape, np.float32
    )
  params = convert.flatten(convert.check(flat, expected, table))
  if "head/linear/bias" not in flat:
    info = dataclasses.replace(info, head=None, class_names=())
  info = dataclasses.replace(info, origin=_origin(kind, given))
  return Checkpoint(kind, info, params, tuple(dropped), digest)


def _outline(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Arguments of the backbone, read from the shapes of its leaves."""
  norm, fc1 = "backbone/encoder/norm/scale", "backbone/encoder/block_0/mlp/fc1"
  needed = (norm, f"{fc1}/bias", adapt.KERNEL, convert.SEQUENCE)
  convert.refuse([f"- {k} is not in the file" for k in needed if k not in flat])
  blocks = {
    int(m.group(1))
    for path in flat
    if (m := re.match(r"backbone/encoder/block_(\d+)/", path))
  }
  kernel = flat[adapt.KERNEL]
  return {
    "width": flat[norm].size,
    "depth": max(blocks) + 1,
    "mlp_dim": flat[f"{fc1}/bias"].size,
    "patch_size": kernel.shape[:2],
    "prefix": tuple(
      name for name in ast.PREFIX_TOKENS if f"backbone/{name}_token" in flat
    ),
    "channels": kernel.shape[2] if kernel.ndim == 4 else 1,
  }


def _guessed(flat, outline, grid, given, kind) -> ModelInfo:
  """What a bare file, its name and the registry tell."""
  num_heads = given.options.num_heads or outline["width"] // 64
  if not num_heads or outline["width"] % num_heads:
    raise UserError(
      f"a width of {outline['width']} does not tell the number of heads; give "
      "num_heads"
    )
  is_hf = kind.startswith("Hugging Face")
  model = outline | {
    "num_heads": num_heads,
    "layer_norm_eps": 1e-12 if is_hf else 1e-6,
  }
  known, head, recipe = given.known, None, ""
  if "head/linear/bias" in flat:
    head = Head(
      num_classes=flat["head/linear/bias"].size,
      layer_norm_eps=1e-12 if is_hf else 1e-5,
      scores=known.scores if known and known.scores else "sigmoid",
    )
  if known and known.statistics:
    recipe = FrontEnd(
      16_000, known.num_frames, given.options.num_mel_bins, known.statistics
    ).recipe()
  return ModelInfo(
    model=model,
    head=head,
    recipe=recipe,
    licence=known.licence if known else "",
    expected=known.expected if known else "",
    reported=known.reported if known else None,
  )


def _check_config(info, outline):
  """A config.json and the weights beside it have to agree."""
  for name, value in outline.items():
    said = info.model[name]
    same = tuple(said) == tuple(value) if isinstance(value, tuple) else None
    if not (said == value if same is None else same):
      raise UserError(
        f"its config.json says {name}={said}, its weights {value}"
      )


def _origin(kind, given):
  what = f"{given.known.what}, " if given.known else ""
  return f"{what}{kind} ({given.file_name})"


def _square(positions, num_prefix):
  """Images are square: positions with or without the prefix tokens."""
  for rows in (positions - num_prefix, positions):
    side = math.isqrt(max(rows, 0))
    if side and side * side == rows:
      return side, side
  raise UserError(f"{positions} positions are no square grid; give the grid")


def _grid_of(info: ModelInfo) -> tuple[int, int]:
  front_end = model_info.front_end(info.recipe)
  return patches.grid_shape(
    front_end.num_frames,
    front_end.num_mel_bins,
    info.model["patch_size"],
    info.model["stride"],
  )


def _audio_grid(count, outline, given: _Given):
  """(stride, grid) of a bare AST file: told, or by its name as the original."""
  in_name = re.search(r"_(\d+)_(\d+)(?:_|\.|$)", given.file_name)
  stride = given.options.stride or (given.known.stride if given.known else None)
  if stride is None:
    stride = tuple(map(int, in_name.groups())) if in_name else (10, 10)
  if given.options.grid:
    return stride, given.options.grid
  bins, patch = given.options.num_mel_bins, outline["patch_size"]
  rows = (bins - patch[0]) // max(stride[0], 1) + 1
  if min(stride) < 1 or rows < 1 or count % rows:
    raise UserError(
      f"its {count:,} patch positions are no grid of {rows} rows, as {bins} "
      f"mel bins at stride {stride[0]} give; give its grid or stride"
    )
  return stride, (rows, count // rows)


def expected_params(
  info: ModelInfo, grid: tuple[int, int], *, with_head: bool = True
) -> Params:
  """The tree of shapes that a model of this kind has.

  Raises:
    UserError: sizes that do not fit.
  """
  backbone = call(ast.make_backbone, "config.json: model", info.model)
  ph, pw = backbone.patch_size
  cells = jax.ShapeDtypeStruct((1, *grid, ph * pw), np.float32)
  module, init = backbone, partial(backbone.init, jax.random.key(0))
  if info.head is None or not with_head:
    shapes = jax.eval_shape(lambda x: init(patches=x), cells)
    return {"backbone": shapes["params"]}
  head = heads.ClassifierHead(info.head.num_classes)
  module = ast.AST(backbone, head, info.head.pooling)
  init = partial(module.init, jax.random.key(0))
  return dict(jax.eval_shape(lambda x: init(patches=x), cells)["params"])


def describe(backbone: ast.Backbone) -> dict[str, Any]:
  """The arguments of `make_backbone` that a saved model needs."""
  sizes = {k: getattr(backbone, k) for k in ("width", "depth", "num_heads")}
  return sizes | {
    "mlp_dim": backbone.mlp_dim or 4 * backbone.width,
    "patch_size": tuple(backbone.patch_size),
    "stride": tuple(backbone.stride),
    "prefix": tuple(backbone.prefix),
    "layer_norm_eps": backbone.layer_norm_eps,
  }


def start(
  loaded: Checkpoint,
  fresh_params: Params,
  *,
  backbone: ast.Backbone,
  class_names: tuple[str, ...] = (),
  options: Options | None = None,
) -> tuple[Params, adapt.Report]:
  """Parameters of a model that starts from a checkpoint.

  Args:
    loaded: from `load`.
    fresh_params: the model's own, of its shapes.
    backbone: the model's, to compare what shapes do not show.
    class_names: of the model's classifier; compared if the checkpoint's is
      taken.
    options: what becomes of it.

  Raises:
    UserError: the two do not fit.
  """
  options = options or Options()
  model = loaded.info.model
  for name in ("width", "depth", "num_heads", "patch_size"):
    have, want = model[name], getattr(backbone, name)
    turned = options.rows == "time" and isinstance(have, (list, tuple))
    have = tuple(have)[::-1] if turned else have
    have = tuple(have) if isinstance(have, list) else have
    if have != want:
      raise UserError(
        f"the checkpoint ({loaded.info.origin}) has {name} {have}, the model "
        f"{want}"
      )
  flat = {k: np.asarray(v) for k, v in convert.flatten(fresh_params).items()}
  params, report = adapt.fit(
    loaded.params,
    flat,
    source_prefix=model["prefix"],
    model_prefix=backbone.prefix,
    rows=options.rows,
    fresh=options.fresh,
  )
  takes_head = "head/linear/bias" in {*report.kept, *report.changed}
  names = loaded.info.class_names
  if takes_head and names and class_names and names != tuple(class_names):
    first = next(
      i
      for i, (a, b) in enumerate(zip(names, class_names, strict=True))
      if a != b
    )
    raise UserError(
      f"the checkpoint's class {first} is {names[first]!r}, the data's "
      f"{class_names[first]!r}: its classifier cannot be taken"
    )
  have, want = model["layer_norm_eps"], backbone.layer_norm_eps
  if have != want:
    report.notes.append(
      f"its layer norms have epsilon {have:g}, the model's {want:g}"
    )
  report.dropped |= dict.fromkeys(loaded.dropped, "not used by the model")
  return convert.unflatten(params), report
