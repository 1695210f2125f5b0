"""Both ways between this library and transformers.

Needs torch: `make test-torch`. Whatever version of transformers is installed is
what the folders are written and read by.
"""

import contextlib

import jax
import numpy as np
import pytest
import soundfile

from astjax.data import pipeline, sources
from astjax.data.reader import Reader
from astjax.engine import step
from astjax.models import ast, heads
from astjax.models.heads import Head
from astjax.ops import frontend, host_ops, recipe
from astjax.tools import convert_weights
from astjax.weights import convert, hugging_face, load
from astjax.weights import info as model_info
from astjax.weights.front_end import FrontEnd
from tests.weights.images import gray_images, image_tokens

pytestmark = [
  pytest.mark.torch,
  pytest.mark.filterwarnings("ignore"),  # of torch's and transformers' own
]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
  "tiny": {"width": 192, "depth": 12, "num_heads": 3},
  "base": {"width": 768, "depth": 12, "num_heads": 12},
}
FRAMES = {"10 s": 1024, "1 s": 128}
EACH = pytest.mark.parametrize(
  ("size", "frames"), [(s, f) for s in SIZES for f in FRAMES.values()]
)


def scaled(shape, rng):
  """Weights as large as trained ones, so that nothing hides in a zero."""
  return rng.standard_normal(shape).astype(np.float32) * 0.05


def random_hf(size, frames, num_labels=7, seed=0, **config):
  given = SIZES[size]
  config = transformers.ASTConfig(
    hidden_size=given["width"],
    num_hidden_layers=given["depth"],
    num_attention_heads=given["num_heads"],
    intermediate_size=4 * given["width"],
    max_length=frames,
    num_labels=num_labels,
    **config,
  )
  model = transformers.ASTForAudioClassification(config).eval()
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      noise = scaled(tuple(parameter.shape), rng)
      parameter.add_(torch.from_numpy(noise))
  return model


def our_logits(info, params, spec):
  head = heads.ClassifierHead(
    info.head.num_classes, layer_norm_eps=info.head.layer_norm_eps
  )
  model = ast.AST(ast.make_backbone(**info.model), head, info.head.pooling)
  with jax.default_matmul_precision("highest"):
    return np.asarray(jax.jit(model.apply)({"params": params}, spec))


def their_logits(model, spec):
  with torch.no_grad():
    return model(torch.from_numpy(np.asarray(spec))).logits.numpy()


def spectrogram(frames, mels=128):
  rng = np.random.default_rng(3)
  return rng.standard_normal((2, frames, mels)).astype(np.float32) * 0.5


@EACH
def test_theirs_here(size, frames, tmp_path):
  model = random_hf(size, frames)
  model.save_pretrained(tmp_path)
  loaded = load.load(tmp_path)
  spec = spectrogram(frames)
  params = convert.unflatten(loaded.params)
  ours = our_logits(loaded.info, params, spec)
  np.testing.assert_allclose(ours, their_logits(model, spec), atol=1e-4)
  # The names in memory, which transformers 5 has changed, are read as well.
  torch.save(model.state_dict(), tmp_path / "memory.pth")
  again = load.load(
    tmp_path / "memory.pth",
    load.Options(num_heads=SIZES[size]["num_heads"]),
  )
  for name, array in loaded.params.items():
    np.testing.assert_array_equal(again.params[name], array)


def our_model(size, frames, tmp_path, classes=7):
  """A model of ours, in its own format, with weights of some size."""
  backbone = ast.make_backbone(**SIZES[size])
  model = ast.AST(backbone, heads.ClassifierHead(classes))
  spec = np.zeros((1, frames, 128), np.float32)
  params = jax.jit(model.init)(jax.random.key(0), spec)["params"]
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: np.asarray(x) + scaled(x.shape, rng), params)
  info = model_info.ModelInfo(
    model=backbone.describe(),
    head=Head(num_classes=classes),
    class_names=tuple(f"sound {i}" for i in range(classes)),
    recipe=FrontEnd(16_000, frames, 128, (-4.27, 4.57)).recipe(),
  )
  folder = tmp_path / "ours"
  model_info.save_model(folder, info, params)
  return folder, info, params


@EACH
def test_ours_there(size, frames, tmp_path, capsys):
  folder, info, params = our_model(size, frames, tmp_path)
  there = tmp_path / "there"
  assert convert_weights.main([str(folder), str(there), "--format=hf"]) == 0
  model, report = transformers.ASTForAudioClassification.from_pretrained(
    there, output_loading_info=True
  )
  assert not report["missing_keys"] and not report["unexpected_keys"]
  assert model.config.id2label[3] == "sound 3"
  spec = spectrogram(frames)
  ours = our_logits(info, params, spec)
  np.testing.assert_allclose(ours, their_logits(model.eval(), spec), atol=1e-4)
  back = load.load(there)
  for name, array in convert.flatten(params).items():
    np.testing.assert_array_equal(back.params[name], array)
  capsys.readouterr()


def logits_of_files(folder, info, params):
  """From recordings to logits by the recipe that the model carries."""
  host, mark, device = info.recipe.partition("|to_float")
  host += "|multi_hot|keep('audio', 'num_samples', 'label')"
  reader = Reader(sources.build("folder", "", {}, data_dir=str(folder)))
  ops = recipe.parse(host, host_ops.OPS, "recipe", reader=reader)
  on_device = recipe.parse(mark[1:] + device, frontend.OPS, "recipe")
  batches = pipeline.eval_batches(reader, ops, batch_size=4)
  with contextlib.closing(batches):
    batch = next(batches)
  keys = recipe.row_keys(step.train_key(0), len(batch["id"]))
  batch = jax.jit(lambda b: recipe.apply_rows(on_device, b, keys))(batch)
  names = [reader.source.name(int(i)) for i in batch["id"][batch["valid"]]]
  logits = our_logits(info, params, batch["fbank"])[batch["valid"]]
  return dict(zip(names, logits, strict=True))


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES)
def test_from_a_file_to_logits(frames, tmp_path):
  """Clips shorter and longer than the model's input, noise and a chirp."""
  sounds = tmp_path / "sounds" / "a"
  sounds.mkdir(parents=True)
  rng = np.random.default_rng(5)
  time = np.arange(16_000 * 12) / 16_000
  chirp = 0.4 * np.sin(2 * np.pi * (100 + 150 * time) * time)
  waves = {
    "long": chirp,
    "short": chirp[:11_000] + 0.02 * rng.standard_normal(11_000),
    "noise": 0.1 * rng.standard_normal(50_000),
  }
  for name, wave in waves.items():
    soundfile.write(sounds / f"{name}.wav", wave, 16_000, subtype="PCM_16")
  model = random_hf("tiny", frames)
  there = tmp_path / "there"
  model.save_pretrained(there)
  extractor = transformers.ASTFeatureExtractor(max_length=frames)
  extractor.save_pretrained(there)
  loaded = load.load(there)
  params = convert.unflatten(loaded.params)
  ours = logits_of_files(tmp_path / "sounds", loaded.info, params)
  assert len(ours) == len(waves)
  for name, logits in ours.items():
    wave, rate = soundfile.read(tmp_path / "sounds" / name, dtype="float32")
    inputs = extractor(wave, sampling_rate=rate, return_tensors="np")
    theirs = their_logits(model, inputs["input_values"].astype(np.float32))[0]
    np.testing.assert_allclose(logits, theirs, atol=1e-3)


def test_an_extractor_of_ours(tmp_path, capsys):
  """The folder that is written has the front-end of the model."""
  folder, info, params = our_model("tiny", 128, tmp_path)
  there = tmp_path / "there"
  convert_weights.main([str(folder), str(there), "--format=hf"])
  capsys.readouterr()
  extractor = transformers.AutoFeatureExtractor.from_pretrained(there)
  model = transformers.AutoModelForAudioClassification.from_pretrained(there)
  sounds = tmp_path / "sounds" / "a"
  sounds.mkdir(parents=True)
  wave = 0.1 * np.random.default_rng(6).standard_normal(14_000)
  soundfile.write(sounds / "a.wav", wave, 16_000, subtype="PCM_16")
  (ours,) = logits_of_files(tmp_path / "sounds", info, params).values()
  wave, rate = soundfile.read(sounds / "a.wav", dtype="float32")
  inputs = extractor(wave, sampling_rate=rate, return_tensors="np")
  theirs = their_logits(model, inputs["input_values"].astype(np.float32))[0]
  np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("rows", ["frequency", "time"])
@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
def test_image_models_of_transformers(kind, rows, tmp_path):
  config = getattr(transformers, f"{kind}Config")(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    image_size=64,
    layer_norm_eps=1e-6,
  )
  model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.1 * torch.randn(p.shape, generator=torch.manual_seed(1)))
  model.save_pretrained(tmp_path)
  gray, images = gray_images()
  with torch.no_grad():
    base = model.base_model
    theirs = base(torch.from_numpy(images)).last_hidden_state.numpy()
  prefix = ("cls",) if kind == "ViT" else ("cls", "dist")
  ours = image_tokens(tmp_path, gray, rows, prefix)
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_official_names(tmp_path, capsys):
  """Written, they load into a module with the official names, and come back."""
  folder, _, params = our_model("tiny", 128, tmp_path)
  out = tmp_path / "official.safetensors"
  assert convert_weights.main([str(folder), str(out), "--format=official"]) == 0
  capsys.readouterr()
  from safetensors.torch import load_file

  tensors = load_file(out)
  torch.save({f"module.{k}": v for k, v in tensors.items()}, tmp_path / "a.pth")
  for path in (out, tmp_path / "a.pth"):
    back = load.load(path, load.Options(num_heads=3))
    for name, array in convert.flatten(params).items():
      np.testing.assert_array_equal(back.params[name], array)


def test_their_default_config_is_known(tmp_path):
  """What a config.json may leave out has transformers' value."""
  config = transformers.ASTConfig()
  defaults = hugging_face._model.__kwdefaults__
  sizes = hugging_face._front_end.__kwdefaults__
  defaults = defaults | {k: sizes[k] for k in ("max_length", "num_mel_bins")}
  for name, value in defaults.items():
    assert getattr(config, name) == value
