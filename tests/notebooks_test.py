"""The notebooks, run from their first cell to their last."""

import warnings

import pytest


def execute(path, folder):
  """Runs a notebook in a folder; returns what its cells printed, joined."""
  nbformat = pytest.importorskip("nbformat", reason="of the extra `test`")
  nbclient = pytest.importorskip("nbclient", reason="of the extra `test`")
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook,
    timeout=None,  # A busy machine takes its time.
    kernel_name="python3",
    resources={"metadata": {"path": str(folder)}},
  )
  # What Jupyter says of itself is not of our code.
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    client.execute()
  outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
  text = "".join(o.text for o in outputs if o.output_type == "stream")
  pictures = sum("image/png" in o.get("data", {}) for o in outputs)
  return text, pictures


@pytest.mark.slow
def test_the_colab_runs_to_its_end(repository, tmp_path, quiet_kernel):
  text, pictures = execute(
    repository / "notebooks" / "aced_colab.ipynb", tmp_path
  )
  assert pictures == 5
  assert "a run of ours, at step 200" in text
  kept = float(text.split("in what was kept ")[1].split("%")[0])
  pool = float(text.split("clean in the pool ")[1].split("%")[0])
  assert kept > pool + 10
  assert "skipped: the hub cannot be reached from here" in text
  assert "skipped: no released weights" in text
  scores = {
    name: float(text.split(f"{name:8} mean R@1")[1].split("R@10 ")[1][:4])
    for name in ("IID", "H-ACID")
  }
  assert scores["H-ACID"] > scores["IID"], scores
