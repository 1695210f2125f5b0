"""Image checkpoints against timm, which reads Google's files by its own code.

Needs torch and timm: `make test-torch`.
"""

import importlib.abc
import importlib.machinery
import sys
from unittest import mock

import numpy as np
import pytest

from tests.weights import google
from tests.weights.images import gray_images, image_tokens

pytestmark = [
  pytest.mark.torch,
  pytest.mark.filterwarnings("ignore"),  # of torch's and timm's own
]
torch = pytest.importorskip("torch")


class NoTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Stands in for torchvision, of which timm needs only image transforms."""

  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] != "torchvision":
      return None
    return importlib.machinery.ModuleSpec(name, self, is_package=True)

  def create_module(self, spec):
    return mock.MagicMock()

  def exec_module(self, module):
    pass


def import_timm():
  try:
    import torchvision  # noqa: F401
  except (ImportError, RuntimeError):
    for name in [k for k in sys.modules if k.split(".")[0] == "torchvision"]:
      del sys.modules[name]
    sys.meta_path.insert(0, NoTorchvision())
  return pytest.importorskip("timm", exc_type=ImportError)


def timm_model(name, **kwargs):
  model = (
    import_timm()
    .create_model(
      name,
      img_size=64,
      depth=2,
      embed_dim=32,
      num_heads=2,
      num_classes=5,
      **kwargs,
    )
    .eval()
  )
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.1 * torch.randn(p.shape, generator=torch.manual_seed(2)))
  return model


@pytest.mark.parametrize("wrapped", [False, True])
def test_timm(wrapped, tmp_path):
  model = timm_model("deit_tiny_distilled_patch16_224")
  state = model.state_dict()
  torch.save({"model": state} if wrapped else state, tmp_path / "m.pth")
  gray, images = gray_images()
  with torch.no_grad():
    theirs = model.forward_features(torch.from_numpy(images)).numpy()
  ours = image_tokens(tmp_path / "m.pth", gray, "frequency", ("cls", "dist"))
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("numbering", ["old", "new"])
def test_google(numbering, tmp_path):
  """timm reads Google's files too, by code of its own."""
  model = timm_model("vit_tiny_patch16_224", no_embed_class=numbering == "new")
  path = tmp_path / "vit.npz"
  np.savez(path, **google.state_dict(numbering, width=32, heads=2, side=4))
  model.load_pretrained(str(path))
  gray, images = gray_images()
  with torch.no_grad():
    theirs = model.forward_features(torch.from_numpy(images)).numpy()
  ours = image_tokens(path, gray, "frequency", ("cls",))
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
