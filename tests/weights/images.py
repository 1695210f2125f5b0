"""Image models through the audio backbone: gray pictures as spectrograms."""

import jax
import numpy as np

from astjax.models import ast
from astjax.weights import load


def gray_images(side=64):
  """[B, rows, columns], and the same with three equal channels."""
  rng = np.random.default_rng(7)
  gray = rng.standard_normal((2, side, side)).astype(np.float32)
  return gray, np.repeat(gray[:, None], 3, axis=1)


def image_tokens(path, gray, rows, prefix):
  """An image model's tokens by ours: rows as frequency, or as time."""
  options = load.Options(rows=rows, num_heads=2)
  loaded = load.load(path, options)
  size, patch = gray.shape[1] // 16, (16, 16)
  backbone = ast.make_backbone(**{**loaded.info.model, "stride": patch})
  assert backbone.prefix == prefix
  cells = np.zeros((1, size, size, 256), np.float32)
  fresh = backbone.init(jax.random.key(0), patches=cells)["params"]
  params, report = load.start(
    loaded, {"backbone": fresh}, backbone=backbone, options=options
  )
  assert not report.fresh
  # [B, rows, columns] -> [B, T, F]
  spec = gray if rows == "time" else gray.swapaxes(1, 2)
  with jax.default_matmul_precision("highest"):
    out = backbone.apply({"params": params["backbone"]}, spec)
  tokens = np.asarray(out["tokens"])
  if rows == "time":  # our tokens go by frequency, theirs by rows
    grid = tokens.reshape(len(tokens), size, size, -1)
    tokens = grid.swapaxes(1, 2).reshape(tokens.shape)
  return np.concatenate([np.asarray(out["prefix"]), tokens], axis=1)
