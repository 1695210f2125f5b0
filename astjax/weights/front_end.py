"""The recipe of a saved model: taken from training, told to other formats.

A recipe rather than mel bins and statistics field by field, for it is what the
model was trained behind, whatever ops that had. Other formats know a few
numbers (`FrontEnd`), and are refused where a recipe says more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from astjax.errors import Count, Finite, Positive, UserError, call
from astjax.ops import host_ops
from astjax.ops import recipe as recipes
from astjax.ops.fbank import FbankSpec

# Ops that a recipe may lack, since others do them all the same.
_OPTIONAL = ("decode", "resample", "quantise", "to_float")


@dataclasses.dataclass(frozen=True)
class FrontEnd:
  """The part of a recipe that other formats can express."""

  sample_rate: Count  # Hz
  num_frames: Count  # T of the model's input
  num_mel_bins: Count  # F
  # Mean and standard deviation, None without standardising.
  statistics: tuple[Finite, Positive] | None
  center: bool = True  # whether the waveform's mean is subtracted
  # Of short recordings: frames that are not of real samples alone become 0.0
  # before standardising (AST, SSAST), or the waveform gets zeros, which count
  # as sound (ASiT).
  padding: Literal["frames", "waveform"] = "frames"
  channel: Literal["mean", "first"] = "mean"  # of several

  @classmethod
  def from_recipe(cls, recipe: str) -> FrontEnd:
    """Reads a recipe; a UserError if it does what `FrontEnd` cannot say."""
    steps = _steps(recipe)
    found = dict(steps)
    if absent := [name for name in ("fit", "fbank") if name not in found]:
      raise UserError(f"the recipe has no {absent[0]}")
    standardize = found.get("standardize")
    given = {
      "sample_rate": found["fit"]["sample_rate"],
      "num_frames": found["fit"]["num_frames"],
      "num_mel_bins": found["fbank"]["num_mel_bins"],
      "statistics": standardize and (standardize["mean"], standardize["std"]),
      "center": "center" in found,
      "padding": "frames" if "pad_frames" in found else "waveform",
      "channel": found.get("decode", {}).get("channel", "mean"),
    }
    front_end = call(cls, "the recipe", given)
    # A recipe that says more than these few numbers can hold is refused.
    said = [
      (name, arguments)
      for name, arguments in _steps(front_end.recipe())
      if name in found or name not in _OPTIONAL
    ]
    if said != steps:
      raise UserError(
        f"others can follow only {front_end.recipe()}, not {recipe}"
      )
    return front_end

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


def _steps(recipe: str) -> list[tuple[str, Mapping[str, Any]]]:
  """Ops and arguments, up to the patches, which are those of the model."""
  ops = recipes.parse(recipe, host_ops.OPS, "the recipe", reader=None)
  ops = ops[:-1] if ops and ops[-1].name == "patchify" else ops
  return [(op.name, op.arguments) for op in ops]


# Ops that only a training needs; `fit` has the length that `cut_frames` leaves.
_OF_TRAINING = ("multi_hot", "keep", "cut_frames")


def inference_recipe(
  ops: Sequence[recipes.NamedOp], texts: Sequence[str]
) -> str:
  """From a recording to the model's input: nothing drawn, no label.

  `ops` are those of all `texts`, in order. Where training takes views, whose
  length is drawn, inference takes one clip of a global view's length, and what
  belongs to local views is left out.
  """
  # A second recipe in the config would have to be kept in step by hand.
  calls = [call for text in texts for call in recipes.calls(text, "recipe")]
  kept = [
    (op, text)
    for op, text in zip(ops, calls, strict=True)
    if not _is_local(*text)
  ]
  by_name = {op.name: op.arguments for op, _ in kept}
  written = []
  for op, text in kept:
    if op.name == "views" or (op.name == "fit" and "cut_frames" in by_name):
      written.append(recipes.text("fit", [], _length(by_name)))
    elif not recipes.draws(op) and op.name not in _OF_TRAINING:
      written.append(recipes.text(*text))
  return "|".join(written)


def _is_local(name: str, args: list, kwargs: dict[str, Any]) -> bool:
  return any(str(v).endswith("_local") for v in (*args, *kwargs.values()))


def _length(ops: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Arguments of a `fit` to the frames of training."""
  spec = FbankSpec.of(ops["fbank"])
  if "cut_frames" in ops:
    num_frames = ops["cut_frames"]["num_frames"]
  else:
    views = ops["views"]
    num_frames = spec.num_frames(round(views["seconds"] * views["sample_rate"]))
  names = ("sample_rate", "frame_length_ms", "frame_shift_ms")
  usual = {f.name: f.default for f in dataclasses.fields(spec)}
  unusual = {k: getattr(spec, k) for k in names if getattr(spec, k) != usual[k]}
  return {"num_frames": num_frames} | unusual
