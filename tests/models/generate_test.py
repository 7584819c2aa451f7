"""Greedy decoding and beam search against searches written out in Python."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.models import Decoder, build_decoder, generate, params, placement
from tests.models import decoder_test
from tests.models.decoder_test import MEMORY, VOCAB, config, log_p

EOS, PAD = 1, 0
IS_EOS = np.arange(VOCAB) == EOS
LENGTH = 7
AUTO = (jax.sharding.AxisType.Auto,)
BEAM = functools.partial(generate.beam, num_beams=3, length_penalty=0.6)


def init(seed=0, extra=IS_EOS, **changes):
  """A random decoder, to whose logits `extra` `(vocab,)` is added.

  Of itself it seldom writes eos.
  """
  model, tree = decoder_test.init(seed, **changes)
  # The first feature has one value behind the last norm.
  tree["decoder_norm"]["scale"][0], tree["decoder_norm"]["bias"][0] = 0, 10
  tree["Embed_0"]["embedding"][:, 0] = 0.1 * extra
  return model, tree


def task(n=8, width=4, vocab=VOCAB, seed=0, **fixed):
  """Pictures, prompts of several lengths, and what all calls have in common.

  Behind the prompts stand other ids than pad: nothing may read them.
  """
  rng = np.random.default_rng(seed)
  return {
    "memory": rng.standard_normal((n, 4, MEMORY)).astype(np.float32),
    "prompts": rng.integers(2, vocab, (n, width)).astype(np.int32),
    "lengths": (1 + np.arange(n) % width).astype(np.int32),
    "eos": EOS,
    "pad": PAD,
    "max_length": LENGTH,
    **fixed,
  }


def greedy(model, tree, **task):
  return np.asarray(generate.greedy(model, tree, **task))


def beam(model, tree, **task):
  return tuple(map(np.asarray, generate.beam(model, tree, **task)))


def rows_of(task, rows):
  """The task with some of its rows, in another order perhaps."""
  arrays = ("memory", "prompts", "lengths")
  return task | {k: task[k][rows] for k in arrays}


def prompt_of(task, row):
  return task["prompts"][row, : task["lengths"][row]].tolist()


def padded(ids):
  return ids + [PAD] * (LENGTH - len(ids))


def greedy_by_hand(tree, task):
  """One row after the other, each with a whole float64 pass for each token."""
  found = []
  for row, memory in enumerate(task["memory"]):
    ids, open_ = prompt_of(task, row), True
    while open_ and len(ids) < LENGTH:
      following = log_p(tree, np.array([ids]), memory[None])[0, -1]
      ids.append(int(np.argmax(following)))
      open_ = ids[-1] != EOS
    found.append(padded(ids))
  return np.array(found)


@pytest.mark.parametrize("scan", [False, True])
def test_greedy_is_the_likeliest_token_of_whole_passes(scan):
  _, tree = init()
  # Ids within a prompt end nothing, not even eos.
  task_ = task(n=16)
  task_["prompts"][3, 1] = EOS
  given = params.stack_layers(tree) if scan else tree
  got = greedy(build_decoder(config(scan=scan)), given, **task_)
  np.testing.assert_array_equal(got, greedy_by_hand(tree, task_))
  assert got.dtype == np.int32 and got.shape == (16, LENGTH)
  # Some texts end, and some are cut.
  written = [row[k:].tolist() for row, k in zip(got, task_["lengths"])]
  assert any(EOS in row[:-1] for row in written)
  assert any(EOS not in row for row in written)


def beams_by_hand(tree, prompt, memory, beams, alpha):
  """Beam search of one row with lists; no row stops before it is full."""

  def score(total, ids):
    return total / ((5 + len(ids) - len(prompt)) / 6) ** alpha

  alive, best = [(0.0, prompt)], (-np.inf, None)
  for length in range(len(prompt), LENGTH):
    ids = np.array([ids for _, ids in alive])
    following = log_p(tree, ids, np.repeat(memory[None], len(ids), 0))[:, -1]
    grown = [
      (total + p, [*ids, token])
      for (total, ids), row in zip(alive, following)
      for token, p in enumerate(row)
    ]
    # Python sorts stably: of equal ones, the earlier beam and the lower id.
    grown = sorted(grown, key=lambda x: -x[0])
    for total, ids in grown[:beams]:
      if ids[-1] == EOS or length == LENGTH - 1:
        best = max(best, (score(total, ids), ids), key=lambda x: x[0])
    alive = [x for x in grown if x[1][-1] != EOS][:beams]
  return best


@pytest.mark.parametrize(
  ("beams", "alpha"), [(1, 2.5), (2, 0.0), (3, 0.6), (4, 1.0), (5, 2.5)]
)
def test_beam_search_is_that_of_plain_lists(beams, alpha):
  model, tree = init()
  task_ = task()
  options = {"num_beams": beams, "length_penalty": alpha}
  ids, scores = beam(model, tree, **options, **task_)
  for row, memory in enumerate(task_["memory"]):
    prompt = prompt_of(task_, row)
    score, want = beams_by_hand(tree, prompt, memory, beams, alpha)
    assert ids[row].tolist() == padded(want)
    # Sums of up to six float32 log-probabilities of logits of order 3.
    assert scores[row] == pytest.approx(score, abs=5e-5)
  assert 0 < (ids[:, -1] == PAD).sum() < 8  # Some end early, not all.


def best_of_all(tree, prompt, memory, live, alpha):
  """The best text, from a list of all that can be written."""
  room = LENGTH - len(prompt)
  written = list(itertools.product(range(live), repeat=room))
  ids = np.array([[*prompt, *x] for x in written])
  following = log_p(tree, ids[:, :-1], np.repeat(memory[None], len(ids), 0))
  steps = np.take_along_axis(following, ids[:, 1:, None], axis=2)[:, :, 0]
  best = (-np.inf, None)
  for row, step in zip(ids, steps[:, len(prompt) - 1 :]):
    ended = np.flatnonzero(row[len(prompt) :] == EOS)
    count = ended[0] + 1 if ended.size else room
    score = step[:count].sum() / ((5 + count) / 6) ** alpha
    best = max(best, (score, row[: len(prompt) + count]), key=lambda x: x[0])
  return best[0], best[1].tolist()


@pytest.mark.parametrize("alpha", [0.0, 0.7, 2.0])
def test_a_wide_beam_finds_the_best_of_all_texts(alpha):
  # Four ids, up to four tokens: before the last one at most 36 texts are
  # unfinished or just ended, which 40 beams hold.
  live, missed = 4, 0
  for seed in (0, 1):
    others = -50.0 * (np.arange(40) >= live)
    model, tree = init(seed, extra=others, vocab_size=40)
    task_ = task(n=4, vocab=live, seed=seed, width=6)
    task_["lengths"] = np.array([3, 4, 5, 6], np.int32)
    ids, scores = beam(model, tree, num_beams=40, length_penalty=alpha, **task_)
    for row, memory in enumerate(task_["memory"]):
      prompt = prompt_of(task_, row)
      score, want = best_of_all(tree, prompt, memory, live, alpha)
      assert ids[row].tolist() == padded(want)
      # As above.
      assert scores[row] == pytest.approx(score, abs=5e-5)
    missed += (greedy(model, tree, **task_) != ids).any(axis=1).sum()
  assert missed  # Or the search would have been none.


def test_one_beam_without_penalty_is_greedy():
  for seed in range(3):
    model, tree = init(seed)
    task_ = task(n=16, seed=seed)
    ids, _ = beam(model, tree, num_beams=1, length_penalty=0.0, **task_)
    np.testing.assert_array_equal(ids, greedy(model, tree, **task_))


def test_equal_ones_go_to_the_lower_id():
  model, tree = init()
  # No id differs from another.
  tree["Embed_0"]["embedding"][:] = tree["Embed_0"]["embedding"][0]
  task_ = task(n=2, lengths=np.array([1, 2], np.int32), eos=2)
  got = greedy(model, tree, **task_)
  assert not got[0, 1:].any() and not got[1, 2:].any()
  ids, scores = beam(model, tree, num_beams=3, **task_)
  # Three beams hold 0, 1 and eos at once, and no longer text is likelier.
  assert [row[k] for row, k in zip(ids, (1, 2))] == [2, 2]
  # One choice of eleven.
  np.testing.assert_allclose(scores, -np.log(VOCAB), atol=1e-5)


@functools.cache
def searches():
  """Greedy and beam search as functions of a task, with one model."""
  model, tree = init()

  def both(task):
    found = generate.greedy(model, tree, **task), *BEAM(model, tree, **task)
    return [np.asarray(x) for x in found]

  return both


def assert_same(got, want):
  for a, b in zip(got[:2], want[:2]):
    np.testing.assert_array_equal(a, b)
  # Products of other shapes may sum in another order.
  np.testing.assert_allclose(got[2], want[2], atol=5e-6)


def test_no_row_knows_of_another():
  task_ = task()
  want = searches()(task_)
  alone = [searches()(rows_of(task_, [row])) for row in range(8)]
  assert_same([np.concatenate(x) for x in zip(*alone)], want)
  order = np.random.default_rng(0).permutation(8)
  assert_same(searches()(rows_of(task_, order)), [x[order] for x in want])
  # Other rows, and padding rows with nothing but a first id.
  mixed = rows_of(task_, [0, 1, 2, 3, 4, 4, 4, 4])
  mixed["memory"][5:] = 0
  mixed["prompts"][5:] = PAD
  mixed["lengths"][5:] = 1
  assert_same([x[:5] for x in searches()(mixed)], [x[:5] for x in want])


def test_what_stands_behind_a_prompt_is_not_read():
  task_ = task()
  want = searches()(task_)
  inside = np.arange(4)[None] < task_["lengths"][:, None]
  clean = np.where(inside, task_["prompts"], PAD)
  assert_same(searches()(task_ | {"prompts": clean}), want)
  wider = np.pad(clean, ((0, 0), (0, 5)), constant_values=VOCAB + 3)
  assert_same(searches()(task_ | {"prompts": wider}), want)


def test_prompts_of_full_length_stay_as_they_are():
  task_ = task(n=8, width=LENGTH)
  task_["lengths"][:4] = LENGTH
  task_["lengths"][4:] = 3, 4, 5, 6
  ids, beams, scores = searches()(task_)
  np.testing.assert_array_equal(ids[:4], task_["prompts"][:4])
  np.testing.assert_array_equal(beams[:4], task_["prompts"][:4])
  assert not scores[:4].any() and (scores[4:] < 0).all()
  ids, beams, _ = searches()(task_ | {"lengths": None})
  np.testing.assert_array_equal(ids, task_["prompts"])
  np.testing.assert_array_equal(beams, task_["prompts"])


class Watched(Decoder):
  """A decoder that notes when it is traced and which positions it reads."""

  traced, read = [], []

  def start(self, *args):
    self.traced.append("start")
    return super().start(*args)

  def step(self, tokens, cache, position):
    self.traced.append("step")
    jax.debug.callback(lambda x: self.read.append(int(x)), position)
    return super().step(tokens, cache, position)


def watch(function, *args, **kwargs):
  """What a call returns, what it traced, and the positions it read."""
  Watched.traced.clear()
  Watched.read.clear()
  found = jax.block_until_ready(function(*args, **kwargs))
  jax.effects_barrier()
  return found, list(Watched.traced), sorted(Watched.read)


@pytest.mark.parametrize("search", [generate.greedy, BEAM], ids=["one", "beam"])
def test_a_search_ends_with_its_last_text(search):
  _, tree = init(extra=50.0 * IS_EOS)
  task_ = task(n=4)  # Prompts of 1 to 4 ids.
  found, _, read = watch(search, Watched(**config()), tree, **task_)
  ids = np.asarray(jax.tree.leaves(found)[0])
  for row in range(4):
    assert ids[row].tolist() == padded([*prompt_of(task_, row), EOS])
  # At the last of four ids eos was written, and there was no more to do.
  assert read == [0, 1, 2, 3]
  full = rows_of(task_ | {"max_length": 4}, [3, 3, 3, 3])
  assert watch(search, Watched(**config()), tree, **full)[2] == []


@pytest.mark.parametrize("search", [generate.greedy, BEAM], ids=["one", "beam"])
def test_a_second_call_traces_nothing(search):
  _, tree = init()

  def call(model, **task):
    found, traced, _ = watch(search, model, tree, **task)
    return np.asarray(jax.tree.leaves(found)[0]), traced

  # An eps of its own keeps the programs apart from those of other tests.
  fields = config(norm_eps=1.1e-6)
  first, traced = call(Watched(**fields), **task())
  assert {"start", "step"} <= set(traced)
  # A model that is equal is the same; so are other ids and lengths, and
  # prompts of another width.
  again, traced = call(Watched(**fields), **task())
  assert not traced
  np.testing.assert_array_equal(again, first)
  other = task(seed=1, width=3, eos=2, pad=3)
  other["memory"] = jnp.asarray(other["memory"])
  assert not call(Watched(**fields), **other)[1]
  assert call(Watched(**fields), **task(max_length=6))[1]


@pytest.mark.parametrize("jitted", [False, True])
def test_rows_may_be_split_over_devices(jitted):
  model, tree = init()
  mesh = jax.make_mesh((8,), ("data",), axis_types=AUTO)
  rows, whole = (jax.NamedSharding(mesh, jax.P(x)) for x in ("data", None))
  task_ = task(n=16)
  want = searches()(task_)
  arrays = [task_.pop(k) for k in ("memory", "prompts", "lengths")]
  arrays = [jax.device_put(tree, whole), *jax.device_put(arrays, rows)]
  task_["mesh"] = mesh if jitted else None

  def both(*arrays):
    ids = generate.greedy(model, *arrays, **task_)
    return ids, *BEAM(model, *arrays, **task_)

  if jitted:
    both = jax.jit(both).lower(*arrays).compile()
    # Rows need nothing of each other but whether all are done.
    assert "all-gather" not in both.as_text()
  found = both(*arrays)
  assert_same(list(map(np.asarray, found)), want)
  for x in found:
    assert {shard.data.shape[0] for shard in x.addressable_shards} == {2}


def test_the_mesh_is_the_one_that_is_given():
  model, tree = init()
  mesh = jax.make_mesh((8,), ("data",), axis_types=AUTO)
  # One from outside would stay in a program that others share.
  with placement.rows_over(mesh):
    for given in (None, mesh):
      search = functools.partial(generate.greedy, model, **task(mesh=given))
      split = "sharding_constraint" in str(jax.make_jaxpr(search)(tree))
      assert split == (given is not None)


def test_bfloat16_runs():
  model, tree = init(dtype_mm="bfloat16")
  task_ = task()
  task_["memory"] = jnp.asarray(task_["memory"], jnp.bfloat16)
  ids = greedy(model, tree, **task_)
  beams, scores = beam(model, tree, num_beams=3, **task_)
  # Its logits are within 0.15, by which few choices are decided.
  assert (ids == greedy(build_decoder(config()), tree, **task_)).mean() > 0.7
  assert scores.dtype == np.float32 and np.isfinite(scores).all()
  for row, length in enumerate(task_["lengths"]):
    for found in (ids, beams):
      assert found[row, :length].tolist() == prompt_of(task_, row)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"memory": np.zeros((3, 4, MEMORY))}, "tokens of 3 pictures"),
    ({"memory": np.zeros((8, MEMORY))}, r"memory of shape \(8, 6\); expected"),
    ({"prompts": np.zeros(8, int)}, r"prompts of shape \(8,\)"),
    ({"prompts": np.zeros((8, 4))}, "prompts are of dtype float64"),
    ({"lengths": np.ones(8)}, "lengths are of dtype float64"),
    ({"lengths": np.arange(8)}, "prompt of row 0 is 0 ids long"),
    ({"lengths": np.full(8, 5)}, "row 0 is 5 ids long.*the 4 ids of a row"),
    ({"max_length": 3}, "row 3 is 4 ids long.*max_length=3"),
    ({"max_length": 8}, "max_length=8 must be .* max_length=7"),
    ({"max_length": 0}, "max_length=0 must be at least 1"),
    ({"prompts": np.full((8, 4), VOCAB)}, r"prompts\[0, 0\]=11 is no id"),
    ({"eos": VOCAB}, "eos=11 is no id of the decoder"),
    ({"pad": -1}, "pad=-1 is no id of the decoder"),
    ({"num_beams": 0}, "num_beams=0 must be at least 1"),
    ({"num_beams": VOCAB + 1}, "num_beams=12 must be .*vocab_size=11"),
    ({"length_penalty": -0.5}, "length_penalty=-0.5 must be"),
    ({"length_penalty": float("nan")}, "length_penalty=nan must be"),
  ],
)
def test_what_is_wrong_is_named(changes, message):
  model, tree = build_decoder(config()), decoder_test.shapes()
  given = task() | changes
  with pytest.raises(ValueError, match=message):
    BEAM(model, tree, **given)
  if not {"num_beams", "length_penalty"} & set(changes):
    with pytest.raises(ValueError, match=message):
      generate.greedy(model, tree, **given)
