"""Where arrays live: the mesh, rules for parameters, and rows of batches."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

AXES = ("data", "fsdp")
STRATEGIES = ("replicate", "fsdp")
# Sharding a parameter smaller than this saves no memory worth a collective.
MIN_SHARDED_SIZE = 2**12

Rules = Sequence[tuple[str, Any]]


def make_mesh(
  sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Returns the device mesh with axes `data` and `fsdp`.

  Both axes split a batch; `fsdp` splits parameters and their optimiser state
  as well.

  Args:
    sizes: `{"data": n, "fsdp": m}`; one of them may be -1, what is left.
    devices: all devices if None.

  Raises:
    ValueError: the sizes do not fit the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = [sizes.get(axis, 1) for axis in AXES]
  if shape.count(-1) == 1:
    known = -math.prod(shape)
    shape[shape.index(-1)] = len(devices) // max(known, 1)
  if math.prod(shape) != len(devices) or min(shape) < 1:
    raise ValueError(
      f"config.mesh={dict(sizes)} does not fit {len(devices)} devices; the"
      " product of its sizes must be their number, and at most one may be -1."
    )
  return jax.make_mesh(
    tuple(shape),
    AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
    devices=devices,
  )


def replicated(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  """The whole array on every device."""
  return jax.NamedSharding(mesh, jax.P())


def rows(mesh: jax.sharding.Mesh, ndim: int = 1) -> jax.NamedSharding:
  """The leading axis split over all devices."""
  return jax.NamedSharding(mesh, jax.P(AXES, *(None,) * (ndim - 1)))


def local_rows(mesh: jax.sharding.Mesh, size: int) -> list[int]:
  """The rows of an array split by `rows` that devices of this process hold.

  On a pod, devices stand in the mesh in the order of its wires, so these may
  lie in several pieces.

  Args:
    mesh: of all devices.
    size: rows of the array; divides over the devices.

  Returns:
    Their numbers, in the order in which the process has to give them.
  """
  held = rows(mesh).addressable_devices_indices_map((size,)).values()
  return sorted({row for (part,) in held for row in range(*part.indices(size))})


def shard_rows(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """Constrains, under jit, every array with axes to be split by its rows."""
  return jax.tree.map(
    lambda x: (
      jax.lax.with_sharding_constraint(x, rows(mesh, x.ndim)) if x.ndim else x
    ),
    tree,
  )


def check_divides(name: str, size: int, mesh: jax.sharding.Mesh) -> None:
  """Raises ValueError unless `size` rows split evenly over the devices."""
  if size % mesh.size:
    shape = dict(zip(mesh.axis_names, mesh.devices.shape, strict=True))
    raise ValueError(
      f"{name}={size} does not divide over the {mesh.size} devices of the mesh"
      f" {shape}; choose a multiple of {mesh.size}."
    )


def by_rules(tree: Any, rules: Rules, mesh: jax.sharding.Mesh) -> Any:
  """Returns a sharding for every leaf, by the first rule whose regex matches.

  Args:
    tree: of arrays or `ShapeDtypeStruct`s.
    rules: `(regex, strategy)`; the regex must match the whole name of the
      leaf, such as "img/Transformer/encoderblock_0/LayerNorm_0/scale".
      "replicate" keeps the whole array everywhere; "fsdp" splits the longest
      axis that divides over the `fsdp` axis, if the array is large enough.
    mesh: from `make_mesh`.

  Raises:
    ValueError: an unknown strategy, or a leaf that no rule matches.
  """

  def sharding(name, leaf):
    strategy = match(name, rules)
    if strategy not in STRATEGIES:
      raise ValueError(
        f"sharding rule {strategy!r} for {name} is not known; it is one of"
        f" {', '.join(STRATEGIES)}."
      )
    split = strategy == "fsdp" and np.prod(leaf.shape) >= MIN_SHARDED_SIZE
    spec = _split_longest(leaf.shape, mesh.shape["fsdp"]) if split else ()
    return jax.NamedSharding(mesh, jax.P(*spec))

  return map_named(sharding, tree)


def match(name: str, rules: Rules, default: Any = None) -> Any:
  """Returns the value of the first rule whose regex matches all of `name`.

  Raises:
    ValueError: none matches and there is no default.
  """
  for pattern, value in rules:
    if re.fullmatch(pattern, name):
      return value
  if default is None:
    raise ValueError(
      f"no rule matches {name}; end the rules with ('.*', ...) for the rest."
    )
  return default


def map_named(function, tree: Any) -> Any:
  """Maps `function(name, leaf)` over a tree; names join keys by a slash."""

  def named(path, leaf):
    return function(
      jax.tree_util.keystr(path, simple=True, separator="/"), leaf
    )

  return jax.tree_util.tree_map_with_path(named, tree)


def _split_longest(shape, ways):
  """A spec that splits the longest axis divisible by `ways` over `fsdp`."""
  axes = [k for k, size in enumerate(shape) if size % ways == 0]
  if ways == 1 or not axes:
    return ()
  longest = max(axes, key=lambda k: shape[k])
  return [AXES[1] if k == longest else None for k in range(len(shape))]
