"""The recipe of a saved model: taken from training, told to other formats.

A recipe rather than mel bins and statistics field by field, for it is what the
model was trained behind, whatever ops that had. Other formats know a few
numbers (`FrontEnd`), and are refused where a recipe says more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from astjax.errors import Count, Positive, UserError, Within, call
from astjax.ops import host_ops
from astjax.ops import recipe as recipes

Finite = Annotated[float, Within(math.isfinite, "finite")]


# What `FrontEnd` can say, in this order; patches that the recipe cuts are those
# of the model.
_ORDER = (
  *("decode", "resample", "fit", "quantise", "to_float", "center", "fbank"),
  *("pad_frames", "standardize", "patchify"),
)
# What no other format has an argument for.
_USUAL = {
  "frame_length_ms": 25.0,
  "frame_shift_ms": 10.0,
  "low_freq": 20.0,
  "high_freq": 0.0,
  "preemphasis": 0.97,
}


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
    where = "the recipe"
    names = [name for name, _, _ in recipes.calls(recipe, where)]
    for name in names:
      if name not in _ORDER:
        is_ours = name in host_ops.OPS
        what = "only astjax can express" if is_ours else "is no op"
        raise UserError(f"the recipe has {name}, which {what}")
    in_order = [name for name in _ORDER if name in names]
    if names != in_order:
      raise UserError(
        f"the recipe goes {'|'.join(names)}; others can follow only "
        f"{'|'.join(in_order)}"
      )
    ops = recipes.parse(recipe, host_ops.OPS, where, reader=None)
    found = {op.name: op.arguments for op in ops}
    for name, values in found.items():
      for k, usual in _USUAL.items():
        if values.get(k, usual) != usual:
          what = f"{name}'s {k}={values[k]}"
          raise UserError(
            f"the recipe has {what}, which only astjax can express"
          )
    rates = sorted(
      {str(v["sample_rate"]) for v in found.values() if "sample_rate" in v}
    )
    absent = [name for name in ("fit", "fbank") if name not in found]
    if absent or len(rates) != 1:
      what = f"no {absent[0]}" if absent else f"the rates {', '.join(rates)}"
      raise UserError(f"the recipe has {what}")
    is_padded = "pad_frames" in found
    real = found.get("center", {}).get("num_samples", "")
    if "center" in found and bool(real) != is_padded:
      raise UserError(
        "the recipe's center and pad_frames differ in whether padding counts "
        "as sound, which only astjax can express"
      )
    standardize = found.get("standardize")
    given = {
      "sample_rate": found["fit"]["sample_rate"],
      "num_frames": found["fit"]["num_frames"],
      "num_mel_bins": found["fbank"]["num_mel_bins"],
      "statistics": standardize and (standardize["mean"], standardize["std"]),
      "center": "center" in found,
      "padding": "frames" if is_padded else "waveform",
      "channel": found.get("decode", {}).get("channel", "mean"),
    }
    return call(cls, "the recipe", given)

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


# A fitted recording has the frames that `cut_frames` leaves.
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
  by_name = {op.name: op.op for op, _ in kept}
  written = []
  for op, text in kept:
    if op.name == "views" or (op.name == "fit" and "cut_frames" in by_name):
      written.append(recipes.text("fit", [], _length(by_name)))
    elif not recipes.draws(op) and op.name not in _OF_TRAINING:
      written.append(recipes.text(*text))
  return "|".join(written)


def _is_local(name: str, args: list, kwargs: dict[str, Any]) -> bool:
  return any(str(v).endswith("_local") for v in (*args, *kwargs.values()))


def _length(ops: Mapping[str, Any]) -> dict[str, Any]:
  """Arguments of a `fit` to the frames of training."""
  spec = ops["fbank"].spec
  if "cut_frames" in ops:
    num_frames = ops["cut_frames"].num_frames
  else:
    num_frames = spec.num_frames(ops["views"].num_samples)
  names = ("sample_rate", "frame_length_ms", "frame_shift_ms")
  usual = {f.name: f.default for f in dataclasses.fields(spec)}
  unusual = {k: getattr(spec, k) for k in names if getattr(spec, k) != usual[k]}
  return {"num_frames": num_frames} | unusual
