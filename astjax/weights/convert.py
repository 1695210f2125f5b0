"""The strict interpreter of a table of names: nothing falls through.

A table is a list of `Rule`s. Every source name must meet exactly one rule
(unwanted names have a rule without targets), no target may be set twice, and
the result must have exactly the leaves and shapes that the model expects.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from astjax.errors import UserError
from astjax.types import Params


def keep(x: np.ndarray, *shapes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
  """The array as it is."""
  return (x,)


@dataclasses.dataclass(frozen=True)
class Rule:
  r"""One line of a table.

  Attributes:
    pattern: regular expression for a whole source name.
    targets: parameter paths such as r"backbone/encoder/block_\1/norm1/scale",
      with groups of the pattern; empty for names that are dropped on purpose.
    transform: (array, shape of each target) -> one array per target.
  """

  pattern: str
  targets: tuple[str, ...] = ()
  transform: Callable[..., tuple[np.ndarray, ...]] = keep


def flatten(params: Params) -> dict[str, jax.Array]:
  """Nested dict -> {"backbone/norm/scale": leaf}."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  return {"/".join(str(p.key) for p in path): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, np.ndarray]) -> Params:
  """The inverse of `flatten`."""
  tree: dict = {}
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def convert(
  source: Mapping[str, np.ndarray], rules: Sequence[Rule], expected: Params
) -> Params:
  """Renames and reshapes a foreign state dict into parameters.

  Args:
    source: {name: array} as read from a file.
    rules: the table for this kind of file.
    expected: a tree of arrays or `ShapeDtypeStruct`s, as from
      `jax.eval_shape(model.init, ...)`; every leaf has to be filled.

  Returns:
    A nested dict of arrays, of the shapes and types of `expected`.

  Raises:
    UserError: a name that meets no rule or several, a target set twice, and
      missing (-), unexpected (+) or differently shaped leaves, all listed.
  """
  leaves = flatten(expected)
  shapes = {k: tuple(v.shape) for k, v in leaves.items()}
  found: dict[str, np.ndarray] = {}
  problems = []
  for name, array in source.items():
    matches = [(r, m) for r in rules if (m := re.fullmatch(r.pattern, name))]
    if len(matches) != 1:
      what = "no rule" if not matches else f"{len(matches)} rules"
      problems.append(f"{name} meets {what} of the table")
      continue
    rule, match = matches[0]
    targets = [match.expand(t) for t in rule.targets]
    if not targets:
      continue
    absent = [t for t in targets if t not in shapes]
    if absent:
      problems += [f"+ {t} (from {name}) is not in the model" for t in absent]
      continue
    try:
      values = rule.transform(np.asarray(array), *(shapes[t] for t in targets))
    except ValueError as e:
      problems.append(f"{name} {np.shape(array)}: {e}")
      continue
    for target, value in zip(targets, values, strict=True):
      if target in found:
        problems.append(f"{target} is set twice, the second time by {name}")
      elif value.shape != shapes[target]:
        problems.append(
          f"{target} is {value.shape} in the file, {shapes[target]} in the "
          "model"
        )
      found[target] = value.astype(leaves[target].dtype)
  problems += [f"- {k} is not in the file" for k in shapes if k not in found]
  if problems:
    shown = problems[:8]
    if len(problems) > len(shown):
      shown.append(f"and {len(problems) - len(shown)} more")
    raise UserError("these weights do not fit the model: " + "; ".join(shown))
  return unflatten({k: found[k] for k in shapes})
