"""What is worth learning: scores of pairs, alone and given others selected.

With `l = t zimg ztxt^T + b` of one model, the loss of a set of pairs is

    sigmoid  L(A) = sum_{i,j in A} nll_ij,  nll_ij = softplus(-l_ii) on the
             diagonal and softplus(l_ij) off it (SigLIP, arXiv 2303.15343)
    softmax  L(A) = sum_{i in A} 1/2 (lse_{j in A} l_ij + lse_{j in A} l_ji)
             - l_ii

always as sums, never means: a mean over the batch shrinks the differences
between candidates by the batch size, and the draw becomes near-uniform. A score
is a signed sum of losses over models (JEST, arXiv 2406.17711, section 3.2):

    learnability    L_student - L_reference
    easy_reference  - L_reference
    hard            L_student

and the *conditional* score of a candidate `i` given the selected set `A` is the
score of `A + i` less the score of `A`.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aced.curation.shards import Shards
from aced.embeddings import PRECISION, Embeddings, logits, named

# Signs with which each model's loss enters a score: (student, reference).
SCORES = {
  "learnability": (1.0, -1.0),
  "easy_reference": (0.0, -1.0),
  "hard": (1.0, 0.0),
}

LOSSES = ("sigmoid", "softmax")

SignedModels = Sequence[tuple[float, Embeddings]]
Chunk = Sequence[tuple[jax.Array, jax.Array]]


def signed_models(
  student: Embeddings | None, reference: Embeddings | None, score: str
) -> SignedModels:
  """Returns the `(sign, embeddings)` whose losses sum to `score`.

  Args:
    student: embeddings of the super-batch by the student; may be None for
      `easy_reference`.
    reference: the same by the reference; may be None for `hard`.
    score: a key of `SCORES`.

  Raises:
    ValueError: an unknown score, a model that the score needs is None or lacks
      a part, or shapes that do not fit.
  """
  models = [
    (sign, as_embeddings(name, model))
    for name, (sign, model) in needed_models(student, reference, score).items()
  ]
  sizes = [model.zimg.shape[0] for _, model in models]
  if len({*sizes}) > 1:
    raise ValueError(
      f"student and reference hold {' and '.join(map(str, sizes))} pairs;"
      " expected the same super-batch."
    )
  return models


def needed_models(
  student: Any, reference: Any, score: str
) -> dict[str, tuple[float, Any]]:
  """Returns name -> `(sign, model)` of the models that `score` needs.

  Raises:
    ValueError: an unknown score, or a model that the score needs is None.
  """
  check_choice("score", score, SCORES)
  models = {}
  for name, sign, model in zip(
    ("student", "reference"), SCORES[score], (student, reference), strict=True
  ):
    if sign and model is None:
      raise ValueError(
        f"score={score!r} needs the embeddings of the {name}, and {name} is"
        " None; pass them or choose another score."
      )
    if sign:
      models[name] = sign, model
  return models


def as_embeddings(name: str, model: Any) -> Embeddings:
  """Returns a model's `Embeddings`, given as `named` takes them, checked.

  Args:
    name: "student" or "reference", for the message.
    model: its arrays may be traced.

  Raises:
    ValueError: a part is missing, embeddings are not `(n, d)` both, or `t` or
      `b` is not one number.
  """
  model = named(name, model)
  shape, other = jnp.shape(model.zimg), jnp.shape(model.ztxt)
  if len(shape) != 2 or shape != other:
    raise ValueError(
      f"{name}.zimg has shape {shape} and {name}.ztxt {other}; expected (n, d)"
      " of both."
    )
  for part in ("t", "b"):
    found = jnp.shape(getattr(model, part))
    if found not in ((), (1,)):
      raise ValueError(f"{name}.{part} has shape {found}; expected one number.")
    if found:  # Else a mesh would split it, as it does rows.
      value = jnp.reshape(getattr(model, part), ())
      model = model._replace(**{part: value})
  return model


def pair_logits(model: Embeddings) -> jax.Array:
  """Logits `l_ii` of every pair with itself, `(n,)` float32."""
  similarity = jnp.einsum(
    "nd,nd->n",
    model.zimg,
    model.ztxt,
    precision=PRECISION,
    preferred_element_type=jnp.float32,
  )
  return jnp.float32(model.t) * similarity + jnp.float32(model.b)


def pair_scores(
  student: Embeddings | None,
  reference: Embeddings | None,
  *,
  score: str = "learnability",
  loss: str = "sigmoid",
) -> jax.Array:
  """Score of each pair alone, `S_ii`.

  For the sigmoid loss this is the score of the set that holds only the pair.
  A softmax loss of one pair is zero whatever the pair, so there the pair's own
  part of the loss, `-l_ii`, stands in for it (the score of arXiv 2312.05328).

  Args:
    student: embeddings of `n` pairs, or None if the score needs none.
    reference: the same by the reference model.
    score: "learnability", "easy_reference" or "hard".
    loss: "sigmoid" or "softmax".

  Returns:
    `(n,)` float32 scores in nats; larger is more worth learning.

  Raises:
    ValueError: an unknown score or loss, or a model that is needed is None.
  """
  check_choice("loss", loss, LOSSES)
  nll = softplus if loss == "sigmoid" else lambda x: x
  return sum(
    sign * nll(-pair_logits(model))
    for sign, model in signed_models(student, reference, score)
  )


class Conditional(NamedTuple):
  """How the scores of candidates follow the selected set as it grows.

  Attributes:
    start: `() -> (state, scores)` for the empty set; scores `(n,)` float32.
    extend: `(state, chunk) -> (state, scores)` after the `(m,)` candidates
      `chunk` were selected. Scores of selected candidates have no meaning.
  """

  start: Callable[[], tuple[Any, jax.Array]]
  extend: Callable[[Any, jax.Array], tuple[Any, jax.Array]]


def conditional_scores(
  models: SignedModels,
  loss: str,
  num_chunks: int,
  chunk_size: int,
  shards: Shards = Shards(),  # noqa: B008 (it is immutable)
  added: Callable[[SignedModels, Chunk], jax.Array] | None = None,
) -> Conditional:
  """Returns the conditional scores under `loss`, for use in a `lax` loop.

  Args:
    models: `(sign, embeddings)` of the `n` candidates, from `signed_models`;
      inside `jax.shard_map`, of this device's.
    loss: "sigmoid" or "softmax".
    num_chunks: how many chunks will be selected.
    chunk_size: how many candidates each holds.
    shards: where the candidates are.
    added: what stands in for `added_scores` of the sigmoid loss.

  Raises:
    ValueError: an unknown loss.
  """
  check_choice("loss", loss, LOSSES)
  if loss == "sigmoid":
    return _sigmoid_conditional(models, shards, added or added_scores)
  return _softmax_conditional(models, num_chunks, chunk_size, shards)


def take_chunk(
  model: Embeddings, chunk: jax.Array, shards: Shards
) -> tuple[jax.Array, jax.Array]:
  """Embeddings of the pairs at `chunk`, `(m, d)` each, on every device."""
  return shards.take(model.zimg, chunk), shards.take(model.ztxt, chunk)


def added_scores(models: SignedModels, chunk: Chunk) -> jax.Array:
  """What a chunk that is selected adds to the sigmoid score of candidates.

  `sum_{j in chunk} S_ij + S_ji`, signed over the models.

  Args:
    models: `(sign, embeddings)` of `n` candidates.
    chunk: for each model, the `(m, d)` image and text embeddings of the chunk.

  Returns:
    `(n,)` float32.
  """
  added = 0.0
  for (sign, model), (zimg_md, ztxt_md) in zip(models, chunk, strict=True):
    as_image = softplus(logits(model.zimg, ztxt_md, model.t, model.b))
    as_text = softplus(logits(model.ztxt, zimg_md, model.t, model.b))
    added += sign * (as_image.sum(axis=1) + as_text.sum(axis=1))
  return added


def _sigmoid_conditional(models, shards, added) -> Conditional:
  """Conditional scores under the sigmoid loss, exactly.

  `S(i | A) = S_ii + sum_{j in A} (S_ij + S_ji)` is a running sum: a chunk of
  `m` costs `2 n m d` multiply-adds a model and `O(n m)` memory, and the full
  `n x n` matrix is never built.
  """

  def start():
    scores = sum(s * softplus(-pair_logits(e)) for s, e in models)
    return scores, scores

  def extend(scores, chunk):
    chunk = [take_chunk(model, chunk, shards) for _, model in models]
    scores += added(models, chunk)
    return scores, scores

  return Conditional(start, extend)


def _softmax_conditional(
  models: SignedModels, num_chunks: int, chunk_size: int, shards: Shards
) -> Conditional:
  """Conditional scores under the softmax loss, exact once `A` is not empty.

  (DRRho-CLIP's published variant leaves out the candidate's own terms.)

  With `R_k`, `C_k` the log-sum-exp of row and column `k` over `A`,

      S(i | A) = 1/2 (logaddexp(R_i, l_ii) + logaddexp(C_i, l_ii)) - l_ii
               + 1/2 sum_{k in A} softplus(l_ki - R_k) + softplus(l_ik - C_k)

  `R` and `C` are running sums. The last sum changes in every term when `A`
  grows, so it is taken anew over all that was selected: about `num_chunks / 2`
  times the multiply-adds of the sigmoid loss, and as many more embeddings sent
  between devices, in the same memory. The first chunk is drawn by `-l_ii` (see
  `pair_scores`), as the loss of one pair is 0.
  """

  def start():
    empty = jnp.full((models[0][1].zimg.shape[0],), -jnp.inf, jnp.float32)
    sums = [(empty, empty) for _ in models]
    chunks = jnp.zeros((num_chunks, chunk_size), jnp.int32)
    scores = sum(-sign * pair_logits(model) for sign, model in models)
    return (sums, chunks, 0), scores

  def extend(state, chunk):
    sums, chunks, count = state
    chunks, count = chunks.at[count].set(chunk), count + 1
    grown, scores = [], 0.0
    for (sign, model), model_sums in zip(models, sums, strict=True):
      model_sums = _grow_sums(model, model_sums, chunk, shards)
      grown.append(model_sums)
      own = _own_part(model, model_sums)
      others = jax.lax.fori_loop(
        0,
        count,
        lambda k, acc, m=model, s=model_sums: (
          acc + _others(m, s, chunks[k], shards)
        ),
        jnp.zeros_like(own),
      )
      scores += sign * (own + others)
    return (grown, chunks, count), scores

  return Conditional(start, extend)


def _grow_sums(model, sums, chunk, shards):
  """Log-sum-exps `(R, C)` of every candidate after `chunk` joined `A`."""
  zimg, ztxt, t, b = model
  zimg_md, ztxt_md = take_chunk(model, chunk, shards)
  rows = jax.nn.logsumexp(logits(zimg, ztxt_md, t, b), axis=1)
  columns = jax.nn.logsumexp(logits(ztxt, zimg_md, t, b), axis=1)
  return jnp.logaddexp(sums[0], rows), jnp.logaddexp(sums[1], columns)


def _own_part(model, sums):
  """A candidate's own row and column of the softmax loss, `(n,)`."""
  own = pair_logits(model)
  rows, columns = (jnp.logaddexp(total, own) for total in sums)
  return 0.5 * (rows + columns) - own


def _others(model, sums, chunk, shards):
  """What a candidate adds to the rows and columns of `chunk`, `(n,)`."""
  zimg, ztxt, t, b = model
  zimg_md, ztxt_md = take_chunk(model, chunk, shards)
  rows, columns = (shards.take(x, chunk)[None, :] for x in sums)
  as_text = logits(ztxt, zimg_md, t, b) - rows
  as_image = logits(zimg, ztxt_md, t, b) - columns
  added = softplus(as_text) + softplus(as_image)
  return 0.5 * added.sum(axis=1)


def softplus(x: jax.Array) -> jax.Array:
  """`log(1 + exp(x))`, exact to float32 for large and for small values.

  Unlike `jax.nn.softplus` it spends no operations on infinities of both signs
  meeting, which logits never do; XLA then fuses it with the product before and
  the sum after it, and the block of logits never reaches memory.
  """
  return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
  """Raises ValueError, with the nearest known name, unless `value` is known."""
  if value in known:
    return
  near = difflib.get_close_matches(str(value), known, n=1)
  hint = f" Did you mean {near[0]!r}?" if near else ""
  raise ValueError(
    f"{name}={value!r} is not known; it is one of {', '.join(known)}.{hint}"
  )
