"""Choosing what to learn from: scores of pairs, and samplers that use them.

Pure functions of arrays. They know no model, no config and no data set, so they
serve any training loop that can embed a super-batch:

    from aced.curation import Embeddings, sample_jointly
    selection = sample_jointly(rng, student, reference, batch_size=b)
    batch = jax.tree.map(lambda x: x[selection.indices], super_batch)

`select_batch` does the same for arrays of torch and numpy.
"""

from aced.curation.choose import SelectedBatch, select_batch
from aced.curation.samplers import (
  KERNELS,
  Selection,
  sample_independently,
  sample_jointly,
  sample_uniformly,
)
from aced.curation.scores import LOSSES, SCORES, pair_scores
from aced.curation.shards import SCOPES
from aced.curation.sizes import check_mesh, check_sizes, super_batch_size
from aced.embeddings import Embeddings

__all__ = [
  "KERNELS",
  "LOSSES",
  "SCOPES",
  "SCORES",
  "Embeddings",
  "SelectedBatch",
  "Selection",
  "check_mesh",
  "check_sizes",
  "pair_scores",
  "sample_independently",
  "sample_jointly",
  "sample_uniformly",
  "select_batch",
  "super_batch_size",
]
