"""Which table a file belongs to; every table complete, in and out."""

import jax
import numpy as np
import pytest

from astjax.errors import UserError
from astjax.models.heads import Head
from astjax.weights import convert, tables
from astjax.weights.info import ModelInfo
from tests.weights import google
from tests.weights.common import converted

D = 32
INFO = ModelInfo(
  model={
    "width": D,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 64,
    "patch_size": (16, 16),
    "stride": (10, 10),
    "prefix": ("cls", "dist"),
  },
  head=Head(num_classes=5),
)
GRID = (3, 4)


def random_params(info=INFO, grid=GRID):
  expected = info.expected_params(grid)
  rng = np.random.default_rng(0)
  draw = lambda x: rng.standard_normal(x.shape).astype(np.float32)
  return jax.tree.map(draw, expected), expected


TABLES = {
  "official AST": tables.AST_PTH,
  "Hugging Face AST": tables.HF_AST,
  "Hugging Face AST in memory": tables.HF_AST_5,
}


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("name", TABLES)
def test_out_and_in_again(name, wrapper):
  params, expected = random_params()
  out = convert.revert(params, TABLES[name])
  out = {wrapper + k: v for k, v in out.items()}
  kind, table, names, *_ = tables.recognise(out)
  assert name.startswith(kind)
  back = converted(names, table, expected)
  same = jax.tree.map(np.array_equal, back, params)
  assert jax.tree.all(same)
  assert convert.revert(back, TABLES[name]).keys() == names.keys()


def test_a_backbone_alone_has_a_table_too():
  params, _ = random_params()
  names = convert.revert({"backbone": params["backbone"]}, tables.TIMM_VIT)
  names |= {"head.weight": np.zeros((5, D))}
  kind, table, names, *_ = tables.recognise(names)
  assert kind == "timm vision transformer" and table is tables.TIMM_VIT
  assert convert.rename(names, table)[1] == ["head.weight"]


@pytest.mark.parametrize("source", ["vit.", "deit.", ""])
def test_hugging_face_s_image_models(source):
  params, _ = random_params()
  names = convert.revert({"backbone": params["backbone"]}, tables.HF_AST)
  names = {
    source + k.removeprefix("audio_spectrogram_transformer."): v
    for k, v in names.items()
  }
  kernel = f"{source}embeddings.patch_embeddings.projection.weight"
  names[kernel] = np.repeat(names[kernel], 3, axis=1)
  names |= {
    "classifier.weight": np.zeros((5, D)),
    "classifier.bias": np.zeros(5),
  }
  names |= {f"{source}pooler.dense.bias": np.zeros(D)}
  kind, table, names, *_ = tables.recognise(names)
  assert kind == "Hugging Face vision transformer"
  assert len(convert.rename(names, table)[1]) == 3


@pytest.mark.parametrize("wrapper", ["", "opt/target/", "params/"])
@pytest.mark.parametrize(
  ("numbering", "stacked"), [("old", False), ("new", False), ("new", True)]
)
def test_google(numbering, stacked, wrapper):
  plain = google.state_dict(numbering, width=D)
  names = google.state_dict(numbering, width=D, stacked=stacked)
  names = {wrapper + k: v for k, v in names.items()}
  if wrapper:  # the optimiser's state lies beside the weights
    names["opt/state/step"] = np.zeros(())
  kind, table, names, outside, *_ = tables.recognise(names)
  assert kind == "Google vision transformer"
  assert outside == (("opt/state/step",) if wrapper else ())
  flat, dropped = convert.rename(names, table)
  assert sorted(dropped) == ["head/bias", "head/kernel"]
  flat = convert.lay_out(flat, 1, (4, 4), may_lack_prefix=True)
  block = "Transformer/encoderblock_1/"
  attention = next(
    k.removesuffix("query/kernel")
    for k in plain
    if k.startswith(block) and k.endswith("query/kernel")
  )
  kernel = flat["backbone/encoder/block_1/attn/qkv/kernel"]
  for i, part in enumerate(("query", "key", "value")):
    np.testing.assert_array_equal(
      kernel[:, i * D : (i + 1) * D],
      plain[f"{attention}{part}/kernel"].reshape(D, D),
    )
  np.testing.assert_array_equal(
    flat["backbone/encoder/block_1/attn/proj/kernel"],
    plain[f"{attention}out/kernel"].reshape(D, D),
  )
  assert flat["backbone/patch_embed/kernel"].shape == (16, 16, 3, D)
  if numbering == "new":  # positions are added before the class token joins
    assert not flat["backbone/pos_embed/prefix"].any()
  else:
    assert flat["backbone/pos_embed/prefix"].any()


@pytest.mark.parametrize(
  "names", [{}, {"conv1.weight": 0}, {"encoder.layer.0.attn.weight": 0}]
)
def test_nothing_known(names):
  assert tables.recognise(names) is None


def test_what_a_table_does_not_have_is_told():
  params, expected = random_params()
  names = convert.revert(params, tables.AST_PTH)
  names["v.blocks.0.ls1.gamma"] = np.ones(D)
  with pytest.raises(
    UserError, match=r"v\.blocks\.0\.ls1\.gamma meets no rule"
  ):
    converted(names, tables.AST_PTH, expected)
