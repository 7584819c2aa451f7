"""Trees of parameters: named, compared, and fitted to a model.

A tree is nested dicts of arrays; its names join keys by a slash, such as
"img/Transformer/encoderblock_0/LayerNorm_0/scale".
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SHOWN = 20  # Names listed of each kind of difference.


class ParamsError(ValueError):
  """Weights that cannot be read, or that do not fit the model."""


def merge(
  params: Mapping[str, Any],
  like: Mapping[str, Any],
  *,
  allow_missing: Sequence[str] = (),
) -> dict[str, Any]:
  """Fits loaded parameters to a model: all of them, or an error.

  Layers that are stacked in one tree and apart in the other are converted.

  Args:
    params: loaded.
    like: the model's own, or their shapes.
    allow_missing: regular expressions; names that one of them matches somewhere
      may be missing and keep their value in `like`, which must be an array.

  Returns:
    `params` in the layout of `like`, cast to its dtypes.

  Raises:
    ParamsError: listing every name that is missing, extra or of another shape.
  """
  given, wanted = flatten(_relayout(params, like)), flatten(like)
  for name, value in wanted.items():
    allowed = any(re.search(pattern, name) for pattern in allow_missing)
    if allowed and not isinstance(value, jax.ShapeDtypeStruct):
      given.setdefault(name, value)
  problems = compare(
    {k: tuple(v.shape) for k, v in given.items()},
    {k: tuple(v.shape) for k, v in wanted.items()},
  )
  if problems:
    raise ParamsError(f"these weights do not fit the model:\n{problems}")
  whole = [
    f"{k} {given[k].dtype}"
    for k, v in wanted.items()
    if jnp.issubdtype(v.dtype, jnp.floating)
    and not jnp.issubdtype(given[k].dtype, jnp.floating)
  ]
  if whole:
    raise ParamsError(
      f"{len(whole)} of these weights are no floats, such as {whole[0]}; those"
      " that are quantised cannot be read."
    )
  return unflatten(
    {k: np.asarray(given[k], v.dtype) for k, v in wanted.items()}
  )


def _relayout(params, like):
  """Stacks or unstacks the layers of each encoder where `like` does."""
  if not (isinstance(params, Mapping) and isinstance(like, Mapping)):
    return params
  if "encoderblock" in like and "encoderblock_0" in params:
    params = stack_layers(params)
  elif "encoderblock_0" in like and "encoderblock" in params:
    params = unstack_layers(params)
  return {k: _relayout(v, like.get(k)) for k, v in params.items()}


def compare(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
  """Describes how two `{name: shape}` differ; "" if they do not."""
  kinds = {
    "missing": [f"{k} {wanted[k]}" for k in wanted if k not in given],
    "extra": [f"{k} {given[k]}" for k in given if k not in wanted],
    "of another shape": [
      f"{k} {given[k]}, expected {wanted[k]}"
      for k in wanted
      if k in given and tuple(given[k]) != tuple(wanted[k])
    ],
  }
  lines = []
  for kind, names in kinds.items():
    if names:
      lines.append(f"  {len(names)} {kind}:")
      lines += [f"    {name}" for name in names[:SHOWN]]
      if len(names) > SHOWN:
        lines.append(f"    and {len(names) - SHOWN} more")
  return "\n".join(lines)


def flatten(params: Any, prefix: str = "") -> dict[str, Any]:
  """Returns `{name: array}` of nested dicts."""
  flat = {}
  for key, value in params.items():
    name = f"{prefix}{key}"
    if isinstance(value, Mapping):
      flat.update(flatten(value, f"{name}/"))
    else:
      flat[name] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  tree = {}
  for name, value in flat.items():
    *path, last = name.split("/")
    node = tree
    for key in path:
      node = node.setdefault(key, {})
      if not isinstance(node, dict):
        raise ParamsError(
          f"{name}: {key} is both an array and a folder of them."
        )
    if isinstance(node.get(last), dict):
      raise ParamsError(f"{name} is both an array and a folder of them.")
    node[last] = value
  return tree


STACKED = re.compile(r"(?:^|/)encoderblock/")
APART = re.compile(r"(^|/)encoderblock_(\d+)/")


def has_stacked(params: Mapping[str, Any]) -> bool:
  """Whether layers are stacked under "encoderblock", as `scan` has them."""
  return any(STACKED.search(name) for name in flatten(params))


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
  """From "encoderblock_{i}" to "encoderblock" with a leading axis of layers."""
  flat, layers = {}, {}
  for name, value in flatten(params).items():
    found = APART.search(name)
    if found:
      stacked = APART.sub(r"\1encoderblock/", name, count=1)
      layers.setdefault(stacked, {})[int(found[2])] = value
    else:
      flat[name] = value
  for name, by_layer in layers.items():
    if sorted(by_layer) != list(range(len(by_layer))):
      raise ParamsError(
        f"{name}: layers {sorted(by_layer)} are not 0 to depth."
      )
    flat[name] = np.stack([by_layer[k] for k in range(len(by_layer))])
  return unflatten(flat)


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `stack_layers`."""
  flat = {}
  for name, value in flatten(params).items():
    if STACKED.search(name):
      for k, layer in enumerate(np.asarray(value)):
        apart = STACKED.sub(
          lambda m, k=k: m[0].replace("encoderblock", f"encoderblock_{k}"), name
        )
        flat[apart] = layer
    else:
      flat[name] = value
  return unflatten(flat)


def count_params(params: Any) -> int:
  """Number of parameters in a tree of arrays or shapes."""
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def fingerprint(params: Any) -> str:
  """Sixteen hexadecimal digits that name these exact parameters."""
  digest = hashlib.sha256()
  for name, value in sorted(flatten(params).items()):
    value = np.ascontiguousarray(jax.device_get(value))
    digest.update(f"{name} {value.dtype} {value.shape}".encode())
    digest.update(
      value.view(np.uint8).tobytes() if value.ndim else value.tobytes()
    )
  return digest.hexdigest()[:16]
