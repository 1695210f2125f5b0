"""The tool that draws hidden patches, on a run and on nonsense."""

import dataclasses

import numpy as np
import pytest
import soundfile

from astjax.tools import reconstruct
from astjax.weights import convert, load
from astjax.weights import info as model_info
from tests.tiny import tiny_config
from tests.tools.conftest import trained

RATE = 8_000


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  folder = tmp_path_factory.mktemp("clips")
  noise = np.random.default_rng(0).standard_normal(4_000) * 0.1
  soundfile.write(folder / "a.wav", noise, RATE)
  soundfile.write(folder / "b.flac", noise[:900], 16_000)  # short
  return [str(folder / "a.wav"), str(folder / "b.flac")]


def look(model, clips, network="teacher", **kwargs):
  loaded = load.load(model, model_info.Options(network=network))
  return reconstruct.reconstruct(loaded, clips, **kwargs)


def described(run, folder, drop="", **objective):
  """The model of a run as if it had been trained in another way."""
  loaded = load.load(run)
  info = dataclasses.replace(
    loaded.info, objective=loaded.info.objective | objective
  )
  params = {k: v for k, v in loaded.params.items() if not drop or drop not in k}
  model_info.save_model(folder, info, convert.unflatten(params))
  return folder


def test_what_an_ssast_sees(ssast_run, clips):
  found = look(ssast_run, clips, num_mask=2)
  for one in found:
    assert one.fbank.shape == one.hidden.shape == (20, 16)
    assert one.hidden.sum() == 2 * 80  # two patches of 8 x 10
    # Where nothing is hidden, nothing is changed or judged.
    np.testing.assert_array_equal(
      one.drawn[~one.hidden], one.fbank[~one.hidden]
    )
    assert (one.identified[~one.hidden] == 0).all()
    assert (np.abs(one.identified[one.hidden]) == 1).all()
    assert one.numbers["identified"] == np.mean(one.identified[one.hidden] > 0)
    error = (one.drawn - one.fbank)[one.hidden]
    assert one.numbers["mse"] == pytest.approx(np.mean(error**2), rel=1e-4)


def test_the_command(ssast_run, clips, tmp_path, capsys):
  out = tmp_path / "picture.png"
  args = [*clips, f"--model={ssast_run}", f"--out={out}", "--num_mask=1"]
  assert reconstruct.main(args) == 0
  assert out.stat().st_size > 10_000
  printed = capsys.readouterr().out
  assert "25 % hidden" in printed and "mse" in printed


def test_masks_are_those_of_the_training(ssast_run, clips, tmp_path):
  how = {"num_mask": 3, "masking": "random", "softmax_over": "patches"}
  model = described(ssast_run, tmp_path / "model", task_kw=how)
  (one,) = look(model, clips[:1])
  assert one.hidden.sum() == 3 * 80
  # Clusters as in the original's code would never hide the first patch.
  assert any(
    look(model, clips[:1], num_mask=1, seed=seed)[0].hidden[0, 0]
    for seed in range(8)
  )


def test_one_objective(ssast_run, clips, tmp_path):
  model = described(
    ssast_run, tmp_path / "model", drop="discriminative", heads=["generative"]
  )
  (one,) = look(model, clips[:1], num_mask=2)
  assert one.identified is None and "identified" not in one.numbers
  assert one.drawn is not None
  assert [title for title, *_ in reconstruct._panels(one)] == [
    "spectrogram",
    "what the model sees",
    "hidden patches drawn",
  ]


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ("--num_mask=4", "cannot hide 4 of 4 patches"),
    ("--num_mask=-3", "cannot hide -3 of 4 patches"),
    ("nowhere.wav", "nowhere.wav"),
    ("--out=/proc/nowhere/x.png", "/proc/nowhere/x.png"),
    ("--model=nowhere", "nowhere"),
  ],
)
def test_nonsense_in_one_line(
  ssast_run, clips, change, words, tmp_path, mistake
):
  out = tmp_path / "x.png"
  args = [f"--model={ssast_run}", f"--out={out}", "--num_mask=2", change]
  if change.startswith("--"):
    args.append(clips[0])
  mistake(reconstruct.main(args), words)


def test_other_models_are_refused(tiny_run, clips, tmp_path, mistake):
  args = [clips[0], f"--model={tiny_run}", f"--out={tmp_path / 'x.png'}"]
  mistake(reconstruct.main(args), "no SSAST")
  args[-1] = f"--out={tmp_path / 'x.foo'}"
  mistake(reconstruct.main(args), "must end in .png or .pdf")


# ASiT.


def asit_config(**task_kw):
  """Views of the tiny config's clips; the first release has no local ones."""
  views = f"decode|views(2, 0.2, sample_rate={RATE})"
  config = tiny_config(
    steps=1,
    task="asit",
    best="",
    model={"prefix": ("cls",)},
    input={"on_host": f"{views}|quantise|keep('audio')"},
  )
  config.evals = {}
  config.task_kw = {
    "preset": "r1",
    "hidden": 12,
    "bottleneck": 8,
    "outputs": (10, 6),
    "recon_widths": (16, 8),
    **task_kw,
  }
  device = (
    f"to_float|center(num_samples='')|fbank(sample_rate={RATE}, "
    "num_mel_bins=16)|cut_frames(10)|standardize(-3.559, 3.5)"
  )
  config.input.on_device = device
  return config


@pytest.fixture(scope="module")
def asit_run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "asit"
  config = asit_config(drop_perc=0.4, drop_replace=0.2)
  return trained(folder, config)


def test_what_an_asit_sees(asit_run, clips):
  found = look(asit_run, clips)
  for one in found:
    assert one.fbank.shape == one.seen.shape == one.drawn.shape == (10, 16)
    np.testing.assert_array_equal(one.seen[~one.hidden], one.fbank[~one.hidden])
    assert 0.1 < one.hidden.mean() < 0.6
    assert one.identified is None
    error = np.abs(one.drawn - one.fbank)[one.hidden]
    assert one.numbers["l1"] == pytest.approx(np.mean(error), rel=1e-4)
    # One value a patch, of 8 bins x 10 frames; the token also sees itself.
    cells = one.attention[:, ::8]
    assert (cells == cells[:1]).all() and (cells > 0).all()
    assert 0 < cells[0].sum() < 1
  other = look(asit_run, clips, seed=1)
  assert (found[0].hidden != other[0].hidden).any()
  student = look(asit_run, clips, "student")
  np.testing.assert_array_equal(found[0].seen, student[0].seen)
  assert (found[0].drawn != student[0].drawn).any()


def test_one_clip_is_filled(asit_run, clips):
  """There is no other one: zeros, as much as in the training."""
  one = look(asit_run, clips[:1])[0]
  assert (one.seen[one.hidden] == 0).all() and one.hidden.any()


def test_the_command_of_an_asit(asit_run, clips, tmp_path, capsys, mistake):
  out = tmp_path / "picture.png"
  args = [*clips, f"--model={asit_run}", f"--out={out}"]
  assert reconstruct.main(args) == 0
  assert out.stat().st_size > 10_000
  assert "l1 0." in capsys.readouterr().out
  mistake(reconstruct.main([*args, "--num_mask=1"]), "num_mask=1")


def test_the_panels_of_an_asit(asit_run, clips):
  one = look(asit_run, clips[:1])[0]
  titles = [title for title, *_ in reconstruct._panels(one)]
  assert titles == [
    "spectrogram",
    "what the model sees",
    "corrupted",
    "drawn",
    "where the class token looks",
  ]
