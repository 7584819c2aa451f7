"""How weights of other projects map to ours, tensor by tensor, both ways.

A format is a list of `Rule`s, made for the sizes of one model; `read` and
`write` apply them. torch keeps a matrix as (out, in), ours is (in, out), and
heads are apart.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aced.models import trees
from aced.models.trees import ParamsError

HEADS = ("query", "key", "value")


class Kind(NamedTuple):
  """How one tensor becomes one of ours, and back; `h` is heads."""

  read: Callable[[np.ndarray, int], np.ndarray]
  write: Callable[[np.ndarray], np.ndarray]


KINDS = {
  "same": Kind(lambda x, h: x, lambda x: x),
  "matrix": Kind(lambda x, h: x.T, lambda x: x.T),
  "conv": Kind(
    lambda x, h: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
  ),
  # (d, d) to and from (d, heads, width of a head).
  "heads": Kind(
    lambda x, h: x.T.reshape(x.shape[1], h, -1),
    lambda x: x.reshape(x.shape[0], -1).T,
  ),
  "heads_bias": Kind(lambda x, h: x.reshape(h, -1), lambda x: x.reshape(-1)),
  "join": Kind(
    lambda x, h: x.T.reshape(h, -1, x.shape[0]),
    lambda x: x.reshape(-1, x.shape[-1]).T,
  ),
  "positions": Kind(lambda x, h: x.reshape(1, *x.shape[-2:]), lambda x: x[0]),
  "scalar": Kind(lambda x, h: x.reshape(1), lambda x: x.reshape(1)),
}


class Rule(NamedTuple):
  """One tensor of a format.

  Attributes:
    theirs: its name.
    ours: the names of the arrays that it holds, stacked on its first axis.
    kind: a key of `KINDS`, of each part.
    heads: of attention, where the kind has any.
  """

  theirs: str
  ours: tuple[str, ...]
  kind: str = "same"
  heads: int = 1


def read(
  tensors: Mapping[str, np.ndarray],
  rules: Sequence[Rule],
  ignored: Sequence[str] = (),
) -> dict[str, Any]:
  """Returns our tree of the tensors of a format.

  Args:
    tensors: all of a file, by their names.
    rules: of the format.
    ignored: endings of names that hold no parameters, such as indices.

  Raises:
    ParamsError: listing every name that is missing or extra, or naming one
      whose shape cannot be that of its kind.
  """
  expected = {rule.theirs: () for rule in rules}
  given = {name: () for name in tensors if not name.endswith(tuple(ignored))}
  problems = trees.compare(given, expected)
  if problems:
    raise ParamsError(
      "these weights are of another architecture than their config says:\n"
      + problems.replace(" ()", "")
    )
  flat = {}
  for rule in rules:
    try:
      parts = [np.asarray(tensors[rule.theirs])]
      if len(rule.ours) > 1:
        parts = np.split(parts[0], len(rule.ours))
      for name, part in zip(rule.ours, parts):
        flat[name] = KINDS[rule.kind].read(part, rule.heads)
    except (ValueError, IndexError) as error:
      raise ParamsError(
        f"{rule.theirs} of shape {tensors[rule.theirs].shape} cannot be"
        f" {', '.join(rule.ours)} with {rule.heads} heads: {error}"
      ) from error
  return trees.unflatten(flat)


def write(params: Any, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
  """The inverse of `read`, of a tree whose layers are apart."""
  flat = trees.flatten(params)
  tensors = {}
  for rule in rules:
    parts = [
      KINDS[rule.kind].write(np.asarray(flat.pop(name))) for name in rule.ours
    ]
    found = parts[0] if len(parts) == 1 else np.concatenate(parts)
    tensors[rule.theirs] = np.ascontiguousarray(found)
  if flat:
    raise ParamsError(
      f"this format has no place for {', '.join(sorted(flat)[: trees.SHOWN])}."
    )
  return tensors


def norm(theirs: str, ours: str) -> Iterator[Rule]:
  """The rules of a layer norm."""
  yield Rule(f"{theirs}.weight", (f"{ours}/scale",))
  yield Rule(f"{theirs}.bias", (f"{ours}/bias",))


def dense(theirs: str, ours: str, *, bias: bool = True) -> Iterator[Rule]:
  """The rules of a dense layer."""
  yield Rule(f"{theirs}.weight", (f"{ours}/kernel",), "matrix")
  if bias:
    yield Rule(f"{theirs}.bias", (f"{ours}/bias",))


def heads_in(
  theirs: str, ours: str, names: Sequence[str], heads: int, dot: str = "."
) -> Iterator[Rule]:
  """The rules of a projection into heads, or of several in one tensor.

  Args:
    theirs: its name.
    ours: the name of the attention.
    names: of `HEADS`, in the order in which they are stacked.
    heads: of the attention.
    dot: between `theirs` and "weight" or "bias".
  """
  for part, kind, name in (
    ("weight", "heads", "kernel"),
    ("bias", "heads_bias", "bias"),
  ):
    inside = tuple(f"{ours}/{head}/{name}" for head in names)
    yield Rule(f"{theirs}{dot}{part}", inside, kind, heads)


def heads_out(theirs: str, ours: str, heads: int) -> Iterator[Rule]:
  """The rules of the projection that joins the heads."""
  yield Rule(f"{theirs}.weight", (f"{ours}/out/kernel",), "join", heads)
  yield Rule(f"{theirs}.bias", (f"{ours}/out/bias",))


def mlp(first: str, second: str, ours: str) -> Iterator[Rule]:
  """The rules of an MLP of two layers."""
  yield from dense(first, f"{ours}/Dense_0")
  yield from dense(second, f"{ours}/Dense_1")
