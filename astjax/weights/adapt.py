"""From the shapes of a checkpoint to those of a model: values, not names.

ImageNet -> audio and AudioSet -> another duration, stride or number of mel
bins, as the original AST's code does it; SSAST's pre-training -> its
fine-tuning, and whatever ASiT's pre-training begins with, as their originals do
it. One pure NumPy function per leaf.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Literal

import numpy as np

from astjax.errors import UserError
from astjax.models import Resize
from astjax.ops import posemb
from astjax.weights import convert

KERNEL = "backbone/patch_embed/kernel"
HEAD = r"head/.*"
_SSAST_ROWS = 8


@dataclasses.dataclass
class Report:
  """What became of every leaf of the model, and of every name of the file."""

  kept: list[str] = field(default_factory=list)  # paths taken over as they are
  changed: dict[str, str] = field(
    default_factory=dict
  )  # path -> what was done to it
  dropped: dict[str, str] = field(
    default_factory=dict
  )  # name or path -> why it has no place
  fresh: list[str] = field(
    default_factory=list
  )  # paths that nothing of the file fills
  notes: list[str] = field(default_factory=list)

  def lines(self) -> list[str]:
    """For people; of leaves that stay as they are only the number."""
    lines = [f"taken: {len(self.kept)} arrays as they are"]
    lines += [f"adapted: {path}: {what}" for path, what in self.changed.items()]
    for reason in dict.fromkeys(self.dropped.values()):
      names = [name for name, why in self.dropped.items() if why == reason]
      lines.append(f"dropped ({reason}): {_listed(names)}")
    if self.fresh:
      lines.append(f"fresh: {_listed(self.fresh)}")
    return lines + [f"note: {text}" for text in self.notes]


def _listed(names: Sequence[str]) -> str:
  more = f" and {len(names) - 6} more" if len(names) > 6 else ""
  return ", ".join(names[:6]) + more


def sum_channels(kernel: np.ndarray) -> np.ndarray:
  """A kernel for RGB [ph, pw, 3, D] -> for one channel [ph, pw, D].

  The sum, so that a gray image gives what its three equal channels gave. (The
  paper, section 2.2, says averaged; its code sums.)
  """
  return kernel.sum(axis=2, dtype=np.float32)


def resize_grid(grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """Positions [F', T', D] for another grid, axis by axis.

  An axis that gets shorter is cut around its middle, one that gets longer is
  interpolated linearly with half-pixel centres and without antialiasing
  (torch's bilinear, align_corners=False).
  """
  # Time comes first, as in AST; ASiT's fine-tuning has frequency first, which
  # differs by rounding alone.
  grid = _resize_axis(grid, shape[1], axis=1)
  return _resize_axis(grid, shape[0], axis=0)


def _resize_axis(x, size, axis):
  have = x.shape[axis]
  if size > have:
    return _interpolate(x, size, axis)
  start = have // 2 - size // 2
  return x.take(range(start, start + size), axis=axis)


def _interpolate(x, size, axis):
  have = x.shape[axis]
  source = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(have / size)
  source = np.maximum(source - np.float32(0.5), 0)
  low = np.minimum(source.astype(int), have - 1)
  high = np.minimum(low + 1, have - 1)
  weight = np.expand_dims(source - low, [a for a in range(x.ndim) if a != axis])
  weight = weight.astype(x.dtype)
  low, high = x.take(low, axis=axis), x.take(high, axis=axis)
  return low * (1 - weight) + high * weight


def resize_ssast_grid(grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """`resize_grid` with two slips of the original SSAST's fine-tuning.

  Positions that do not get shorter in time pass through 8 rows, whatever F'
  was and becomes; a cut in frequency takes T' rows, as far as there are any.
  Published results and other people's checkpoints come from that code, and
  where its usual settings are used the slips change nothing.

  Raises:
    UserError: the cut gives another number of rows, where the original crashes.
  """
  have, (rows, columns) = grid.shape[:2], shape
  grid = _resize_axis(grid, columns, axis=1)
  # A single row would only be repeated, and come back as it is.
  if columns >= have[1] and have[0] not in (1, _SSAST_ROWS):
    grid = _interpolate(grid, _SSAST_ROWS, axis=0)
  if rows >= have[0]:
    return _interpolate(grid, rows, axis=0)
  start = have[0] // 2 - rows // 2
  grid = grid[start : start + columns]
  if len(grid) != rows:
    raise UserError(
      f"the original SSAST cannot take positions of {by(have)} patches to "
      f"{by(shape)} (frequency x time): its cut in frequency gives "
      f"{len(grid)} rows; positions='corrected' can"
    )
  return grid


def resize_bicubic(grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """Positions [F', T', D] for another grid as in ASiT's pre-training.

  Bicubic on both axes, the shorter one too (see `ops/posemb.py`).
  """
  frequency, time = map(posemb.bicubic_matrix, grid.shape[:2], shape)
  out = np.einsum("fi,tj,ijd->ftd", frequency, time, grid, optimize=True)
  return out.astype(grid.dtype)


# By the names in `models.Objective`.
RESIZES = {
  "bilinear": resize_grid,
  "ssast": resize_ssast_grid,
  "bicubic": resize_bicubic,
}


def by(pair: Sequence[int]) -> str:
  """A size for people."""
  return f"{pair[0]} x {pair[1]}"


def fit(
  source: Mapping[str, np.ndarray],
  model: Mapping[str, np.ndarray],
  *,
  source_prefix: Sequence[str],
  model_prefix: Sequence[str],
  rows: Literal["frequency", "time"] = "frequency",
  fresh: Sequence[str] = (HEAD,),
  resize: Resize = "bilinear",
) -> tuple[dict[str, np.ndarray], Report]:
  """The parameters of a model, filled from a checkpoint of another shape.

  Args:
    source: the checkpoint's parameters by path; a patch kernel may still have
      image channels [ph, pw, 3, D].
    model: the model's fresh parameters by path.
    source_prefix: names of the checkpoint's prefix tokens, in order.
    rows: as in `info.Options`, as is `fresh`.
    resize: how positions change, a key of `RESIZES`.

  Raises:
    UserError: leaves that are missing, superfluous or of another shape, all
      listed; an expression that meets nothing.
  """
  _check_expressions(fresh, model)
  source, report = dict(source), Report()
  # Parts beside backbone and head belong to an objective, and come and go with
  # it: else every change of task would need its list in `fresh`. Parts that
  # both have are compared as strictly as the backbone.
  theirs, ours = _parts(source), _parts(model)
  is_fresh = lambda p: (  # noqa: E731
    _part(p) in ours - theirs or any(re.fullmatch(e, p) for e in fresh)
  )
  for path in list(source):
    if is_fresh(path):
      report.dropped[path] = "fresh in the model"
    elif _part(path) in theirs - ours:
      report.dropped[path] = "of the pre-training"
    else:
      continue
    del source[path]
  if rows == "time":
    for path, what in ((KERNEL, "kernel"), (convert.GRID, "positions")):
      if path in source:
        source[path] = np.swapaxes(source[path], 0, 1)
        _note(report, path, f"{what} turned, rows become time")
  if KERNEL in source and source[KERNEL].ndim == 4:
    channels = source[KERNEL].shape[2]
    source[KERNEL] = sum_channels(source[KERNEL])
    _note(report, KERNEL, f"sum over {channels} channels")
  _fit_grid(source, model, report, resize)
  fresh_rows = _fit_prefix(source, model, source_prefix, model_prefix, report)
  problems = [
    f"+ {path} is not in the model" for path in source if path not in model
  ]
  taken = {}
  for path, value in model.items():
    found = source.get(path, value)
    if path not in source:
      if not is_fresh(path) and path not in fresh_rows:
        problems.append(f"- {path} is not in the file")
      report.fresh.append(path)
    elif found.shape != value.shape:
      problems.append(
        f"{path} is {found.shape} in the file, {value.shape} in the model"
      )
    elif path not in report.changed:
      report.kept.append(path)
    taken[path] = found.astype(value.dtype, copy=False)
  convert.refuse(problems)
  return taken, report


def _check_expressions(fresh: Sequence[str], model: Mapping) -> None:
  for expression in fresh:
    try:
      met = any(re.fullmatch(expression, path) for path in model)
    except re.error as e:
      raise UserError(f"fresh: {expression!r} is no expression: {e}") from None
    if not met and expression != HEAD:  # a backbone alone has no head
      raise UserError(
        f"fresh: {expression!r} meets none of the model's parameters"
      )


def _part(path):
  return path.split("/")[0]


def _parts(flat):
  return {_part(path) for path in flat} - {"backbone", "head"}


def _note(report, path, what):
  before = report.changed.get(path)
  report.changed[path] = f"{before}; {what}" if before else what


def _fit_grid(source, model, report, resize):
  if convert.GRID not in source or convert.GRID not in model:
    return
  have, want = source[convert.GRID].shape, model[convert.GRID].shape
  if have[2] != want[2]:  # another width, which `check` tells of all arrays
    return
  grid = RESIZES[resize](source[convert.GRID], want[:2])
  if not np.array_equal(grid, source[convert.GRID]):
    source[convert.GRID] = grid
    sizes = f"{by(have)} -> {by(want)}"
    _note(report, convert.GRID, f"positions, {sizes} ({resize})")


def _fit_prefix(source, model, source_prefix, model_prefix, report):
  """Prefix tokens by name; returns the paths of those that stay fresh."""
  # A missing one is no copy of another token: two equal tokens would get equal
  # gradients and stay equal for ever.
  missing = [name for name in model_prefix if name not in source_prefix]
  for name in source_prefix:
    if name not in model_prefix:
      source.pop(f"backbone/{name}_token", None)
      report.dropped[f"backbone/{name}_token"] = "no such token in the model"
  if tuple(source_prefix) == tuple(model_prefix):
    return set()
  old = source.pop(convert.PREFIX, None)
  if convert.PREFIX in model and (old is not None or not source_prefix):
    rows = model[convert.PREFIX].copy()
    if old is not None and old.shape[1:] != rows.shape[1:]:
      source[convert.PREFIX] = old  # of another width: `check` tells
      return set()
    for row, name in enumerate(model_prefix):
      if name in source_prefix:
        rows[row] = old[list(source_prefix).index(name)]
    source[convert.PREFIX] = rows
    if missing:
      _note(report, convert.PREFIX, f"the row of {', '.join(missing)} is fresh")
  return {f"backbone/{name}_token" for name in missing}
