"""The published checkpoints: what they are, what they reach, where they lie.

`python -m astjax.tools.convert_weights --list` prints this table. A checkpoint
is named by its key here, by a Hugging Face name (owner/repository, optionally
@revision), or by a path.
"""

from __future__ import annotations

import dataclasses

_DEIT = "https://dl.fbaipublicfiles.com/deit/"
_VIT = "https://storage.googleapis.com/vit_models/"
_AST = "https://www.dropbox.com/s/"

AUDIOSET_STATISTICS = (-4.2677393, 4.5689974)
SPEECH_COMMANDS_STATISTICS = (-6.845978, 5.5654526)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
  """One published checkpoint.

  Attributes:
    what: for people.
    url: where the file lies.
    licence: of the weights, as their publishers state it.
    expected: the metric that its publishers report.
    reported: the same for programs, on sounds: (metric, value).
    sha256: the digest or as much of its beginning as is known; "" if nothing.
    mirror: the same model as a Hugging Face name, "" if there is none.
    stride: of an audio model, (mel bins, frames).
    num_frames: of an audio model.
    statistics: mean and standard deviation of its log-mels.
    scores: "sigmoid" for tags, "softmax" for one class.
  """

  what: str
  url: str
  licence: str
  expected: str = ""
  reported: tuple[str, float] | None = None
  sha256: str = ""
  mirror: str = ""
  stride: tuple[int, int] | None = None
  num_frames: int = 0
  statistics: tuple[float, float] | None = None
  scores: str = ""

  @property
  def file_name(self) -> str:
    """The last part of the address."""
    return self.url.split("?")[0].rsplit("/", 1)[-1]


def _deit(file, size, image, top1):
  return Published(
    what=f"DeiT {size}, distilled, ImageNet at {image} x {image}",
    url=f"{_DEIT}{file}.pth",
    licence="Apache-2.0",
    expected=f"ImageNet top-1 {top1} %",
    sha256=file.rsplit("-", 1)[1],
  )


def _vit(file, size, what):
  return Published(
    what=f"ViT {size}/16, {what}, 224 x 224",
    url=f"{_VIT}{file}.npz",
    licence="Apache-2.0",
  )


def _ast(key, expected, *, stride=10, hub, what="AudioSet"):
  is_tags = what.startswith("AudioSet")
  value = float(key.rsplit("_", 1)[1])  # the files are named by what they reach
  return Published(
    what=f"AST base384 on {what}, stride {stride}",
    url=f"{_AST}{key}.pth?dl=1",
    licence="BSD-3-Clause",
    expected=expected,
    reported=("mAP" if is_tags else "accuracy", value),
    mirror=f"MIT/ast-finetuned-{hub}",
    stride=(stride, stride),
    num_frames=1024 if is_tags else 128,
    statistics=AUDIOSET_STATISTICS if is_tags else SPEECH_COMMANDS_STATISTICS,
    scores="sigmoid" if is_tags else "softmax",
  )


def _ssast(key, audio, speech):
  _, size, kind, masked = key.split("/")[1].split("-")
  stride = (16, 16) if kind == "Patch" else (128, 2)
  return Published(
    what=f"SSAST {size.lower()} on AudioSet and LibriSpeech, {masked} of 512 "
    f"{kind.lower()} tokens masked",
    url=f"{_AST}{key}.pth?dl=1",
    licence="BSD-3-Clause",
    expected=f"average audio {audio}, speech {speech} after fine-tuning",
    stride=stride,
    num_frames=1024,
    statistics=AUDIOSET_STATISTICS,
  )


_AUGREG = "AugReg, ImageNet-21k"

# The numbers in the names of DeiT's files are the beginning of their SHA-256,
# as torch.hub checks it.
CHECKPOINTS: dict[str, Published] = {
  "deit_tiny_distilled_patch16_224": _deit(
    "deit_tiny_distilled_patch16_224-b40b3cf7", "tiny", 224, 74.5
  ),
  "deit_small_distilled_patch16_224": _deit(
    "deit_small_distilled_patch16_224-649709d9", "small", 224, 81.2
  ),
  "deit_base_distilled_patch16_224": _deit(
    "deit_base_distilled_patch16_224-df68dfff", "base", 224, 83.4
  ),
  "deit_base_distilled_patch16_384": _deit(
    "deit_base_distilled_patch16_384-d0272ac0", "base", 384, 85.2
  ),
  "vit_tiny_patch16_224_augreg_in21k": _vit(
    "augreg/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0",
    "tiny",
    _AUGREG,
  ),
  "vit_small_patch16_224_augreg_in21k": _vit(
    "augreg/S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0",
    "small",
    _AUGREG,
  ),
  "vit_base_patch16_224_augreg_in21k": _vit(
    "augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0",
    "base",
    _AUGREG,
  ),
  "vit_base_patch16_224_in21k": _vit(
    "imagenet21k/ViT-B_16", "base", "ImageNet-21k"
  ),
  "audioset_10_10_0.4593": _ast(
    "ca0b1v2nlxzyeb4/audioset_10_10_0.4593",
    "AudioSet mAP 0.4593 (weights averaged over 5 epochs)",
    hub="audioset-10-10-0.4593",
  ),
  "audioset_10_10_0.4495": _ast(
    "1tv0hovue1bxupk/audioset_10_10_0.4495",
    "AudioSet mAP 0.4495",
    hub="audioset-10-10-0.450",
  ),
  "audioset_10_10_0.4483": _ast(
    "6u5sikl4b9wo4u5/audioset_10_10_0.4483",
    "AudioSet mAP 0.4483",
    hub="audioset-10-10-0.448",
  ),
  "audioset_10_10_0.4475": _ast(
    "kt6i0v9fvfm1mbq/audioset_10_10_0.4475",
    "AudioSet mAP 0.4475",
    hub="audioset-10-10-0.448-v2",
  ),
  "audioset_12_12_0.4467": _ast(
    "snfhx3tizr4nuc8/audioset_12_12_0.4467",
    "AudioSet mAP 0.4467",
    stride=12,
    hub="audioset-12-12-0.447",
  ),
  "audioset_14_14_0.4431": _ast(
    "z18s6pemtnxm4k7/audioset_14_14_0.4431",
    "AudioSet mAP 0.4431",
    stride=14,
    hub="audioset-14-14-0.443",
  ),
  "audioset_16_16_0.4422": _ast(
    "mdsa4t1xmcimia6/audioset_16_16_0.4422",
    "AudioSet mAP 0.4422",
    stride=16,
    hub="audioset-16-16-0.442",
  ),
  "speechcommands_10_10_0.9812": _ast(
    "q0tbqpwv44pquwy/speechcommands_10_10_0.9812",
    "Speech Commands V2-35 test accuracy 0.9812",
    hub="speech-commands-v2",
    what="Speech Commands V2-35",
  ),
  "SSAST-Base-Patch-400": _ssast(
    "ewrzpco95n9jdz6/SSAST-Base-Patch-400", 59.9, 79.5
  ),
  "SSAST-Base-Frame-400": _ssast(
    "nx6nl4d4bl71sm8/SSAST-Base-Frame-400", 57.6, 84.0
  ),
  "SSAST-Base-Patch-250": _ssast(
    "mxrm9qog6aj8hif/SSAST-Base-Patch-250", 58.6, 79.5
  ),
  "SSAST-Base-Frame-250": _ssast(
    "4e6l7ulhwrfoana/SSAST-Base-Frame-250", 55.6, 81.6
  ),
  "SSAST-Small-Patch-400": _ssast(
    "i24w446rl9pkf05/SSAST-Small-Patch-400", 58.1, 78.2
  ),
  "SSAST-Tiny-Patch-400": _ssast(
    "fkbtf78y94113wz/SSAST-Tiny-Patch-400", 53.3, 75.7
  ),
  "SSAST-Tiny-Frame-400": _ssast(
    "rx7g60ruzawffzv/SSAST-Tiny-Frame-400", 47.8, "untested"
  ),
}


def of_file(name: str) -> Published | None:
  """The published checkpoint that a file name belongs to.

  Google gives one name to several files: it tells nothing without a digest.
  """
  for key, published in CHECKPOINTS.items():
    if name == f"{key}.pth" or (
      name == published.file_name and not name.endswith(".npz")
    ):
      return published
  return None


def of_mirror(name: str) -> Published | None:
  """The published checkpoint that has this Hugging Face name."""
  name = name.split("@")[0]
  return next((c for c in CHECKPOINTS.values() if c.mirror == name), None)
