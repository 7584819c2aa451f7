"""One step: score a super-batch, keep what is worth learning, learn it.

`TrainStep` is a pure function for `jax.jit`. Every method of the papers is this
one function with two switches, curation and distillation:

    super-batch -> embed (student, frozen) -> select -> embed with gradients
    -> L_contrastive + distill_weight * L_distill -> update
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from aced import curation, objectives
from aced.data.records import CAUSES
from aced.embeddings import Embeddings
from aced.training import accumulation, sharding
from aced.training import picks as picks_lib
from aced.training import views as views_lib
from aced.training.embedding import Batch, Embedder
from aced.training.exchange import exchange, place
from aced.training.recipe import Recipe, Scoring
from aced.training.sketch import sketch
from aced.training.state import PROJECTIONS, TrainState
from aced.training.views import STUDENT

SAMPLERS = {
  "joint": curation.sample_jointly,
  "independent": curation.sample_independently,
}


# What the rows that are drawn do without, or have of their own.
NOT_TAKEN = ("cached", "_mask", "error")


def take(
  batch: Batch,
  known: Mapping[str, Embeddings],
  drawn: curation.Selection,
  mesh: jax.sharding.Mesh,
  scope: str,
) -> tuple[Batch, dict[str, Embeddings]]:
  """The rows of a batch that were drawn, as many on every device.

  Args:
    batch: `B` rows, split over the devices.
    known: name -> embeddings of these rows.
    drawn: from them.
    mesh: of the devices.
    scope: with which they were drawn.

  Returns:
    `b` rows of the batch and of the embeddings, split alike. They stand in an
    order in which as few as can be had to move.
  """
  rows = batch["_mask"].shape[0] // mesh.size
  placement = place(drawn.indices, rows, mesh.size)
  columns = {k: v for k, v in batch.items() if k not in NOT_TAKEN}
  arrays = {name: (e.zimg, e.ztxt) for name, e in known.items()}
  columns, arrays = exchange(
    (columns, arrays), placement, mesh, moves=scope == "global"
  )
  mask = drawn.mask[placement.order]
  columns = sharding.shard_rows(columns | {"_mask": mask}, mesh)
  known = {name: Embeddings(*arrays[name], *e[2:]) for name, e in known.items()}
  return columns, known


class Draw(NamedTuple):
  """The pairs that one step learns from.

  Attributes:
    learn: rows of the batch for the contrastive loss.
    distil: rows for the distillation losses; the same object as `learn` where
      they are the same pairs.
    teachers: name -> embeddings of the `distil` rows.
    student: embeddings of the `learn` rows by the student, where they are
      needed and were made for scoring.
    selection: how the rows were drawn, or None without curation.
    picks: the super-batch and what was kept of it, as `picks.columns`.
  """

  learn: Batch
  distil: Batch
  teachers: dict[str, Embeddings]
  student: Embeddings | None = None
  selection: curation.Selection | None = None
  picks: Mapping[str, jax.Array] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
  """`train_step(state, frozen, batch) -> (state, metrics)`, pure, for jit.

  `frozen` maps names to parameters. `batch` holds `image`, `labels`, `_mask`
  of `B` pairs; the columns of other views; `fault` where the data set knows the
  truth, `index` and `error` where it tells; and, under "cached", name ->
  `Embeddings` of frozen models, which are then not run at all.
  Metrics are float32 scalars, and what is none: `errors`, how many records
  could not be used, by the code of their cause; `sketch`, of the records that
  were chosen; and with curation `picks`, `(B,)` columns of the super-batch.

  A step whose loss, gradient or update is not finite changes nothing but
  `state.step`, and says so by the metric `guard/skipped`.

  Attributes:
    model: the student.
    frozen_models: name -> model, for every name in `recipe.frozen`.
    optimizer: of `make_optimizer`.
    recipe: the method.
    mesh: over which batches are split.
    views: what models see that do not see what the student does.
  """

  model: nn.Module
  frozen_models: Mapping[str, nn.Module]
  optimizer: optax.GradientTransformation
  recipe: Recipe
  mesh: jax.sharding.Mesh
  views: views_lib.Views = dataclasses.field(default_factory=views_lib.Views)

  def __call__(
    self, state: TrainState, frozen: Any, batch: Batch
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one step."""
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    draw_rng, *dropout_rngs = jax.random.split(rng, 3)
    draw = self.draw(draw_rng, state.params, frozen, batch)
    (_, metrics), gradients = self.gradients(state.params, draw, dropout_rngs)
    metrics |= data_metrics(batch, draw.learn, draw.selection)
    state, metrics = advance(state, self.optimizer, gradients, metrics)
    if draw.picks:
      metrics[picks_lib.PICKS] = draw.picks
    return state, metrics

  def draw(
    self, rng: jax.Array, params: Any, frozen: Any, batch: Batch
  ) -> Draw:
    """Scores the super-batch and draws the pairs to learn from."""
    recipe = self.recipe
    cached = batch.get("cached", {})
    known = {name: cached[name] for name in recipe.frozen if name in cached}
    if not recipe.curated:
      rows = {k: v for k, v in batch.items() if k not in ("cached", "error")}
      taught = self.teach(known, frozen, rows)
      rows = views_lib.without_extra(rows)
      return Draw(rows, rows, taught)

    scored = dict(known)
    if recipe.reference and recipe.reference not in known:
      found = self.embedder(recipe.reference).score(
        frozen[recipe.reference], self.see(recipe.reference, batch)
      )
      scored[recipe.reference] = found
      if not (recipe.scoring.cheap and recipe.scoring.reference):
        known[recipe.reference] = found
    if recipe.scores_student:
      scored[STUDENT] = self.embedder(STUDENT).score(params, batch)
    select_rng, iid_rng = jax.random.split(rng)
    selection = self.select(select_rng, scored, batch)
    draw = self.drawn(selection, iid_rng, known, scored, frozen, batch)
    picks = picks_lib.columns(recipe, scored, selection, batch)
    return draw._replace(picks=picks)

  def drawn(
    self,
    selection: curation.Selection,
    iid_rng: jax.Array,
    known: Mapping[str, Embeddings],
    scored: Mapping[str, Embeddings],
    frozen: Any,
    batch: Batch,
  ) -> Draw:
    """The rows of a selection, and of an IID draw where the recipe has one."""
    recipe, mesh = self.recipe, self.mesh
    reused = {STUDENT: scored[STUDENT]} if recipe.reuses_scoring else {}
    # What no teacher needs has no need to travel.
    teachers = {k: known[k] for k, _ in recipe.teachers if k in known}
    unknown = [name for name, _ in recipe.teachers if name not in known]
    batch = views_lib.without_extra(batch, self.views.extra(unknown))
    separate = bool(recipe.teachers) and recipe.distill_batch == "iid"
    travels = reused if separate else reused | teachers
    learn, taken = take(batch, travels, selection, mesh, recipe.scope)
    student, distil = taken.pop(STUDENT, None), learn
    if separate:
      drawn = curation.sample_uniformly(
        iid_rng,
        batch_size=recipe.batch_size,
        mask=batch["_mask"],
        scope=recipe.scope,
        mesh=mesh,
      )
      distil, taken = take(batch, teachers, drawn, mesh, recipe.scope)
    taught = self.teach(taken, frozen, distil)
    same = distil is learn
    learn = views_lib.without_extra(learn)
    distil = learn if same else views_lib.without_extra(distil)
    return Draw(learn, distil, taught, student, selection)

  def select(
    self, rng: jax.Array, scored: Mapping[str, Embeddings], batch: Batch
  ) -> curation.Selection:
    """Draws the batch from the super-batch by the recipe's method."""
    recipe = self.recipe
    return SAMPLERS[recipe.method](
      rng,
      scored.get(STUDENT),
      scored.get(recipe.reference),
      batch_size=recipe.batch_size,
      num_chunks=recipe.num_chunks,
      score=recipe.score,
      loss=recipe.loss,
      gain=recipe.gain,
      temperature=recipe.temperature,
      mask=batch["_mask"],
      scope=recipe.scope,
      mesh=self.mesh,
      kernel=recipe.kernel,
    )

  def teach(
    self, known: Mapping[str, Embeddings], frozen: Any, rows: Batch
  ) -> dict[str, Embeddings]:
    """Embeddings of `rows` by every teacher; `known` ones are not run again."""
    return {
      name: (
        known[name]
        if name in known
        else self.embedder(name).plain(frozen[name], self.see(name, rows))
      )
      for name, _ in self.recipe.teachers
    }

  def see(self, name: str, batch: Batch) -> Batch:
    """The pairs of a batch as a model sees them."""
    return self.views.get(name, views_lib.View()).of(batch)

  def embedder(self, name: str) -> Embedder:
    """What embeds with the student or with a frozen model."""
    scoring = self.recipe.scoring
    student = name == STUDENT
    if not student and not scoring.reference:
      scoring = Scoring(microbatch=scoring.microbatch)
    if student and not self.recipe.cotrains:
      scoring = dataclasses.replace(scoring, cotrain=0.0)
    model = self.model if student else self.frozen_models[name]
    return Embedder(model, scoring, self.mesh)

  def gradients(
    self, params: Any, draw: Draw, rngs: Sequence[jax.Array]
  ) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Any]:
    """`((loss, its parts), gradient)`, in one pass or in exact pieces."""
    student, recipe = self.embedder(STUDENT), self.recipe
    passes = [accumulation.Pass(draw.learn, rngs[0], draw.student)]
    if draw.distil is not draw.learn:
      passes.append(accumulation.Pass(draw.distil, rngs[1]))
    loss = functools.partial(self.losses, draw)
    if recipe.accumulates:
      return accumulation.gradients(
        student.train, loss, params, passes, recipe.microbatch
      )

    def whole(params):
      embedded = [student.train(params, p.rows, p.rng) for p in passes]
      return loss(params, *embedded)

    return jax.value_and_grad(whole, has_aux=True)(params)

  def losses(
    self, draw: Draw, params: Any, *embedded: Embeddings
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss to minimise, and its parts by name.

    Args:
      draw: what is learnt from.
      params: for the linear maps of feature distillation.
      *embedded: the student's embeddings of the `learn` rows and, where they
        are others, of the `distil` rows.
    """
    recipe, form = self.recipe, self.form()
    contrastive = form.contrastive[recipe.loss](
      embedded[0], draw.learn["_mask"]
    )
    parts = {"loss/contrastive": contrastive}
    distilled = 0.0
    for name, weight in recipe.teachers:
      maps = params.get(PROJECTIONS, {}).get(name)
      loss = form.distillation[recipe.distill_loss](
        embedded[-1],
        draw.teachers[name],
        draw.distil["_mask"],
        **({"projections": (maps["image"], maps["text"])} if maps else {}),
      )
      parts[f"loss/distillation/{name}"] = loss
      distilled += weight * loss
    total = contrastive + recipe.distill_weight * distilled
    student = embedded[-1]
    parts |= {"loss": total, "scale/t": student.t, "scale/b": student.b}
    return total, parts

  def form(self) -> objectives.Form:
    """The losses, dense or block by block."""
    if self.recipe.ring(self.mesh):
      return objectives.ring_form(self.mesh)
    return objectives.DENSE


def advance(
  state: TrainState,
  optimizer: optax.GradientTransformation,
  gradients: Any,
  metrics: dict[str, jax.Array],
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes an update, unless something in it is not finite.

  Args:
    state: before it.
    optimizer: of `make_optimizer`.
    gradients: of its parameters.
    metrics: of the step, "loss" among them.

  Returns:
    The state after it, and the metrics, with norms, as float32.
  """
  norm = optax.tree.norm(gradients)
  updates, opt_state = optimizer.update(
    gradients, state.opt_state, state.params
  )
  params = optax.apply_updates(state.params, updates)
  moved = optax.tree.norm(updates)
  watched = metrics["loss"], norm, moved, optax.tree.norm(params)
  finite = jnp.isfinite(jnp.stack(watched)).all()
  params, opt_state = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (params, opt_state),
    (state.params, state.opt_state),
  )
  metrics = metrics | {
    "guard/skipped": ~finite,
    "norm/gradient": norm,
    "norm/parameters": optax.tree.norm(params),
    "norm/updates": moved,
  }
  state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
  return state, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), metrics)


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
    if "index" in learnt:
      metrics["sketch"] = sketch(learnt["index"], learnt["_mask"])
  if "error" in batch:
    codes = jnp.arange(len(CAUSES))
    metrics["errors"] = (batch["error"][:, None] == codes[None]).sum(0)
  if "fault" in batch:
    metrics["data/clean_pool"] = clean_share(batch)
    metrics["data/clean_kept"] = clean_share(learnt)
  return metrics


def clean_share(batch: Batch) -> jax.Array:
  """Share of clean pairs among those whose truth is known (fault >= 0)."""
  known = batch["_mask"] & (batch["fault"] >= 0)
  clean = (known & (batch["fault"] == 0)).sum()
  return clean / jnp.maximum(known.sum(), 1)
