"""SUPERB's front-end and classifier, from training to a saved model."""

import dataclasses

import jax
import numpy as np
import pytest

import astjax
from astjax.engine import step
from astjax.errors import UserError, call
from astjax.models.heads import Head
from astjax.ops import fbank
from astjax.ops.recipe import apply_rows, row_keys
from astjax.ops.waveform import fit, quantise
from astjax.ops.xp import NUMPY
from astjax.run import job
from astjax.serving import recording
from astjax.tools import convert_weights, evaluate
from astjax.weights import hugging_face, load
from astjax.weights.front_end import FrontEnd
from tests.serving import sounds
from tests.tiny import FRAMES, MELS, RATE, on_device
from tests.weights.test_info import INFO, random_params

pytestmark = pytest.mark.usefixtures("one_device")

# No centring; standardised first, then padded with zeros.
FRONT_END = "|".join(
  [
    "to_float",
    f"fbank(sample_rate={RATE}, num_mel_bins={MELS})",
    "standardize(-3.559, 3.5)",
    f"pad_frames(sample_rate={RATE})",
  ]
)
RECIPE = f"decode|fit({FRAMES}, sample_rate={RATE})|quantise|{FRONT_END}"
TASK = {"pooling": "all", "projection": 5, "loss": "softmax_xent"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("superb")
  return sounds.trained(
    sounds.write(folder / "sounds"),
    folder / "run",
    task_kw=TASK,
    model={"depth": 2},
    input={"on_device": FRONT_END},
    evals={"val": {"on_device": FRONT_END}},
  )


def test_the_front_end_by_hand():
  """log-mels of the real frames, standardised; zeros behind them."""
  spec = fbank.FbankSpec(sample_rate=RATE, num_mel_bins=MELS)
  recipe = recording.parse(RECIPE)
  for samples in (250, 1_000, 1_720, 3_000):
    audio = sounds.noise(samples, seed=2)[:, 0] + np.float32(0.1)
    fitted, count = fit(audio, spec.num_samples(FRAMES))
    batch = {
      "audio": quantise(fitted)[None],
      "num_samples": np.array([count], np.int32),
    }
    keys = row_keys(step.train_key(0), 1)
    out = apply_rows(recipe.ops, batch, keys)["fbank"][0]
    real = quantise(audio) / 2**15
    mels = fbank.fbank(real, spec, xp=NUMPY)[:FRAMES]
    expected = np.zeros((FRAMES, MELS))
    expected[: len(mels)] = (mels + 3.559) / 7.0
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert len(mels) == FRAMES or not np.any(out[len(mels) :])


def test_it_is_another_front_end_than_ast_s():
  """There, a padded cell becomes (0 + 3.559) / 7."""
  with pytest.raises(UserError, match="can follow only"):
    FrontEnd.from_recipe(RECIPE)
  assert on_device().index("pad_frames") < on_device().index("standardize")


@pytest.mark.slow
def test_predictions_are_those_of_the_evaluation(run):
  names, out, _ = sounds.evaluation(run)
  model = astjax.load(run)
  assert model.info.head == Head(
    num_classes=2, pooling="all", scores="softmax", projection=5
  )
  assert FRONT_END in model.info.recipe
  paths = [run.parent / "sounds" / name for name in names]
  got = model.logits(paths, whole=False)
  np.testing.assert_allclose(got, out["logits"], atol=1e-5)
  assert np.ptp(got, axis=0).min() > 1e-3


def test_embeddings_are_what_the_classifier_reads(run):
  built, state = job.load_run(run)
  made = astjax.load(run).embed(run.parent / "sounds" / "a" / "short.flac")
  head = jax.tree.map(np.asarray, state.params["head"])
  hidden = made.clip @ head["projection"]["kernel"] + head["projection"]["bias"]
  logits = hidden @ head["linear"]["kernel"] + head["linear"]["bias"]
  names, out, _ = sounds.evaluation(run)
  expected = out["logits"][names.index("a/short.flac")]
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  assert made.frames.shape[1] == built.task.backbone.width


@pytest.mark.slow
@pytest.mark.rare
def test_saved_and_loaded(run, tmp_path, capsys):
  assert convert_weights.main([str(run), str(tmp_path / "model")]) == 0
  old, new = astjax.load(run), astjax.load(tmp_path / "model")
  assert new.info.head == old.info.head
  sound = run.parent / "sounds" / "b" / "long.wav"
  np.testing.assert_array_equal(old.logits(sound), new.logits(sound))
  # Taken over whole, by another training.
  built, _ = job.load_run(run)
  params, report = load.start(
    load.load(tmp_path / "model"),
    jax.jit(built.fresh_params)(),
    backbone=built.task.backbone,
    head=built.task.head,
    class_names=built.train.class_names,
    options=load.Options(fresh=()),
  )
  assert not report.fresh and not report.dropped
  assert params["head"]["layer_weights"].shape == (2,)


@pytest.mark.parametrize(
  ("kind", "out"), [("hf", "hf"), ("official", "x.safetensors")]
)
def test_other_formats_have_no_such_classifier(
  kind, out, run, tmp_path, capsys
):
  args = [str(run), str(tmp_path / out), f"--format={kind}"]
  assert convert_weights.main(args) == 2
  text = capsys.readouterr().err
  assert text.count("\n") == 1 and not (tmp_path / out).exists()
  if kind == "official":
    assert "the last block alone" in text


def test_hugging_face_has_no_such_classifier(tmp_path):
  """Not even where everything else fits."""
  info = dataclasses.replace(INFO, head=Head(num_classes=3, projection=4))
  with pytest.raises(UserError, match="a classifier on the last block alone"):
    hugging_face.save(tmp_path / "x", info, random_params(info))


def test_a_negative_projection():
  with pytest.raises(UserError, match="projection=-1"):
    call(Head, "head", {"num_classes": 2, "projection": -1})


def test_measuring_wants_labels(run, tmp_path, capsys):
  (tmp_path / "x.csv").write_text("path\na/short.flac\n")
  args = [f"--model={run}", f"--data_dir={run.parent / 'sounds'}"]
  assert evaluate.main([*args, f"--manifest={tmp_path / 'x.csv'}"]) == 2
  assert "the data has no labels" in capsys.readouterr().err
