"""The command that hears files: formats, progress, interruptions."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import soundfile

import astjax
from astjax.serving import bundle
from astjax.tools import predict
from astjax.weights import info
from tests.serving.sounds import noise
from tests.weights.test_info import INFO, random_params

# Names that a table has to quote; one recording of several windows.
NAMES = ("a.wav", "b, c.wav", 'd "e".flac', "sub/ü.wav", "sub/z.wav")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A model and recordings, one of them broken."""
  root = tmp_path_factory.mktemp("predict")
  info.save_model(root / "model", INFO, random_params())
  (root / "in" / "sub").mkdir(parents=True)
  for seed, name in enumerate(NAMES):
    audio = noise(4_000 + 9_000 * (seed == 1), 1 + seed % 2, seed)
    soundfile.write(root / "in" / name, audio, 16_000)
  (root / "in" / "broken.wav").write_text("not a sound")
  return root


@pytest.fixture
def quick(folder, monkeypatch):
  """The model is loaded and compiled once."""
  if not hasattr(quick, "model"):
    quick.model = astjax.load(folder / "model", batch_size=2)
  monkeypatch.setattr(bundle, "load", lambda *args, **kwargs: quick.model)
  return quick.model


def main(folder, *args, paths=None):
  paths = [str(folder / "in")] if paths is None else paths
  return predict.main([f"--model={folder / 'model'}", *paths, *args])


def lines(text):
  return [json.loads(line) for line in text.splitlines()]


def test_json_lines(folder, quick, tmp_path, capsys):
  output = tmp_path / "x.jsonl"
  assert main(folder, f"--output={output}", "--windows", "--top=2") == 1
  told = capsys.readouterr().err
  assert f"astjax: error: {folder}/in/broken.wav: " in told
  assert told.strip().endswith(
    "5 recordings in " + f"{output}, 1 could not be used"
  )
  found = lines(output.read_text())
  assert {f["path"] for f in found} == {str(folder / "in" / n) for n in NAMES}
  for line in found:
    want = quick.predict(line["path"])
    assert re.fullmatch("[0-9a-f]{16}", line["model"])
    assert line["seconds"] == round(want.seconds, 4)
    names, scores = zip(*want.top(2), strict=True)
    assert line["classes"] == list(names)
    np.testing.assert_allclose(line["scores"], scores, atol=1e-5)
    times = [(w["start"], w["end"]) for w in line["windows"]]
    np.testing.assert_allclose(times, want.window_times, atol=1e-4)
    for i, window in enumerate(line["windows"]):
      names, scores = zip(*want.top(2, i), strict=True)
      assert window["classes"] == list(names)
      np.testing.assert_allclose(window["scores"], scores, atol=1e-5)
  assert max(len(line["windows"]) for line in found) == 3


def test_a_table_of_commas(folder, quick, tmp_path, capsys):
  output = tmp_path / "x.csv"
  assert main(folder, f"--output={output}", "--windows", "--top=0") == 1
  with open(output, newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  whole = [row for row in rows if row["part"] == "whole"]
  assert [row["path"] for row in whole] == [
    path for path in predict.find([str(folder / "in")]) if "broken" not in path
  ]
  for row in whole:
    want = quick.predict(row["path"])
    best = [(row[f"class_{i}"], float(row[f"score_{i}"])) for i in (1, 2, 3)]
    assert [name for name, _ in best] == [name for name, _ in want.top()]
    np.testing.assert_allclose(
      [s for _, s in best], [s for _, s in want.top()], atol=1e-5
    )
    windows = [
      r for r in rows if r["path"] == row["path"] and r["part"] == "window"
    ]
    assert len(windows) == len(want.window_times)
    assert float(windows[-1]["end"]) == float(row["end"])


def test_to_a_pipe_and_to_a_terminal(folder, quick, capsys, monkeypatch):
  path = str(folder / "in" / "a.wav")
  assert main(folder, paths=[path]) == 0
  out = capsys.readouterr()
  (line,) = lines(out.out)
  assert line["path"] == path and out.err.strip() == "1 recordings"
  monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
  assert main(folder, "--top=1", "--windows", paths=[path]) == 0
  table = capsys.readouterr().out
  name, score = quick.predict(path).top(1)[0]
  assert f"{score:.4f}" in table and name in table and "0.00-0.25" in table


@pytest.mark.parametrize("where", ["line 1", "newline", "last line", "end"])
def test_a_torn_output_is_continued(folder, quick, where, tmp_path):
  """Cut anywhere: the next run gives what one run gives."""
  output = tmp_path / "x.jsonl"
  assert main(folder, f"--output={output}", "--windows") == 1
  full = output.read_bytes()
  first = full.index(b"\n")
  ends = {"line 1": 20, "newline": first, "last line": len(full) - 30}
  output.write_bytes(full[: ends.get(where, len(full))])
  assert main(folder, f"--output={output}", "--windows") == 1
  # Scores may differ by rounding in another batch.
  assert _rounded(output.read_text()) == _rounded(full.decode())
  assert [p.name for p in tmp_path.iterdir()] == [output.name]


def _rounded(text):
  """Numbers to four digits."""
  loads = lambda x: round(float(x), 4)
  return [json.loads(x, parse_float=loads) for x in text.splitlines()]


def test_an_interruption(folder, quick, tmp_path, monkeypatch, capsys):
  """JSON lines are in the file as soon as they are known; a CSV never."""
  heard = predict.hear
  output = tmp_path / "x.jsonl"

  def stopped(*args, **kwargs):
    for i, found in enumerate(heard(*args, **kwargs)):
      if i == 3:
        raise KeyboardInterrupt
      yield found
      if output.exists():
        assert len(lines(output.read_text())) == min(i + 1, 2)

  monkeypatch.setattr(predict, "hear", stopped)
  assert main(folder, f"--output={tmp_path / 'x.csv'}") == 130
  assert not [*tmp_path.iterdir()]
  assert main(folder, f"--output={output}") == 130
  assert "interrupted" in capsys.readouterr().err
  assert len(lines(output.read_text())) == 2
  monkeypatch.setattr(predict, "hear", heard)
  assert main(folder, f"--output={output}") == 1
  assert "has 2 of 6 recordings" in capsys.readouterr().err
  full = tmp_path / "full.jsonl"
  assert main(folder, f"--output={full}") == 1
  told = [_rounded(p.read_text()) for p in (output, full)]
  key = lambda line: line["path"]
  assert sorted(told[0], key=key) == sorted(told[1], key=key)


def test_an_output_of_something_else(
  folder, quick, tmp_path, mistake, capsys, monkeypatch
):
  path = str(folder / "in" / "a.wav")

  def refused(output, *flags, told):
    before = output.read_bytes() if output.is_file() else None
    capsys.readouterr()
    code = main(folder, f"--output={output}", *flags, paths=[path])
    mistake(code, told)
    if before is not None:
      assert output.read_bytes() == before

  output = tmp_path / "x.jsonl"
  assert main(folder, f"--output={output}", paths=[path]) == 0
  refused(output, "--top=1", told="give a new name")
  refused(output, "--windows", told="give a new name")
  text = output.read_text()
  (used,) = {*re.findall(r"\b[0-9a-f]{16}\b", text)}
  output.write_text(text.replace(used, "0" * 16))
  refused(output, told="give a new name")
  output.write_text(text)
  recipe = quick.info.recipe.replace("standardize(-4.0,", "standardize(4.0,")
  assert recipe != quick.info.recipe
  other = dataclasses.replace(quick.info, recipe=recipe)
  with monkeypatch.context() as patch:
    patch.setattr(quick, "info", other)
    refused(output, told="give a new name")
  output.write_text("Dear diary,\n1,2\n")
  refused(output, told="give a new name")
  refused(output.with_suffix(".txt"), told="must end in .jsonl or .csv")
  refused(tmp_path / "no" / "x.jsonl", told="there is no such folder")
  (tmp_path / "d.jsonl").mkdir()
  refused(tmp_path / "d.jsonl", told="cannot write")
  (tmp_path / "x.csv").write_text("mine")
  refused(tmp_path / "x.csv", told="is there already")


@pytest.mark.parametrize(
  ("args", "told"),
  [
    (["{}/in", "--top=-1"], "--top=-1 must be at least 0"),
    (["{}/model"], "no recordings below"),
    (["{}/in", "--label_list=nowhere"], "label_list 'nowhere' does not exist"),
    (["{}/in", "--model=nowhere"], "nowhere"),
    (["{}/in", "--batch_size=0"], "batch_size=0"),
    (["{}/in", "--recipe=decode|fit(3)"], "neither fbank nor patches"),
  ],
)
def test_mistakes_end_in_one_line(args, told, folder, mistake):
  args = [a.format(folder) for a in args]
  given = [] if any("--model" in a for a in args) else ["--model={}/model"]
  args += [a.format(folder) for a in given]
  mistake(predict.main(args), told)


def test_silence_is_reported(folder, tmp_path, capsys):
  soundfile.write(tmp_path / "s.wav", np.zeros(4_000), 16_000)
  assert main(folder, paths=[str(tmp_path)]) == 1
  assert "it is silent" in capsys.readouterr().err


def test_files_come_once_and_in_order(folder, tmp_path, monkeypatch):
  monkeypatch.chdir(folder / "in")
  found = predict.find(["b, c.wav", "./b, c.wav", ".", "nowhere.wav"])
  assert found[0] == "b, c.wav" and found[-1] == "nowhere.wav"
  assert len(found) == len(set(found)) == len(NAMES) + 2
