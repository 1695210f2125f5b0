"""Our folder and Hugging Face's: written whole, read strictly."""

import json

import jax
import numpy as np
import pytest

from astjax.errors import UserError
from astjax.models.heads import Head
from astjax.weights import convert, hugging_face, load
from astjax.weights import info as model_info
from astjax.weights.front_end import FrontEnd
from astjax.weights.info import ModelInfo

RECIPE = FrontEnd(16_000, 36, 36, (-4.0, 4.5)).recipe()
INFO = ModelInfo(
  model={
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 64,
    "patch_size": (16, 16),
    "stride": (10, 10),
    "prefix": ("cls", "dist"),
    "layer_norm_eps": 1e-6,
  },
  head=Head(num_classes=3),
  class_names=("dog", "cat", "Glocke, groß"),
  recipe=RECIPE,
  licence="Apache-2.0",
  expected="mAP 0.5",
)
GRID = (3, 3)


def random_params(info=INFO, grid=GRID):
  expected = info.expected_params(grid)
  rng = np.random.default_rng(0)
  draw = lambda x: rng.standard_normal(x.shape).astype(np.float32)
  return jax.tree.map(draw, expected)


def same(flat, params):
  want = convert.flatten(params)
  assert flat.keys() == want.keys()
  for path, array in want.items():
    np.testing.assert_array_equal(flat[path], array)


# The front-end in a recipe.


@pytest.mark.parametrize(
  "front_end",
  [
    FrontEnd(16_000, 1024, 128, (-4.27, 4.57)),
    FrontEnd(8_000, 100, 64, None, center=False),
    FrontEnd(32_000, 592, 128, (-4.27, 4.57), padding="waveform"),
    FrontEnd(8_000, 100, 64, None, center=False, padding="waveform"),
  ],
)
def test_a_front_end_and_its_recipe(front_end):
  assert FrontEnd.from_recipe(front_end.recipe()) == front_end


def test_a_recipe_of_a_config():
  recipe = (
    "decode('first')|resample(16000)|fit(1024)|quantise|to_float|center|fbank"
    "|pad_frames|standardize(mean=-4, std=4.5)"
  )
  want = FrontEnd(16_000, 1024, 128, (-4, 4.5), channel="first")
  assert FrontEnd.from_recipe(recipe) == want
  assert FrontEnd.from_recipe(want.recipe() + "|patchify") == want


@pytest.mark.parametrize(
  ("old", "new", "told"),
  [
    ("to_float", "to_float|echo(3)", "unknown op 'echo'"),
    ("num_mel_bins=36", "frame_shift_ms=5.0", "can follow only"),
    ("quantise", "quantise|patchify((16, 16), (10, 10))", "can follow only"),
    ("resample(16000)", "resample(8000)", "can follow only"),
    ("|pad_frames(sample_rate=16000)", "", "can follow only"),
    ("center", "center(num_samples='')", "can follow only"),
    ("quantise", "quantise|quantise", "can follow only"),
    (
      "|pad_frames(sample_rate=16000)|standardize(-4.0, 4.5)",
      "|standardize(-4.0, 4.5)|pad_frames(sample_rate=16000)",
      "can follow only",
    ),
    ("to_float", "to_float|freq_mask(3)", "can follow only"),
    ("quantise", "quantise(", "is not a recipe"),
    ("quantise", "quantise(1, 2, 3)", "too many positional"),
  ],
)
def test_a_recipe_that_others_cannot_follow(old, new, told):
  assert old in RECIPE
  with pytest.raises(UserError, match=told):
    FrontEnd.from_recipe(RECIPE.replace(old, new))


# Our own folder.


@pytest.mark.parametrize("head", [True, False])
def test_out_and_in_again(head, tmp_path):
  info = INFO if head else ModelInfo(model=INFO.model)
  params = random_params(info)
  model_info.save_model(tmp_path / "m", info, params)
  assert {p.name for p in (tmp_path / "m").iterdir()} == {
    "params.safetensors",
    "config.json",
  }
  assert [p.name for p in tmp_path.iterdir()] == ["m"]  # nothing left over
  loaded = load.load(tmp_path / "m")
  same(loaded.params, params)
  written, read = json.dumps(info.to_json()), json.dumps(loaded.info.to_json())
  assert written == read
  assert loaded.info.class_names == info.class_names
  same(load.load(tmp_path / "m" / "params.safetensors").params, params)


def test_nothing_is_overwritten(tmp_path):
  (tmp_path / "m").mkdir()
  (tmp_path / "m" / "precious").write_text("x")
  with pytest.raises(UserError, match="is there already"):
    model_info.save_model(tmp_path / "m", INFO, random_params())
  assert (tmp_path / "m" / "precious").read_text() == "x"


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(model_info.files, "write_json", full)
  with pytest.raises(UserError, match="No space left") as e:
    model_info.save_model(tmp_path / "m", INFO, random_params())
  assert "\n" not in str(e.value)
  assert not list(tmp_path.iterdir())


def test_a_folder_below_a_file(tmp_path):
  (tmp_path / "f").write_text("")
  with pytest.raises(UserError, match="cannot write"):
    model_info.save_model(tmp_path / "f" / "m", INFO, random_params())


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (lambda c: c.pop("format"), "is not of the format 'astjax 1'"),
    (lambda c: c.update(modle={}), "unknown argument 'modle'"),
    (lambda c: c.pop("model"), r"missing a required .*argument: 'model'"),
    (lambda c: c["model"].update(widht=3), "unknown argument 'widht'"),
    (lambda c: c["model"].update(width="x"), "width='x' is str"),
    (lambda c: c["head"].update(pooling="mean"), "expected one of 'prefix'"),
    (lambda c: c.update(head=3), "head is no object"),
    (lambda c: c.update(class_names=["a"]), "1 class names for 3 classes"),
    (lambda c: c["model"].update(depth=3), "- backbone/encoder/block_2"),
    (lambda c: c["model"].update(depth=1), r"\+ backbone/encoder/block_1"),
    (lambda c: c["head"].update(num_classes=4), "class names for 4 classes"),
  ],
)
def test_a_config_that_is_wrong(change, told, tmp_path):
  model_info.save_model(tmp_path / "m", INFO, random_params())
  path = tmp_path / "m" / "config.json"
  config = json.loads(path.read_text())
  change(config)
  path.write_text(json.dumps(config))
  with pytest.raises(UserError, match=told) as e:
    load.load(tmp_path / "m")
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff\xfe"])
def test_a_config_that_is_damaged(text, tmp_path):
  model_info.save_model(tmp_path / "m", INFO, random_params())
  (tmp_path / "m" / "config.json").write_text(text)
  with pytest.raises(UserError, match=r"config\.json"):
    load.load(tmp_path / "m")


# Hugging Face's folder.


def test_hugging_face_out_and_in_again(tmp_path):
  params = random_params()
  notes = hugging_face.save(tmp_path / "hf", INFO, params)
  assert len(notes) == 1 and "1e-06 there, 1e-05 here" in notes[0]
  assert {p.name for p in (tmp_path / "hf").iterdir()} == {
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "README.md",
  }
  loaded = load.load(tmp_path / "hf")
  same(loaded.params, params)
  info = loaded.info
  assert info.model == INFO.model
  assert info.class_names == INFO.class_names
  assert info.head.scores == "sigmoid"
  ours, theirs = map(FrontEnd.from_recipe, (INFO.recipe, info.recipe))
  assert theirs == FrontEnd(
    ours.sample_rate,
    ours.num_frames,
    ours.num_mel_bins,
    ours.statistics,
    center=False,
  )
  card = (tmp_path / "hf" / "README.md").read_text()
  assert "license: apache-2.0" in card and "mAP 0.5" in card
  # And once more: the same files, byte by byte.
  hugging_face.save(tmp_path / "again", info, convert.unflatten(loaded.params))
  for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
    first, second = (tmp_path / f / name for f in ("hf", "again"))
    assert first.read_bytes() == second.read_bytes()


def replaced(**changes):
  model = changes.pop("model", {})
  fields = {f: getattr(INFO, f) for f in INFO.__dataclass_fields__}
  return ModelInfo(**fields | {"model": INFO.model | model} | changes)


@pytest.mark.parametrize(
  ("info", "told"),
  [
    (replaced(head=None, class_names=()), "no classifier"),
    (replaced(model={"prefix": ("cls",)}), "the tokens cls and dist"),
    (replaced(model={"patch_size": (16, 8)}), "square patches"),
    (replaced(recipe=""), "front-end is unknown"),
    (replaced(recipe="decode|fbank"), "has no fit"),
    (
      replaced(
        recipe=FrontEnd(16_000, 36, 36, None, padding="waveform").recipe()
      ),
      "not the waveform",
    ),
    (replaced(class_names=("a", "b", "a")), "two classes of one name"),
    (
      replaced(head=Head(num_classes=3, pooling="tokens")),
      "averages the prefix tokens",
    ),
  ],
)
def test_what_hugging_face_cannot_hold(info, told, tmp_path):
  with pytest.raises(UserError, match=told):
    hugging_face.save(tmp_path / "hf", info, random_params())
  assert not (tmp_path / "hf").exists()


def test_another_rate_is_noted(tmp_path):
  info = replaced(recipe=FrontEnd(8_000, 36, 36, None).recipe())
  notes = hugging_face.save(tmp_path / "hf", info, random_params())
  assert any("8000 Hz" in note for note in notes)
  loaded = load.load(tmp_path / "hf").info
  assert FrontEnd.from_recipe(loaded.recipe).statistics is None


@pytest.mark.parametrize(
  ("file", "change", "told"),
  [
    ("config", {"model_type": "bert"}, "unknown model_type"),
    ("config", {"hidden_size": "x"}, "hidden_size='x' is str, expected int"),
    (
      "config",
      {"hidden_size": 64},
      "config.json says width=64, its weights 32",
    ),
    ("config", {"num_hidden_layers": 1}, "says depth=1, its weights 2"),
    ("config", {"intermediate_size": 5}, "says mlp_dim=5, its weights 64"),
    ("config", {"patch_size": 8}, "says patch_size"),
    (
      "config",
      {"hidden_act": "relu"},
      "hidden_act='relu' is str",
    ),
    ("config", {"max_length": 200}, "has max_length 36, config.json 200"),
    ("preprocessor_config", {"num_mel_bins": 64}, "num_mel_bins 64, config"),
    ("preprocessor_config", {"std": 0}, "std=0 must be positive"),
    (
      "preprocessor_config",
      {"sampling_rate": -1},
      "sampling_rate=-1 must be",
    ),
    ("config", {"layer_norm_eps": None}, "layer_norm_eps=None is NoneType"),
    ("config", {"layer_norm_eps": -1}, "layer_norm_eps=-1 must be in"),
    ("config", {"patch_size": [16]}, "patch_size="),
    ("config", {"patch_size": []}, "patch_size="),
    ("config", {"problem_type": "regression"}, "unknown problem_type"),
    ("config", {"id2label": {}, "num_labels": "x"}, "num_labels is 'x'"),
    ("config", {"num_attention_heads": 5}, "multiple of num_heads"),
    ("config", {"id2label": {"0": "a", "2": "b"}}, "does not count from 0"),
    ("config", {"id2label": {"0": "a"}}, r"head/linear/kernel .* is \(32, 3\)"),
    ("config", {"id2label": [1]}, "id2label is no object"),
    ("preprocessor_config", {"mean": "x"}, "preprocessor_config.json"),
  ],
)
def test_a_wrong_folder_of_hugging_face(file, change, told, tmp_path):
  hugging_face.save(tmp_path / "hf", INFO, random_params())
  path = tmp_path / "hf" / f"{file}.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(UserError, match=told) as e:
    load.load(tmp_path / "hf")
  assert "\n" not in str(e.value)


def test_a_folder_without_problem_type(tmp_path):
  """Sigmoid is assumed, and said, unless the name is a published one."""
  hugging_face.save(tmp_path / "hf", INFO, random_params())
  path = tmp_path / "hf" / "config.json"
  config = json.loads(path.read_text())
  del config["problem_type"]
  path.write_text(json.dumps(config))
  loaded = load.load(tmp_path / "hf")
  assert loaded.info.head.scores == "sigmoid"
  assert loaded.notes == (
    "scores are assumed to be sigmoid: no problem_type is given",
  )
  info, notes = hugging_face.read_config(tmp_path / "hf", "softmax")
  assert info.head.scores == "softmax" and not notes


def test_its_weights_alone_are_read_with_the_folder(tmp_path):
  hugging_face.save(tmp_path / "hf", INFO, random_params())
  loaded = load.load(tmp_path / "hf" / "model.safetensors")
  assert loaded.info.class_names == INFO.class_names


def test_a_classifier_on_tokens_that_are_not_there():
  with pytest.raises(UserError, match="needs prefix tokens"):
    replaced(model={"prefix": ()})


def test_files_can_be_read_by_others(tmp_path):
  model_info.save_model(tmp_path / "m", INFO, random_params())
  for path in (tmp_path / "m").iterdir():
    assert path.stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize("exists", [True, False])
def test_out_may_be_a_link(exists, tmp_path):
  if exists:
    (tmp_path / "real").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "real")
  model_info.save_model(tmp_path / "link", INFO, random_params())
  assert (tmp_path / "real" / "params.safetensors").is_file()
