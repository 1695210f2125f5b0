"""Draws what a model pre-trained with masks makes of the patches it cannot see.

  python -m astjax.tools.reconstruct --model=runs/ssast a.wav b.wav --out=x.png

One row a clip: its spectrogram, what is left of it under a mask, the hidden
patches as the model draws them, and which of them it can tell apart (green; red
if not). Masks are drawn as in the model's training, as far as it is known, else
as the original draws them. The model is a work directory, a saved model, or a
published SSAST.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from astjax import device_ops, pretrained
from astjax.errors import UserError
from astjax.ops import losses, patches
from astjax.serving import recording
from astjax.serving.recording import Recording
from astjax.tasks import ssast
from astjax.tools import pictures
from astjax.weights import convert

# The original hides 400 of 512.
_SHARE = 400 / 512


class Look(NamedTuple):
  """One clip under one mask.

  Attributes:
    name: of the clip.
    fbank: [T, F], the frames that are patches.
    hidden: [T, F] bool.
    drawn: [T, F], hidden patches as drawn; None without that objective.
    identified: [T, F], 1 and -1 on hidden patches, 0 elsewhere; or None.
    mse: of what is drawn.
    accuracy: of the identified patches, chance is 1 / M.
  """

  name: str
  fbank: np.ndarray
  hidden: np.ndarray
  drawn: np.ndarray | None
  identified: np.ndarray | None
  mse: float | None
  accuracy: float | None


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("clips", nargs="+", metavar="FILE")
  what = "a path, a work directory or a published name"
  add("--model", required=True, help=what)
  add("--out", default="reconstruction.png", help="a picture")
  what = "hidden patches of a clip; by default as in training, or 400 of 512"
  add("--num_mask", type=int, default=0, help=what)
  add("--seed", type=int, default=0, help="of the masks")
  add("--recipe", default="", help="front-end, if the model has none")
  args = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)  # orbax warns of reading only
  try:
    looks = look(
      args.model,
      args.clips,
      num_mask=args.num_mask,
      seed=args.seed,
      recipe=args.recipe,
    )
    path = _draw(looks, pathlib.Path(args.out).expanduser())
  except UserError as e:
    print(f"astjax: error: {' '.join(str(e).split())}", file=sys.stderr)
    return 1
  for one in looks:
    parts = [one.name, f"{one.hidden.mean():.0%} hidden"]
    if one.accuracy is not None:
      parts.append(f"identified {one.accuracy:.3f}")
    if one.mse is not None:
      parts.append(f"mse {one.mse:.4f}")
    print("  ".join(parts))
  print(f"wrote {path}")
  return 0


def look(
  model: str,
  clips: Sequence[str],
  *,
  num_mask: int = 0,
  seed: int = 0,
  recipe: str = "",
) -> list[Look]:
  """The model's view of the beginning of some clips.

  Args:
    model: see `pretrained.load`.
    clips: paths.
    num_mask: M; 0 takes that of the training, if it is known, else 400 of 512.
    seed: of the masks; clip i draws with the i-th key.
    recipe: replaces the model's own.

  Raises:
    UserError: not a pre-trained SSAST, no front-end, a clip that cannot be
      read, or more patches to hide than there are.
  """
  loaded = pretrained.load(model)
  info = loaded.info
  if info.objective.get("name") != "ssast":
    raise UserError(
      f"{model} ({info.origin or loaded.kind}) is no SSAST as it was "
      "pre-trained: it has no heads that predict hidden patches"
    )
  if not (recipe or info.recipe):
    raise UserError(
      f"the front-end of {model} is not known; give --recipe, such as "
      f"'{recording.EXAMPLE}'"
    )
  parsed = recording.parse(recipe or info.recipe)
  params = convert.unflatten(loaded.params)
  names = set(info.objective["heads"])
  kind = next(k for k, v in ssast.OBJECTIVES.items() if set(v) == names)
  batch = _batch(parsed, clips)
  rows, cols = params["backbone"]["pos_embed"]["grid"].shape[:2]
  how = {"num_mask": max(1, round(_SHARE * rows * cols))}
  how |= info.objective.get("task_kw", {})
  how |= {"num_mask": num_mask} if num_mask else {}
  task = ssast.make(
    **how,
    model=info.model,
    objective=kind,
    passes=1,
    num_classes=0,
    steps_per_epoch=1.0,
    total_steps=1,
  )

  @jax.jit
  def run(params, batch):
    key = jax.random.key(seed, impl="threefry2x32")
    keys = device_ops.row_keys(key, len(batch["id"]))
    batch = device_ops.apply(parsed.ops, batch, keys)
    batch = task.corrupt(batch, key, 0)
    cut = task.patches(batch)
    index = batch["mask_index"][:, 0]
    return cut, index, task.model.apply({"params": params}, cut, index)

  cut, index, out = jax.tree.map(np.asarray, run(params, batch))
  size = task.backbone.patch_size
  over = task.softmax_over
  return [
    _look(clip, cut[i], index[i], {k: v[i] for k, v in out.items()}, size, over)
    for i, clip in enumerate(clips)
  ]


def _batch(recipe: recording.Recipe, clips: Sequence[str]) -> dict:
  """The beginnings of the clips, as the recipe's device part reads them."""
  cutting = recording.Cutting(
    recipe, lengths=(recipe.num_frames,), column=1, num_columns=1
  )
  rows = [next(Recording(clip).rows(cutting, whole=False)) for clip in clips]
  return {
    "audio": np.stack([row.audio for row in rows]),
    "num_samples": np.array([row.num_samples for row in rows], np.int32),
    "id": np.arange(len(rows), dtype=np.int32),
  }


def _look(name, cut, index, out, patch_size, over) -> Look:
  rows, cols, cells = cut.shape

  def whole(values, elsewhere):  # [M, cells] -> [T, F]
    flat = np.array(elsewhere, np.float32).reshape(-1, cells)
    flat[index] = values
    grid = flat.reshape(rows, cols, cells)
    return patches.unpatchify(grid, patch_size=patch_size)

  nothing = np.zeros_like(cut)
  true = cut.reshape(-1, cells)[index]  # [M, cells]
  drawn = identified = mse = accuracy = None
  if "generative" in out:
    drawn = whole(out["generative"], cut)
    mse = float(losses.masked_mse(true, out["generative"]))
  if "discriminative" in out:
    hits = losses.info_nce(true, out["discriminative"], over=over)[1]
    hits = np.asarray(hits)
    identified = whole(np.where(hits, 1.0, -1.0)[:, None], nothing)
    accuracy = float(hits.mean())
  return Look(
    name=name,
    fbank=patches.unpatchify(cut, patch_size=patch_size),
    hidden=whole(1.0, nothing) > 0,
    drawn=drawn,
    identified=identified,
    mse=mse,
    accuracy=accuracy,
  )


def _draw(looks: Sequence[Look], path: pathlib.Path) -> pathlib.Path:
  plt = pictures.pyplot()
  titles = ["spectrogram", "what the model sees"]
  titles += ["hidden patches drawn"] if looks[0].drawn is not None else []
  titles += ["identified"] if looks[0].identified is not None else []
  figure, axes = plt.subplots(
    len(looks),
    len(titles),
    figsize=(4 * len(titles), 2.4 * len(looks)),
    squeeze=False,
    layout="constrained",
  )
  for row, one in zip(axes, looks, strict=True):
    low, high = one.fbank.min(), one.fbank.max()
    spectrogram = {"vmin": low, "vmax": high, "cmap": "viridis"}
    panels = [(one.fbank, spectrogram)]
    panels += [(np.where(one.hidden, np.nan, one.fbank), spectrogram)]
    if one.drawn is not None:
      panels.append((one.drawn, spectrogram))
    if one.identified is not None:
      shown = {"vmin": -1, "vmax": 1, "cmap": "RdYlGn"}
      panels.append((np.where(one.hidden, one.identified, np.nan), shown))
    for axis, (picture, how) in zip(row, panels, strict=True):
      axis.imshow(
        picture.T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        **how,
      )
      axis.set_facecolor("lightgray")
    row[0].set(ylabel="mel bin")
    row[0].set_title(pathlib.Path(one.name).name, loc="left", fontsize=9)
  for axis, title in zip(axes[0][1:], titles[1:], strict=True):
    axis.set_title(title, fontsize=9)
  for axis in axes[-1]:
    axis.set(xlabel="frame")
  return pictures.save(figure, path)


if __name__ == "__main__":
  sys.exit(main())
