"""Embedding pairs with a model: whole, in microbatches, cheaply, or mixed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aced.embeddings import Embeddings
from aced.models import flexi, placement
from aced.training import accumulation
from aced.training.recipe import Scoring

Batch = Mapping[str, Any]


def embed(
  model: nn.Module,
  params: Any,
  batch: Batch,
  *,
  train: bool = False,
  rng: jax.Array | None = None,
) -> Embeddings:
  """Embeds the pairs of a batch; without a gradient unless differentiated."""
  rngs = None if rng is None else {"dropout": rng}
  zimg, ztxt, out = model.apply(
    {"params": params}, batch["image"], batch["labels"], train=train, rngs=rngs
  )
  t, b = (jnp.reshape(out.get(k, d), ()) for k, d in (("t", 1.0), ("b", 0.0)))
  return Embeddings(zimg, ztxt, t, b)


@dataclasses.dataclass(frozen=True, eq=False)
class Embedder:
  """A model, and how it embeds when it scores and when it trains.

  Attributes:
    model: keeps the contract of two towers.
    scoring: how it scores.
    mesh: over whose devices rows are split, in blocks; None is one device.
  """

  model: nn.Module
  scoring: Scoring
  mesh: jax.sharding.Mesh | None = None

  def score(self, params: Any, batch: Batch) -> Embeddings:
    """Embeds a super-batch for scoring, as constants."""
    return self._in_microbatches(params, batch, self._cheap(batch))

  def plain(self, params: Any, batch: Batch) -> Embeddings:
    """Embeds a batch in full, as constants."""
    return self._in_microbatches(params, batch, None)

  def train(self, params: Any, batch: Batch, rng: jax.Array) -> Embeddings:
    """Embeds rows for training: a share of them as scoring does."""
    cheap = self._cheap(batch)
    if cheap is None or not self.scoring.cotrain:
      return self._embed(None, params, batch, train=True, rng=rng)
    devices = 1 if self.mesh is None else self.mesh.size
    parts, restore = _divide(_pairs(batch), devices, self.scoring.cotrain)
    rngs = jax.random.split(rng)
    found = [
      self._embed(flexed, params, part, train=True, rng=rng)
      for flexed, part, rng in zip((cheap, None), parts, rngs, strict=True)
    ]
    zimg, ztxt = restore([e[:2] for e in found])
    return found[1]._replace(zimg=zimg, ztxt=ztxt)

  def _cheap(self, batch) -> flexi.Flexed | None:
    if not self.scoring.cheap:
      return None
    return self.scoring.flex(self.model, batch["image"].shape[1])

  def _in_microbatches(self, params, batch, flexed):
    rows, size = _pairs(batch), self.scoring.microbatch
    n = batch["image"].shape[0]
    if not size or size >= n:
      found = self._embed(flexed, params, rows)
    else:
      found = accumulation.map_rows(
        lambda part, _: self._embed(flexed, params, part), rows, size
      )
    return found.stop_gradient()

  def _embed(self, flexed, params, batch, **train):
    """`embed`, by the model as it is or as it is flexed."""
    model = self.model
    if flexed is not None:
      batch = {**batch, "image": flexed.images(batch["image"])}
      model, params = flexed.model, flexed.params(params)
    with placement.rows_over(self.mesh):
      return embed(model, params, batch, **train)


def _pairs(batch):
  return {k: batch[k] for k in ("image", "labels")}


def _divide(rows, devices, share):
  """Splits the rows of each device in two, evenly mixed.

  Returns:
    `(first, second)` trees, of which the first has `share` of the rows; and a
    function that puts two such trees together again in the order of `rows`.
  """
  n = jax.tree.leaves(rows)[0].shape[0] // devices
  counts = np.floor(np.arange(n + 1) * share)
  chosen = np.diff(counts) > 0
  places = np.flatnonzero(chosen), np.flatnonzero(~chosen)
  back = np.argsort(np.concatenate(places))

  def by_device(x):
    return x.reshape(devices, x.shape[0] // devices, *x.shape[1:])

  def flat(x):
    return x.reshape(-1, *x.shape[2:])

  def restore(parts):
    return jax.tree.map(
      lambda *x: flat(
        jnp.concatenate(list(map(by_device, x)), axis=1)[:, back]
      ),
      *parts,
    )

  parts = [
    jax.tree.map(lambda x, p=p: flat(by_device(x)[:, p]), rows) for p in places
  ]
  return parts, restore
