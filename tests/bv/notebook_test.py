"""The notebook of the big_vision route, run from its first cell to its last."""

import pytest

from tests.notebooks_test import execute

pytestmark = pytest.mark.big_vision


@pytest.mark.slow
def test_the_big_vision_route_runs_to_its_end(
  bv, repository, tmp_path, quiet_kernel
):
  text, pictures = execute(
    repository / "notebooks" / "big_vision_colab.ipynb", tmp_path
  )
  assert pictures == 1
  shares = {
    name: float(text.split(f"{name}: ")[1].split("%")[0])
    for name in ("IID", "ACID")
  }
  assert shares["ACID"] > shares["IID"] + 5, shares
  assert "an .npz file 32 px, 64 tokens" in text
