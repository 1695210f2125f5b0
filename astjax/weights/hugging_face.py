"""Folders of Hugging Face's AST, ViT and DeiT, in; AST, out.

What is written loads in transformers 4 and 5: both write, and so read, the
older names. Their AST has one epsilon for all layer norms (1e-12 by default,
where the original has 1e-6 and 1e-5), and its extractor does not subtract the
mean of the waveform.
"""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from astjax.errors import UserError, lookup
from astjax.models.heads import Head
from astjax.types import Params
from astjax.weights import convert, files, registry, tables
from astjax.weights import info as model_info
from astjax.weights.info import FrontEnd, ModelInfo

_PROBLEMS = {
  "multi_label_classification": "sigmoid",
  "single_label_classification": "softmax",
}
AST = "audio-spectrogram-transformer"
IMAGE = ("vit", "deit")
_EXTRACTOR = "preprocessor_config.json"

# transformers' own defaults, for what a config.json leaves out.
DEFAULTS = {
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "intermediate_size": 3072,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-12,
  "patch_size": 16,
  "qkv_bias": True,
  "frequency_stride": 10,
  "time_stride": 10,
  "max_length": 1024,
  "num_mel_bins": 128,
}


def read_config(
  folder: str | os.PathLike, scores: str = ""
) -> tuple[ModelInfo, list[str]]:
  """What the JSON files of a folder say.

  Args:
    folder: with config.json.
    scores: "sigmoid" or "softmax", where config.json has no problem_type.

  Returns:
    (the model, what was assumed about it).

  Raises:
    UserError: not a folder of AST, ViT or DeiT, or something astjax's model
      cannot be.
  """
  folder = pathlib.Path(folder)
  where = folder / "config.json"
  given = files.read_json(where)
  kind = given.get("model_type")
  if kind not in (AST, *IMAGE):
    raise UserError(
      f"{where} is of model_type {kind!r}; known are {', '.join((AST, *IMAGE))}"
    )
  config = DEFAULTS | given
  size = config["patch_size"]
  patch = tuple(size) if isinstance(size, list) else (size, size)
  if len(patch) != 2:
    raise UserError(f"{where}: patch_size is {size!r}, expected one or two")
  is_ast = kind == AST
  strides = (config["frequency_stride"], config["time_stride"])
  numbers = {
    "width": config["hidden_size"],
    "depth": config["num_hidden_layers"],
    "num_heads": config["num_attention_heads"],
    "mlp_dim": config["intermediate_size"],
    "max_length": config["max_length"],
    "num_mel_bins": config["num_mel_bins"],
  }
  numbers |= {f"patch_size {i}": n for i, n in enumerate(patch)}
  numbers |= {f"stride {i}": n for i, n in enumerate(strides)}
  for name, value in numbers.items():
    if type(value) is not int or value < 1:
      raise UserError(
        f"{where}: {name} is {value!r}, expected a number above 0"
      )
  if config["hidden_act"] != "gelu" or not config["qkv_bias"]:
    raise UserError(
      f"{where}: hidden_act {config['hidden_act']!r} and qkv_bias "
      f"{config['qkv_bias']!r}; astjax's model has 'gelu' and True"
    )
  epsilon = config["layer_norm_eps"]
  if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
    raise UserError(
      f"{where}: layer_norm_eps is {epsilon!r}, expected a number"
    )
  sizes = {k: numbers[k] for k in ("width", "depth", "num_heads", "mlp_dim")}
  model = sizes | {
    "patch_size": patch,
    "stride": strides if is_ast else patch,
    "prefix": ("cls",) if kind == "vit" else ("cls", "dist"),
    "layer_norm_eps": float(epsilon),
  }
  if not is_ast:
    return ModelInfo(model=model), []
  names, notes = _class_names(config, where), []
  problem = config.get("problem_type")
  if problem is not None:
    scores = lookup(_PROBLEMS, problem, f"problem_type in {where}")
  elif not scores:
    scores = "sigmoid"
    notes.append("scores are assumed to be sigmoid: no problem_type is given")
  head = Head(
    num_classes=len(names), layer_norm_eps=float(epsilon), scores=scores
  )
  recipe = _read_extractor(folder, config).recipe()
  info = ModelInfo(model=model, head=head, class_names=names, recipe=recipe)
  return info, notes


def _class_names(config, where):
  labels = config.get("id2label") or {}
  if not isinstance(labels, Mapping):
    raise UserError(f"{where}: id2label is no object")
  names = [labels.get(str(i)) for i in range(len(labels))]
  if not names:
    count = config.get("num_labels", 2)  # transformers' default
    if type(count) is not int or not 0 < count < 1_000_000:
      raise UserError(f"{where}: num_labels is {count!r}, expected a number")
    return tuple(f"LABEL_{i}" for i in range(count))
  if None in names:
    raise UserError(f"{where}: id2label does not count from 0")
  return tuple(str(n) for n in names)


def _read_extractor(folder, config):
  path = folder / _EXTRACTOR
  given = files.read_json(path) if path.is_file() else {}
  try:
    mean, std = registry.AUDIOSET_STATISTICS  # transformers' default
    statistics = (float(given.get("mean", mean)), float(given.get("std", std)))
    rate = int(given.get("sampling_rate", 16_000))
  except (TypeError, ValueError) as e:
    raise UserError(f"{path}: {e}") from None
  for name in ("max_length", "num_mel_bins"):
    if given.get(name, config[name]) != config[name]:
      raise UserError(
        f"{path} has {name} {given[name]!r}, config.json {config[name]}"
      )
  try:
    return FrontEnd(
      sample_rate=rate,
      num_frames=config["max_length"],
      num_mel_bins=config["num_mel_bins"],
      statistics=statistics if given.get("do_normalize", True) else None,
      center=False,
    )
  except UserError as e:
    raise UserError(f"{path}: {e}") from None


def save(
  folder: str | os.PathLike, info: ModelInfo, params: Params
) -> list[str]:
  """Writes a folder for `ASTForAudioClassification.from_pretrained`.

  Args:
    folder: a new folder.
    info: with a recipe that transformers' ASTFeatureExtractor can follow.
    params: backbone and head.

  Returns:
    What will differ a little there, in words.

  Raises:
    UserError: a model that Hugging Face's AST cannot be, or the folder is there
      already.
  """
  config, extractor, notes = _configs(info, params)
  tensors = convert.revert(params, tables.HF_AST)
  with files.new_path(folder) as temporary:
    temporary.mkdir()
    files.write_safetensors(
      temporary / "model.safetensors", tensors, {"format": "pt"}
    )
    files.write_json(temporary / "config.json", config)
    files.write_json(temporary / _EXTRACTOR, extractor)
    card = _card(info)
    (temporary / "README.md").write_text(card, encoding="utf-8")
  return notes


def _configs(info: ModelInfo, params: Params):
  model, head, notes = info.model, info.head, []
  if head is None:
    raise UserError(
      "the model has no classifier; Hugging Face's format has one"
    )
  patch = tuple(model["patch_size"])
  problems = [
    (
      tuple(model["prefix"]) != ("cls", "dist"),
      "needs the tokens cls and dist",
    ),
    (head.pooling != "prefix", "averages the prefix tokens, not the patches"),
    (head.projection, "has a classifier on the last block alone"),
    (patch[0] != patch[1], f"has square patches, not {patch}"),
  ]
  for wrong, what in problems:
    if wrong:
      raise UserError(
        f"this model cannot be written: Hugging Face's AST {what}"
      )
  if not info.recipe:
    raise UserError(
      "the model's front-end is unknown; give --input, --mean and --std"
    )
  front_end = model_info.front_end(info.recipe)
  if front_end.padding != "frames":
    raise UserError(
      "ASTFeatureExtractor pads log-mels; this model's recipe pads the waveform"
    )
  if head.layer_norm_eps != model["layer_norm_eps"]:
    notes.append(
      f"the classifier's layer norm has epsilon {model['layer_norm_eps']:g} "
      f"there, {head.layer_norm_eps:g} here"
    )
  if front_end.sample_rate != 16_000:
    notes.append(
      f"at {front_end.sample_rate} Hz ASTFeatureExtractor is right only where "
      "torchaudio is installed; without it its windows are those of 16 kHz"
    )
  names = info.class_names or tuple(
    f"LABEL_{i}" for i in range(head.num_classes)
  )
  twice = [n for n, c in collections.Counter(names).items() if c > 1]
  if twice:
    raise UserError(
      f"the class name {twice[0]!r} comes twice, and Hugging Face's format "
      "counts classes by name"
    )
  config: dict[str, Any] = {
    "architectures": ["ASTForAudioClassification"],
    "model_type": AST,
    "hidden_size": model["width"],
    "num_hidden_layers": model["depth"],
    "num_attention_heads": model["num_heads"],
    "intermediate_size": model["mlp_dim"] or 4 * model["width"],
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": model["layer_norm_eps"],
    "patch_size": patch[0],
    "qkv_bias": True,
    "frequency_stride": model["stride"][0],
    "time_stride": model["stride"][1],
    "max_length": front_end.num_frames,
    "num_mel_bins": front_end.num_mel_bins,
    "id2label": {str(i): name for i, name in enumerate(names)},
    "label2id": {name: i for i, name in enumerate(names)},
    "problem_type": {v: k for k, v in _PROBLEMS.items()}[head.scores],
  }
  mean, std = front_end.statistics or (0.0, 0.5)
  extractor = {
    "feature_extractor_type": "ASTFeatureExtractor",
    "feature_size": 1,
    "sampling_rate": front_end.sample_rate,
    "num_mel_bins": front_end.num_mel_bins,
    "max_length": front_end.num_frames,
    "do_normalize": front_end.statistics is not None,
    "mean": mean,
    "std": std,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
  }
  return config, extractor, notes


def _card(info: ModelInfo) -> str:
  """The model card that the hub shows."""
  licence = f"license: {info.licence.lower()}\n" if info.licence else ""
  expected = f"\n\nPublished result: {info.expected}." if info.expected else ""
  return (
    "---\nlibrary_name: transformers\npipeline_tag: audio-classification\n"
    f"{licence}---\n\n# Audio Spectrogram Transformer\n\n"
    f"{info.head.num_classes} classes. Weights: {info.origin or 'unknown'}. "
    f"Written by astjax.{expected}\n"
  )
