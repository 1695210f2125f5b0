"""Draws what a pre-trained model makes of spectrograms it cannot see whole.

  python -m astjax.tools.reconstruct --model=runs/ssast a.wav b.wav --out=x.png

One row a clip. Of an SSAST: its spectrogram, what is left of it under a mask,
the hidden patches as the model draws them, and which of them it can tell apart
(green; red if not). Of an ASiT: its spectrogram, the same corrupted, where that
is, the whole as the model draws it, and where the class token looks in the last
block (on the clean spectrogram, mean over heads). Clips are corrupted as in the
model's training, as far as it is known, else as in the original's.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from astjax import cli, models
from astjax.errors import UserError
from astjax.models import asit, vit
from astjax.ops import gmml, losses, patches
from astjax.ops.recipe import apply_rows, row_keys
from astjax.serving import recording
from astjax.tasks import ssast
from astjax.tasks.base import cut
from astjax.types import Batch
from astjax.weights import convert, files, load
from astjax.weights.info import Loaded, Options

# Of the original SSAST, which hides 400 of 512 patches.
_HIDDEN = 400 / 512

_PICTURES = (".png", ".pdf", ".svg", ".jpg")


class Reconstruction(NamedTuple):
  """One clip, corrupted once. All arrays are [T, F], the frames of patches."""

  name: str
  fbank: np.ndarray  # as it is
  seen: np.ndarray  # by the model; NaN where that is nothing
  hidden: np.ndarray  # bool: hidden or corrupted
  drawn: np.ndarray | None  # by the model; None without that objective
  identified: np.ndarray | None  # 1 and -1 on hidden patches
  # Of the class token, in the last block on the whole clip, mean over heads;
  # None where it learns nothing.
  attention: np.ndarray | None
  numbers: Mapping[str, float]


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = cli.Parser(__doc__)
  add = parser.add_argument
  add("clips", nargs="+", metavar="FILE")
  what = "a path, a work directory or a published name"
  add("--model", required=True, help=what)
  add("--out", default="reconstruction.png", help="a picture")
  what = "hidden patches of a clip; by default as in training, or 400 of 512"
  add("--num_mask", type=int, default=0, help=f"of an SSAST: {what}")
  networks = files.NETWORKS
  add("--network", choices=networks, default=networks[0], help="of ASiT's two")
  add("--seed", type=int, default=0, help="of the masks")
  add("--recipe", default="", help="front-end, if the model has none")
  return cli.run(_reconstruct, parser, argv)


def _reconstruct(args: argparse.Namespace) -> None:
  cli.check_folder("--out", args.out)
  if not args.out.endswith(_PICTURES):
    raise UserError(f"--out={args.out} must end in {' or '.join(_PICTURES)}")
  loaded = load.load(args.model, Options(network=args.network))
  how = {k: getattr(args, k) for k in ("num_mask", "seed", "recipe")}
  found = reconstruct(loaded, args.clips, **how)
  _draw(found, pathlib.Path(args.out).expanduser())
  for one in found:
    numbers = (f"{name} {value:.4f}" for name, value in one.numbers.items())
    hidden = f"{100 * one.hidden.mean():.0f} % hidden"
    print("  ".join([one.name, hidden, *numbers]))
  print(f"wrote {args.out}")


def reconstruct(
  loaded: Loaded,
  clips: Sequence[str],
  *,
  num_mask: int = 0,
  seed: int = 0,
  recipe: str = "",
) -> list[Reconstruction]:
  """What the model sees and draws of the beginning of some clips, by path.

  An SSAST has `num_mask` patches hidden; 0 takes as many as its training, if
  that is known, else 400 of 512. `recipe` replaces the model's own.

  Raises:
    UserError: no pre-trained model, no front-end, a clip that cannot be read,
      or nonsense of corruption.
  """
  info = loaded.info
  what = info.origin or loaded.kind
  kinds = {"ssast": _of_ssast, "asit": _of_asit}
  kind = kinds.get(info.objective.get("name", ""))
  if kind is None:
    raise UserError(f"{what} is no SSAST or ASiT with its pre-training heads")
  if not (recipe or info.recipe):
    raise UserError(
      f"the front-end of {what} is not known; give --recipe, such as "
      f"'{recording.EXAMPLE}'"
    )
  parsed = recording.parse(recipe or info.recipe)
  batch = recording.beginnings(parsed, map(recording.Recording, clips))
  batch["id"] = np.arange(len(clips), dtype=np.int32)
  key = jax.random.key(seed, impl="threefry2x32")
  keys = row_keys(key, len(clips))
  hear = jax.jit(lambda batch: apply_rows(parsed.ops, batch, keys))
  found = jax.tree.map(np.asarray, kind(loaded, hear(batch), key, num_mask))
  return [
    Reconstruction(clip, **jax.tree.map(lambda x, i=i: x[i], found))
    for i, clip in enumerate(clips)
  ]


def _of_ssast(loaded: Loaded, batch: Batch, key, num_mask) -> dict[str, Any]:
  """The fields of `Reconstruction` after the name, [B, ...] each."""
  info, params = loaded.info, convert.unflatten(loaded.params)
  heads = set(info.objective["heads"])
  rows, cols = loaded.params[convert.GRID].shape[:2]
  how: dict[str, Any] = {"num_mask": max(1, round(_HIDDEN * rows * cols))}
  how |= info.objective.get("task_kw", {})
  how |= {"num_mask": num_mask} if num_mask else {}
  objectives = ssast.OBJECTIVES.items()
  how["objective"] = next(k for k, v in objectives if set(v) == heads)
  how["passes"] = 1  # both heads judge the same hidden patches
  backbone = models.build(info.model, "config.json: model")
  task = ssast.Ssast(backbone=backbone, **how)

  @jax.jit
  def run(params, batch):
    batch = task.corrupt(batch, key, 0)
    whole, index = cut(batch, task.backbone), batch["mask_index"][:, 0]
    return whole, index, task.model.apply({"params": params}, whole, index)

  clean, index, out = jax.tree.map(np.asarray, run(params, batch))
  count, *_, cells = clean.shape
  at = (np.arange(count)[:, None], index)
  in_line = clean.reshape(count, -1, cells)
  true = in_line[at]  # [B, M, cells]

  def whole(values, elsewhere):  # [B, M, cells] -> [B, T, F]
    flat = np.array(np.broadcast_to(elsewhere, in_line.shape), np.float32)
    flat[at] = values
    return patches.unpatchify(
      flat.reshape(clean.shape), patch_size=task.backbone.patch_size
    )

  drawn, identified, measured = None, None, dict[str, Any]()
  if "discriminative" in out:
    predicted = out["discriminative"]
    _, hits = losses.info_nce(true, predicted, over=task.softmax_over)
    identified = whole(np.where(hits, 1.0, -1.0)[..., None], 0.0)
    measured["identified"] = np.mean(hits, 1)  # of [B, M]
  if "generative" in out:
    drawn = whole(out["generative"], in_line)
    measured["mse"] = losses.masked_mse(true, out["generative"])
  return {
    "fbank": whole(true, in_line),
    "seen": whole(np.nan, in_line),
    "hidden": whole(1.0, 0.0) > 0,
    "drawn": drawn,
    "identified": identified,
    "attention": None,
    "numbers": measured,
  }


def _of_asit(loaded: Loaded, batch: Batch, key, num_mask) -> dict[str, Any]:
  """As `_of_ssast`, of an ASiT's blocks."""
  if num_mask:
    # Its blocks cover the part that they covered in its training.
    raise UserError(f"num_mask={num_mask} is for an SSAST, this is an ASiT")
  objective, module = loaded.info.objective, loaded.info.module()
  patch_size = module.backbone.patch_size
  preset: Mapping[str, Any] = asit.PRESETS[objective.get("preset", "r2")]
  how = {"drop_perc": preset["drop_perc"], **objective.get("task_kw", {})}
  # Of what is corrupted, a part is replaced by another clip's.
  is_alone = len(batch["id"]) == 1
  corruption = gmml.Gmml(
    drop=how["drop_perc"],
    replace=0.0 if is_alone else how.get("drop_replace", 0.3),
    align=how.get("drop_align", 1),
    fill=how.get("drop_fill", "zeros"),
  )

  @jax.jit
  def run(params, batch):
    clean = cut(batch, module.backbone)
    fbank = patches.unpatchify(clean, patch_size=patch_size)
    keys = row_keys(key, len(fbank))[:, None]
    seen, hidden = gmml.corrupt(keys, fbank[:, None], corruption)
    seen, hidden = seen[:, 0], hidden[:, 0]
    seen_patches = cut({"fbank": seen}, module.backbone)
    out = module.apply(
      {"params": params}, seen_patches, parts=("reconstruction",)
    )
    drawn = patches.unpatchify(out["reconstruction"], patch_size=patch_size)
    maps = vit.attention_maps(module.backbone, params["backbone"], clean)
    attention = jnp.mean(maps, axis=1)[:, 0]  # [B, F', T'] of the class token
    attention = jnp.broadcast_to(attention[..., None], clean.shape)
    return {
      "fbank": fbank,
      "seen": seen,
      "hidden": hidden,
      "drawn": drawn,
      "identified": None,
      "attention": patches.unpatchify(attention, patch_size=patch_size),
      "numbers": {"l1": losses.masked_l1(fbank, drawn, hidden, axis=(1, 2))},
    }

  return run(convert.unflatten(loaded.params), batch)


def _panels(one: Reconstruction) -> Iterator[tuple]:
  """(title, [T, F], how it is coloured) of each picture of a row."""
  low, high = one.fbank.min(), one.fbank.max()
  mels = {"vmin": low, "vmax": high, "cmap": "viridis"}
  yield "spectrogram", one.fbank, mels
  yield "what the model sees", one.seen, mels
  if one.attention is not None:
    mask = one.hidden.astype(np.float32)
    yield "corrupted", mask, {"vmin": 0, "vmax": 1, "cmap": "gray"}
    yield "drawn", one.drawn, mels
    yield "where the class token looks", one.attention, {"cmap": "magma"}
  elif one.drawn is not None:
    yield "hidden patches drawn", one.drawn, mels
  if one.identified is not None:
    hits = np.where(one.hidden, one.identified, np.nan)
    yield "identified", hits, {"vmin": -1, "vmax": 1, "cmap": "RdYlGn"}


def _draw(found: Sequence[Reconstruction], path: pathlib.Path) -> None:
  rows = [list(_panels(one)) for one in found]
  shape = (len(rows), len(rows[0]))
  figure, axes = subplots(*shape, figsize=(4 * shape[1], 2.4 * shape[0]))
  for one, row, places in zip(found, rows, axes, strict=True):
    for axis, (_, picture, how) in zip(places, row, strict=True):
      show(axis, picture, interpolation="nearest", **how)
      axis.set_facecolor("lightgray")
    places[0].set(ylabel="mel bin")
    places[0].set_title(pathlib.Path(one.name).name, loc="left", fontsize=9)
  for axis, (title, *_) in zip(axes[0][1:], rows[0][1:], strict=True):
    axis.set_title(title, fontsize=9)
  for axis in axes[-1]:
    axis.set(xlabel="frame")
  save(figure, path)


def subplots(rows: int, columns: int, figsize: tuple[float, float], **grid):
  """(matplotlib's figure, its axes [rows, columns])."""
  try:
    # Not pyplot, which would look for a screen.
    from matplotlib.figure import Figure
  except ModuleNotFoundError:
    told = "pictures need matplotlib: pip install 'astjax[report]'"
    raise UserError(told) from None
  figure = Figure(figsize, layout="constrained")
  return figure, figure.subplots(rows, columns, squeeze=False, **grid)


def show(axis, picture: np.ndarray, **how) -> None:
  """Draws a spectrogram [T, F], time to the right."""
  axis.imshow(picture.T, origin="lower", aspect="auto", **how)


def save(figure, path: pathlib.Path) -> None:
  """Writes a picture."""
  with files.written_whole(path) as whole:
    figure.savefig(whole, dpi=90)


if __name__ == "__main__":
  sys.exit(main())
