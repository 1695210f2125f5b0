"""Pictures of the tools: matplotlib, drawing into files."""

from __future__ import annotations

import pathlib

from astjax.errors import UserError


def save(figure, path: pathlib.Path) -> pathlib.Path:
  """Writes a picture.

  Raises:
    UserError: it cannot be written.
  """
  try:
    figure.savefig(path, dpi=90)
  except OSError as e:
    raise UserError(f"cannot write {path}: {e.strerror}") from None
  return path


def pyplot():
  """matplotlib.pyplot, drawing into files.

  Raises:
    UserError: matplotlib is not installed.
  """
  try:
    import matplotlib
  except ModuleNotFoundError:
    raise UserError(
      "pictures need matplotlib: pip install 'astjax[report]'"
    ) from None
  matplotlib.use("Agg")
  from matplotlib import pyplot

  return pyplot
