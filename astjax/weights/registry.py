"""The published checkpoints: what they are, what they reach, where they lie.

`python -m astjax.tools.convert_weights --list` prints this table. A checkpoint
is named by its key here, by a Hugging Face name (owner/repository, optionally
@revision), or by a path.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

AUDIOSET_STATISTICS = (-4.2677393, 4.5689974)
SPEECH_COMMANDS_STATISTICS = (-6.845978, 5.5654526)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
  """One published checkpoint."""

  what: str  # for people
  url: str
  licence: str  # of the weights, as their publishers state it
  expected: str = ""  # the metric that its publishers report
  reported: tuple[str, float] | None = None  # the same for programs, on sounds
  sha256: str = ""  # or as much of its beginning as is known
  mirror: str = ""  # the same model as a Hugging Face name
  stride: tuple[int, int] | None = None  # (mel bins, frames)
  num_frames: int = 0
  statistics: tuple[float, float] | None = None  # mean, std of its log-mels
  scores: Literal["sigmoid", "softmax"] = "sigmoid"

  @property
  def file_name(self) -> str:
    """The last part of the address."""
    return self.url.split("?")[0].rsplit("/", 1)[-1]


# (size, image, beginning of the SHA-256, ImageNet top-1). The beginnings stand
# in the names of the files, where torch.hub looks for them.
_DEITS = (
  ("tiny", 224, "b40b3cf7", 74.5),
  ("small", 224, "649709d9", 81.2),
  ("base", 224, "df68dfff", 83.4),
  ("base", 384, "d0272ac0", 85.2),
)

# (key, file, what).
_AUGREG = "AugReg, ImageNet-21k"
_VITS = (
  (
    "vit_tiny_patch16_224_augreg_in21k",
    "augreg/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0",
    _AUGREG,
  ),
  (
    "vit_small_patch16_224_augreg_in21k",
    "augreg/S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0",
    _AUGREG,
  ),
  (
    "vit_base_patch16_224_augreg_in21k",
    "augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0",
    _AUGREG,
  ),
  ("vit_base_patch16_224_in21k", "imagenet21k/ViT-B_16", "ImageNet-21k"),
)

# (folder, key, Hugging Face name after "MIT/ast-finetuned-"); a key says the
# data, the stride and what is reached.
_ASTS = (
  ("ca0b1v2nlxzyeb4", "audioset_10_10_0.4593", "audioset-10-10-0.4593"),
  ("1tv0hovue1bxupk", "audioset_10_10_0.4495", "audioset-10-10-0.450"),
  ("6u5sikl4b9wo4u5", "audioset_10_10_0.4483", "audioset-10-10-0.448"),
  ("kt6i0v9fvfm1mbq", "audioset_10_10_0.4475", "audioset-10-10-0.448-v2"),
  ("snfhx3tizr4nuc8", "audioset_12_12_0.4467", "audioset-12-12-0.447"),
  ("z18s6pemtnxm4k7", "audioset_14_14_0.4431", "audioset-14-14-0.443"),
  ("mdsa4t1xmcimia6", "audioset_16_16_0.4422", "audioset-16-16-0.442"),
  ("q0tbqpwv44pquwy", "speechcommands_10_10_0.9812", "speech-commands-v2"),
)

# (folder, key, average over the audio and over the speech tasks).
_SSASTS = (
  ("ewrzpco95n9jdz6", "SSAST-Base-Patch-400", 59.9, 79.5),
  ("nx6nl4d4bl71sm8", "SSAST-Base-Frame-400", 57.6, 84.0),
  ("mxrm9qog6aj8hif", "SSAST-Base-Patch-250", 58.6, 79.5),
  ("4e6l7ulhwrfoana", "SSAST-Base-Frame-250", 55.6, 81.6),
  ("i24w446rl9pkf05", "SSAST-Small-Patch-400", 58.1, 78.2),
  ("fkbtf78y94113wz", "SSAST-Tiny-Patch-400", 53.3, 75.7),
  ("rx7g60ruzawffzv", "SSAST-Tiny-Frame-400", 47.8, "untested"),
)


def _deit(size, image, sha256, top1):
  key = f"deit_{size}_distilled_patch16_{image}"
  return key, Published(
    what=f"DeiT {size}, distilled, ImageNet at {image} x {image}",
    url=f"https://dl.fbaipublicfiles.com/deit/{key}-{sha256}.pth",
    licence="Apache-2.0",
    expected=f"ImageNet top-1 {top1} %",
    sha256=sha256,
  )


def _vit(key, file, what):
  return key, Published(
    what=f"ViT {key.split('_')[1]}/16, {what}, 224 x 224",
    url=f"https://storage.googleapis.com/vit_models/{file}.npz",
    licence="Apache-2.0",
  )


def _ast(folder, key, mirror):
  data, stride, _, reached = key.split("_")
  is_tags = data == "audioset"
  what = "AudioSet" if is_tags else "Speech Commands V2-35"
  metric = "mAP" if is_tags else "accuracy"
  expected = f"{what} {metric if is_tags else 'test accuracy'} {reached}"
  if reached == "0.4593":
    expected += " (weights averaged over 5 epochs)"
  return key, Published(
    what=f"AST base384 on {what}, stride {stride}",
    url=f"https://www.dropbox.com/s/{folder}/{key}.pth?dl=1",
    licence="BSD-3-Clause",
    expected=expected,
    reported=(metric, float(reached)),
    mirror=f"MIT/ast-finetuned-{mirror}",
    stride=(int(stride), int(stride)),
    num_frames=1024 if is_tags else 128,
    statistics=AUDIOSET_STATISTICS if is_tags else SPEECH_COMMANDS_STATISTICS,
    scores="sigmoid" if is_tags else "softmax",
  )


def _ssast(folder, key, audio, speech):
  _, size, kind, masked = key.split("-")
  return key, Published(
    what=f"SSAST {size.lower()} on AudioSet and LibriSpeech, {masked} of 512 "
    f"{kind.lower()} tokens masked",
    url=f"https://www.dropbox.com/s/{folder}/{key}.pth?dl=1",
    licence="BSD-3-Clause",
    expected=f"average audio {audio}, speech {speech} after fine-tuning",
    stride=(16, 16) if kind == "Patch" else (128, 2),
    num_frames=1024,
    statistics=AUDIOSET_STATISTICS,
  )


CHECKPOINTS: dict[str, Published] = dict(
  make(*row)
  for make, rows in (
    (_deit, _DEITS),
    (_vit, _VITS),
    (_ast, _ASTS),
    (_ssast, _SSASTS),
  )
  for row in rows
)


def of_file(name: str) -> Published | None:
  """The published checkpoint that a file name belongs to."""
  if name.endswith(".npz"):  # Google gives one name to several files
    return None
  for key, published in CHECKPOINTS.items():
    if name in (f"{key}.pth", published.file_name):
      return published
  return None


def of_mirror(name: str) -> Published | None:
  """The published checkpoint that has this Hugging Face name."""
  name = name.split("@")[0]
  return next((c for c in CHECKPOINTS.values() if c.mirror == name), None)
