"""What has to be known beside the weights: `config.json` of a saved model.

A model is a folder with `params.safetensors` (names are the parameters' paths)
and `config.json` (a `ModelInfo`).
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from astjax.errors import UserError, call
from astjax.models.heads import Head
from astjax.ops import host_ops, recipe
from astjax.types import Params
from astjax.weights import convert, files

FORMAT = "astjax 1"
PARAMS, CONFIG = "params.safetensors", "config.json"
MODEL = "model.json"  # the same of a work directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
  """All that turns weights into a model.

  Attributes:
    model: arguments of `models.ast.make_backbone`.
    head: the classifier, None for a backbone alone.
    objective: of a pre-trained model, the parts that travel along: {"name":
      "ssast", "heads": names}, or {"name": "asit", "preset": its release, and
      sizes that are not the preset's}; empty for others.
    class_names: names of the classes, empty if unknown.
    recipe: from a recording to the model's input, host and device ops in one
      string; empty if unknown.
    origin: where the weights come from, for people.
    licence: of the weights, "" if unknown.
    expected: the metric that their publishers report.
    reported: the same for programs: (metric, value).
  """

  model: Mapping[str, Any]
  head: Head | None = None
  objective: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  class_names: tuple[str, ...] = ()
  recipe: str = ""
  origin: str = ""
  licence: str = ""
  expected: str = ""
  reported: tuple[str, float] | None = None

  def __post_init__(self):
    if self.reported:
      object.__setattr__(self, "reported", tuple(self.reported))
    object.__setattr__(self, "class_names", tuple(self.class_names))
    count = self.head.num_classes if self.head else 0
    if self.class_names and len(self.class_names) != count:
      raise UserError(
        f"{len(self.class_names)} class names for {count} classes"
      )
    has_tokens = self.model.get("prefix", True)
    if self.head and self.head.pooling == "prefix" and not has_tokens:
      raise UserError(
        "a classifier with pooling='prefix' needs prefix tokens, the model has "
        "none"
      )

  def to_json(self) -> dict[str, Any]:
    """What `parse` reads."""
    return {"format": FORMAT} | dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class FrontEnd:
  """The part of a recipe that other formats can express.

  Attributes:
    sample_rate: Hz.
    num_frames: T of the model's input.
    num_mel_bins: F.
    statistics: mean and standard deviation, None without standardising.
    center: whether the waveform's mean is subtracted.
    padding: of short recordings: "frames" that are not of real samples alone
      become 0.0 before standardising (AST, SSAST), or the "waveform" gets
      zeros, which count as sound (ASiT).
    channel: "mean" or "first" of several.
  """

  sample_rate: int
  num_frames: int
  num_mel_bins: int
  statistics: tuple[float, float] | None
  center: bool = True
  padding: Literal["frames", "waveform"] = "frames"
  channel: str = "mean"

  def __post_init__(self):
    sizes = (self.sample_rate, self.num_frames, self.num_mel_bins)
    mean, std = self.statistics or (0.0, 1.0)
    if min(sizes) < 1 or not (math.isfinite(mean) and 0 < std < math.inf):
      raise UserError(
        f"a front-end of {self.sample_rate} Hz, {self.num_frames} frames, "
        f"{self.num_mel_bins} mel bins, mean {mean} and standard deviation "
        f"{std}: expected positive and finite numbers"
      )

  def recipe(self) -> str:
    """The recipe that says the same."""
    rate = f"sample_rate={self.sample_rate}"
    is_sound = self.padding == "waveform"
    center = "center(num_samples='')" if is_sound else "center"
    ops = [
      "decode" if self.channel == "mean" else f"decode({self.channel!r})",
      f"resample({self.sample_rate})",
      f"fit(num_frames={self.num_frames}, {rate})",
      "quantise",
      "to_float",
      *([center] if self.center else []),
      f"fbank({rate}, num_mel_bins={self.num_mel_bins})",
      *([] if is_sound else [f"pad_frames({rate})"]),
    ]
    if self.statistics:
      mean, std = self.statistics
      ops.append(f"standardize({float(mean)!r}, {float(std)!r})")
    return "|".join(ops)


# What `FrontEnd` can say, in this order; patches that the recipe cuts are those
# of the model.
_ORDER = (
  "decode",
  "resample",
  "fit",
  "quantise",
  "to_float",
  "center",
  "fbank",
  "pad_frames",
  "standardize",
  "patchify",
)


# What other formats take for granted.
_USUAL = {
  "frame_length_ms": 25.0,
  "frame_shift_ms": 10.0,
  "low_freq": 20.0,
  "high_freq": 0.0,
  "preemphasis": 0.97,
}


def front_end(text: str) -> FrontEnd:
  """Reads a recipe.

  Raises:
    UserError: it does what `FrontEnd` cannot say.
  """
  where = "the recipe"
  names = [name for name, _, _ in recipe.calls(text, where)]
  for name in names:
    if name not in _ORDER:
      only = name in host_ops.OPS
      what = "only astjax can express" if only else "is no part of a front-end"
      raise UserError(f"the recipe has {name}, which {what}")
  in_order = [name for name in _ORDER if name in names]
  if names != in_order:
    raise UserError(
      f"the recipe goes {'|'.join(names)}; others can follow only "
      f"{'|'.join(in_order)}"
    )
  ops = recipe.parse(text, host_ops.OPS, where, reader=None)
  found = {op.name: op.arguments for op in ops}
  for name, values in found.items():
    for k, usual in _USUAL.items():
      if values.get(k, usual) != usual:
        raise UserError(
          f"the recipe has {name}'s {k}={values[k]}, which only astjax can "
          "express"
        )
  rates = {v["sample_rate"] for v in found.values() if "sample_rate" in v}
  # Whether padding counts as sound is the same for the mean and the frames.
  real = found.get("center", {}).get("num_samples", "")
  is_sound = "pad_frames" not in found and not real
  absent = [k for k in ("fit", "fbank") if k not in found]
  absent += ["pad_frames"] if real and "pad_frames" not in found else []
  if "pad_frames" in found and "center" in found and not real:
    raise UserError(
      "the recipe has center(num_samples='') and pad_frames, which only astjax "
      "can express"
    )
  if absent or len(rates) != 1:
    what = f"has no {absent[0]}" if absent else f"has the rates {sorted(rates)}"
    raise UserError(f"the recipe {what}")
  standardize = found.get("standardize")
  return FrontEnd(
    sample_rate=rates.pop(),
    num_frames=found["fit"]["num_frames"],
    num_mel_bins=found["fbank"]["num_mel_bins"],
    statistics=standardize and (standardize["mean"], standardize["std"]),
    center="center" in found,
    padding="waveform" if is_sound else "frames",
    channel=found.get("decode", {}).get("channel", "mean"),
  )


def save(folder: str | os.PathLike, info: ModelInfo, params: Params) -> None:
  """Writes a model's folder, complete or not at all.

  Raises:
    UserError: the folder is there already, or cannot be written.
  """
  with files.new_path(folder) as temporary:
    temporary.mkdir()
    files.write_safetensors(temporary / PARAMS, convert.flatten(params))
    files.write_json(temporary / CONFIG, info.to_json())


def load(folder: str | os.PathLike) -> tuple[ModelInfo, dict[str, np.ndarray]]:
  """Reads a model's folder: (info, parameters by path).

  Raises:
    UserError: no such folder, damaged, or of another format.
  """
  folder = pathlib.Path(folder)
  info = parse(files.read_json(folder / CONFIG), str(folder / CONFIG))
  return info, files.read(folder / PARAMS)


def parse(config: Mapping[str, Any], where: str) -> ModelInfo:
  """A `ModelInfo` from the JSON of a config.json."""
  config = dict(config)
  if config.pop("format", None) != FORMAT:
    raise UserError(f"{where} is not of the format {FORMAT!r}")
  if config.get("head") is not None:
    if not isinstance(config["head"], dict):
      raise UserError(f"{where}: head is no object")
    config["head"] = call(Head, f"{where}: head", config["head"])
  return call(ModelInfo, where, config)
