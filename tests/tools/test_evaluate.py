"""The command that measures: the numbers of training, beside what is known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from astjax.data import recordings
from astjax.data.source import fingerprint
from astjax.ops import metrics
from astjax.tools import evaluate
from astjax.weights import convert, load, registry
from astjax.weights import info as model_info
from tests.serving import sounds

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def saved(sounds_run, tmp_path_factory):
  """The same model as a folder, with a published number."""
  loaded = load.load(sounds_run)
  info = dataclasses.replace(
    loaded.info, expected="Sounds mAP 0.9", reported=("mAP", 0.9)
  )
  folder = tmp_path_factory.mktemp("evaluate") / "model"
  model_info.save_model(folder, info, convert.unflatten(loaded.params))
  return folder


def measure(model, tmp_path, *args, status=0):
  output = tmp_path / "numbers.json"
  flags = [f"--model={model}", f"--output={output}", *map(str, args)]
  assert evaluate.main(flags) == status
  return json.loads(output.read_text())


def table(path, root, header="path,labels", skip=()):
  rows = [f"{name},{name[0]}" for name in sounds.RECORDINGS if name not in skip]
  (path / "table.csv").write_text("\n".join([header, *rows]) + "\n")
  return path / "table.csv"


def test_the_numbers_of_training(sounds_run, saved, tmp_path, capsys):
  _, _, want = sounds.evaluation(sounds_run)
  data = sounds_run.parent / "sounds"
  found = measure(sounds_run, tmp_path, f"--data_dir={data}", "--batch_size=3")
  assert found["num_examples"] == want["num_examples"] == 8
  assert 0 < want["mAP"] < 1  # not so good that nothing could differ
  for name in ("mAP", "mAUC", "d_prime", "accuracy"):
    assert found["measured"][name] == pytest.approx(want[name], abs=1e-5)
  assert found["data"] == fingerprint(recordings.Folder(data_dir=str(data)))
  assert found["expected"] == {} and found["unreadable"] == []
  # The same by a table, with the published number beside it.
  capsys.readouterr()
  path = table(tmp_path, data)
  again = measure(saved, tmp_path, f"--data_dir={data}", f"--manifest={path}")
  assert again["measured"] == pytest.approx(found["measured"], abs=1e-5)
  assert again["expected"] == {"mAP": 0.9}
  shown = capsys.readouterr().out
  line = next(x for x in shown.splitlines() if "mAP" in x and "Sounds" not in x)
  assert "0.9000" in line and f"{want['mAP']:.4f}" in line
  assert f"fingerprint {again['data']}" in shown
  assert "expected: Sounds mAP 0.9, as its publishers report" in shown


def test_another_order_of_classes(sounds_run, saved, tmp_path):
  """A part of the classes, or a list of its own order: numbers go by name."""
  data = sounds_run.parent / "sounds"
  names, out, _ = sounds.evaluation(sounds_run)
  some = [n for n in sounds.RECORDINGS if n[0] == "b"]
  path = table(tmp_path, data, skip=set(sounds.RECORDINGS) - set(some))
  found = measure(saved, tmp_path, f"--data_dir={data}", f"--manifest={path}")
  rows = [names.index(n) for n in some]
  want, _ = metrics.classification(out["logits"][rows], out["label"][rows])
  assert found["measured"]["accuracy"] == pytest.approx(want["accuracy"])
  assert found["measured"]["mAP"] is None  # no class has both kinds
  assert found["num_examples"] == len(some)


def test_unreadable_recordings_are_left_out(
  sounds_run, saved, tmp_path, capsys
):
  root = sounds.write(tmp_path / "in")
  (root / "a" / "broken.wav").write_text("no")
  want = measure(saved, tmp_path, f"--data_dir={sounds_run.parent / 'sounds'}")
  found = measure(saved, tmp_path, f"--data_dir={root}", status=1)
  assert found["unreadable"] == ["a/broken.wav"]
  assert found["measured"] == pytest.approx(want["measured"])
  assert "broken.wav: " in capsys.readouterr().err


def test_a_model_without_names(sounds_run, saved, tmp_path, capsys):
  loaded = load.load(saved)
  info = dataclasses.replace(loaded.info, class_names=())
  folder = tmp_path / "model"
  model_info.save_model(folder, info, convert.unflatten(loaded.params))
  data = f"--data_dir={sounds_run.parent / 'sounds'}"
  assert evaluate.main([f"--model={folder}", data]) == 2
  assert "give them with --label_list" in capsys.readouterr().err
  labels = tmp_path / "labels.txt"
  labels.write_text("a\nb\n")
  found = measure(folder, tmp_path, data, f"--label_list={labels}")
  assert found["measured"] == measure(saved, tmp_path, data)["measured"]
  labels.write_text("a\nb\nc\n")
  assert (
    evaluate.main([f"--model={folder}", data, f"--label_list={labels}"]) == 2
  )
  assert "3 class names for 2 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("change", "args", "told"),
  [
    (("b/", "bee/"), [], "the data's class 'bee' is none of the model's 2."),
    (None, ["--label_list={}/l.txt"], "class names of its own"),
    (None, ["--manifest=nowhere.csv"], "nowhere.csv' does not exist"),
    (None, ["--data_dir=nowhere"], "no data directory 'nowhere'"),
    (None, ["--split=val"], "no recording of split 'val'"),
    (None, ["--folds=1,2"], "no recording of fold '1'"),
    (None, ["--pattern=("], "is not a regular expression"),
    (
      None,
      ["--output=nowhere/x.json"],
      "--output=nowhere/x.json: there is no such folder",
    ),
  ],
)
def test_mistakes_end_in_one_line(change, args, told, saved, tmp_path, mistake):
  (tmp_path / "l.txt").write_text("b\na\n")
  root = sounds.write(tmp_path / "in")
  if change:
    (root / "b").rename(root / "bee")
  args = [a.format(tmp_path) for a in args]
  flags = [f"--model={saved}", f"--data_dir={root}", *args]
  mistake(evaluate.main(flags), told)


def test_published_numbers_are_those_of_the_text():
  for name, published in registry.CHECKPOINTS.items():
    if published.reported:
      metric, value = published.reported
      assert f"{metric} {value}" in published.expected, name
    else:
      assert "mAP" not in published.expected
  assert sum(c.reported is not None for c in registry.CHECKPOINTS.values()) == 8


def test_a_converted_model_keeps_the_number():
  info = dataclasses.replace(
    model_info.ModelInfo(model={}), reported=("mAP", 0.5)
  )
  text = json.loads(json.dumps(info.to_json()))
  assert model_info.ModelInfo.from_json(text, "x").reported == ("mAP", 0.5)
  assert np.isfinite(info.reported[1])
