"""What a compiled program sends between devices, read from its text (HLO).

The text has a list of computations, which call each other. An operation in a
loop runs as often as the loop turns, and is counted so; a loop whose number of
turns is not known is counted once, and said so. Of a choice the mean over its
branches counts: a loop over them (`tasks.base.in_turn`) takes turns.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re

from astjax.errors import UserError

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-broadcast",
  "collective-permute",
)
_BITS = {"pred": 8, "token": 0, "opaque": 0}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][\w-]*)\(")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(
  r"\b(calls|to_apply|body|condition|true_computation|false_computation)="
  r"%?([\w.-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass
class Traffic:
  """Of one kind, in one run of the program.

  Attributes:
    count: how many operations run.
    nbytes: what they are about, on one device: of an all-reduce the array that
      is added up, of an all-gather the result, of others what goes in.
    in_unknown_loop: whether one stands in a loop of unknown length.
  """

  count: int = 0
  nbytes: int = 0
  in_unknown_loop: bool = False


@dataclasses.dataclass
class _Op:
  opcode: str
  shape: str
  operands: list[str]
  called: list[tuple[str, str]]
  turns: int  # of a loop; 0 is unknown
  inside: str  # the parentheses
  is_less: bool  # a comparison by <
  channel: str  # which collective it is, or a part of


def parse(text: str) -> dict[str, Traffic]:
  """{kind: traffic} of a program, as `Compiled.as_text()` gives it.

  The two halves of an asynchronous operation count as one, and so do the parts
  of one that a TPU does piece by piece beside other work: they share a channel.

  Raises:
    UserError: this is no such text.
  """
  computations, entry = _computations(text)
  if entry not in computations:
    raise UserError("the text of the compiled program has no entry computation")
  met: dict[object, tuple] = {}
  _walk(computations, entry, 1, False, met)
  found: dict[str, Traffic] = collections.defaultdict(Traffic)
  for kind, times, nbytes, unknown in met.values():
    found[kind].count += times
    found[kind].nbytes += times * nbytes
    found[kind].in_unknown_loop |= unknown
  return {
    kind: dataclasses.replace(
      found[kind],
      count=math.ceil(found[kind].count),
      nbytes=math.ceil(found[kind].nbytes),
    )
    for kind in KINDS
    if kind in found
  }


def _computations(text):
  """({name: {op's name: op}}, name of the entry)."""
  computations, entry, ops = {}, "", {}
  for line in text.splitlines():
    if header := _HEADER.match(line):
      ops = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
    elif (match := _LINE.match(line)) and (op := _op(match[2])):
      ops[match[1]] = op
  return computations, entry


def _op(text):
  if not (opcode := _OPCODE.search(text)):
    return None
  inside, rest = _parentheses(text[opcode.end() :])
  called = _CALLED.findall(rest)
  for names in _BRANCHES.findall(rest):
    called += [("branch", n.strip(" %")) for n in names.split(",")]
  turns, channel = _TURNS.search(rest), _CHANNEL.search(rest)
  return _Op(
    opcode=opcode[1],
    shape=text[: opcode.start()],
    operands=_NAME.findall(inside),
    called=called,
    turns=int(turns[1]) if turns else 0,
    inside=inside,
    is_less="direction=LT" in rest,
    channel=channel[1] if channel else "",
  )


def _parentheses(text):
  """(what stands before the one that closes, what stands after it)."""
  depth = 1
  for i, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if not depth:
      return text[:i], text[i + 1 :]
  return text, ""


def _walk(computations, name, times, unknown, met):
  for op in computations.get(name, {}).values():
    kind = op.opcode.removesuffix("-start")
    if kind in KINDS:
      channel = op.channel or len(met)
      if channel not in met or times < met[channel][1]:
        nbytes = _nbytes(op, kind, computations[name])
        met[channel] = (kind, times, nbytes, unknown)
      continue
    if op.opcode in ("async-update", "async-done"):
      continue  # they name what async-start has called
    inner, lost = times, unknown
    if op.opcode == "while":
      turns = op.turns or _turns(op, computations)
      inner, lost = times * (turns or 1), unknown or not turns
    elif op.opcode == "conditional":
      inner = times / max(len(op.called), 1)
    for _, called in op.called:
      _walk(computations, called, inner, lost, met)


def _turns(loop, computations) -> int:
  """How often a loop turns that ends at a number; 0 if it is no such one.

  JAX's loops of known length count from 0 by 1.
  """
  condition = computations.get(dict(loop.called).get("condition"), {})
  compared = [op for op in condition.values() if op.is_less]
  fused = any(op.opcode == "fusion" for op in condition.values())
  if len(compared) != 1 or fused:
    return 0
  limits = [condition.get(name) for name in compared[0].operands]
  limits = [op for op in limits if op and op.opcode == "constant"]
  return int(limits[0].inside) if len(limits) == 1 else 0


def _nbytes(op, kind, ops):
  given = sum(_size(ops[n].shape) for n in op.operands if n in ops)
  if kind != "all-gather":
    return given
  # What starts one has (operands, results) as its result.
  return _size(op.shape) - (given if op.opcode.endswith("-start") else 0)


def _size(shape: str) -> int:
  """Bytes of "f32[2,3]{1,0}", or of a tuple of such."""
  total = 0
  for kind, dims in _SHAPE.findall(shape):
    count = 1
    for dim in filter(None, dims.split(",")):
      count *= int(dim)
    total += count * _bits(kind) // 8
  return total


def _bits(kind: str) -> int:
  """Of an element: the first number in f32, bf16, s8, u4, f8e4m3fn, c64."""
  number = re.search(r"\d+", kind)
  return _BITS.get(kind, int(number[0]) if number else 0)
