"""One step: score a super-batch, keep what is worth learning, learn it.

`TrainStep` is a pure function for `jax.jit`. Every method of the papers is this
one function with two switches, curation and distillation:

    super-batch -> embed (student, frozen) -> select -> embed with gradients
    -> L_contrastive + distill_weight * L_distill -> update
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from aced import config as config_lib
from aced import curation, objectives
from aced.embeddings import Embeddings
from aced.training import sharding
from aced.training.state import PROJECTIONS, TrainState

Batch = Mapping[str, Any]
SAMPLERS = {
  "joint": curation.sample_jointly,
  "independent": curation.sample_independently,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a step does, as static values: the method.

  Attributes:
    loss: the contrastive loss, a key of `objectives.CONTRASTIVE`.
    batch_size: `b`, pairs trained on.
    super_batch: `B`, pairs loaded; equal to `b` without curation.
    method: "joint", "independent" or "uniform".
    score: a key of `curation.SCORES`.
    num_chunks: of joint sampling.
    gain: multiplies the scores.
    temperature: divides them.
    reference: name of the frozen model that scores, or "".
    distill_loss: a key of `objectives.DISTILLATION`.
    distill_weight: lambda; 0 is no distillation.
    teachers: `(name, weight)` of the frozen models distilled from.
    distill_batch: "curated", or "iid" for a separate uniform draw.
    microbatch: examples embedded at a time when scoring; 0 is all.
  """

  loss: str
  batch_size: int
  super_batch: int
  method: str
  score: str
  num_chunks: int
  gain: float
  temperature: float
  reference: str
  distill_loss: str
  distill_weight: float
  teachers: tuple[tuple[str, float], ...]
  distill_batch: str
  microbatch: int

  @classmethod
  def from_config(cls, config: ConfigDict) -> "Recipe":
    """Reads a resolved config."""
    curated = config.curation.method != "uniform"
    _, reference_sign = curation.SCORES[config.curation.score]
    distilled = bool(config.distillation.weight)
    teachers = tuple(config.distillation.teachers.items()) if distilled else ()
    return cls(
      loss=config.loss,
      batch_size=config.batch_size,
      super_batch=config_lib.loaded_size(config),
      method=config.curation.method,
      score=config.curation.score,
      num_chunks=config.curation.num_chunks,
      gain=config.curation.gain,
      temperature=config.curation.temperature,
      reference=(
        config.curation.reference if curated and reference_sign else ""
      ),
      distill_loss=config.distillation.loss,
      distill_weight=config.distillation.weight,
      teachers=teachers,
      distill_batch=config.distillation.batch if curated else "curated",
      microbatch=config.scoring.microbatch,
    )

  @property
  def curated(self) -> bool:
    """Whether a super-batch is scored."""
    return self.method != "uniform"

  @property
  def scores_student(self) -> bool:
    """Whether the student embeds the super-batch."""
    return self.curated and curation.SCORES[self.score][0] != 0

  @property
  def frozen(self) -> tuple[str, ...]:
    """Names of the frozen models that the step needs, each once."""
    names = [self.reference, *(name for name, _ in self.teachers)]
    return tuple(dict.fromkeys(filter(None, names)))

  def check(self, mesh: jax.sharding.Mesh) -> None:
    """Refuses sizes that the mesh or the microbatch cannot carry, by name."""
    sharding.check_divides("batch_size", self.batch_size, mesh)
    sharding.check_divides("super-batch", self.super_batch, mesh)
    if self.microbatch:
      sharding.check_divides("scoring.microbatch", self.microbatch, mesh)
      for name, size in (
        ("super-batch", self.super_batch),
        ("batch_size", self.batch_size),
      ):
        if size > self.microbatch and size % self.microbatch:
          raise ValueError(
            f"{name}={size} is not divisible by"
            f" scoring.microbatch={self.microbatch}."
          )


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


def embed_in_microbatches(
  model: nn.Module, params: Any, batch: Batch, size: int
) -> Embeddings:
  """As `embed`, `size` examples at a time, so that activations stay small.

  Microbatch `k` takes every `n / size`-th row from `k` on. With rows split
  over devices in blocks, each device then works on its own rows throughout.
  """
  batch = {k: batch[k] for k in ("image", "labels")}
  n = batch["image"].shape[0]
  if not size or size >= n:
    return embed(model, params, batch)
  split = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(size, n // size, *x.shape[1:]), 1, 0),
    batch,
  )
  zimg, ztxt, t, b = jax.lax.map(lambda x: embed(model, params, x), split)
  zimg, ztxt = (
    jnp.moveaxis(z, 0, 1).reshape(n, z.shape[-1]) for z in (zimg, ztxt)
  )
  return Embeddings(zimg, ztxt, t[0], b[0])


def take(
  batch: Batch, drawn: curation.Selection, mesh: jax.sharding.Mesh
) -> Batch:
  """The rows of a batch that were drawn, split over the devices again."""
  rows = {
    k: jnp.take(v, drawn.indices, axis=0)
    for k, v in batch.items()
    if k != "cached"
  }
  return sharding.shard_rows(rows | {"_mask": drawn.mask}, mesh)


class Draw(NamedTuple):
  """The pairs that one step learns from.

  Attributes:
    learn: rows of the batch for the contrastive loss.
    distil: rows for the distillation losses; the same object as `learn` where
      they are the same pairs.
    teachers: name -> embeddings of the `distil` rows.
    selection: how the rows were drawn, or None without curation.
  """

  learn: Batch
  distil: Batch
  teachers: dict[str, Embeddings]
  selection: curation.Selection | None


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
  """`train_step(state, frozen, batch) -> (state, metrics)`, pure, for jit.

  `frozen` maps names to parameters. `batch` holds `image`, `labels`, `_mask`
  of `B` pairs; `fault` where the data set knows the truth; and, under "cached",
  name -> `Embeddings` of frozen models, which are then not run at all.
  Metrics are float32 scalars.

  Attributes:
    model: the student.
    frozen_models: name -> model, for every name in `recipe.frozen`.
    optimizer: of `make_optimizer`.
    recipe: the method.
    mesh: over which batches are split.
  """

  model: nn.Module
  frozen_models: Mapping[str, nn.Module]
  optimizer: optax.GradientTransformation
  recipe: Recipe
  mesh: jax.sharding.Mesh

  def __call__(
    self, state: TrainState, frozen: Any, batch: Batch
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one step."""
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    draw_rng, *dropout_rngs = jax.random.split(rng, 3)
    draw = self.draw(draw_rng, state.params, frozen, batch)
    (_, metrics), gradients = jax.value_and_grad(self.losses, has_aux=True)(
      state.params, draw, dropout_rngs
    )
    updates, opt_state = self.optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    metrics |= {
      "norm/gradient": optax.tree.norm(gradients),
      "norm/parameters": optax.tree.norm(params),
      "norm/updates": optax.tree.norm(updates),
      **data_metrics(batch, draw.learn, draw.selection),
    }
    state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state
    )
    return state, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), metrics)

  def draw(
    self, rng: jax.Array, params: Any, frozen: Any, batch: Batch
  ) -> Draw:
    """Scores the super-batch and draws the pairs to learn from."""
    recipe = self.recipe
    cached = batch.get("cached", {})
    known = {name: cached[name] for name in recipe.frozen if name in cached}
    if recipe.reference and recipe.reference not in known:
      known[recipe.reference] = self.frozen_embeddings(
        recipe.reference, frozen, batch
      )
    if not recipe.curated:
      rows = {k: v for k, v in batch.items() if k != "cached"}
      return Draw(rows, rows, self.teach(known, frozen, rows), None)

    select_rng, iid_rng = jax.random.split(rng)
    selection = self.select(select_rng, params, known, batch)
    learn = take(batch, selection, self.mesh)
    drawn, distil = selection, learn
    if recipe.teachers and recipe.distill_batch == "iid":
      drawn = curation.sample_uniformly(
        iid_rng, batch_size=recipe.batch_size, mask=batch["_mask"]
      )
      distil = take(batch, drawn, self.mesh)
    known = {name: e.take(drawn.indices) for name, e in known.items()}
    return Draw(learn, distil, self.teach(known, frozen, distil), selection)

  def select(
    self, rng: jax.Array, params: Any, known: Any, batch: Batch
  ) -> curation.Selection:
    """Draws the batch from the super-batch by the recipe's method."""
    recipe, student = self.recipe, None
    if recipe.scores_student:
      student = embed_in_microbatches(
        self.model, params, batch, recipe.microbatch
      ).stop_gradient()
    return SAMPLERS[recipe.method](
      rng,
      student,
      known.get(recipe.reference),
      batch_size=recipe.batch_size,
      num_chunks=recipe.num_chunks,
      score=recipe.score,
      loss=recipe.loss,
      gain=recipe.gain,
      temperature=recipe.temperature,
      mask=batch["_mask"],
    )

  def teach(
    self, known: Mapping[str, Embeddings], frozen: Any, rows: Batch
  ) -> dict[str, Embeddings]:
    """Embeddings of `rows` by every teacher; `known` ones are not run again."""
    return {
      name: (
        known[name]
        if name in known
        else self.frozen_embeddings(name, frozen, rows)
      )
      for name, _ in self.recipe.teachers
    }

  def frozen_embeddings(
    self, name: str, frozen: Any, batch: Batch
  ) -> Embeddings:
    """Embeddings of a batch by a frozen model, as constants."""
    return embed_in_microbatches(
      self.frozen_models[name], frozen[name], batch, self.recipe.microbatch
    ).stop_gradient()

  def losses(
    self, params: Any, draw: Draw, rngs: Sequence[jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss to minimise, and its parts by name."""
    recipe = self.recipe
    student = embed(self.model, params, draw.learn, train=True, rng=rngs[0])
    contrastive = objectives.CONTRASTIVE[recipe.loss](
      student, draw.learn["_mask"]
    )
    parts = {"loss/contrastive": contrastive}
    if draw.distil is not draw.learn:
      student = embed(self.model, params, draw.distil, train=True, rng=rngs[1])
    distilled = 0.0
    for name, weight in recipe.teachers:
      maps = params.get(PROJECTIONS, {}).get(name)
      loss = objectives.DISTILLATION[recipe.distill_loss](
        student,
        draw.teachers[name],
        draw.distil["_mask"],
        **({"projections": (maps["image"], maps["text"])} if maps else {}),
      )
      parts[f"loss/distillation/{name}"] = loss
      distilled += weight * loss
    total = contrastive + recipe.distill_weight * distilled
    parts |= {"loss": total, "scale/t": student.t, "scale/b": student.b}
    return total, parts


def data_metrics(
  batch: Batch, learnt: Batch, selection: curation.Selection | None
) -> dict[str, jax.Array]:
  """What was in the super-batch, and what curation made of it."""
  metrics = {
    "data/masked": (~batch["_mask"]).mean(),
    "data/masked_trained": (~learnt["_mask"]).mean(),
  }
  if selection is not None:
    effective = selection.effective_sample_size
    metrics |= {
      "curation/kept_score": selection.kept_score,
      "curation/pool_score": selection.pool_score,
      "curation/pool_spread": selection.pool_spread,
      "curation/effective_sample_size": effective.mean(),
      "curation/effective_sample_size_least": effective.min(),
    }
  if "fault" in batch:
    metrics["data/clean_pool"] = clean_share(batch)
    metrics["data/clean_kept"] = clean_share(learnt)
  return metrics


def clean_share(batch: Batch) -> jax.Array:
  """Share of clean pairs among those whose truth is known (fault >= 0)."""
  known = batch["_mask"] & (batch["fault"] >= 0)
  clean = (known & (batch["fault"] == 0)).sum()
  return clean / jnp.maximum(known.sum(), 1)
