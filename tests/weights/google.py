"""Small files in the two layouts of Google's vision transformers."""

import numpy as np


def state_dict(
  numbering, *, width=32, heads=2, depth=2, side=4, patch=16, stacked=False
):
  """Random arrays under Google's names.

  Args:
    numbering: "old" (a block's submodules numbered together, positions with
      the class token) or "new" (big_vision's, positions of the patches alone).
    stacked: as a scan over the blocks leaves them, [depth, ...].
  """
  rng = np.random.default_rng(0)
  head = width // heads

  def draw(*shape):
    return (rng.standard_normal(shape) * 0.3).astype(np.float32)

  attention, mlp, norms = (
    (1, 3, (0, 2)) if numbering == "old" else (0, 0, (0, 1))
  )
  out = {
    "cls": draw(1, 1, width),
    "embedding/kernel": draw(patch, patch, 3, width) * 0.1,
    "embedding/bias": draw(width),
    "Transformer/encoder_norm/scale": 1 + draw(width),
    "Transformer/encoder_norm/bias": draw(width),
    "head/kernel": draw(width, 5),
    "head/bias": draw(5),
  }
  if numbering == "old":
    positions = draw(1, 1 + side * side, width)
    out["Transformer/posembed_input/pos_embedding"] = positions
  else:
    out["pos_embedding"] = draw(1, side * side, width)
  blocks = []
  for _ in range(depth):
    block = {}
    for norm in norms:
      block[f"LayerNorm_{norm}/scale"] = 1 + draw(width)
      block[f"LayerNorm_{norm}/bias"] = draw(width)
    name = f"MultiHeadDotProductAttention_{attention}"
    for part in ("query", "key", "value"):
      block[f"{name}/{part}/kernel"] = draw(width, heads, head)
      block[f"{name}/{part}/bias"] = draw(heads, head)
    block[f"{name}/out/kernel"] = draw(heads, head, width)
    block[f"{name}/out/bias"] = draw(width)
    block[f"MlpBlock_{mlp}/Dense_0/kernel"] = draw(width, 4 * width)
    block[f"MlpBlock_{mlp}/Dense_0/bias"] = draw(4 * width)
    block[f"MlpBlock_{mlp}/Dense_1/kernel"] = draw(4 * width, width)
    block[f"MlpBlock_{mlp}/Dense_1/bias"] = draw(width)
    blocks.append(block)
  if stacked:
    for name in blocks[0]:
      stack = np.stack([block[name] for block in blocks])
      out[f"Transformer/encoderblock/{name}"] = stack
    return out
  for i, block in enumerate(blocks):
    out |= {f"Transformer/encoderblock_{i}/{k}": v for k, v in block.items()}
  return out
