"""The command: what it writes, what it says, how it fails."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from astjax.tools import convert_weights
from astjax.weights import convert, files, load, tables
from astjax.weights import info as model_info
from astjax.weights.front_end import FrontEnd
from tests.weights import google
from tests.weights.test_info import INFO, random_params

PARAMS = random_params()


@pytest.fixture
def model(tmp_path):
  model_info.save_model(tmp_path / "model", INFO, PARAMS)
  return tmp_path / "model"


@pytest.fixture
def image(tmp_path):
  np.savez(tmp_path / "vit.npz", **google.state_dict("old", width=32, side=4))
  return tmp_path / "vit.npz"


def command(*args):
  return convert_weights.main([str(a) for a in args])


def refused(capsys, *args, code=2):
  assert command(*args) == code
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
  assert command(out, tmp_path / "back") == 0
  written, read = (load.load(p).info for p in (model, tmp_path / "back"))
  assert written.model == read.model  # the number of heads, too
  assert written.class_names == read.class_names
  back = load_file(tmp_path / "back" / "params.safetensors")
  want = load_file(model / "params.safetensors")
  assert back.keys() == want.keys()
  for path, array in want.items():
    np.testing.assert_array_equal(back[path], array)


def test_official_names(model, tmp_path):
  command(model, tmp_path / "out.safetensors", "--format=official")
  names = load_file(tmp_path / "out.safetensors")
  assert "v.blocks.1.attn.qkv.weight" in names and "mlp_head.1.bias" in names
  assert names.keys() == convert.revert(PARAMS, tables.AST_PTH).keys()


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
  assert "positions, 4 x 4 -> 3 x 5 (bilinear)" in said
  assert "dropped (not used by the model): head/kernel, head/bias" in said
  assert "fresh: " in said and "backbone/dist_token" in said
  assert "the front-end is unknown" in said
  loaded = load.load(tmp_path / "out")
  assert loaded.params[convert.GRID].shape == (3, 5, 32)
  assert loaded.info.model["stride"] == (10, 10)
  assert loaded.info.head.num_classes == 5


def test_rows_become_time(image, tmp_path):
  args = ["--num_heads=2", "--input=64x64", "--stride=16x16"]
  assert command(image, tmp_path / "f", *args) == 0
  assert command(image, tmp_path / "t", *args, "--rows=time") == 0
  f, t = (load.load(tmp_path / k).params for k in ("f", "t"))
  np.testing.assert_array_equal(f[convert.GRID], t[convert.GRID].swapaxes(0, 1))
  name = "backbone/patch_embed/kernel"
  np.testing.assert_array_equal(f[name], t[name].swapaxes(0, 1))


def test_another_length_keeps_the_classifier(model, tmp_path):
  assert command(model, tmp_path / "out", "--input=36x86") == 0
  loaded = load.load(tmp_path / "out")
  assert loaded.params[convert.GRID].shape[:2] == (3, 8)
  np.testing.assert_array_equal(
    loaded.params["head/linear/kernel"], PARAMS["head"]["linear"]["kernel"]
  )
  front_end = FrontEnd.from_recipe(loaded.info.recipe)
  assert front_end.num_frames == 86 and front_end.statistics == (-4.0, 4.5)
  assert loaded.info.class_names == INFO.class_names


def test_new_classes(model, tmp_path):
  (tmp_path / "labels.txt").write_text("one\ntwo\n")
  args = [f"--labels={tmp_path / 'labels.txt'}", "--scores=softmax"]
  # As many names as classes would only name them.
  assert command(model, tmp_path / "out", *args) == 0
  assert command(model, tmp_path / "same", *args) == 0
  assert command(model, tmp_path / "other", *args, "--seed=1") == 0
  info = load.load(tmp_path / "out").info
  assert info.class_names == ("one", "two") and info.head.scores == "softmax"
  kernels = [
    load.load(tmp_path / k).params["head/linear/kernel"]
    for k in ("out", "same", "other")
  ]
  np.testing.assert_array_equal(kernels[0], kernels[1])
  assert (kernels[0] != kernels[2]).any()


def test_a_front_end_by_hand(tmp_path):
  """A bare file becomes a Hugging Face folder when its front-end is told."""
  save_file(convert.revert(PARAMS, tables.AST_PTH), tmp_path / "m.safetensors")
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
  assert load.load(tmp_path / "hf").info.class_names[2] == "LABEL_2"


@pytest.mark.slow
@pytest.mark.parametrize(
  ("args", "told"),
  [
    ([], "give SOURCE and OUT"),
    (["{model}"], "give SOURCE and OUT"),
    (["{model}", "{tmp}"], "is there already"),
    (["{tmp}/no.pth", "{tmp}/out"], "is no existing path"),
    (["nothing", "{tmp}/out"], "no published checkpoint"),
    (["{image}", "{tmp}/out"], "does not tell the number of heads"),
    (["{image}", "{tmp}/out", "--num_heads=2"], "needs --input=128x1024"),
    (
      ["{model}", "{tmp}/out", "--variant=tiny224"],
      "the source has width 32, not 192",
    ),
    (["{model}", "{tmp}/out", "--input=8x8"], "patch"),
    (["{model}", "{tmp}/out", "--mean=3"], "--mean and --std belong together"),
    (["{model}", "{tmp}/out", "--mean=3", "--std=0"], "statistics=(3.0, 0.0)"),
    (
      ["{model}", "{tmp}/out", "--mean=nan", "--std=1"],
      "=(nan, 1.0)",
    ),
    (["{model}", "{tmp}/out", "--sample_rate=-8"], "sample_rate=-8 must be"),
    (["{model}", "{tmp}/out", "--num_classes=-1"], "must be at least 1"),
    (["{model}", "{tmp}/out", "--num_classes=0"], "must be at least 1"),
    (["{model}", "{tmp}/out", "--prefix="], "needs prefix tokens"),
    (
      ["{model}", "{tmp}/out", "--rows=time"],
      "for images, this one is of spectrograms",
    ),
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
      "has a classifier; give --num_classes",
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
  assert "is no pair like 128x1024" in refused(capsys, "a", "b", flag)


def test_names_for_the_classes_that_are_there(model, tmp_path, capsys):
  (tmp_path / "labels.txt").write_text("one\ntwo\nthree\n")
  args = [model, tmp_path / "out", f"--labels={tmp_path / 'labels.txt'}"]
  assert command(*args) == 0
  assert "fresh" not in capsys.readouterr().out
  loaded = load.load(tmp_path / "out")
  assert loaded.info.class_names == ("one", "two", "three")
  np.testing.assert_array_equal(
    loaded.params["head/linear/kernel"], PARAMS["head"]["linear"]["kernel"]
  )
  assert command(*args[:1], tmp_path / "new", args[2], "--num_classes=3") == 0
  assert "fresh: head/" in capsys.readouterr().out


def test_a_published_result_stays_with_its_weights(model, tmp_path):
  command(model, tmp_path / "same")
  command(model, tmp_path / "longer", "--input=36x86")
  assert load.load(tmp_path / "same").info.expected == "mAP 0.5"
  assert load.load(tmp_path / "longer").info.expected == ""


@pytest.mark.parametrize(
  "recipe",
  [
    "decode('first')|fit(num_frames=36)|quantise|to_float|fbank(num_mel_bins=36)"
    "|standardize(-4.0, 4.5)|pad_frames|patchify((16, 16), (10, 10))",
    "decode|fit(36, frame_shift_ms=5.0)|fbank(frame_shift_ms=5.0)|center",
  ],
)
def test_any_recipe_travels_as_it_is(recipe, tmp_path, capsys):
  info = dataclasses.replace(INFO, recipe=recipe)
  model_info.save_model(tmp_path / "m", info, PARAMS)
  assert command(tmp_path / "m", tmp_path / "out") == 0
  assert load.load(tmp_path / "out").info.recipe == recipe
  capsys.readouterr()
  assert "can follow only" in refused(
    capsys, tmp_path / "m", tmp_path / "hf", "--format=hf"
  )


def test_a_fine_tuned_ssast_in_official_names(tmp_path, capsys):
  """The pooling stands in the metadata; a bare file has to be told."""
  head = dataclasses.replace(INFO.head, pooling="tokens")
  model_info.save_model(
    tmp_path / "m", dataclasses.replace(INFO, head=head), PARAMS
  )
  out = tmp_path / "o.safetensors"
  assert command(tmp_path / "m", out, "--format=official") == 0
  assert load.load(out).info.head == head
  wrong = load.Options(pooling="prefix")
  assert load.load(out, wrong).info.head.pooling == "tokens"
  bare = tmp_path / "bare.safetensors"
  save_file(load_file(out), bare)
  args = [bare, "--source_grid=3x3", "--num_heads=2"]
  assert command(args[0], tmp_path / "a", *args[1:]) == 0
  assert "pooling is assumed to be 'prefix'" in capsys.readouterr().out
  assert load.load(tmp_path / "a").info.head.pooling == "prefix"
  args.append("--source_pooling=tokens")
  assert command(args[0], tmp_path / "b", *args[1:]) == 0
  assert "assumed to be 'prefix'" not in capsys.readouterr().out
  assert load.load(tmp_path / "b").info.head.pooling == "tokens"


def test_the_disk_is_full(model, tmp_path, monkeypatch, capsys):
  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(files.safetensors.numpy, "save_file", full)
  before = sorted(tmp_path.rglob("*"))
  for flags in (
    ["o"],
    ["o", "--format=hf"],
    ["o.safetensors", "--format=official"],
  ):
    told = refused(capsys, model, tmp_path / flags[0], *flags[1:], code=1)
    assert "No space left" in told
  assert sorted(tmp_path.rglob("*")) == before
