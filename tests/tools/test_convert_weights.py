"""The command: what it writes, what it says, how it fails."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from astjax import pretrained
from astjax.tools import convert_weights
from astjax.weights import convert, hugging_face, maps, model_info
from tests.weights import google
from tests.weights.test_model_info import INFO, random_params

PARAMS = random_params()


@pytest.fixture
def model(tmp_path):
  model_info.save(tmp_path / "model", INFO, PARAMS)
  return tmp_path / "model"


@pytest.fixture
def image(tmp_path):
  np.savez(tmp_path / "vit.npz", **google.state_dict("old", width=32, side=4))
  return tmp_path / "vit.npz"


def command(*args):
  return convert_weights.main([str(a) for a in args])


def refused(capsys, *args):
  assert command(*args) == 1
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("astjax: error: ")
  return lines[0]


def test_the_list(capsys):
  assert command("--list") == 0
  out = capsys.readouterr().out
  assert "deit_base_distilled_patch16_384" in out and "Apache-2.0" in out
  assert "SHA-256 begins with d0272ac0" in out
  assert "also as MIT/ast-finetuned-audioset-10-10-0.4593" in out


@pytest.mark.parametrize("kind", ["astjax", "hf", "official"])
def test_every_format_comes_back_bit_by_bit(kind, model, tmp_path, capsys):
  out = tmp_path / ("out.safetensors" if kind == "official" else "out")
  assert command(model, out, f"--format={kind}") == 0
  said = capsys.readouterr().out
  assert f"wrote {out}" in said and "taken: " in said
  assert "licence of the weights: Apache-2.0" in said and "mAP 0.5" in said
  flags = ["--source_grid=3x3", "--num_heads=2"] if kind == "official" else []
  assert command(out, tmp_path / "back", *flags) == 0
  back = load_file(tmp_path / "back" / "params.safetensors")
  want = load_file(model / "params.safetensors")
  assert back.keys() == want.keys()
  for path, array in want.items():
    np.testing.assert_array_equal(back[path], array)


def test_official_names(model, tmp_path):
  command(model, tmp_path / "out.safetensors", "--format=official")
  names = load_file(tmp_path / "out.safetensors")
  assert "v.blocks.1.attn.qkv.weight" in names and "mlp_head.1.bias" in names
  assert names.keys() == convert.revert(PARAMS, maps.AST_PTH).keys()


def test_from_images(image, tmp_path, capsys):
  args = [
    "--num_heads=2",
    "--input=36x56",
    "--num_classes=5",
    "--prefix=cls,dist",
  ]
  assert command(image, tmp_path / "out", *args) == 0
  said = capsys.readouterr().out
  assert "adapted: backbone/patch_embed/kernel: sum over 3 channels" in said
  assert "frequency 4 -> 3 (cut 1 to 3), time 4 -> 5 (interpolated)" in said
  assert "dropped (not used by the model): head/kernel, head/bias" in said
  assert "fresh: " in said and "backbone/dist_token" in said
  assert "the front-end is unknown" in said
  loaded = pretrained.load(tmp_path / "out")
  assert loaded.params[convert.GRID].shape == (3, 5, 32)
  assert loaded.info.model["stride"] == [10, 10]
  assert loaded.info.head.num_classes == 5


def test_rows_become_time(image, tmp_path):
  args = ["--num_heads=2", "--input=64x64", "--stride=16x16"]
  assert command(image, tmp_path / "f", *args) == 0
  assert command(image, tmp_path / "t", *args, "--rows=time") == 0
  f, t = (pretrained.load(tmp_path / k).params for k in ("f", "t"))
  np.testing.assert_array_equal(f[convert.GRID], t[convert.GRID].swapaxes(0, 1))
  name = "backbone/patch_embed/kernel"
  np.testing.assert_array_equal(f[name], t[name].swapaxes(0, 1))


def test_another_length_keeps_the_classifier(model, tmp_path):
  assert command(model, tmp_path / "out", "--input=36x86") == 0
  loaded = pretrained.load(tmp_path / "out")
  assert loaded.params[convert.GRID].shape[:2] == (3, 8)
  np.testing.assert_array_equal(
    loaded.params["head/linear/kernel"], PARAMS["head"]["linear"]["kernel"]
  )
  front_end = model_info.front_end(loaded.info.recipe)
  assert front_end.num_frames == 86 and front_end.statistics == (-4.0, 4.5)
  assert loaded.info.class_names == INFO.class_names


def test_new_classes(model, tmp_path):
  (tmp_path / "labels.txt").write_text("one\ntwo\n")
  args = [f"--labels={tmp_path / 'labels.txt'}", "--scores=softmax"]
  assert command(model, tmp_path / "out", *args) == 0
  assert command(model, tmp_path / "same", *args) == 0
  assert command(model, tmp_path / "other", *args, "--seed=1") == 0
  info = pretrained.load(tmp_path / "out").info
  assert info.class_names == ("one", "two") and info.head.scores == "softmax"
  kernels = [
    pretrained.load(tmp_path / k).params["head/linear/kernel"]
    for k in ("out", "same", "other")
  ]
  np.testing.assert_array_equal(kernels[0], kernels[1])
  assert (kernels[0] != kernels[2]).any()


def test_a_front_end_by_hand(tmp_path):
  """A bare file becomes a Hugging Face folder when its front-end is told."""
  save_file(convert.revert(PARAMS, maps.AST_PTH), tmp_path / "m.safetensors")
  args = [
    tmp_path / "m.safetensors",
    tmp_path / "hf",
    "--format=hf",
    "--source_grid=3x3",
    "--num_heads=2",
    "--input=36x36",
    "--mean=-4",
    "--std=4.5",
  ]
  assert command(*args) == 0
  extractor = json.loads((tmp_path / "hf/preprocessor_config.json").read_text())
  assert (extractor["mean"], extractor["std"]) == (-4.0, 4.5)
  assert extractor["max_length"] == 36
  assert hugging_face.read_config(tmp_path / "hf").class_names[2] == "LABEL_2"


@pytest.mark.parametrize(
  ("args", "told"),
  [
    ([], "give SOURCE and OUT"),
    (["{model}"], "give SOURCE and OUT"),
    (["{model}", "{tmp}"], "is there already"),
    (["{tmp}/no.pth", "{tmp}/out"], "is no existing path"),
    (["nothing", "{tmp}/out"], "no published checkpoint"),
    (["{image}", "{tmp}/out"], "does not tell the number of heads"),
    (["{image}", "{tmp}/out", "--num_heads=2"], "give --input=128x1024"),
    (
      ["{model}", "{tmp}/out", "--variant=tiny224"],
      "has width 32, the model 192",
    ),
    (["{model}", "{tmp}/out", "--input=8x8"], "patch"),
    (["{model}", "{tmp}/out", "--mean=3"], "--mean and --std belong together"),
    (["{model}", "{tmp}/out", "--mean=3", "--std=0"], "must be above 0"),
    (["{model}", "{tmp}/out", "--labels=no.txt"], "no.txt"),
    (["{model}", "{tmp}/out", "--prefix=cls,dst"], "prefix"),
    (["{model}", "{tmp}/out", "--format=official"], "named .safetensors"),
    (["{model}", "{model}/config.json/out"], "cannot write"),
    (
      [
        "{image}",
        "{tmp}/o.safetensors",
        "--format=official",
        "--num_heads=2",
        "--input=64x64",
      ],
      "has the tokens cls and dist",
    ),
    (
      ["{image}", "{tmp}/out", "--format=hf", "--num_heads=2", "--input=64x64"],
      "no classifier",
    ),
  ],
)
def test_mistakes_end_in_one_line(args, told, model, image, tmp_path, capsys):
  args = [a.format(model=model, image=image, tmp=tmp_path) for a in args]
  before = sorted(tmp_path.rglob("*"))
  assert told in refused(capsys, *args)
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("flag", ["--input=128", "--input=0x10", "--stride=a"])
def test_flags_that_are_no_pair(flag, capsys):
  with pytest.raises(SystemExit) as e:
    command("a", "b", flag)
  assert e.value.code == 2
  assert "is no pair like 128x1024" in capsys.readouterr().err
