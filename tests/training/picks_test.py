"""What is written down of a draw, against the draw."""

import jax
import numpy as np
import pytest

from aced import curation
from aced.training import picks
from aced.training.recipe import Recipe
from tests.config_test import curated, resolve
from tests.training.toy import Setup, make_batch


def recipe(**changes):
  return Recipe.from_config(resolve(curated(**changes)))


def own_loss(model):
  """Of every pair alone, in float64, by the formula."""
  similarity = np.sum(np.float64(model.zimg) * np.float64(model.ztxt), axis=1)
  return np.logaddexp(0, -(float(model.t) * similarity + float(model.b)))


def test_columns_are_the_losses_and_the_pairs_that_were_drawn(make_embeddings):
  student, reference = make_embeddings(0, n=80), make_embeddings(1, n=80)
  mask = np.arange(80) != 7
  drawn = curation.sample_jointly(
    jax.random.key(0),
    student,
    reference,
    batch_size=16,
    num_chunks=4,
    mask=mask,
  )
  batch = {"_mask": mask, "index": np.arange(100, 180)}
  found = picks.columns(
    recipe(), {"": student, "reference": reference}, drawn, batch
  )
  # Float32 against float64, of losses up to some tens.
  np.testing.assert_allclose(found["student"], own_loss(student), rtol=1e-5)
  np.testing.assert_allclose(found["reference"], own_loss(reference), rtol=1e-5)
  kept = set(np.flatnonzero(found["kept"]))
  assert kept == set(np.asarray(drawn.indices).tolist())
  assert not np.asarray(found["usable"])[7] and "fault" not in found


def test_pairs_that_were_drawn_for_want_of_others_are_not_kept(make_embeddings):
  models = make_embeddings(0, n=80), make_embeddings(1, n=80)
  mask = np.arange(80) < 10
  drawn = curation.sample_jointly(
    jax.random.key(0), *models, batch_size=16, num_chunks=4, mask=mask
  )
  batch = {"_mask": mask, "index": np.arange(80)}
  scored = dict(zip(("", "reference"), models))
  found = picks.columns(recipe(), scored, drawn, batch)
  np.testing.assert_array_equal(found["kept"], mask)


def test_without_indices_there_is_nothing_to_tell():
  assert picks.columns(recipe(), {}, None, {"_mask": np.ones(3)}) == {}


@pytest.mark.parametrize("devices", [1, 8])
def test_a_step_tells_of_the_rows_it_learns(devices, tmp_path):
  setup = Setup(curated(), devices=devices)
  batch = make_batch(80) | {"index": np.arange(1000, 1080, dtype=np.int32)}
  state = setup.init()
  rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  draw = jax.jit(setup.step.draw)(
    jax.random.split(rng, 3)[0], state.params, setup.frozen, setup.put(batch)
  )
  learnt = np.sort(np.asarray(draw.learn["index"]))
  _, metrics = jax.jit(setup.step)(state, setup.frozen, setup.put(batch))

  writer = picks.Writer(tmp_path, frozenset({1}))
  writer.push(1, metrics[picks.PICKS])
  writer.push(2, metrics[picks.PICKS])
  (found,) = picks.read(tmp_path)
  assert found.step == 1
  np.testing.assert_array_equal(found.columns["index"], batch["index"])
  np.testing.assert_array_equal(found.columns["fault"], batch["fault"])
  np.testing.assert_array_equal(found.columns["index"][found.kept], learnt)
  np.testing.assert_array_equal(
    found.score(), found.columns["student"] - found.columns["reference"]
  )


def test_moments_are_spread_from_the_first_step_to_the_last():
  assert picks.moments(12, 6) == {1, 3, 5, 8, 10, 12}
  assert picks.moments(3, 6) == {1, 2, 3}
  assert picks.moments(12, 1) == {1}
  assert picks.moments(12, 0) == frozenset()


def test_a_disk_that_is_full_costs_the_run_nothing(tmp_path, caplog):
  (tmp_path / picks.FOLDER).write_text("in the place of the folder")
  writer = picks.Writer(tmp_path, frozenset({1}))
  writer.push(1, {"index": np.arange(3), "kept": np.ones(3, bool)})
  writer.flush()
  assert "the picks of step 1 are not kept" in caplog.text


def test_damage_is_told_by_name(tmp_path):
  folder = tmp_path / picks.FOLDER
  folder.mkdir()
  (folder / "00000003.npz").write_bytes(b"PK\x03\x04 cut short")
  with pytest.raises(ValueError, match=r"00000003\.npz is damaged"):
    picks.read(tmp_path)
  assert picks.read(tmp_path / "elsewhere") == []


def test_no_damage_ends_in_anything_else(tmp_path):
  path = tmp_path / picks.FOLDER / "00000001.npz"
  picks._write(path, {"index": np.arange(9), "kept": np.arange(9) > 4})
  whole, rng = path.read_bytes(), np.random.default_rng(0)
  refused = 0
  for at in rng.choice(len(whole), 150, replace=False):
    changed = bytearray(whole)
    changed[at] ^= 1 << rng.integers(8)
    path.write_bytes(changed)
    try:
      picks.read(tmp_path)
    except ValueError as error:
      assert "is damaged" in str(error)
      refused += 1
  assert refused > 50
