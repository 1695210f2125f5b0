"""What the documentation says holds: code runs, tables are complete."""

import pathlib
import re

import pytest

from astjax.data import sources
from astjax.ops import host_ops

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
def test_the_readme_s_library_example_runs():
  text = (ROOT / "README.md").read_text()
  blocks = re.findall(r"```python\n(.*?)```", text, re.S)
  code = next(b for b in blocks if "import jax" in b)
  names: dict = {}
  exec(code, names)
  assert names["logits"].shape == (2, 10)


def test_every_op_and_source_is_documented():
  text = (ROOT / "docs" / "data.md").read_text()
  for name in {*host_ops.OPS, *sources.SOURCES}:
    assert f"`{name}" in text, name


def test_every_config_is_in_the_table():
  text = (ROOT / "configs" / "README.md").read_text()
  for path in (ROOT / "configs").glob("*.py"):
    assert path.stem in ("__init__", "common") or path.name in text


def test_links_lead_somewhere():
  folders = (".", "configs", "docs", "launch")
  for page in [p for x in folders for p in ROOT.glob(f"{x}/*.md")]:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
      if not link.startswith("http"):
        assert (page.parent / link).exists(), f"{page.name}: {link}"
