"""The smallest config that trains in seconds, whatever is to be tested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

RATE = 8_000
FRAMES = 20  # 0.215 s
SAMPLES = 1_720
MELS = 16


def tiny_config(**overrides: Any) -> ConfigDict:
  """Four steps on 24 synthetic clips of a fifth of a second.

  Args:
    **overrides: values laid over the sections, such as steps=2,
      input={"batch_size": 4} or evals={"val": {"every_steps": 2}}. A section
      is merged key by key, any other value replaces the one before it.
  """
  config = {
    "seed": 0,
    "epochs": 0.0,
    "steps": 4,
    "task": "supervised",
    "task_kw": {"loss": "bce"},
    "model": {
      "variant": "tiny224",
      "width": 16,
      "depth": 1,
      "num_heads": 1,
      "patch_size": (8, 10),
      "stride": (8, 10),
    },
    "input": {
      "source": "synthetic",
      "source_kw": _clips(24),
      "data_dir": "",
      "split": "train",
      "batch_size": 8,
      "on_host": (
        f"decode|fit(num_frames={FRAMES}, sample_rate={RATE})|quantise"
        "|multi_hot|keep('audio', 'num_samples', 'label')"
      ),
      "on_device": on_device("freq_mask(4)", "time_mask(5)"),
    },
    "evals": {
      "val": {
        "split": "val",
        "source_kw": _clips(10),
        "on_device": on_device(),
        "every_epochs": 0.0,
        "every_steps": 0,
      }
    },
    "best": "val/mAP",
    "schedule": {"lr": 1e-3, "decay": "constant", "warmup": "none"},
    "optim": {"name": "adam", "b1": 0.9, "weight_decay": 5e-7},
    "checkpoint": {"every_epochs": 0.0, "every_steps": 0, "keep": 2},
    "log": {"every_steps": 1, "tensorboard": False},
  }
  return ConfigDict(_merged(config, overrides))


def tiny_ssast(**overrides: Any) -> ConfigDict:
  """Likewise of SSAST, both of its objectives."""
  config = tiny_config(
    task="ssast",
    best="val/accuracy",
    input={
      "on_host": (
        f"decode|fit(num_frames={FRAMES}, sample_rate={RATE})|quantise"
        "|keep('audio', 'num_samples')"
      )
    },
  )
  config.task_kw = {"num_mask": 2}
  return ConfigDict(_merged(config.to_dict(), overrides))


def tiny_asit(**overrides: Any) -> ConfigDict:
  """Likewise of ASiT's second release: two views of 12 frames, four of 8."""
  config = tiny_config(
    task="asit",
    model={
      "patch_size": (8, 4),
      "stride": (8, 4),
      "prefix": ("cls",),
      "drop_path": 0.1,
    },
    best="val/recon",
    best_is_lowest=True,
    input={"on_host": _views(True), "on_device": _fbanks()},
    evals={"val": {"on_host": _views(False), "on_device": _fbanks()}},
    optim={
      "name": "adamw",
      "weight_decay": 0.04,
      "final_weight_decay": 0.4,
      "no_decay": ("(bias|scale)$",),
      "clip_each": 3.0,
      "freeze_first": ("projection/last",),
      "freeze_epochs": 1.0,
    },
    schedule={
      "lr": 5e-2,
      "lr_batch_size": 256,
      "decay": "cosine",
      "final_lr": 1e-6,
      "warmup": "linspace",
      "warmup_epochs": 1.0,
    },
  )
  config.task_kw = {"hidden": 12, "bottleneck": 8, "outputs": (10,)}
  return ConfigDict(_merged(config.to_dict(), overrides))


def _views(random: bool) -> str:
  return (
    f"decode|views(2, 0.14, local_count=4, local_seconds=0.1, random={random}, "
    f"sample_rate={RATE})|quantise|quantise('audio_local')"
    "|keep('audio', 'audio_local')"
  )


def _fbanks() -> str:
  return "|".join(
    f"to_float('audio{of}')|center('audio{of}', num_samples='')"
    f"|fbank(sample_rate={RATE}, num_mel_bins={MELS}, audio='audio{of}', "
    f"out='fbank{of}')|cut_frames({frames}, 'fbank{of}')"
    f"|standardize(-3.559, 3.5, 'fbank{of}')"
    for of, frames in (("", 12), ("_local", 8))
  )


def on_device(*masks: str) -> str:
  """The front-end of the tiny config, with these ops before standardising."""
  return "|".join(
    [
      "to_float",
      "center",
      f"fbank(sample_rate={RATE}, num_mel_bins={MELS})",
      f"pad_frames(sample_rate={RATE})",
      *masks,
      "standardize(-3.559, 3.5)",
    ]
  )


def _clips(count: int) -> dict[str, Any]:
  return {"num_examples": count, "seconds": 0.215, "sample_rate": RATE}


def _merged(base: Mapping, over: Mapping) -> dict[str, Any]:
  merged = dict(base)
  for key, value in over.items():
    both = isinstance(merged.get(key), Mapping) and isinstance(value, Mapping)
    merged[key] = _merged(merged[key], value) if both else value
  return merged
