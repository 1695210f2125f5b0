"""Who may import whom, and what importing must not pull in."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "astjax"

# A module imports only from lower numbers, or from its own folder.
LEVELS = {
  0: (
    "types",
    "errors",
    "pp",
    "run_config",
    "target",
    "chips",
    "flops",
    "ops",
  ),
  1: (
    "models",
    "weights",
    "data",
    "profiling",
    "device_ops",
    "optim",
    "sharding",
    "metric_log",
    "processes",
    "run_record",
    "workdir",
  ),
  2: (
    "tasks",
    "train_step",
    "checkpoint",
    "saved_model",
    "identify",
    "pretrained",
    "probes",
  ),
  3: (
    "splits",
    "job",
    "evaluate",
    "evaluations",
    "stopping",
    "train",
    "serving",
  ),
  4: ("main", "tools"),
}
LEVEL_OF = {name: level for level, names in LEVELS.items() for name in names}
STRANGERS = ({"models", "weights"}, {"models", "data"}, {"weights", "data"})


def modules():
  for path in sorted(PACKAGE.rglob("*.py")):
    yield path.relative_to(PACKAGE)


def imported_by(path):
  """Top names below astjax that a file imports, wherever it does so."""
  tree = ast.parse((PACKAGE / path).read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      parts = name.split(".")
      if parts[0] == "astjax" and len(parts) > 1:
        yield parts[1]


@pytest.mark.parametrize("path", list(modules()), ids=str)
def test_table(path):
  own = path.parts[0].removesuffix(".py")
  if own == "__init__":
    return
  for other in set(imported_by(path)) - {own}:
    assert LEVEL_OF[other] <= LEVEL_OF[own], f"{own} imports {other}"
    if LEVEL_OF[other] == LEVEL_OF[own]:
      folders = {own, other} & {"ops", "models", "weights", "data", "tasks"}
      assert len(folders) < 2
      assert not any({own, other} == pair for pair in STRANGERS)


def test_there_is_no_circle():
  edges = {}
  for path in modules():
    own = path.parts[0].removesuffix(".py")
    if own != "__init__":
      edges.setdefault(own, set()).update(set(imported_by(path)) - {own})

  def reach(name, seen):
    for other in edges.get(name, ()):
      if other not in seen:
        seen.add(other)
        reach(other, seen)
    return seen

  for name in edges:
    assert name not in reach(name, set()), f"{name} reaches itself"


def test_only_data_imports_tensorflow_and_nobody_torch():
  for path in modules():
    tree = ast.parse((PACKAGE / path).read_text())
    for node in ast.walk(tree):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
      tops = {name.split(".")[0] for name in names}
      assert "torch" not in tops, path
      assert "tensorflow" not in tops or path.parts[0] == "data", path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")))
def test_configs_stand_alone(path):
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom):
      names = {f"{node.module}.{alias.name}" for alias in node.names}
      assert names <= {"ml_collections.ConfigDict", "configs.common"}, path
    if isinstance(node, ast.Import):
      assert not any(a.name.startswith("astjax") for a in node.names), path


@pytest.mark.parametrize(
  "module",
  [
    "astjax",
    "astjax.models.ast",
    "astjax.tasks",
    "astjax.train_step",
    "astjax.device_ops",
    "astjax.optim",
    "astjax.weights.maps",
    "astjax.pretrained",
    "astjax.serving.bundle",
    "astjax.tools.average_checkpoints",
    "astjax.tools.convert_weights",
    "astjax.tools.predict",
    "astjax.tools.evaluate",
    "astjax.tools.probe",
    "astjax.probes",
    "astjax.data.audio_file",
    "astjax.data.sources",
  ],
)
def test_import_is_light(module):
  heavy = ("tensorflow", "torch", "librosa", "ml_collections", "matplotlib")
  heavy += ("sklearn",)
  code = (
    f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
  )
  out = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=True,
  )
  assert out.stdout.strip() == "[]"
