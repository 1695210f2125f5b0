"""Tables of names: from published checkpoints to the parameters of astjax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from astjax.errors import UserError
from astjax.weights import files, layouts
from astjax.weights.convert import INPUT_SIZE, SEQUENCE, TIME_SEQUENCE, Rule


def _linear(source: str, target: str) -> tuple[Rule, Rule]:
  return (
    Rule((source + ".weight",), (target + "/kernel",), layouts.LINEAR),
    Rule((source + ".bias",), (target + "/bias",)),
  )


def _qkv(sources: Sequence[str], target: str) -> tuple[Rule, Rule]:
  """Query, key and value: one linear layer here, three in the file."""
  weights = tuple(source + ".weight" for source in sources)
  biases = tuple(source + ".bias" for source in sources)
  return (
    Rule(weights, (target + "/kernel",), layouts.QKV_LINEAR),
    Rule(biases, (target + "/bias",), layouts.QKV_BIAS),
  )


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
  return (
    Rule((source + ".weight",), (target + "/scale",)),
    Rule((source + ".bias",), (target + "/bias",)),
  )


def _same(source: str, target: str, weight: str) -> tuple[Rule, ...]:
  """A layer that Flax calls and keeps as it is here."""
  return tuple(
    Rule((f"{source}/{k}",), (f"{target}/{k}",)) for k in (weight, "bias")
  )


def _unwanted(*sources: str) -> tuple[Rule, ...]:
  """Weight and bias of layers that are dropped on purpose."""
  return tuple(Rule((f"{s}.{k}",)) for s in sources for k in ("weight", "bias"))


_BLOCK = "backbone/encoder/block_{i}/"


def _embeddings(
  names: Sequence[str],
  sequence: str = SEQUENCE,
  kernel: layouts.Transform = layouts.CONVOLUTION,
) -> tuple[Rule, ...]:
  """Tokens and patches of torch; names of cls, dist, positions and patches."""
  cls, dist, positions, patch = names
  return (
    Rule((cls,), ("backbone/cls_token",), layouts.TOKEN),
    Rule((dist,), ("backbone/dist_token",), layouts.TOKEN),
    Rule((positions,), (sequence,), layouts.POSITIONS),
    Rule((patch + ".weight",), ("backbone/patch_embed/kernel",), kernel),
    Rule((patch + ".bias",), ("backbone/patch_embed/bias",)),
  )


def _timm(source: str, *positions: Any) -> tuple[Rule, ...]:
  """A timm vision transformer whose names begin with `source`."""
  block = source + "blocks.{i}."
  embeddings = ("cls_token", "dist_token", "pos_embed", "patch_embed.proj")
  return (
    *_embeddings([source + name for name in embeddings], *positions),
    *_norm(block + "norm1", _BLOCK + "norm1"),
    *_linear(block + "attn.qkv", _BLOCK + "attn/qkv"),
    *_linear(block + "attn.proj", _BLOCK + "attn/proj"),
    *_norm(block + "norm2", _BLOCK + "norm2"),
    *_linear(block + "mlp.fc1", _BLOCK + "mlp/fc1"),
    *_linear(block + "mlp.fc2", _BLOCK + "mlp/fc2"),
    *_norm(source + "norm", "backbone/encoder/norm"),
    # ImageNet's classifiers: in an AST file they travel along unused.
    *_unwanted(source + "head", source + "head_dist"),
  )


# DeiT and other vision transformers of timm.
TIMM_VIT = (*_timm(""), *_unwanted("pre_logits.fc"))

_CLASSIFIER = (
  *_norm("mlp_head.0", "head/norm"),
  *_linear("mlp_head.1", "head/linear"),
)

# The official AST: one of timm's transformers (`v.`) and its classifier.
AST_PTH = (*_timm("v."), *_CLASSIFIER)

# SSAST as it is pre-trained. After its fine-tuning the names are AST's.
SSAST_PTH = (
  *_timm("v."),
  Rule(("mask_embed",), ("mask_token",), layouts.TOKEN),
  *_linear("cpredlayer.0", "discriminative/fc1"),
  *_linear("cpredlayer.2", "discriminative/fc2"),
  *_linear("gpredlayer.0", "generative/fc1"),
  *_linear("gpredlayer.2", "generative/fc2"),
  Rule(("p_input_fdim", "p_input_tdim"), (INPUT_SIZE,), layouts.SCALARS),
)


def _time_major(source: str) -> tuple[Rule, ...]:
  """The transformer of ASiT: time before frequency."""
  return _timm(source, TIME_SEQUENCE, layouts.TIME_CONVOLUTION)


# ASiT's transformer alone, and with a classifier on its class token.
ASIT_BACKBONE = _time_major("")
ASIT_PTH = (*_time_major("v."), *_CLASSIFIER)


def _mlp(source: str, target: str) -> list[Rule]:
  """Three linear layers with an activation between each two."""
  return [
    rule
    for i in range(3)
    for rule in _linear(f"{source}.mlp.{2 * i}", f"{target}/fc{i + 1}")
  ]


def _asit(projection: str, *layers: Rule) -> tuple[Rule, ...]:
  """ASiT as it is pre-trained."""
  transposed = "head_recons.convTrans"
  return (
    *_time_major("backbone."),
    *_mlp(projection, "projection"),
    *layers,
    *_mlp("head_recons", "reconstruction"),
    Rule(
      (transposed + ".weight",),
      ("reconstruction/kernel",),
      layouts.TIME_TRANSPOSED,
    ),
    Rule((transposed + ".bias",), ("reconstruction/bias",)),
  )


def _unit_layer(source: str, target: str) -> Rule:
  weights = (source + ".weight_g", source + ".weight_v")
  return Rule(weights, (target + "/weight_v",), layouts.UNIT_WEIGHTS)


# The first release: two output layers, whose lengths stay at 1.
ASIT_R1_PTH = _asit(
  "head_cls",
  _unit_layer("head_cls.cls_layer", "projection/cls"),
  _unit_layer("head_cls.data_layer", "projection/patch"),
)

# The second release: one output layer, whose lengths are learned.
_LAST = "head.last_layer"
ASIT_R2_PTH = _asit(
  "head",
  Rule((_LAST + ".weight_g",), ("projection/last/weight_g",), layouts.WEIGHT_G),
  Rule((_LAST + ".weight_v",), ("projection/last/weight_v",), layouts.LINEAR),
)


def _hugging_face(source, blocks, qkv, proj, fc1, fc2):
  """AST, ViT and DeiT of transformers; the blocks have two sets of names."""
  embed, block = source + "embeddings.", source + blocks
  embeddings = (
    *("cls_token", "distillation_token", "position_embeddings"),
    "patch_embeddings.projection",
  )
  return (
    *_embeddings([embed + name for name in embeddings]),
    *_norm(block + "layernorm_before", _BLOCK + "norm1"),
    *_qkv([block + name for name in qkv], _BLOCK + "attn/qkv"),
    *_linear(block + proj, _BLOCK + "attn/proj"),
    *_norm(block + "layernorm_after", _BLOCK + "norm2"),
    *_linear(block + fc1, _BLOCK + "mlp/fc1"),
    *_linear(block + fc2, _BLOCK + "mlp/fc2"),
    *_norm(source + "layernorm", "backbone/encoder/norm"),
    *_norm("classifier.layernorm", "head/norm"),
    *_linear("classifier.dense", "head/linear"),
    # What ViT and DeiT carry beside the transformer.
    Rule((embed + "mask_token",)),
    *_unwanted(
      source + "pooler.dense",
      "classifier",
      "cls_classifier",
      "distillation_classifier",
    ),
  )


def _legacy(source: str) -> tuple[Rule, ...]:
  """The names on the hub, which transformers 4 and 5 write to disk."""
  return _hugging_face(
    source,
    "encoder.layer.{i}.",
    tuple(f"attention.attention.{k}" for k in ("query", "key", "value")),
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
  )


def _in_memory(source: str) -> tuple[Rule, ...]:
  """The names of transformers 5 in memory."""
  return _hugging_face(
    source,
    "layers.{i}.",
    tuple(f"attention.{k}_proj" for k in "qkv"),
    "attention.o_proj",
    "mlp.fc1",
    "mlp.fc2",
  )


_HF_AST = "audio_spectrogram_transformer."
HF_AST = _legacy(_HF_AST)
HF_AST_5 = _in_memory(_HF_AST)


def _google(norms, mlp, attention) -> tuple[Rule, ...]:
  """A vision transformer of Google: flax names, numbered in two ways."""
  source = "Transformer/encoderblock_{i}/"
  attention = f"{source}MultiHeadDotProductAttention_{attention}/"
  mlp = f"{source}MlpBlock_{mlp}/"
  qkv, proj, patch = (
    _BLOCK + "attn/qkv",
    _BLOCK + "attn/proj",
    "backbone/patch_embed",
  )

  def projections(kind):
    return tuple(f"{attention}{k}/{kind}" for k in ("query", "key", "value"))

  return (
    Rule(("cls",), ("backbone/cls_token",), layouts.TOKEN),
    *(
      Rule((name,), (SEQUENCE,), layouts.POSITIONS)
      for name in ("Transformer/posembed_input/pos_embedding", "pos_embedding")
    ),
    Rule(("embedding/kernel",), (patch + "/kernel",), layouts.FLAX_CONVOLUTION),
    Rule(("embedding/bias",), (patch + "/bias",)),
    *_same(f"{source}LayerNorm_{norms[0]}", _BLOCK + "norm1", "scale"),
    Rule(projections("kernel"), (qkv + "/kernel",), layouts.FLAX_QKV),
    Rule(projections("bias"), (qkv + "/bias",), layouts.QKV_BIAS),
    Rule((attention + "out/kernel",), (proj + "/kernel",), layouts.FLAX_OUT),
    Rule((attention + "out/bias",), (proj + "/bias",)),
    *_same(f"{source}LayerNorm_{norms[1]}", _BLOCK + "norm2", "scale"),
    *_same(mlp + "Dense_0", _BLOCK + "mlp/fc1", "kernel"),
    *_same(mlp + "Dense_1", _BLOCK + "mlp/fc2", "kernel"),
    *_same("Transformer/encoder_norm", "backbone/encoder/norm", "scale"),
    *(
      Rule((f"{layer}/{k}",))
      for layer in ("head", "pre_logits")
      for k in ("kernel", "bias")
    ),
  )


# The submodules of a block numbered together (the published files, AugReg), or
# every kind for itself (big_vision and newer).
GOOGLE_VIT = _google((0, 2), 3, 1)
GOOGLE_VIT_NEW = _google((0, 1), 0, 0)


def _unstacked(names: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """big_vision may scan over the blocks: [depth, ...] -> one array a block."""
  stack, out = "Transformer/encoderblock/", {}
  for name, array in names.items():
    if name.startswith(stack) and array.ndim:
      rest = name.removeprefix(stack)
      for i, part in enumerate(array):
        out[f"Transformer/encoderblock_{i}/{rest}"] = part
    else:
      out[name] = array
  return out


class Recognised(NamedTuple):
  """Which table a state dict belongs to."""

  kind: str  # for people
  table: tuple[Rule, ...]
  names: dict[str, np.ndarray]  # without wrappers such as `module.`
  outside: tuple[str, ...] = ()  # an optimiser's state, another network
  # "SSAST" or "ASiT" if the model is as their pre-training leaves it, on
  # patches that do not overlap.
  pretrained_by: str = ""
  network: str = ""  # which of `files.NETWORKS`, if there are any


def _one_of_two(names: Mapping[str, np.ndarray], network: str):
  """(one network's names, names of the rest, which network it is, if any)."""
  found = [
    n for n in files.NETWORKS if any(k.startswith(f"{n}.") for k in names)
  ]
  if not found:
    return dict(names), (), ""
  if network not in found:
    # Not the other one in its place: a student is no teacher.
    raise UserError(f"the file has no {network}; network={found[0]!r} is there")
  start = f"{network}."
  chosen = {
    k.removeprefix(start): v for k, v in names.items() if k.startswith(start)
  }
  rest = tuple(k for k in names if not k.startswith(start))
  return chosen, rest, network


# What stands before all names of a transformer inside another model.
_INNER = ("model.", "backbone.")


def _unwrapped(names: Mapping[str, np.ndarray]):
  """(names without what stands before all, the rest, whether `_INNER` did)."""
  names, outside, is_inside = dict(names), [], False
  for wrapper in ("opt/target/", "params/"):
    if any(k.startswith(wrapper) for k in names):
      outside = [
        k for k in names if k.startswith("opt/") and not k.startswith(wrapper)
      ]
      names = {
        k.removeprefix(wrapper): v for k, v in names.items() if k not in outside
      }
      break
  for wrapper in ("img/", "module.", *_INNER):
    if names and all(k.startswith(wrapper) for k in names):
      names = {k.removeprefix(wrapper): v for k, v in names.items()}
      is_inside = is_inside or wrapper in _INNER
  return names, tuple(outside), is_inside


def recognise(
  names: Mapping[str, np.ndarray], network: str = "teacher"
) -> Recognised | None:
  """Which table a state dict belongs to; None if it is nothing known.

  Raises:
    UserError: the file has another network than the one that is wanted.
  """
  names, others, network = _one_of_two(names, network)
  names, outside, is_inside = _unwrapped(names)
  found = _recognise(_unstacked(names), is_inside)
  return found and found._replace(outside=(*outside, *others), network=network)


def _recognise(names, is_inside):

  def before(end: str) -> str | None:
    """What stands before the first name with this end."""
    return next((k.removesuffix(end) for k in names if k.endswith(end)), None)

  if (source := before("blocks.0.norm1.weight")) is not None:
    # No shape shows whose patches they are, for ASiT's positions only go
    # through the mel bins first: so the names decide. AST and SSAST have a dist
    # token, ASiT has none; plain names are timm's.
    if source == "v." and "mask_embed" in names:
      found = Recognised("official SSAST", SSAST_PTH, names)
      return found._replace(pretrained_by="SSAST")
    if source == "v." and "v.dist_token" in names:
      return Recognised("official AST", AST_PTH, names)
    if source == "v.":
      return Recognised("fine-tuned ASiT", ASIT_PTH, names)
    return _asit_of(names, source, is_inside) or Recognised(
      "timm vision transformer", TIMM_VIT, names
    )
  for end, table in (
    ("encoder.layer.0.layernorm_before.weight", _legacy),
    ("layers.0.layernorm_before.weight", _in_memory),
  ):
    if (source := before(end)) is not None:
      kernel = names.get(
        f"{source}embeddings.patch_embeddings.projection.weight"
      )
      is_image = kernel is not None and kernel.ndim == 4 and kernel.shape[1] > 1
      what = "vision transformer" if is_image else "AST"
      return Recognised(f"Hugging Face {what}", table(source), names)
  if before("Transformer/encoderblock_0/LayerNorm_0/scale") is not None:
    is_new = before("encoderblock_0/LayerNorm_1/scale") is not None
    table = GOOGLE_VIT_NEW if is_new else GOOGLE_VIT
    return Recognised("Google vision transformer", table, names)
  return None


def _asit_of(names, source, is_inside):
  """A pre-trained ASiT or its transformer alone."""
  kinds = {
    "head_cls.": ("official ASiT (first release)", ASIT_R1_PTH),
    "head.": ("official ASiT (second release)", ASIT_R2_PTH),
  }
  has = lambda start: any(k.startswith(start) for k in names)  # noqa: E731
  kernel = names.get(f"{source}patch_embed.proj.weight")
  is_sound = kernel is not None and kernel.shape[1:2] == (1,)  # one channel
  for start, (kind, table) in kinds.items():
    # DINO and iBOT, of images, have the first one too.
    if (
      source == "backbone." and has(start) and (is_sound or has("head_recons."))
    ):
      return Recognised(kind, table, names, pretrained_by="ASiT")
  if is_inside and is_sound:
    return Recognised("ASiT", ASIT_BACKBONE, names, pretrained_by="ASiT")
  return None
