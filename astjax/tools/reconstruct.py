"""Draws what a pre-trained model makes of spectrograms it cannot see whole.

  python -m astjax.tools.reconstruct --model=runs/ssast a.wav b.wav --out=x.png

One row a clip. Of an SSAST: its spectrogram, what is left of it under a mask,
the hidden patches as the model draws them, and which of them it can tell apart
(green; red if not). Of an ASiT: its spectrogram, the same corrupted, where that
is, the whole as the model draws it, and where the class token looks in the last
block (on the clean spectrogram, mean over heads). Clips are corrupted as in the
model's training, as far as it is known, else as in the original's. The model is
a work directory, a saved model, a published SSAST or ASiT's checkpoint.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from astjax.errors import UserError
from astjax.tools import looks, pictures
from astjax.tools.looks import Look
from astjax.weights import files, load


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
  add("--num_mask", type=int, default=0, help=f"of an SSAST: {what}")
  add("--network", choices=files.NETWORKS, default=files.NETWORKS[0],
      help="of ASiT's two")  # fmt: skip
  add("--seed", type=int, default=0, help="of the masks")
  add("--recipe", default="", help="front-end, if the model has none")
  args = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)  # orbax warns of reading only
  try:
    options = load.Options(network=args.network)
    found = looks.look(
      load.load(args.model, options),
      args.clips,
      num_mask=args.num_mask,
      seed=args.seed,
      recipe=args.recipe,
    )
    path = _draw(found, pathlib.Path(args.out).expanduser())
  except UserError as e:
    print(f"astjax: error: {' '.join(str(e).split())}", file=sys.stderr)
    return 1
  for one in found:
    numbers = (f"{name} {value:.4f}" for name, value in one.numbers.items())
    print(
      "  ".join([one.name, f"{100 * one.hidden.mean():.0f} % hidden", *numbers])
    )
  print(f"wrote {path}")
  return 0


def _panels(one: Look) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
  """(title, [T, F], how it is coloured) of each picture of a row."""
  low, high = one.fbank.min(), one.fbank.max()
  mels = {"vmin": low, "vmax": high, "cmap": "viridis"}
  yield "spectrogram", one.fbank, mels
  yield "what the model sees", one.seen, mels
  if one.attention is None:
    if one.drawn is not None:
      yield "hidden patches drawn", one.drawn, mels
  else:
    mask = one.hidden.astype(np.float32)
    yield "corrupted", mask, {"vmin": 0, "vmax": 1, "cmap": "gray"}
    yield "drawn", one.drawn, mels
    yield "where the class token looks", one.attention, {"cmap": "magma"}
  if one.identified is not None:
    hits = np.where(one.hidden, one.identified, np.nan)
    yield "identified", hits, {"vmin": -1, "vmax": 1, "cmap": "RdYlGn"}


def _draw(found: Sequence[Look], path: pathlib.Path) -> pathlib.Path:
  plt = pictures.pyplot()
  rows = [list(_panels(one)) for one in found]
  count = len(rows[0])
  figure, axes = plt.subplots(
    len(rows),
    count,
    figsize=(4 * count, 2.4 * len(rows)),
    squeeze=False,
    layout="constrained",
  )
  for one, row, places in zip(found, rows, axes, strict=True):
    for axis, (_, picture, how) in zip(places, row, strict=True):
      axis.imshow(
        picture.T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        **how,
      )
      axis.set_facecolor("lightgray")
    places[0].set(ylabel="mel bin")
    places[0].set_title(pathlib.Path(one.name).name, loc="left", fontsize=9)
  for axis, (title, *_) in zip(axes[0][1:], rows[0][1:], strict=True):
    axis.set_title(title, fontsize=9)
  for axis in axes[-1]:
    axis.set(xlabel="frame")
  return pictures.save(figure, path)


if __name__ == "__main__":
  sys.exit(main())
