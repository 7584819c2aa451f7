"""Texts written by a decoder: the likeliest token by token, and beam search.

Every text is read from its first token on, one position a step: while a
position is within a text's prompt its token is the prompt's, behind it the
decoder's own. So prompts of any lengths go together, and what a row becomes
depends on no other row.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aced.models import placement
from aced.models.decoder import Cache, Decoder


def greedy(
  model: Decoder,
  params: dict,
  memory: jax.Array,
  prompts: jax.Array,
  lengths: jax.Array | None = None,
  *,
  eos: int,
  pad: int,
  max_length: int,
  mesh: jax.sharding.Mesh | None = None,
) -> jax.Array:
  """Writes the likeliest token at every position.

  Of equal logits the lower id wins. It is compiled once for each `model`,
  `max_length` and shape of `memory`, and stops when every text has ended.

  Args:
    model: the decoder.
    params: its parameters.
    memory: `(n, m, dm)` float, the tokens of the pictures.
    prompts: `(n, l)` integers; what is behind a prompt is not read.
    lengths: `(n,)` integers, ids of each prompt, at least one; all `l` if None.
    eos: id that ends a text. Within a prompt it ends nothing.
    pad: id behind the end of a text.
    max_length: tokens of a text, prompt and end among them.
    mesh: rows are split over all of its axes, as `placement.rows_over`; None
      leaves that to where the arrays are.

  Returns:
    `(n, max_length)` int32: prompt, what was written, eos unless there was no
    room for it, then pad.

  Raises:
    ValueError: arrays that do not fit each other, a prompt that is empty or
      longer than `max_length`, ids that the model does not have, or a
      `max_length` above the model's.
  """
  ids, lengths = _checked(
    model, memory, prompts, lengths, (eos, pad), max_length
  )
  return _greedy(model, mesh, params, memory, ids, lengths, int(eos))


def beam(
  model: Decoder,
  params: dict,
  memory: jax.Array,
  prompts: jax.Array,
  lengths: jax.Array | None = None,
  *,
  num_beams: int,
  length_penalty: float = 0.0,
  eos: int,
  pad: int,
  max_length: int,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Searches for the likeliest text, `num_beams` unfinished ones at a time.

  A text `y` of a picture `x`, its prompt not counted and its eos counted, has
  the score of Wu et al. 2016 (arXiv 1609.08144, equation 14, without coverage):

      log p(y | x) / ((5 + |y|) / 6) ^ length_penalty

  Each step looks at the `2 * num_beams` best continuations. Among the first
  `num_beams` of them those that end, by eos or for want of room, compete with
  the best text that ended before, which so is never lost; the first
  `num_beams` without eos go on. A row is done when no text that goes on can
  come to a higher score. Of equal scores the text that ended earlier wins, then
  the higher beam, then the lower id. One beam and no penalty is `greedy`.

  Args:
    model: the decoder; as of `greedy`, like all that follow but two.
    params: its parameters.
    memory: `(n, m, dm)` float, the tokens of the pictures.
    prompts: `(n, l)` integers.
    lengths: `(n,)` integers, ids of each prompt.
    num_beams: texts that are kept unfinished, at most `vocab_size`.
    length_penalty: the exponent, at least 0: 0 prefers short texts, 1 is near
      the mean over the tokens.
    eos: id that ends a text.
    pad: id behind the end of a text.
    max_length: tokens of a text, prompt and end among them.
    mesh: rows are split over all of its axes.

  Returns:
    `(n, max_length)` int32 as `greedy`, the best text of each row; and `(n,)`
    float32, its score, 0 where the prompt leaves no room.

  Raises:
    ValueError: as `greedy`, or `num_beams` or `length_penalty` out of range.
  """
  ids, lengths = _checked(
    model, memory, prompts, lengths, (eos, pad), max_length
  )
  check_search(model, num_beams, length_penalty)
  alpha = float(length_penalty)
  found = _beam(
    model, mesh, num_beams, params, memory, ids, lengths, int(eos), alpha
  )
  return found.best_ids, found.best


def check_search(model: Decoder, num_beams: int, length_penalty: float) -> None:
  """Raises ValueError where beam search cannot be told so."""
  whole = isinstance(num_beams, int)
  if not whole or not 1 <= num_beams <= model.vocab_size:
    raise ValueError(
      f"num_beams={num_beams!r} must be at least 1 and at most the decoder's"
      f" vocab_size={model.vocab_size}, a whole number."
    )
  if not 0 <= length_penalty < float("inf"):
    raise ValueError(
      f"length_penalty={length_penalty} must be finite and at least 0: it is an"
      " exponent of the length by which log-likelihoods are divided."
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _greedy(model, mesh, params, memory, ids, lengths, eos):
  """Fills `ids`, the prompts with pad behind them, from left to right."""
  max_length = ids.shape[1]

  def step(state):
    place, ids, done, cache = state
    tokens = jax.lax.dynamic_index_in_dim(ids, place, 1, keepdims=False)
    logits, cache = _apply(model, params, mesh, "step", tokens, cache, place)
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    place += 1
    free = (place >= lengths) & ~done
    # Where nothing is written stands the prompt or, behind the end, pad.
    kept = jax.lax.dynamic_index_in_dim(ids, place, 1, keepdims=False)
    tokens = jnp.where(free, best, kept)
    ids = jax.lax.dynamic_update_index_in_dim(ids, tokens, place, 1)
    return place, ids, done | free & (best == eos), cache

  state = (
    jnp.int32(0),
    ids,
    lengths >= max_length,
    _apply(model, params, mesh, "start", memory, max_length),
  )
  return jax.lax.while_loop(
    lambda state: (state[0] < max_length - 1) & ~jnp.all(state[2]), step, state
  )[1]


class _Search(NamedTuple):
  """The state of a beam search: `n` rows of `k` beams, `l` positions."""

  place: jax.Array  # Of the newest tokens.
  ids: jax.Array  # (n, k, l), best first.
  totals: jax.Array  # (n, k) log-likelihoods; -inf is no beam.
  best_ids: jax.Array  # (n, l), of the best that ended.
  best: jax.Array  # (n,), its score; -inf is none.
  done: jax.Array  # (n,)
  cache: Cache


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _beam(model, mesh, beams, params, memory, ids, lengths, eos, alpha):
  """The last state of a search from `ids`, prompts with pad behind them."""
  n, max_length = ids.shape
  no_room = lengths >= max_length
  state = _Search(
    place=jnp.int32(0),
    ids=jnp.repeat(ids[:, None], beams, axis=1),
    # Behind the prompt all beams are one, so one alone may go on.
    totals=jnp.full((n, beams), -jnp.inf).at[:, 0].set(0.0),
    best_ids=ids,
    best=jnp.where(no_room, 0.0, -jnp.inf),
    done=no_room,
    cache=_apply(model, params, mesh, "start", memory, max_length, beams),
  )

  def step(state):
    tokens = jax.lax.dynamic_index_in_dim(state.ids, state.place, 2, False)
    rows, cache, place = tokens.reshape(-1), state.cache, state.place
    logits, cache = _apply(model, params, mesh, "step", rows, cache, place)
    log_p = jax.nn.log_softmax(logits).reshape(n, beams, -1)
    state = state._replace(cache=cache)
    return _extend(state, log_p, lengths, eos, alpha, mesh)

  return jax.lax.while_loop(
    lambda s: (s.place < max_length - 1) & ~jnp.all(s.done), step, state
  )


def _extend(state, log_p, lengths, eos, alpha, mesh):
  """One more token in every beam that is free, by `(n, k, vocab)` log_p."""
  n, beams, vocab = log_p.shape
  max_length, place = state.ids.shape[2], state.place + 1
  free = (place >= lengths) & ~state.done
  totals = (state.totals[:, :, None] + log_p).reshape(n, -1)
  # At most one continuation of each beam is eos: in twice as many as there are
  # beams there are enough without. Equal ones come by beam, then by id.
  totals, flat = _top_k(totals, min(2 * beams, beams * vocab), mesh)
  parents, tokens = flat // vocab, flat % vocab
  ids = jnp.take_along_axis(state.ids, parents[:, :, None], axis=1)
  ids = jax.lax.dynamic_update_index_in_dim(ids, tokens, place, 2)

  ends = (tokens == eos) | (place == max_length - 1)
  ends &= (jnp.arange(ids.shape[1]) < beams)[None]
  scores = jnp.where(ends, totals, -jnp.inf)
  scores /= _penalty(place + 1 - lengths, alpha)[:, None]
  first = jnp.argmax(scores, axis=1)[:, None]
  score = jnp.take_along_axis(scores, first, axis=1)[:, 0]
  ended = jnp.take_along_axis(ids, first[:, :, None], axis=1)[:, 0]
  better = free & (score > state.best)
  best = jnp.where(better, score, state.best)

  going_on = jnp.where(tokens == eos, -jnp.inf, totals)
  totals, alive = _top_k(going_on, beams, mesh)
  ids = jnp.take_along_axis(ids, alive[:, :, None], axis=1)
  parents = jnp.take_along_axis(parents, alive, axis=1)
  totals = jnp.where(free[:, None], totals, state.totals)
  # Within a prompt all beams have one cache: no matter whose they go on with.
  cache = _reorder(state.cache, parents)
  # A log-likelihood only falls, and the longest text divides it by most.
  bound = totals[:, 0] / _penalty(max_length - lengths, alpha)
  return _Search(
    place,
    jnp.where(free[:, None, None], ids, state.ids),
    totals,
    jnp.where(better[:, None], ended, state.best_ids),
    best,
    state.done | free & (best >= bound),
    cache,
  )


def _top_k(x, k, mesh):
  """`lax.top_k`, which XLA would gather the rows of all devices for."""
  top = functools.partial(jax.lax.top_k, k=k)
  if mesh is None or len(x) % mesh.size:
    return top(x)
  rows = jax.P(mesh.axis_names)
  return jax.shard_map(top, mesh=mesh, in_specs=rows, out_specs=rows)(x)


def _penalty(length, alpha):
  # Of rows that are still within their prompt nothing is used.
  return ((5.0 + jnp.maximum(length, 1)) / 6.0) ** alpha


def _reorder(cache, parents):
  """Each picture's texts go on from those of its own that `(n, k)` names."""

  def choose(x):
    depth, rows, *rest = x.shape
    x = x.reshape(depth, *parents.shape, *rest)
    x = jax.vmap(lambda x, p: x[:, p], in_axes=(1, 0), out_axes=1)(x, parents)
    return x.reshape(depth, rows, *rest)

  return cache._replace(keys=choose(cache.keys), values=choose(cache.values))


def _apply(model, params, mesh, method, *args):
  # A mesh from outside would be that of the first call, kept with its program.
  with placement.rows_over(mesh):
    return model.apply({"params": params}, *args, method=method)


def _checked(model, memory, prompts, lengths, ends, max_length):
  """`(n, max_length)` int32 prompts with pad behind, and `(n,)` lengths."""
  if np.ndim(prompts) != 2 or np.ndim(memory) != 3:
    raise ValueError(
      f"prompts of shape {np.shape(prompts)} and memory of shape"
      f" {np.shape(memory)}; expected (n, l) ids and (n, m, dm) tokens."
    )
  n, width = prompts.shape
  if lengths is None:
    lengths = np.full(n, width, np.int32)
  if len(memory) != n or np.shape(lengths) != (n,):
    raise ValueError(
      f"{n} prompts, lengths of shape {np.shape(lengths)} and the tokens of"
      f" {len(memory)} pictures; expected one of each for every text."
    )
  for name, x in (("prompts", prompts), ("lengths", lengths)):
    if not jnp.issubdtype(x.dtype, jnp.integer):
      raise ValueError(f"{name} are of dtype {x.dtype}; expected integers.")
  if not 1 <= max_length <= model.max_length:
    raise ValueError(
      f"max_length={max_length} must be at least 1 and at most the decoder's"
      f" max_length={model.max_length}, the positions that it has."
    )
  for name, token in zip(("eos", "pad"), ends, strict=True):
    if not 0 <= token < model.vocab_size:
      raise ValueError(
        f"{name}={token} is no id of the decoder, whose vocab_size is"
        f" {model.vocab_size}."
      )
  if _known(prompts) and _known(lengths):
    _check_values(model, np.asarray(prompts), np.asarray(lengths), max_length)
  ids = jnp.asarray(prompts[:, :max_length], jnp.int32)
  ids = jnp.pad(ids, ((0, 0), (0, max(max_length - width, 0))))
  lengths = jnp.asarray(lengths, jnp.int32)
  inside = jnp.arange(max_length)[None] < lengths[:, None]
  return jnp.where(inside, ids, ends[1]), lengths


def _known(x):
  """Whether this process has the values: none do of what is being traced."""
  if isinstance(x, jax.core.Tracer):
    return False
  return not isinstance(x, jax.Array) or x.is_fully_addressable


def _check_values(model, prompts, lengths, max_length):
  width = prompts.shape[1]
  wrong = np.flatnonzero((lengths < 1) | (lengths > min(width, max_length)))
  if wrong.size:
    row = wrong[0]
    raise ValueError(
      f"the prompt of row {row} is {lengths[row]} ids long; expected at least 1"
      f" and at most the {width} ids of a row and max_length={max_length}. Cut"
      " it, or give padding rows a length of 1."
    )
  inside = np.arange(width)[None] < lengths[:, None]
  wrong = inside & ((prompts < 0) | (prompts >= model.vocab_size))
  if wrong.any():
    row, place = np.argwhere(wrong)[0]
    raise ValueError(
      f"prompts[{row}, {place}]={prompts[row, place]} is no id of the decoder,"
      f" whose vocab_size is {model.vocab_size}."
    )
