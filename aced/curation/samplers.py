"""Drawing a batch from a super-batch: jointly, independently or uniformly.

All are pure functions of arrays, work under `jax.jit`, and draw by Gumbel
top-k: `size` items without replacement, with probabilities proportional to
`exp(gain * score / temperature)`.

With a mesh, the rows of the super-batch are split over all of its devices and
stay there. Two scopes, which are two algorithms:

    global      the best of the whole super-batch, wherever they are: the same
                draw on any number of devices
    per_device  an equal quota of each device's own rows, so that no picture
                has to cross the network; scores are conditioned on what all
                devices selected. A good row loses to a bad one on another
                device, the more so the fewer rows a device has.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aced.curation.scores import (
  LOSSES,
  SCORES,
  added_scores,
  as_embeddings,
  check_choice,
  conditional_scores,
  pair_scores,
  signed_models,
)
from aced.curation.shards import Shards, split
from aced.curation.sizes import check_mesh, check_sizes
from aced.embeddings import Embeddings

# What computes the scores that a chunk adds: XLA, or one fused Pallas kernel.
KERNELS = ("xla", "pallas")


class Selection(NamedTuple):
  """The pairs drawn from a super-batch of `n`, and how the draw went.

  Attributes:
    indices: `(b,)` int32 positions in the super-batch, in the order drawn;
      with scope "per_device" first those of the first device, and so on.
    scores: `(b,)` float32 scores at the time of the draw, in nats.
    mask: `(b,)` bool; False where the super-batch ran out of valid pairs, and
      the item there must not be learnt from.
    kept_score: scalar, mean score of the pairs drawn.
    pool_score: scalar, mean score of the pairs they were drawn from; for joint
      sampling both are means over chunks, of scores given the earlier chunks.
    pool_spread: scalar, standard deviation of those scores in the pool.
    effective_sample_size: `(num_chunks,)` float32, `1 / sum p^2` of the
      probabilities of each chunk's first draw: 1 is a decided draw (greedy, or
      one candidate far ahead), the number of candidates a uniform one; with
      scope "per_device" the sum over devices.
  """

  indices: jax.Array
  scores: jax.Array
  mask: jax.Array
  kept_score: jax.Array
  pool_score: jax.Array
  pool_spread: jax.Array
  effective_sample_size: jax.Array


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
  scope: str = "global",
  mesh: jax.sharding.Mesh | None = None,
  kernel: str = "xla",
) -> Selection:
  """Draws a batch whose pairs are worth learning *together*.

  Blocked Gibbs sampling (JEST, arXiv 2406.17711, algorithm 1): the first chunk
  of `batch_size / num_chunks` pairs is drawn by the scores of pairs alone, each
  further one by the scores given all pairs selected so far. Running sums take
  the place of the paper's full matrix: `O(n b d)` work, `O(n b / num_chunks)`
  memory, both split over the devices of a mesh, between which only keys and
  the embeddings of the newest chunk travel.

  Args:
    rng: a jax PRNG key.
    student: embeddings of the `n` candidates by the student, at its own scale,
      as `Embeddings` or a tuple or dict of the same; may be None if `score` is
      "easy_reference".
    reference: the same by the frozen reference; may be None if `score` is
      "hard". Its width may differ from the student's.
    batch_size: `b`, how many to draw.
    num_chunks: in how many chunks; 1 is independent sampling.
    score: "learnability", "easy_reference" or "hard".
    loss: the loss whose values are compared, "sigmoid" or "softmax".
    gain: scalar, multiplies the scores.
    temperature: scalar, divides them; 0 takes the highest scores.
    mask: `(n,)` bool, False for candidates that must not be drawn.
    scope: "global" or "per_device", see the module.
    mesh: over whose devices the rows are split, in blocks, by all axes in
      their order, which must be Auto; None is one device, or leaves it to XLA.
    kernel: "xla", or "pallas" for the fused kernel of `curation.fused`
      (sigmoid loss alone).

  Returns:
    The `Selection`, the same on every device.

  Raises:
    ValueError: an unknown score, loss, scope or kernel, a model that is needed
      is None, shapes that do not fit, or sizes that do not divide.
  """
  models = signed_models(student, reference, score)
  check_choice("loss", loss, LOSSES)
  check_choice("kernel", kernel, KERNELS)
  if kernel != "xla" and loss != "sigmoid":
    raise ValueError(
      f"kernel={kernel!r} computes the sigmoid loss alone, not loss={loss!r};"
      " use kernel='xla'."
    )
  n = models[0][1].zimg.shape[0]
  check_sizes(n, batch_size, num_chunks)
  size = batch_size // num_chunks
  check_mesh(n, size, scope, mesh)
  signs = [sign for sign, _ in models]

  def draw(shards, rng, embeddings, available, gain, temperature):
    conditional = conditional_scores(
      list(zip(signs, embeddings, strict=True)),
      loss,
      num_chunks,
      size,
      shards,
      _kernel(kernel),
    )
    next_chunk = partial(
      _draw, size=size, gain=gain, temperature=temperature, shards=shards
    )

    def step(carry, key):
      state, chunk, available = carry
      state, scores = conditional.extend(state, chunk)
      chunk, stats = next_chunk(key, scores, available)
      return (state, chunk, shards.clear(available, chunk)), (chunk, stats)

    keys = jax.random.split(rng, num_chunks)
    state, scores = conditional.start()
    first, stats = next_chunk(keys[0], scores, available)
    carry = (state, first, shards.clear(available, first))
    _, (chunks, later) = jax.lax.scan(step, carry, keys[1:])
    chunks, stats = jax.tree.map(
      lambda a, b: jnp.concatenate([a[None], b]),
      (first, stats),
      (chunks, later),
    )
    return _selection(chunks, stats, shards)

  embeddings = [embeddings for _, embeddings in models]
  available = _available(mask, n)
  return _on_shards(draw, mesh, scope)(
    rng, embeddings, available, gain, temperature
  )


def _kernel(name: str) -> Callable[..., jax.Array]:
  """What computes `added_scores`. Pallas takes half a second to import."""
  if name == "xla":
    return added_scores
  from aced.curation import fused

  return fused.added_scores


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
  scope: str = "global",
  mesh: jax.sharding.Mesh | None = None,
  kernel: str = "xla",
) -> Selection:
  """Draws the pairs most worth learning each on its own, in one chunk.

  The score of a pair is `pair_scores`, so no pair's worth depends on the
  others: the pointwise selection of RHO-LOSS (arXiv 2206.07137), with the
  contrastive loss of the pair in place of its classification loss. Arguments,
  result and errors are those of `sample_jointly`; `num_chunks` and `kernel` are
  accepted for the common shape and have no effect.
  """
  del num_chunks
  check_choice("kernel", kernel, KERNELS)
  scores = pair_scores(student, reference, score=score, loss=loss)
  return _draw_once(
    rng, scores, batch_size, gain, temperature, mask, scope, mesh
  )


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
  scope: str = "global",
  mesh: jax.sharding.Mesh | None = None,
  kernel: str = "xla",
) -> Selection:
  """Draws pairs uniformly without replacement: the baseline.

  Arguments, result and errors are those of `sample_jointly`. Either model or
  the mask must be given to tell the size of the super-batch; with the models
  that `score` needs, scores are reported though they have no part in the draw.

  Raises:
    ValueError: neither a model nor a mask is given, or sizes do not fit.
  """
  del num_chunks, gain, temperature, kernel
  given = {"student": student, "reference": reference}
  models = [as_embeddings(k, m) for k, m in given.items() if m is not None]
  known = [model.zimg.shape[0] for model in models]
  known += [] if mask is None else [mask.shape[0]]
  if not known:
    raise ValueError(
      "sample_uniformly cannot tell the size of the super-batch: pass `mask`,"
      " `student` or `reference`."
    )
  check_choice("score", score, SCORES)
  check_choice("loss", loss, LOSSES)
  scores = jnp.zeros((known[0],), jnp.float32)
  needed = zip(SCORES[score], (student, reference), strict=True)
  if all(model is not None for sign, model in needed if sign):
    scores = pair_scores(student, reference, score=score, loss=loss)
  return _draw_once(rng, scores, batch_size, 0.0, 1.0, mask, scope, mesh)


def _draw_once(
  rng, scores, batch_size, gain, temperature, mask, scope, mesh
) -> Selection:
  """Draws the whole batch in one chunk, by the scores `(n,)` of pairs."""
  n = scores.shape[0]
  check_sizes(n, batch_size)
  check_mesh(n, batch_size, scope, mesh)

  def draw(shards, rng, scores, available, gain, temperature):
    drawn = _draw(rng, scores, available, batch_size, gain, temperature, shards)
    return _selection(*jax.tree.map(lambda x: x[None], drawn), shards)

  return _on_shards(draw, mesh, scope)(
    rng, scores, _available(mask, n), gain, temperature
  )


def _on_shards(
  draw: Callable[..., Selection],
  mesh: jax.sharding.Mesh | None,
  scope: str,
) -> Callable[..., Selection]:
  """Runs `draw(shards, rng, *arrays)` on every device's rows of the arrays."""
  shards = split(mesh, scope)

  def run(rng, *arrays):
    arrays = jax.tree.map(jnp.asarray, arrays)
    if not shards.axes:
      return draw(shards, rng, *arrays)
    rows, whole = jax.P(shards.axes), jax.P()
    specs = jax.tree.map(lambda x: rows if x.ndim else whole, arrays)
    return jax.shard_map(
      partial(draw, shards),
      mesh=mesh,
      in_specs=(whole, *specs),
      out_specs=whole,
      # What was gathered is the same everywhere, which JAX cannot know.
      check_vma=False,
    )(rng, *arrays)

  return run


def _available(mask, n):
  """The mask as `(n,)` bool; everything is available where there is none."""
  if mask is not None and jnp.shape(mask) != (n,):
    raise ValueError(f"mask has shape {jnp.shape(mask)}; expected ({n},).")
  return jnp.ones((n,), bool) if mask is None else jnp.asarray(mask, bool)


class _Stats(NamedTuple):
  """What is kept of one chunk's draw."""

  scores: jax.Array
  mask: jax.Array
  kept: jax.Array
  pool: jax.Array
  spread: jax.Array
  effective: jax.Array


def _draw(rng, scores, available, size, gain, temperature, shards: Shards):
  """Draws `size` of the available candidates; returns positions and stats."""
  noise = shards.noise(rng, scores.shape[0])
  keys = jnp.float32(gain) * scores + jnp.float32(temperature) * noise
  chunk = shards.top(jnp.where(available, keys, -jnp.inf), size)
  drawn = shards.take(scores, chunk)
  valid = shards.take(available.astype(jnp.int32), chunk) > 0
  pool = _mean(scores, available, shards)
  variance = _mean(jnp.square(scores - pool), available, shards)
  return chunk, _Stats(
    scores=drawn,
    mask=valid,
    kept=_mean(drawn, valid),
    pool=pool,
    spread=jnp.sqrt(variance),
    effective=_effective(scores, available, gain, temperature, shards),
  )


def _effective(scores, available, gain, temperature, shards):
  """`1 / sum p^2`, `p = softmax(gain * scores / temperature)`; greedy: 1."""
  temperature = jnp.float32(temperature)
  safe = jnp.where(temperature > 0, temperature, 1.0)
  x = jnp.where(available, jnp.float32(gain) * scores / safe, -jnp.inf)
  once, twice = jax.nn.logsumexp(x), jax.nn.logsumexp(2 * x)
  some = available.any()
  if not shards.quotas:
    once, twice = (
      jax.nn.logsumexp(shards.join(z[None])) for z in (once, twice)
    )
    some = shards.sum(some.astype(jnp.int32)) > 0
  size = jnp.where(some, jnp.exp(2 * once - twice), 0.0)
  size = jnp.where(temperature > 0, size, 1.0)
  return shards.sum(size) if shards.quotas else size


def _mean(x, mask, shards: Shards = Shards()):  # noqa: B008 (it is immutable)
  """Mean of `x` where `mask`; 0 where nothing is."""
  total = shards.sum(jnp.where(mask, x, 0.0).sum())
  return total / jnp.maximum(shards.sum(mask.sum()), 1)


def _selection(chunks, stats, shards: Shards):
  """Joins `(num_chunks, m)` positions and stats into a `Selection`."""

  def join(x):
    if shards.quotas:  # From chunks of all devices to devices of all chunks.
      x = jnp.moveaxis(x.reshape(x.shape[0], shards.count, -1), 1, 0)
    return x.reshape(-1)

  drew = stats.mask.any(axis=1)  # A chunk that found nothing has no means.
  return Selection(
    indices=join(chunks).astype(jnp.int32),
    scores=join(stats.scores),
    mask=join(stats.mask),
    kept_score=_mean(stats.kept, drew),
    pool_score=_mean(stats.pool, drew),
    pool_spread=_mean(stats.spread, drew),
    effective_sample_size=stats.effective,
  )
