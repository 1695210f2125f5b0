"""Who may import whom, and what importing must not pull in."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "astjax"

# A file or folder at the root, and what it may import beside its own folder.
# All may import `errors` and `types`.
ROWS = {
  "errors": (),
  "types": (),
  "cli": (),
  "ops": (),
  "models": ("ops",),
  "engine": ("ops",),
  "data": ("ops",),
  "tasks": ("engine", "models", "ops"),
  "weights": ("models", "ops"),
  "run": ("data", "engine", "models", "tasks", "weights", "ops"),
  "serving": ("weights", "models", "data", "ops"),
  "train": ("run", "engine"),
  "tools": (
    *("cli", "data", "engine", "models", "ops", "run", "serving"),
    *("tasks", "train", "weights"),
  ),
  "main": ("train", "run", "cli"),
  "__init__": ("serving",),
}
GROUND = {"errors", "types"}


def modules():
  for path in sorted(PACKAGE.rglob("*.py")):
    yield path.relative_to(PACKAGE)


def name_of(path):
  """`data/order.py` -> `data.order`, `data/__init__.py` -> `data`."""
  parts = path.with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "astjax"


NAMES = {name_of(path) for path in modules()}


@functools.cache
def imported_by(path):
  """The files of astjax that a file imports, wherever it does so."""
  found = set()
  for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      if name.startswith("astjax."):
        name = name.removeprefix("astjax.")
        found.add(name if name in NAMES else name.rpartition(".")[0])
  return found - {"", name_of(path)}


def top(name):
  return name.split(".")[0]


def arrows():
  """(who, whom) between root files and folders, without errors and types."""
  return {
    (top(path.parts[0].removesuffix(".py")), top(other))
    for path in modules()
    for other in imported_by(path)
    if top(other) not in GROUND | {path.parts[0].removesuffix(".py")}
  }


def test_rows():
  wrong = [
    f"{path} imports {other}"
    for path in modules()
    for other in imported_by(path)
    if (own := path.parts[0].removesuffix(".py")) != top(other)
    and top(other) not in {*ROWS[own], *GROUND}
  ]
  assert not wrong, wrong


def test_size_of_the_house():
  """Few arrows and floors: a limit is here to be noticed, not to be filled."""
  edges = arrows()
  assert len(edges) <= 65, sorted(edges)

  @functools.cache
  def floor(name):
    return 1 + max((floor(b) for a, b in edges if a == name), default=0)

  assert max(map(floor, ROWS)) <= 7
  at_root = [p.name for p in PACKAGE.glob("*.py")]
  assert len(at_root) <= 6, at_root


def test_there_is_no_circle_of_files():
  edges = {name_of(path): imported_by(path) for path in modules()}

  def reach(name, seen):
    for other in edges.get(name, ()):
      if other not in seen:
        seen.add(other)
        reach(other, seen)
    return seen

  for name in edges:
    assert name not in reach(name, set()), f"{name} reaches itself"


# Libraries that few files may import.
LIBRARIES = {
  "torch": (),
  "tensorflow": ("data.pipeline",),
  "ml_collections": ("cli",),
  "orbax": ("run.checkpoint", "weights.orbax_params"),
}


def test_heavy_libraries_have_one_home():
  for path in modules():
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
      for library in map(top, names):
        assert name_of(path) in LIBRARIES.get(library, NAMES), path


def test_no_file_or_function_is_long():
  for path in modules():
    text = (PACKAGE / path).read_text()
    assert text.count("\n") <= 450, path
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef):
        has_doc = ast.get_docstring(node) is not None
        first = node.body[min(has_doc, len(node.body) - 1)].lineno
        assert node.end_lineno - first < 60, f"{path}: {node.name}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")))
def test_configs_stand_alone(path):
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom):
      names = {f"{node.module}.{alias.name}" for alias in node.names}
      assert names <= {"ml_collections.ConfigDict", "configs.common"}, path
    if isinstance(node, ast.Import):
      assert not any(a.name.startswith("astjax") for a in node.names), path


def test_import_is_light():
  """What predicts, converts and steps needs neither TensorFlow nor torch."""
  light = [
    "astjax",
    "astjax.cli",
    "astjax.data.sources",
    "astjax.engine.step",
    "astjax.engine.optim",
    "astjax.models.ast",
    "astjax.serving.bundle",
    "astjax.tasks",
    "astjax.tasks.probes",
    "astjax.weights.load",
    "astjax.tools.average_checkpoints",
    "astjax.tools.convert_weights",
    "astjax.tools.evaluate",
    "astjax.tools.predict",
    "astjax.tools.probe",
  ]
  heavy = ("tensorflow", "torch", "librosa", "ml_collections", "matplotlib")
  heavy += ("sklearn",)
  code = f"import sys\nfor name in {light}:\n  __import__(name)\n"
  code += f"  assert not [m for m in {heavy} if m in sys.modules], name\n"
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
