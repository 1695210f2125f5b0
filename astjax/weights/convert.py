"""The strict interpreter of a table of names: nothing falls through.

A table is a list of `Rule`s. Every source name must meet exactly one rule
(unwanted names have a rule without targets), no target may be set twice, and
the result must have exactly the leaves and shapes that the model expects. Read
backwards, the same table writes the foreign names.

A foreign file keeps its position embeddings as one sequence, whose split into
prefix and grid needs the size of the input. So tables end at a leaf `SEQUENCE`,
[P + N, D], which `lay_out` splits; `TIME_SEQUENCE` is the same of files whose
patches go through all frequencies before the next time (ASiT). SSAST's files
also say what input they are of: `INPUT_SIZE`, [2], mel bins and frames, which
is no parameter either.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from flax import traverse_util

from astjax.errors import UserError
from astjax.types import Params
from astjax.weights.layouts import KEEP, Transform

PREFIX = "backbone/pos_embed/prefix"
GRID = "backbone/pos_embed/grid"
SEQUENCE = "backbone/pos_embed/sequence"
TIME_SEQUENCE = "backbone/pos_embed/time_sequence"
INPUT_SIZE = "input_size"

# Nested dict <-> {"backbone/norm/scale": leaf}.
flatten = functools.partial(traverse_util.flatten_dict, sep="/")
unflatten = functools.partial(traverse_util.unflatten_dict, sep="/")


@dataclasses.dataclass(frozen=True)
class Rule:
  """Foreign names, parameter paths, and the transform between their arrays.

  Several sources belong together, such as query, key and value; `{i}` stands
  for the number of a block. Names without a target are dropped on purpose.
  """

  sources: tuple[str, ...]
  targets: tuple[str, ...] = ()
  transform: Transform = KEEP


def rename(
  source: Mapping[str, np.ndarray], rules: Sequence[Rule]
) -> tuple[dict[str, np.ndarray], list[str]]:
  """A foreign state dict under the names of this library.

  Returns:
    ({parameter path: array}, names that were dropped); positions are one
    `SEQUENCE`, and there may be an `INPUT_SIZE`.

  Raises:
    UserError: names that meet no rule or several, incomplete groups, targets
      set twice and arrays that cannot be transformed, all listed.
  """
  groups: dict[tuple[Rule, str], dict[str, np.ndarray]] = {}
  problems, dropped = [], []
  for name, array in source.items():
    met = _met(name, rules, "sources")
    if len(met) != 1:
      what = f"{len(met)} rules" if met else "no rule"
      problems.append(f"+ {name} meets {what} of the table")
      continue
    rule, template, number = met[0]
    if not rule.targets:
      dropped.append(name)
      continue
    group = groups.setdefault((rule, number), {})
    if template in group:  # block 1 and block 01
      problems.append(f"{name} is given twice")
    group[template] = np.asarray(array)
  flat: dict[str, np.ndarray] = {}
  for (rule, number), group in groups.items():
    names = {t: _fill(t, number) for t in rule.sources}
    if absent := [n for t, n in names.items() if t not in group]:
      problems += [f"- {name} is not in the file" for name in absent]
      continue
    arrays, first = [group[t] for t in rule.sources], names[rule.sources[0]]
    try:
      values = rule.transform.forward(*arrays)
    except ValueError as e:
      shapes = ", ".join(str(a.shape) for a in arrays)
      problems.append(f"{first} {shapes}: {e}")
      continue
    for target, value in zip(rule.targets, values, strict=True):
      path = _fill(target, number)
      if path in flat:
        problems.append(f"{path} is set twice, the second time by {first}")
      flat[path] = value
  refuse(problems)  # all at once, not one after each attempt
  return flat, dropped


def sequence_of(paths: Iterable[str]) -> str:
  """How the positions are called among paths."""
  return TIME_SEQUENCE if TIME_SEQUENCE in paths else SEQUENCE


def lay_out(
  flat: Mapping[str, np.ndarray],
  num_prefix: int,
  grid: tuple[int, int],
  *,
  may_lack_prefix: bool = False,
) -> dict[str, np.ndarray]:
  """Splits the sequence of positions, if there is one, into P and (F', T').

  With `may_lack_prefix`, positions of the patches alone are right as well, and
  give zeros to the prefix: big_vision adds them before the prefix joins.

  Raises:
    UserError: another number of positions than P + F' * T'.
  """
  flat, name = dict(flat), sequence_of(flat)
  if name not in flat:
    return flat
  sequence = flat.pop(name)
  rows, width = sequence.shape
  patches = grid[0] * grid[1]
  if rows == patches and may_lack_prefix:
    sequence = np.concatenate([np.zeros_like(sequence[:num_prefix]), sequence])
  elif rows != num_prefix + patches:
    raise UserError(
      f"the file has {rows:,} positions, expected {num_prefix} of the prefix "
      f"and {grid[0]} x {grid[1]} (frequency x time) of patches"
    )
  if num_prefix:
    flat[PREFIX] = sequence[:num_prefix]
  positions = sequence[num_prefix:]
  # Here time before frequency ends: all behind the tables has frequency first.
  if name == TIME_SEQUENCE:
    flat[GRID] = positions.reshape(*grid[::-1], width).swapaxes(0, 1)
  else:
    flat[GRID] = positions.reshape(*grid, width)
  return flat


def check(
  flat: Mapping[str, np.ndarray],
  expected: Params,
  rules: Sequence[Rule] = (),
) -> Params:
  """Parameters with exactly the leaves, shapes and types of `expected`.

  `rules` is the table they came through, to tell the names of the file. Missing
  (-), unexpected (+), differently shaped and non-finite leaves are a UserError.
  """
  leaves = flatten(expected)
  named = lambda path: path + _foreign(path, rules)  # noqa: E731
  problems = [
    f"+ {named(k)} is not in the model" for k in flat if k not in leaves
  ]
  for path, leaf in leaves.items():
    value = flat.get(path)
    if value is None:
      problems.append(f"- {named(path)} is not in the file")
    elif tuple(value.shape) != tuple(leaf.shape):
      problems.append(
        f"{named(path)} is {tuple(value.shape)} in the file, "
        f"{tuple(leaf.shape)} in the model"
      )
    elif not jax.numpy.issubdtype(value.dtype, np.floating):
      problems.append(f"{named(path)} is of type {value.dtype}, not numbers")
    elif not np.isfinite(value.astype(np.float32, copy=False)).all():
      problems.append(f"{named(path)} has values that are not finite")
  refuse(problems)
  return unflatten(
    {k: flat[k].astype(v.dtype, copy=False) for k, v in leaves.items()}
  )


def revert(params: Params, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
  """Parameters under the foreign names: the table read backwards.

  Beside the parameters there may be an `INPUT_SIZE`. A parameter that the
  foreign format has no name for is a UserError.
  """
  flat = {k: np.asarray(v) for k, v in flatten(params).items()}
  if GRID in flat:
    grid, name = flat.pop(GRID), _sequence(rules)
    if name == TIME_SEQUENCE:
      grid = grid.swapaxes(0, 1)
    rows = [grid.reshape(-1, grid.shape[-1])]
    if PREFIX in flat:
      rows.insert(0, flat.pop(PREFIX))
    flat[name] = np.concatenate(rows)
  out: dict[str, np.ndarray] = {}
  for path in flat:
    met = _met(path, rules, "targets")
    if not met:
      raise UserError(f"the format has no name for the parameter {path}")
    for rule, _, number in met:
      names = [_fill(s, number) for s in rule.sources]
      if names[0] in out:  # the rule has another target, which came before
        continue
      arrays = [flat[_fill(t, number)] for t in rule.targets]
      for name, value in zip(
        names, rule.transform.backward(*arrays), strict=True
      ):
        # Not ascontiguousarray, which turns a scalar into a list of one.
        out[name] = np.asarray(value, order="C")
  return out


def _sequence(rules: Sequence[Rule]) -> str:
  return sequence_of({target for rule in rules for target in rule.targets})


def _foreign(path: str, rules: Sequence[Rule]) -> str:
  """The names of a parameter in the file, in brackets, if it has any."""
  path = _sequence(rules) if path in (PREFIX, GRID) else path
  for rule, _, number in _met(path, rules, "targets"):
    return f" ({', '.join(_fill(s, number) for s in rule.sources)})"
  return ""


def _met(
  name: str, rules: Sequence[Rule], side: str
) -> list[tuple[Rule, str, str]]:
  """[(rule, template, number)] where a name fits a template of one side."""
  return [
    (rule, template, match["i"] or "")
    for rule in rules
    for template in getattr(rule, side)
    if (match := _pattern(template).fullmatch(name))
  ]


@functools.cache
def _pattern(template: str) -> re.Pattern:
  # `i` is the number without leading zeros; a template without one has "".
  before, mark, after = map(re.escape, template.partition("{i}"))
  number = r"0*(?P<i>[0-9]{1,4})" if mark else "(?P<i>)"
  return re.compile(before + number + after)


def _fill(template: str, number: str) -> str:
  return template.replace("{i}", number)


def refuse(problems: list[str]) -> None:
  """Raises a UserError that lists the problems, if there are any."""
  if problems:
    shown = problems[:8]
    if len(problems) > len(shown):
      shown.append(f"and {len(problems) - len(shown)} more")
    raise UserError("these weights do not fit the model: " + "; ".join(shown))
