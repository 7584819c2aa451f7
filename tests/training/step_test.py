"""The step: every method, against the same thing done by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced import curation, objectives
from aced.training.embedding import embed
from tests.config_test import curated
from tests.training.toy import Setup, make_batch

DISTILLED = {"weight": 0.5, "teachers": {"reference": 2.0}}
METHODS = {
  "iid": {"batch_size": 16, "total_steps": 5},
  "kd": {
    "batch_size": 16,
    "total_steps": 5,
    "frozen": {"reference": {}},
    "distillation": DISTILLED,
  },
  "i_acid": curated(curation__score="easy_reference"),
  "h_acid": curated(),
  "acidistill": curated(distillation=DISTILLED),
  "iidistill": curated(distillation={**DISTILLED, "batch": "iid"}),
  "rho_loss": curated(curation__method="independent"),
  "hard": curated(curation__score="hard", curation__reference="", frozen={}),
  # The bias has no part in a softmax loss: its gradient is what rounding leaves
  # of zero, and Adam would take a whole step along that.
  "softmax": curated(
    loss="softmax", optimizer={"learning_rate_rules": (("b", 0.0),)}
  ),
}
METHODS["hard"].pop("frozen")


@functools.cache
def run_of(method):
  """Three steps of a method on eight devices: the state and all metrics."""
  return Setup(METHODS[method]).run()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_reports(method):
  final, metrics = run_of(method)
  assert int(final.step) == 3
  for name, value in metrics[-1].items():
    assert np.isfinite(value), name
  assert metrics[0]["norm/updates"] > 0
  assert ("curation/kept_score" in metrics[0]) == (method not in ("iid", "kd"))
  assert ("loss/distillation/reference" in metrics[0]) == (
    "distil" in method
  ) or (method == "kd")


@pytest.mark.parametrize("method", METHODS)
def test_one_and_eight_devices_are_the_same(method):
  _, one = Setup(METHODS[method], devices=1).run()
  _, eight = run_of(method)
  for a, b in zip(one, eight, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      # The same sums in another order. A score of the softmax loss is a small
      # difference of log-sum-exps of size 10, and loses a digit by it.
      abs_ = 1e-4 if name.startswith("curation/") else 1e-5
      assert a[name] == pytest.approx(b[name], rel=1e-5, abs=abs_), name


@pytest.mark.parametrize("method", ["h_acid", "iidistill", "softmax"])
def test_one_and_eight_devices_draw_the_same_pairs(method):
  drawn = []
  for devices in (1, 8):
    setup = Setup(METHODS[method], devices=devices)
    found = jax.jit(setup.step.draw)(
      jax.random.key(3),
      setup.init().params,
      setup.frozen,
      setup.put(make_batch(80, masked=(0, 9))),
    )
    # Rows stand in the order in which fewest move: another on eight devices.
    rows = (
      np.unique(np.asarray(x["image"]), axis=0)
      for x in (found.learn, found.distil)
    )
    drawn.append([found.selection.indices, *rows])
  for one, eight in zip(*drawn, strict=True):
    np.testing.assert_array_equal(one, eight)


def by_hand(setup, state, batch):
  """Selection, loss and parts of ACIDistill, straight from the contracts."""
  recipe = setup.recipe
  rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  select_rng, _ = jax.random.split(jax.random.split(rng, 3)[0])
  student = embed(setup.model, state.params, batch)
  reference = embed(
    setup.frozen_models["reference"], setup.frozen["reference"], batch
  )
  drawn = curation.sample_jointly(
    select_rng,
    student,
    reference,
    batch_size=recipe.batch_size,
    num_chunks=recipe.num_chunks,
    mask=batch["_mask"],
  )
  ours, theirs = student.take(drawn.indices), reference.take(drawn.indices)
  contrastive = objectives.sigmoid_loss(ours)
  distilled = objectives.softmax_distillation(ours, theirs)
  return drawn, contrastive, distilled, contrastive + 0.5 * 2.0 * distilled


def test_the_loss_is_that_of_the_selected_pairs():
  setup = Setup(METHODS["acidistill"])
  state = setup.init()
  batch = make_batch(80, masked=(1, 5, 7))
  drawn, contrastive, distilled, total = by_hand(setup, state, batch)
  assert not {1, 5, 7} & set(np.asarray(drawn.indices).tolist())
  _, metrics = jax.jit(setup.step)(state, setup.frozen, setup.put(batch))
  for name, want in (
    ("loss/contrastive", contrastive),
    ("loss/distillation/reference", distilled),
    ("loss", total),
    ("curation/kept_score", drawn.kept_score),
    ("curation/effective_sample_size", drawn.effective_sample_size.mean()),
    ("data/masked", 3 / 80),
    ("data/clean_kept", (batch["fault"][drawn.indices] == 0).mean()),
  ):
    assert float(metrics[name]) == pytest.approx(float(want), rel=1e-5), name
  pool = (batch["fault"] == 0)[batch["_mask"]].mean()
  assert float(metrics["data/clean_pool"]) == pytest.approx(pool)


def test_easy_reference_picks_what_the_reference_finds_easy():
  config = curated(
    curation__score="easy_reference",
    curation__method="independent",
    curation__temperature=0.0,
  )
  setup = Setup(config)
  batch = make_batch(80)
  found = jax.jit(setup.step.draw)(
    jax.random.key(0), setup.init().params, setup.frozen, setup.put(batch)
  )
  reference = embed(
    setup.frozen_models["reference"], setup.frozen["reference"], batch
  )
  own = np.sum(np.asarray(reference.zimg) * reference.ztxt, axis=1)
  want = np.argsort(-own)[:16]
  np.testing.assert_array_equal(found.selection.indices, want)


def test_cached_embeddings_stand_in_for_the_frozen_model():
  setup = Setup(METHODS["acidistill"])
  batch = make_batch(80)
  found = embed(
    setup.frozen_models["reference"], setup.frozen["reference"], batch
  )
  step = jax.jit(setup.step)
  run, _ = step(setup.init(), setup.frozen, setup.put(batch))
  cached = setup.put(batch) | {"cached": {"reference": setup.put(found)}}
  unused, _ = step(setup.init(), {}, cached)
  for a, b in zip(
    jax.tree.leaves(run.params), jax.tree.leaves(unused.params), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_teacher_that_is_the_reference_is_run_once():
  """ACIDistill adds no matrix product of the frozen model to ACID."""
  flops = {}
  for method in ("h_acid", "acidistill", "iidistill"):
    setup = Setup(METHODS[method], devices=1)
    lowered = jax.jit(setup.step).lower(
      setup.init(), setup.frozen, setup.put(make_batch(80))
    )
    flops[method] = lowered.compile().cost_analysis()["flops"]
  forward = 2 * 80 * 6 * (4 * 4 * 3 + 3 * 8)  # The reference on 80 pairs.
  assert flops["acidistill"] - flops["h_acid"] < forward / 2
  assert flops["iidistill"] > flops["acidistill"]


def test_two_teachers_by_weight():
  config = curated(
    distillation={"weight": 0.5, "teachers": {"reference": 2.0, "other": 3.0}},
    frozen__other={},
  )
  setup = Setup(config)
  assert setup.recipe.frozen == ("reference", "other")
  _, metrics = setup.run(1)
  parts = metrics[0]
  want = parts["loss/contrastive"] + 0.5 * (
    2.0 * parts["loss/distillation/reference"]
    + 3.0 * parts["loss/distillation/other"]
  )
  assert parts["loss"] == pytest.approx(want, rel=1e-5)


def test_feature_distillation_learns_its_projections():
  config = {**METHODS["kd"], "distillation": {**DISTILLED, "loss": "feature"}}
  setup = Setup(config, frozen_width=9)
  rng = np.random.default_rng(0)
  maps = {
    "reference": {
      k: jnp.asarray(rng.standard_normal((6, 9)), jnp.float32)
      for k in ("image", "text")
    }
  }
  before = setup.init(maps=maps)
  after, _ = jax.jit(setup.step)(before, setup.frozen, make_batch(16))
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()),
    before.params["projections"],
    after.params["projections"],
  )
  assert min(jax.tree.leaves(moved)) > 0


def test_microbatched_scoring_selects_the_same():
  _, whole = run_of("h_acid")
  config = {**METHODS["h_acid"], "scoring": {"microbatch": 16}}
  _, parts = Setup(config).run()
  for a, b in zip(whole, parts, strict=True):
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_scoring_is_without_dropout_and_training_is_with_it():
  plain, dropped = (
    Setup(METHODS["h_acid"], dropout=d).run(1)[1][0] for d in (0.0, 0.5)
  )
  assert plain["curation/kept_score"] == dropped["curation/kept_score"]
  assert plain["loss"] != dropped["loss"]


def test_each_step_draws_anew_and_runs_repeat():
  _, first = run_of("h_acid")
  _, again = Setup(METHODS["h_acid"]).run()
  assert first == again
  _, other = Setup(METHODS["h_acid"]).run(seed=1)
  assert first != other


def test_sizes_that_the_mesh_cannot_carry_are_refused():
  with pytest.raises(ValueError, match="batch_size=12 does not divide over"):
    Setup(curated(batch_size=12, curation__filter_ratio=0.5))
  with pytest.raises(ValueError, match="scoring.microbatch=20 does not divide"):
    Setup({**METHODS["h_acid"], "scoring": {"microbatch": 20}})
  with pytest.raises(
    ValueError, match="not divisible by scoring.microbatch=32"
  ):
    Setup({**METHODS["h_acid"], "scoring": {"microbatch": 32}})


@pytest.mark.parametrize("method", ["h_acid", "acidistill", "softmax"])
def test_ring_losses_take_the_same_steps(method):
  _, dense = run_of(method)
  setup = Setup({**METHODS[method], "loss_form": "ring"})
  assert setup.recipe.ring(setup.mesh)
  _, ring = setup.run()
  for a, b in zip(dense, ring, strict=True):
    for name in a:
      abs_ = 1e-4 if name.startswith("curation/") else 1e-5
      assert b[name] == pytest.approx(a[name], rel=1e-5, abs=abs_), name


def test_losses_are_in_blocks_where_the_logits_are_large():
  setup = Setup({"batch_size": 16, "total_steps": 5})
  assert not setup.recipe.ring(setup.mesh)
  large = Setup({"batch_size": 32_768, "total_steps": 5})
  assert large.recipe.ring(large.mesh)


@pytest.mark.parametrize("method", ["h_acid", "iidistill"])
def test_per_device_quotas_move_no_picture(method):
  """Every device trains on its own rows, and none is sent."""
  # Chunks of 8, one of each device.
  config = {**METHODS[method]}
  config["curation"] = config["curation"] | {
    "scope": "per_device",
    "num_chunks": 2,
  }
  setup = Setup(config)
  batch = make_batch(80)
  batch["labels"] = np.repeat(np.arange(8), 10)[:, None].repeat(3, 1)
  batch["labels"] = batch["labels"].astype(np.int32)
  draw = jax.jit(setup.step.draw)
  args = (
    jax.random.key(0),
    setup.init().params,
    setup.frozen,
    setup.put(batch),
  )
  found = draw(*args)
  for rows in (found.learn, found.distil):
    np.testing.assert_array_equal(
      rows["labels"][:, 0], np.repeat(np.arange(8), 2)
    )
  assert "all-to-all" not in draw.lower(*args).compile().as_text()
  _, metrics = setup.run(2)
  assert np.isfinite(metrics[-1]["loss"])


def test_per_device_needs_chunks_that_divide():
  config = curated(curation__scope="per_device")
  with pytest.raises(ValueError, match="chunk of 4 pairs does not divide over"):
    Setup(config)
