"""Sizes of super-batches, batches and chunks, refused where they do not fit."""

import jax

from aced import meshes
from aced.curation.scores import check_choice
from aced.curation.shards import SCOPES


def super_batch_size(batch_size: int, filter_ratio: float) -> int:
  """Size `B = b / (1 - f)` of the super-batch from which `b` pairs are kept.

  Args:
    batch_size: `b`, pairs trained on in each step.
    filter_ratio: `f`, the share of the super-batch that is *discarded*.

  Raises:
    ValueError: `f` is outside [0, 1), or `B` is not a whole number.
  """
  if not 0 <= filter_ratio < 1:
    raise ValueError(
      f"filter_ratio={filter_ratio} must lie in [0, 1): it is the share of the"
      " super-batch that is discarded (0.8 keeps one pair in five)."
    )
  size = batch_size / (1 - filter_ratio)
  if abs(size - round(size)) > 1e-6 * size:
    raise ValueError(
      f"batch_size={batch_size} and filter_ratio={filter_ratio} give a"
      f" super-batch of {size:.2f} pairs, which is not a whole number; choose"
      " them so that batch_size / (1 - filter_ratio) is one."
    )
  return round(size)


def check_sizes(super_batch: int, batch_size: int, num_chunks: int = 1) -> None:
  """Refuses sizes that would silently shrink or repeat a batch.

  Raises:
    ValueError: naming the size that is off.
  """
  if batch_size < 1 or num_chunks < 1:
    raise ValueError(
      f"batch_size={batch_size} and num_chunks={num_chunks} must be positive."
    )
  if batch_size % num_chunks:
    raise ValueError(
      f"batch_size={batch_size} is not divisible by num_chunks={num_chunks};"
      " every chunk draws batch_size / num_chunks pairs."
    )
  if batch_size > super_batch:
    raise ValueError(
      f"batch_size={batch_size} is larger than the super-batch of"
      f" {super_batch} pairs it is drawn from."
    )


def check_mesh(
  super_batch: int,
  chunk_size: int,
  scope: str,
  mesh: jax.sharding.Mesh | None,
) -> None:
  """Refuses sizes that do not divide over the devices.

  Args:
    super_batch: `B`.
    chunk_size: pairs drawn at a time.
    scope: one of `SCOPES`.
    mesh: over which rows are split, if any.

  Raises:
    ValueError: naming the size that is off; or the mesh has Explicit axes.
  """
  check_choice("scope", scope, SCOPES)
  meshes.check_rows(mesh, super_batch, "super-batch")
  devices = 1 if mesh is None else mesh.size
  if scope == "per_device" and chunk_size % devices:
    raise ValueError(
      f"scope='per_device' draws an equal share of every chunk from each of"
      f" {devices} devices, and a chunk of {chunk_size} pairs does not divide"
      " over them; lower num_chunks, or use scope='global'."
    )
