"""Adapted checkpoints and Hugging Face's AST against the originals.

The seeded weights are written to a file first, so that reading, renaming,
checking and adapting are all on the way.
"""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from astjax.models import ast, heads
from astjax.weights import convert, load, tables
from tests.parity.conftest import assert_close, zeros_of


def stored(fixture, name, value):
  """Compares what a fixture has of a value: all channels or the first ones."""
  found = 0
  for key in (name, f"{name}_first16"):
    if key in fixture.arrays:
      axis = -1 if name == "pos_embed" else 0
      count = fixture[key].shape[axis]
      tolerance = 1e-4 if name == "pos_embed" else 1e-6
      assert_close(value.take(range(count), axis), fixture[key], tolerance)
      found += 1
  return found


def adapted(fixture, tmp_path, options):
  """The fixture's weights, in the official names, at the size it asks for."""
  meta = fixture.meta
  save_file(fixture.state_dict("source"), tmp_path / "source.safetensors")
  loaded = load.load(tmp_path / "source.safetensors", options)
  stride = (meta["fstride"], meta["tstride"])
  backbone = ast.make_backbone(**{**loaded.info.model, "stride": stride})
  spec = np.zeros((1, meta["input_tdim"], meta["input_fdim"]), np.float32)
  fresh = zeros_of(backbone, spec)
  params, report = load.start(loaded, {"backbone": fresh}, backbone=backbone)
  assert not report.fresh  # the whole backbone comes from the file
  logits = jax.eval_shape(backbone.apply, {"params": params["backbone"]}, spec)
  assert logits["tokens"].shape[0] == 1
  return convert.revert(params, tables.AST_PTH)


@pytest.mark.fixtures("deit_to_ast_*")
def test_from_images(fixture, tmp_path):
  out = adapted(fixture, tmp_path, None)
  assert stored(fixture, "pos_embed", out["v.pos_embed"])
  kernel = out["v.patch_embed.proj.weight"]
  assert stored(fixture, "patch_weight", kernel)
  bias = out["v.patch_embed.proj.bias"]
  assert stored(fixture, "patch_bias", bias) == ("patch_bias" in fixture.arrays)


@pytest.mark.slow
@pytest.mark.fixtures("audioset_to_ast_*")
def test_from_audioset(fixture, tmp_path):
  meta = fixture.meta
  options = load.Options(
    grid=tuple(meta["source_grid"]),
    stride=(meta["source_fstride"], meta["source_tstride"]),
    num_mel_bins=meta["source_input_fdim"],
  )
  out = adapted(fixture, tmp_path, options)
  assert stored(fixture, "pos_embed", out["v.pos_embed"])


@pytest.mark.fixtures("hf_ast*")
def test_hugging_face(fixture, tmp_path):
  meta = fixture.meta
  config = {
    "model_type": "audio-spectrogram-transformer",
    "id2label": {str(i): f"class {i}" for i in range(meta["num_labels"])},
  }
  (tmp_path / "config.json").write_text(json.dumps(config | meta["config"]))
  save_file(fixture.state_dict(), tmp_path / "model.safetensors")
  loaded = load.load(tmp_path)
  info = loaded.info
  head = heads.ClassifierHead(
    info.head.num_classes, layer_norm_eps=info.head.layer_norm_eps
  )
  model = ast.AST(ast.make_backbone(**info.model), head)
  spec = fixture.seeded.seeded_spectrogram(
    meta["spec_name"],
    (
      meta["batch"],
      meta["config"]["max_length"],
      meta["config"]["num_mel_bins"],
    ),
    fixture.seed,
  )
  params = convert.unflatten(loaded.params)
  logits = jax.jit(model.apply)({"params": params}, spec)
  assert_close(logits, fixture["logits"], 2e-5)
