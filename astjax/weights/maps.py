"""Tables of names: from published checkpoints to the parameters of astjax."""

from __future__ import annotations

import numpy as np

from astjax.weights.convert import Rule


def _transpose(x, *shapes):
  """A torch Linear [out, in] -> kernel [in, out]."""
  if x.ndim != 2:
    raise ValueError("expected a matrix")
  return (x.T,)


def _patch_kernel(x, *shapes):
  """A one-channel convolution [D, 1, ph, pw] -> [ph, pw, D]."""
  if x.ndim != 4 or x.shape[1] != 1:
    raise ValueError("expected a one-channel patch kernel [D, 1, ph, pw]")
  return (np.transpose(x[:, 0], (1, 2, 0)),)


def _vector(x, *shapes):
  """A token [1, 1, D] -> [D]."""
  return (x.reshape(-1),)


def _positions(x, prefix, grid):
  """[1, P + N, D] -> prefix [P, D] and grid [F', T', D]."""
  num_prefix, width = prefix
  num_patches = grid[0] * grid[1]
  if x.shape != (1, num_prefix + num_patches, width):
    raise ValueError(
      f"expected {num_prefix} prefix + {grid[0]} x {grid[1]} patch positions "
      f"of width {width}"
    )
  return x[0, :num_prefix], x[0, num_prefix:].reshape(grid)


def _linear(source: str, target: str) -> tuple[Rule, Rule]:
  return (
    Rule(source + r"\.weight", (target + "/kernel",), _transpose),
    Rule(source + r"\.bias", (target + "/bias",)),
  )


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
  return (
    Rule(source + r"\.weight", (target + "/scale",)),
    Rule(source + r"\.bias", (target + "/bias",)),
  )


# A distilled vision transformer of timm inside the official AST (`v.`); with
# or without the prefix that torch's DataParallel writes.
_AST = r"(?:module\.)?"
_BLOCK = _AST + r"v\.blocks\.(\d+)\."
_TO_BLOCK = r"backbone/encoder/block_\1/"

AST_PTH: tuple[Rule, ...] = (
  Rule(_AST + r"v\.cls_token", ("backbone/cls_token",), _vector),
  Rule(_AST + r"v\.dist_token", ("backbone/dist_token",), _vector),
  Rule(
    _AST + r"v\.pos_embed",
    ("backbone/pos_embed/prefix", "backbone/pos_embed/grid"),
    _positions,
  ),
  Rule(
    _AST + r"v\.patch_embed\.proj\.weight",
    ("backbone/patch_embed/kernel",),
    _patch_kernel,
  ),
  Rule(_AST + r"v\.patch_embed\.proj\.bias", ("backbone/patch_embed/bias",)),
  *_norm(_BLOCK + "norm1", _TO_BLOCK + "norm1"),
  *_linear(_BLOCK + r"attn\.qkv", _TO_BLOCK + "attn/qkv"),
  *_linear(_BLOCK + r"attn\.proj", _TO_BLOCK + "attn/proj"),
  *_norm(_BLOCK + "norm2", _TO_BLOCK + "norm2"),
  *_linear(_BLOCK + r"mlp\.fc1", _TO_BLOCK + "mlp/fc1"),
  *_linear(_BLOCK + r"mlp\.fc2", _TO_BLOCK + "mlp/fc2"),
  *_norm(_AST + r"v\.norm", "backbone/encoder/norm"),
  # The unused ImageNet classifiers that travel in every AST file.
  Rule(_AST + r"v\.head(?:_dist)?\.(?:weight|bias)"),
  *_norm(_AST + r"mlp_head\.0", "head/norm"),
  *_linear(_AST + r"mlp_head\.1", "head/linear"),
)
