"""Folders of Hugging Face's AST, ViT and DeiT, in; AST, out.

What is written loads in transformers 4 and 5: both write, and so read, the
older names. Their AST has one epsilon for all layer norms (1e-12 by default,
where the original has 1e-6 and 1e-5), and its extractor does not subtract the
mean of the waveform.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from astjax.errors import Count, Positive, UserError, call, lookup
from astjax.models.heads import Epsilon, Head
from astjax.types import Params
from astjax.weights import convert, files, registry, tables
from astjax.weights.front_end import Finite, FrontEnd
from astjax.weights.info import ModelInfo

_PROBLEMS = {
  "multi_label_classification": "sigmoid",
  "single_label_classification": "softmax",
}
AST = "audio-spectrogram-transformer"
# The prefix tokens of what can be read.
_PREFIXES = {
  AST: ("cls", "dist"),
  "deit": ("cls", "dist"),
  "vit": ("cls",),
}
_EXTRACTOR = "preprocessor_config.json"


def _model(
  *,
  hidden_size: Count = 768,
  num_hidden_layers: Count = 12,
  num_attention_heads: Count = 12,
  intermediate_size: Count = 3072,
  hidden_act: Literal["gelu"] = "gelu",
  layer_norm_eps: Epsilon = 1e-12,
  patch_size: Count | tuple[Count, Count] = 16,
  qkv_bias: Literal[True] = True,
  frequency_stride: Count = 10,
  time_stride: Count = 10,
) -> dict[str, Any]:
  """A config.json as arguments of `make_backbone`; transformers' defaults."""
  if isinstance(patch_size, int):
    patch_size = (patch_size, patch_size)
  return {
    "width": hidden_size,
    "depth": num_hidden_layers,
    "num_heads": num_attention_heads,
    "mlp_dim": intermediate_size,
    "patch_size": tuple(patch_size),
    "stride": (frequency_stride, time_stride),
    "layer_norm_eps": float(layer_norm_eps),
  }


def _front_end(
  *,
  max_length: Count = 1024,
  num_mel_bins: Count = 128,
  sampling_rate: Count = 16_000,
  mean: Finite = registry.AUDIOSET_STATISTICS[0],
  std: Positive = registry.AUDIOSET_STATISTICS[1],
  do_normalize: bool = True,
) -> FrontEnd:
  """A preprocessor_config.json; transformers' defaults."""
  statistics = (float(mean), float(std)) if do_normalize else None
  return FrontEnd(
    sampling_rate, max_length, num_mel_bins, statistics, center=False
  )


def _call(fn, where: pathlib.Path, given: Mapping[str, Any]) -> Any:
  """`fn` of those of its arguments that a JSON file has."""
  known = {k: v for k, v in given.items() if k in fn.__kwdefaults__}
  return call(fn, str(where), known)


def read_config(
  folder: str | os.PathLike, scores: str | None = None
) -> tuple[ModelInfo, list[str]]:
  """What the JSON files of a folder say: (the model, what was assumed).

  `scores` is "sigmoid" or "softmax", where config.json has no problem_type.
  """
  folder = pathlib.Path(folder)
  where = folder / "config.json"
  config = files.read_json(where)
  kind = str(config.get("model_type"))
  prefix = lookup(_PREFIXES, kind, f"model_type in {where}")
  model = _call(_model, where, config) | {"prefix": prefix}
  if kind != AST:
    return ModelInfo(model=model | {"stride": model["patch_size"]}), []
  names, notes = _class_names(config, where), []
  problem = config.get("problem_type")
  if problem is not None:
    scores = lookup(_PROBLEMS, str(problem), f"problem_type in {where}")
  elif not scores:
    scores = "sigmoid"
    notes.append("scores are assumed to be sigmoid: no problem_type is given")
  given = {"layer_norm_eps": model["layer_norm_eps"], "scores": scores}
  head = call(Head, str(where), given, num_classes=len(names))
  recipe = _read_extractor(folder, config).recipe()
  info = ModelInfo(model=model, head=head, class_names=names, recipe=recipe)
  return info, notes


def _class_names(config, where) -> tuple[str, ...]:
  labels = config.get("id2label")
  if not labels:
    count = config.get("num_labels", 2)  # transformers' default
    if type(count) is not int or not 0 < count < 1_000_000:
      raise UserError(f"{where}: num_labels is {count!r}, expected a number")
    return tuple(f"LABEL_{i}" for i in range(count))
  if not isinstance(labels, Mapping):
    raise UserError(f"{where}: id2label is no object")
  numbers = [str(i) for i in range(len(labels))]
  if labels.keys() != {*numbers}:
    raise UserError(f"{where}: id2label does not count from 0")
  return tuple(str(labels[i]) for i in numbers)


def _read_extractor(folder: pathlib.Path, config: Mapping) -> FrontEnd:
  path = folder / _EXTRACTOR
  given = files.read_json(path) if path.is_file() else {}
  for name, default in (("max_length", 1024), ("num_mel_bins", 128)):
    value = config.get(name, default)
    if given.setdefault(name, value) != value:
      raise UserError(f"{path} has {name} {given[name]!r}, config.json {value}")
  return _call(_front_end, path, given)


def save(
  folder: str | os.PathLike, info: ModelInfo, params: Params
) -> list[str]:
  """Writes a folder for `ASTForAudioClassification.from_pretrained`.

  Returns:
    What will differ a little there, in words.

  Raises:
    UserError: a model or a recipe that transformers' AST and its
      ASTFeatureExtractor cannot be, or the folder is there already.
  """
  head = _check(info)
  front_end = FrontEnd.from_recipe(info.recipe)
  if front_end.padding != "frames":
    raise UserError("ASTFeatureExtractor pads log-mels, not the waveform")
  tensors = convert.revert(params, tables.HF_AST)
  with files.new_path(folder) as temporary:
    temporary.mkdir()
    files.write_safetensors(
      temporary / "model.safetensors", tensors, {"format": "pt"}
    )
    files.write_json(temporary / "config.json", _config(info, head, front_end))
    files.write_json(temporary / _EXTRACTOR, _extractor(front_end))
    card = _card(info, head)
    (temporary / "README.md").write_text(card, encoding="utf-8")
  notes, here, there = [], head.layer_norm_eps, info.model["layer_norm_eps"]
  if here != there:
    what = "the classifier's layer norm has epsilon"
    notes.append(f"{what} {there:g} there, {here:g} here")
  if front_end.sample_rate != 16_000:
    notes.append(
      f"at {front_end.sample_rate} Hz ASTFeatureExtractor is right only where "
      "torchaudio is installed; without it its windows are those of 16 kHz"
    )
  return notes


def _check(info: ModelInfo) -> Head:
  """The classifier; a UserError for what Hugging Face's AST cannot be."""
  head, patch = info.head, tuple(info.model["patch_size"])
  if head is None:
    raise UserError("the model has no classifier, Hugging Face's AST has one")
  names = info.class_names
  problems = {
    "needs the tokens cls and dist": (
      tuple(info.model["prefix"]) != _PREFIXES[AST]
    ),
    "averages the prefix tokens, not the patches": head.pooling != "prefix",
    "has a classifier on the last block alone": head.projection,
    f"has square patches, not {patch}": patch[0] != patch[1],
    # Its label2id is a dict.
    "takes no two classes of one name": len({*names}) < len(names),
  }
  for what, is_wrong in problems.items():
    if is_wrong:
      raise UserError(f"it cannot be written: Hugging Face's AST {what}")
  if not info.recipe:
    raise UserError("the front-end is unknown; give --input, --mean and --std")
  return head


def _config(info: ModelInfo, head: Head, front_end: FrontEnd) -> dict[str, Any]:
  """Its config.json."""
  model = info.model
  names = info.class_names or [f"LABEL_{i}" for i in range(head.num_classes)]
  return {
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
    "patch_size": model["patch_size"][0],
    "qkv_bias": True,
    "frequency_stride": model["stride"][0],
    "time_stride": model["stride"][1],
    "max_length": front_end.num_frames,
    "num_mel_bins": front_end.num_mel_bins,
    "id2label": {str(i): name for i, name in enumerate(names)},
    "label2id": {name: i for i, name in enumerate(names)},
    "problem_type": {v: k for k, v in _PROBLEMS.items()}[head.scores],
  }


def _extractor(front_end: FrontEnd) -> dict[str, Any]:
  """Its preprocessor_config.json."""
  # Its extractor divides by 2 * std, as `standardize` does, so statistics go
  # over as they are; without normalising they are not looked at.
  mean, std = front_end.statistics or (0.0, 0.5)
  return {
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


def _card(info: ModelInfo, head: Head) -> str:
  """The model card that the hub shows."""
  licence = f"license: {info.licence.lower()}\n" if info.licence else ""
  expected = f"\n\nPublished result: {info.expected}." if info.expected else ""
  return (
    "---\nlibrary_name: transformers\npipeline_tag: audio-classification\n"
    f"{licence}---\n\n# Audio Spectrogram Transformer\n\n"
    f"{head.num_classes} classes. Weights: {info.origin or 'unknown'}. "
    f"Written by astjax.{expected}\n"
  )
