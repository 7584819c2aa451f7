"""Where activations live, said to models by who applies them.

A model knows no mesh. But where parameters are split over devices (fsdp), XLA
may split activations by their features as well, and send them about at every
product; told that they are split by rows, it gathers the parameters, which are
smaller.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_MESH: contextvars.ContextVar[jax.sharding.Mesh | None] = (
  contextvars.ContextVar("mesh of the activations", default=None)
)


@contextlib.contextmanager
def rows_over(mesh: jax.sharding.Mesh | None) -> Iterator[None]:
  """Within it, `rows` splits activations over all axes of the mesh."""
  token = _MESH.set(mesh)
  try:
    yield
  finally:
    _MESH.reset(token)


def rows(x: jax.Array) -> jax.Array:
  """Constrains `(n, ...)` to be split by rows; without a mesh, nothing."""
  mesh = _MESH.get()
  if mesh is None or mesh.size == 1 or x.shape[0] % mesh.size:
    return x
  spec = jax.P(mesh.axis_names, *(None,) * (x.ndim - 1))
  return jax.lax.with_sharding_constraint(x, jax.NamedSharding(mesh, spec))
