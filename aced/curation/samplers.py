"""Drawing a batch from a super-batch: jointly, independently or uniformly.

All are pure functions of arrays, work under `jax.jit`, and draw by Gumbel
top-k: `size` items without replacement, with probabilities proportional to
`exp(gain * score / temperature)`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from aced.curation.scores import (
  LOSSES,
  SCORES,
  check_choice,
  conditional_scores,
  pair_scores,
  signed_models,
)
from aced.embeddings import Embeddings


class Selection(NamedTuple):
  """The pairs drawn from a super-batch of `n`, and how the draw went.

  Attributes:
    indices: `(b,)` int32 positions in the super-batch, in the order drawn.
    scores: `(b,)` float32 scores at the time of the draw, in nats.
    mask: `(b,)` bool; False where the super-batch ran out of valid pairs, and
      the item there must not be learnt from.
    kept_score: scalar, mean score of the pairs drawn.
    pool_score: scalar, mean score of the pairs they were drawn from; for joint
      sampling both are means over chunks, of scores given the earlier chunks.
    pool_spread: scalar, standard deviation of those scores in the pool.
    effective_sample_size: `(num_chunks,)` float32, `1 / sum p^2` of the
      probabilities of each chunk's first draw: 1 is a decided draw (greedy, or
      one candidate far ahead), the number of candidates a uniform one.
  """

  indices: jax.Array
  scores: jax.Array
  mask: jax.Array
  kept_score: jax.Array
  pool_score: jax.Array
  pool_spread: jax.Array
  effective_sample_size: jax.Array


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


def sample_jointly(
  rng: jax.Array,
  student: Embeddings | None,
  reference: Embeddings | None,
  *,
  batch_size: int,
  num_chunks: int = 16,
  score: str = "learnability",
  loss: str = "sigmoid",
  gain: jax.Array | float = 1.0,
  temperature: jax.Array | float = 1.0,
  mask: jax.Array | None = None,
) -> Selection:
  """Draws a batch whose pairs are worth learning *together*.

  Blocked Gibbs sampling (JEST, arXiv 2406.17711, algorithm 1): the first chunk
  of `batch_size / num_chunks` pairs is drawn by the scores of pairs alone, each
  further one by the scores given all pairs selected so far. Running sums take
  the place of the paper's full matrix: `O(n b d)` work, `O(n b / num_chunks)`
  memory. The draw is from the whole super-batch, wherever its rows are.

  Args:
    rng: a jax PRNG key.
    student: embeddings of the `n` candidates by the student, at its own scale;
      may be None if `score` is "easy_reference".
    reference: the same by the frozen reference; may be None if `score` is
      "hard". Its width may differ from the student's.
    batch_size: `b`, how many to draw.
    num_chunks: in how many chunks; 1 is independent sampling.
    score: "learnability", "easy_reference" or "hard".
    loss: the loss whose values are compared, "sigmoid" or "softmax".
    gain: scalar, multiplies the scores.
    temperature: scalar, divides them; 0 takes the highest scores.
    mask: `(n,)` bool, False for candidates that must not be drawn.

  Returns:
    The `Selection`.

  Raises:
    ValueError: an unknown score or loss, a model that is needed is None, or
      sizes that do not divide.
  """
  models = signed_models(student, reference, score)
  n = models[0][1].zimg.shape[0]
  check_sizes(n, batch_size, num_chunks)
  size = batch_size // num_chunks
  conditional = conditional_scores(models, loss, num_chunks, size)
  available = _available(mask, n)

  def step(carry, key):
    state, chunk, available = carry
    state, scores = conditional.extend(state, chunk)
    chunk, stats = _draw(key, scores, available, size, gain, temperature)
    return (state, chunk, available.at[chunk].set(False)), (chunk, stats)

  keys = jax.random.split(rng, num_chunks)
  state, scores = conditional.start()
  first, stats = _draw(keys[0], scores, available, size, gain, temperature)
  carry = (state, first, available.at[first].set(False))
  _, (chunks, later) = jax.lax.scan(step, carry, keys[1:])
  chunks = jnp.concatenate([first[None], chunks])
  stats = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), stats, later)
  return _selection(chunks, stats)


def sample_independently(
  rng: jax.Array,
  student: Embeddings | None,
  reference: Embeddings | None,
  *,
  batch_size: int,
  num_chunks: int = 1,
  score: str = "learnability",
  loss: str = "sigmoid",
  gain: jax.Array | float = 1.0,
  temperature: jax.Array | float = 1.0,
  mask: jax.Array | None = None,
) -> Selection:
  """Draws the pairs most worth learning each on its own, in one chunk.

  The score of a pair is `pair_scores`, so no pair's worth depends on the
  others: the pointwise selection of RHO-LOSS (arXiv 2206.07137), with the
  contrastive loss of the pair in place of its classification loss. Arguments,
  result and errors are those of `sample_jointly`; `num_chunks` is accepted for
  the common shape and has no effect.
  """
  del num_chunks
  scores = pair_scores(student, reference, score=score, loss=loss)
  n = scores.shape[0]
  check_sizes(n, batch_size)
  available = _available(mask, n)
  chunk, stats = _draw(rng, scores, available, batch_size, gain, temperature)
  return _selection(*jax.tree.map(lambda x: x[None], (chunk, stats)))


def sample_uniformly(
  rng: jax.Array,
  student: Embeddings | None = None,
  reference: Embeddings | None = None,
  *,
  batch_size: int,
  num_chunks: int = 1,
  score: str = "learnability",
  loss: str = "sigmoid",
  gain: jax.Array | float = 1.0,
  temperature: jax.Array | float = 1.0,
  mask: jax.Array | None = None,
) -> Selection:
  """Draws pairs uniformly without replacement: the baseline.

  Arguments, result and errors are those of `sample_jointly`. Either model or
  the mask must be given to tell the size of the super-batch; with the models
  that `score` needs, scores are reported though they have no part in the draw.

  Raises:
    ValueError: neither a model nor a mask is given, or sizes do not fit.
  """
  del num_chunks, gain, temperature
  known = [m.zimg.shape[0] for m in (student, reference) if m is not None]
  known += [] if mask is None else [mask.shape[0]]
  if not known:
    raise ValueError(
      "sample_uniformly cannot tell the size of the super-batch: pass `mask`,"
      " `student` or `reference`."
    )
  n = known[0]
  check_sizes(n, batch_size)
  check_choice("score", score, SCORES)
  check_choice("loss", loss, LOSSES)
  scores = jnp.zeros((n,), jnp.float32)
  needed = zip(SCORES[score], (student, reference), strict=True)
  if all(model is not None for sign, model in needed if sign):
    scores = pair_scores(student, reference, score=score, loss=loss)
  available = _available(mask, n)
  chunk, stats = _draw(rng, scores, available, batch_size, 0.0, 1.0)
  return _selection(*jax.tree.map(lambda x: x[None], (chunk, stats)))


def _available(mask, n):
  """The mask as `(n,)` bool; everything is available where there is none."""
  return jnp.ones((n,), bool) if mask is None else jnp.asarray(mask, bool)


class _Stats(NamedTuple):
  """What is kept of one chunk's draw."""

  scores: jax.Array
  mask: jax.Array
  kept: jax.Array
  pool: jax.Array
  spread: jax.Array
  effective: jax.Array


def _draw(rng, scores, available, size, gain, temperature):
  """Draws `size` of the available candidates; returns indices and stats."""
  noise = jax.random.gumbel(rng, scores.shape, jnp.float32)
  keys = jnp.float32(gain) * scores + jnp.float32(temperature) * noise
  _, chunk = jax.lax.top_k(jnp.where(available, keys, -jnp.inf), size)
  drawn, valid = scores[chunk], available[chunk]
  pool = _mean(scores, available)
  variance = _mean(jnp.square(scores - pool), available)
  return chunk, _Stats(
    scores=drawn,
    mask=valid,
    kept=_mean(drawn, valid),
    pool=pool,
    spread=jnp.sqrt(variance),
    effective=_effective(scores, available, gain, temperature),
  )


def _effective(scores, available, gain, temperature):
  """`1 / sum p^2`, `p = softmax(gain * scores / temperature)`; greedy: 1."""
  temperature = jnp.float32(temperature)
  safe = jnp.where(temperature > 0, temperature, 1.0)
  x = jnp.where(available, jnp.float32(gain) * scores / safe, -jnp.inf)
  size = jnp.exp(2 * jax.nn.logsumexp(x) - jax.nn.logsumexp(2 * x))
  return jnp.where(temperature > 0, jnp.where(available.any(), size, 0.0), 1.0)


def _mean(x, mask):
  """Mean of `x` where `mask`; 0 where nothing is."""
  return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def _selection(chunks, stats):
  """Joins `(num_chunks, m)` indices and stats into a `Selection`."""
  drew = stats.mask.any(axis=1)  # A chunk that found nothing has no means.
  return Selection(
    indices=chunks.reshape(-1).astype(jnp.int32),
    scores=stats.scores.reshape(-1),
    mask=stats.mask.reshape(-1),
    kept_score=_mean(stats.kept, drew),
    pool_score=_mean(stats.pool, drew),
    pool_spread=_mean(stats.spread, drew),
    effective_sample_size=stats.effective,
  )
