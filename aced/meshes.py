"""What is asked of a mesh whose devices share the rows of a batch."""

import jax


def check_rows(mesh: jax.sharding.Mesh | None, rows: int, what: str) -> None:
  """Refuses rows that do not split evenly, and axes that cannot split them.

  Args:
    mesh: all of whose axes split the rows; None is one device.
    rows: how many.
    what: they are, for the message.

  Raises:
    ValueError: `rows` does not divide over the devices, or an axis is Explicit,
      as `jax.make_mesh` makes them unless told otherwise.
  """
  if mesh is None or mesh.size == 1:
    return
  if any(kind != jax.sharding.AxisType.Auto for kind in mesh.axis_types):
    raise ValueError(
      f"the axes of the mesh are {mesh.axis_types}; expected Auto: make it with"
      " jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,) * n)."
    )
  if rows % mesh.size:
    raise ValueError(
      f"the {what} of {rows} pairs does not divide over {mesh.size} devices;"
      f" choose a multiple of {mesh.size}."
    )
