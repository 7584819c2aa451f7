"""What a program costs: its matrix products and its collectives.

XLA's own cost analysis counts the body of a loop once, however often it runs,
and Pallas kernels not at all; here loops are multiplied out.
"""

import dataclasses
import math
import re
from typing import Any

import numpy as np


def flops(jaxpr: Any) -> int:
  """FLOPs of the matrix products of a traced function, over all devices.

  Counted are `dot_general`, ragged dots and convolutions, two FLOPs per
  multiply-accumulate at any precision; nothing else is. A `scan` counts its
  body `length` times, a `while` once (its trip count is not in the jaxpr), a
  `cond` its most expensive branch, a `shard_map` its body once per device of
  the axes that it maps, a `pallas_call` its body once per cell of the grid (so
  a block skipped under `pl.when` counts). Backward passes and recomputation
  are in the jaxpr and so in the count; so is what XLA finds dead or common.

  Args:
    jaxpr: of the function, as `jax.jit(f).trace(*args).jaxpr` gives it.

  Returns:
    The number of FLOPs of one call.
  """
  return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation) -> int:
  name, params = equation.primitive.name, equation.params
  if name in _PRODUCTS:
    return 2 * _PRODUCTS[name](equation)
  inner = [flops(jaxpr) for p in params.values() for jaxpr in _jaxprs(p)]
  if name == "cond":
    return max(inner)
  return _repeats(name, params) * sum(inner)


def _jaxprs(param) -> list:
  """The jaxprs, open or closed, in a parameter of an equation."""
  params = param if isinstance(param, tuple | list) else [param]
  return [p for p in params if hasattr(p, "eqns")]


def _repeats(name, params) -> int:
  if name == "scan":
    return params["length"]
  if name == "shard_map":
    axes = params.get("newly_manual_axes") or params["manual_axes"]
    return math.prod(params["mesh"].shape[axis] for axis in axes)
  if name == "pallas_call":
    return math.prod(params["grid_mapping"].grid)
  return 1


def _dot_macs(equation) -> int:
  """Of a ragged dot, every row meets the matrix of its own group only."""
  params, groups = equation.params, ()
  if ragged := params.get("ragged_dot_dimension_numbers"):
    groups = ragged.rhs_group_dimensions
    (_, contracted), (_, batch) = ragged.dot_dimension_numbers
  else:
    (_, contracted), (_, batch) = params["dimension_numbers"]
  lhs, rhs = (v.aval.shape for v in equation.invars[:2])
  shared = {*contracted, *batch, *groups}
  return math.prod(lhs) * math.prod(
    size for axis, size in enumerate(rhs) if axis not in shared
  )


def _convolution_macs(equation) -> int:
  """Products with padding, and with the holes of dilation, do not count."""
  params, numbers = equation.params, equation.params["dimension_numbers"]
  lhs, rhs = (v.aval.shape for v in equation.invars[:2])
  out = equation.outvars[0].aval.shape
  macs = out[numbers.out_spec[0]] * out[numbers.out_spec[1]]
  macs *= rhs[numbers.rhs_spec[1]]  # Input features of one group.
  for axis, (low, _) in enumerate(params["padding"]):
    taps = np.arange(rhs[numbers.rhs_spec[2 + axis]])
    places = np.arange(out[numbers.out_spec[2 + axis]])
    read = places[:, None] * params["window_strides"][axis] - low
    read = read + taps * params["rhs_dilation"][axis]
    index, hole = np.divmod(read, params["lhs_dilation"][axis])
    inside = (index >= 0) & (index < lhs[numbers.lhs_spec[2 + axis]])
    macs *= int(np.sum(inside & (hole == 0)))
  return macs


_PRODUCTS = {
  "dot_general": _dot_macs,
  "ragged_dot_general": _dot_macs,
  "conv_general_dilated": _convolution_macs,
}


@dataclasses.dataclass(frozen=True)
class Collective:
  """The collectives of one kind in one run of a program.

  Attributes:
    count: executions.
    bytes: of all of them, on each device.
  """

  count: int
  bytes: int


def collectives(hlo: str) -> dict[str, Collective]:
  """The collectives that each device takes part in, by kind, loops included.

  The bytes of an all-gather, (ragged-)all-to-all or collective-permute are
  those of its output, of an all-reduce those of the reduced array, and of a
  reduce-scatter those of its input. They are nominal: a ring of n devices
  carries (n - 1) / n of a gathered or scattered array to each, and twice that
  of a reduced one. The padding of layouts is left out.

  A loop counts as often as it runs: by XLA's `known_trip_count`, or, where a
  backend leaves that out (TPU), by its counter, if start, step and bound are
  constants; else once. Of a conditional, the branch that moves most counts.
  An asynchronous collective counts at its start, also where TPU spreads it
  over fusions that each repeat it. The fusion that TPU makes of an all-reduce
  and the slice of it counts as the reduce-scatter that it is.

  Args:
    hlo: optimised HLO of an SPMD program, `compiled.as_text()`.

  Returns:
    kind -> `Collective`, of the kinds that occur.
  """
  program, entry = _parse(hlo)
  totals = _totals(program, entry, {})
  return {kind: Collective(*total) for kind, total in totals.items()}


_KINDS = {"all-gather", "all-reduce", "reduce-scatter"}
_KINDS |= {"all-to-all", "ragged-all-to-all", "collective-permute"}
_NAME = re.compile(r"%([\w.-]+)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
  r"\s+(ROOT )?%?(\S+) = (.+?) ([a-z][a-z\d-]*)\((.*?)\)((?:, .*)?)$"
)
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|condition|body|true_computation|false_computation"
  r"|branch_computations|called_computations)=(\{[^}]*\}|%[\w.-]+)"
)
# Of the copies of an asynchronous collective, only its start has no flags.
_CONTINUED = re.compile(r'"async_collective_fusion_config":\{"flag_start":"\d')
_COUNTED = ("LT", "tuple", "tuple")  # A loop that a counter ends.
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class _Instruction:
  root: bool
  shape: str
  opcode: str
  inside: str
  attributes: str

  @property
  def operands(self) -> list[str]:
    return _NAME.findall(self.inside)

  @property
  def constant(self) -> int | None:
    whole = self.opcode == "constant" and re.fullmatch(r"-?\d+", self.inside)
    return int(self.inside) if whole else None

  def attribute(self, name: str) -> str | None:
    found = re.search(rf"\b{name}=%?([\w.-]+)", self.attributes)
    return found and found[1]


def _parse(hlo):
  """Returns computation -> instruction -> `_Instruction`, and the entry."""
  program, entry, current = {}, None, {}
  for line in hlo.splitlines():
    if found := _COMPUTATION.match(line):
      current = program[found[2]] = {}
      entry = found[2] if found[1] else entry
    elif found := _INSTRUCTION.match(line):
      root, name, *parts = found.groups()
      current[name] = _Instruction(bool(root), *parts)
  return program, entry


def _totals(program, name, known):
  """kind -> (count, bytes) of one call of a computation."""
  if name in known:
    return known[name]
  totals = known[name] = {}
  for instruction in program[name].values():
    kind = instruction.opcode.removesuffix("-start")
    if kind in _KINDS and not _CONTINUED.search(instruction.attributes):
      size = _size(kind, instruction, program[name])
      scattered = name.startswith("all-reduce-scatter")
      _add(totals, {"reduce-scatter" if scattered else kind: (1, size)})
    called = [
      _totals(program, inner, known)
      for names in _CALLED.findall(instruction.attributes)
      for inner in _NAME.findall(names)
    ]
    if instruction.opcode == "conditional":
      called = [max(called, key=lambda t: sum(size for _, size in t.values()))]
    for inner in called:
      _add(totals, inner, _trips(program, program[name], instruction))
  return totals


def _add(totals, more, times=1):
  for kind, (count, size) in more.items():
    old = totals.get(kind, (0, 0))
    totals[kind] = (old[0] + times * count, old[1] + times * size)


def _size(kind, instruction, computation) -> int:
  if kind == "reduce-scatter":
    return sum(_bytes(computation[x].shape) for x in instruction.operands)
  if kind == "all-reduce" or not instruction.opcode.endswith("-start"):
    return _bytes(instruction.shape)
  return _bytes(_elements(instruction.shape)[1])  # (operand, result, ...).


def _bytes(shape: str) -> int:
  """Bytes of an array, or of all arrays of a tuple."""
  total = 0
  for dtype, sizes in _ARRAY.findall(shape):
    width = re.search(r"\d+", dtype)  # bf16: 16, f8e4m3fn: 8, token: none.
    bits = 8 if dtype == "pred" else int(width[0]) if width else 0
    total += -(-bits * math.prod(map(int, re.findall(r"\d+", sizes))) // 8)
  return total


def _elements(shape: str) -> list[str]:
  """The elements of a tuple's shape, which may be tuples and have layouts."""
  elements, depth = [""], 0
  for character in shape[1:-1]:
    depth += (character in "([{") - (character in ")]}")
    if character == "," and depth == 0:
      elements.append("")
    else:
      elements[-1] += character
  return elements


def _trips(program, computation, instruction) -> int:
  """How often the computations that an instruction calls run."""
  if instruction.opcode != "while":
    return 1
  if known := _KNOWN_TRIPS.search(instruction.attributes):
    return int(known[1])
  condition = program[instruction.attribute("condition")]
  body = program[instruction.attribute("body")]
  test, after = (
    next(x for x in c.values() if x.root) for c in (condition, body)
  )
  before = _source(computation, instruction.operands[0])
  if (test.attribute("direction"), before.opcode, after.opcode) != _COUNTED:
    return 1
  counter, bound = (_source(condition, x) for x in test.operands)
  if (index := counter.attribute("index")) is None:
    return 1
  start = _source(computation, before.operands[int(index)]).constant
  step = _increment(body, after.operands[int(index)], index)
  if start is None or bound.constant is None or not step:
    return 1
  return len(range(start, bound.constant, step))


def _increment(body, name, index) -> int | None:
  """What a turn of a loop adds to an element of what it carries."""
  add = _source(body, name)
  if add.opcode != "add":
    return None
  old, step = (_source(body, x) for x in add.operands)
  return step.constant if old.attribute("index") == index else None


def _source(computation, name) -> _Instruction:
  """The instruction behind copies of its result."""
  while (found := computation[name]).opcode in ("copy", "bitcast"):
    name = found.operands[0]
  return found
