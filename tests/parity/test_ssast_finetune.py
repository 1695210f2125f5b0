"""SSAST's fine-tuning against the original: positions and both poolings.

The seeded checkpoint is written to a file first, so that reading, renaming,
checking and adapting are all on the way.
"""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from astjax.models import ast, heads
from astjax.weights import convert, info, load, tables
from tests.parity.conftest import assert_close, zeros_of

POOLING = {"logits_avgtok": "tokens", "logits_cls": "prefix"}


def checkpoint(fixture, tmp_path, says_its_size):
  """As published: all names begin with `module.`."""
  meta, names = fixture.meta, fixture.state_dict("pretrained_state_dict")
  if says_its_size:
    names["p_input_fdim"] = np.array(meta["pretrain_fdim"])
    names["p_input_tdim"] = np.array(meta["pretrain_tdim"])
  path = tmp_path / "pretrained.safetensors"
  save_file({f"module.{k}": v for k, v in names.items()}, path)
  options = load.Options(
    num_mel_bins=meta["pretrain_fdim"], num_heads=meta["num_heads"]
  )
  loaded = load.load(path, options)
  shape = (meta["fshape"], meta["tshape"])
  assert loaded.info.model["patch_size"] == shape
  assert loaded.info.model["stride"] == shape
  return loaded


def classifier(fixture):
  names = fixture.seeded.seeded_state_dict(
    fixture.meta["head_shapes"], fixture.seed
  )
  flat, _ = convert.rename(
    {f"mlp_head.{k}": v for k, v in names.items()}, tables.AST_PTH
  )
  return convert.unflatten(flat)["head"]


@pytest.mark.parametrize("says_its_size", [True, False])
@pytest.mark.fixtures("ssast_finetune_*")
def test_fine_tuning(fixture, says_its_size, tmp_path):
  meta = fixture.meta
  loaded = checkpoint(fixture, tmp_path, says_its_size)
  stride = (meta["fstride"], meta["tstride"])
  backbone = ast.make_backbone(**{**loaded.info.model, "stride": stride})
  spec = fixture.seeded.seeded_spectrogram(
    meta["spec_name"],
    (meta["batch"], meta["input_tdim"], meta["input_fdim"]),
    fixture.seed,
  )
  compared = 0
  for name, pooling in POOLING.items():
    head = info.Head(num_classes=meta["label_dim"], pooling=pooling)
    model = ast.AST(
      backbone, heads.ClassifierHead(head.num_classes), head.pooling
    )
    fresh = zeros_of(model, spec)
    params, report = load.start(loaded, fresh, backbone=backbone, head=head)
    assert all(path.startswith("head/") for path in report.fresh)
    assert "of the pre-training" in report.dropped.values()
    params["head"] = classifier(fixture)
    if name in fixture.arrays:
      logits = jax.jit(model.apply)({"params": params}, spec)
      assert_close(logits, fixture[name], 2e-5)
      compared += 1
  assert compared
  sequence = convert.revert({"backbone": params["backbone"]}, tables.SSAST_PTH)
  assert stored_positions(fixture, sequence["v.pos_embed"])


def stored_positions(fixture, value):
  """Compares all channels or the first ones; returns how many were there."""
  found = [k for k in fixture.arrays if k.startswith("pos_embed")]
  for key in found:
    stored = fixture[key]
    assert_close(value[..., : stored.shape[-1]], stored, 1e-4)
  return len(found)
