"""What is asked of a mesh."""

import jax
import pytest

from aced.meshes import check_rows


def test_rows_that_divide_and_axes_that_split_them():
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((8,), ("x",), axis_types=auto)
  check_rows(None, 3, "batch")
  check_rows(mesh, 16, "batch")
  with pytest.raises(ValueError, match="the batch of 12 pairs does not divide"):
    check_rows(mesh, 12, "batch")
  with pytest.raises(ValueError, match="expected Auto"):
    check_rows(jax.make_mesh((8,), ("x",)), 16, "batch")
