"""Embeddings of a data set: rows split over devices, padding left out."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from aced.data import pipeline
from aced.models import placement

# Rows of a host, `(n, ...)` -> their embeddings, `(n, d)`. With several
# processes each passes and receives its own rows, all calling in step.
Embed = Callable[[np.ndarray], Any]
Batches = Iterable[Mapping[str, np.ndarray]]


class Rows(NamedTuple):
  """The embedded rows of a data set, padding and masked records left out.

  Attributes:
    z: `(n, d)` float32 embeddings, in the order of the data set.
    index: `(n,)` int64, which record or text each row is.
  """

  z: np.ndarray
  index: np.ndarray


def embedders(
  model: Any, mesh: jax.sharding.Mesh
) -> tuple[Callable[[Any, np.ndarray], jax.Array], ...]:
  """Returns `embed_image(params, image)` and `embed_text(params, labels)`.

  Bind the parameters with `functools.partial` to get what evaluators take.

  Args:
    model: `model.apply({"params": p}, image, labels, train=False)` returns
      `(zimg, ztxt, out)`, and either input may be None.
    mesh: rows are split over all of its axes.
  """

  def image(params, image):
    return model.apply({"params": params}, image, None, train=False)[0]

  def text(params, labels):
    return model.apply({"params": params}, None, labels, train=False)[1]

  return split_rows(image, mesh), split_rows(text, mesh)


def split_rows(
  function: Callable[[Any, Any], jax.Array], mesh: jax.sharding.Mesh
) -> Callable[[Any, Any], jax.Array]:
  """Jits `function(params, rows)` with its rows split over the devices.

  Args:
    function: maps `(n, ...)` rows, or a tree of them, to `(n, d)`, each row by
      itself.
    mesh: rows are split over all of its axes.

  Returns:
    A function of the same arguments. It takes the `n` rows of this process,
    pads them so that they divide over its devices, and returns `(n, d)`, still
    being computed; float32 where the function's are floats.
  """
  spec = jax.P(mesh.axis_names)
  sharding = jax.NamedSharding(mesh, spec)
  devices = mesh.local_mesh.size

  @jax.jit
  def embed(params, rows):
    with placement.rows_over(mesh):
      z = function(params, rows)
    if jnp.issubdtype(z.dtype, jnp.floating):
      z = z.astype(jnp.float32)
    return jax.lax.with_sharding_constraint(z, sharding)

  def place(count, rows):
    rows = pad_rows(rows, count + -count % devices)
    return jax.make_array_from_process_local_data(sharding, rows)

  def embed_local(params, rows):
    count, *others = map(len, jax.tree.leaves(rows))
    if set(others) - {count}:
      raise ValueError(
        f"the arrays have {count}, {', '.join(map(str, others))} rows; expected"
        " as many in each."
      )
    z = embed(params, jax.tree.map(functools.partial(place, count), rows))
    z = multihost_utils.global_array_to_host_local_array(z, mesh, spec)
    return z if len(z) == count else z[:count]

  return embed_local


def embed_images(embed_image: Embed, batches: Batches) -> Rows:
  """Embeds the pictures of `batches`, leaving out masked rows.

  Args:
    embed_image: maps `(n, h, w, 3)` pictures to `(n, d)`.
    batches: dicts of `image`, `_mask` `(n,)` bool and `index` `(n,)` int, all
      of one size; every process passes its slice of the same batches.

  Returns:
    The same rows on every process, in the order of the batches.
  """
  return _embed(embed_image, batches, "image")


def embed_texts(embed_text: Embed, batches: Batches) -> Rows:
  """Embeds the texts of `batches`, leaving out masked rows.

  Args:
    embed_text: maps `(n, l)` token ids to `(n, d)`.
    batches: as of `embed_images`, with `labels` for `image`.

  Returns:
    The same rows on every process, in the order of the batches.
  """
  return _embed(embed_text, batches, "labels")


def text_batches(
  texts: Sequence[str],
  tokenizer: Callable[[Sequence[str]], np.ndarray],
  batch_size: int,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this process's slices of batches of texts, the last one padded.

  Args:
    texts: all of them, on every process.
    tokenizer: maps `n` texts to `(n, l)` int32 token ids.
    batch_size: texts in a batch, of all processes together.

  Yields:
    `labels`, `_mask` and `index`, as `embed_texts` takes them.
  """
  size = batch_rows(batch_size, len(texts)) // jax.process_count()
  first = size * jax.process_index()
  for start in range(first, first + len(texts), size * jax.process_count()):
    here = texts[start : start + size]
    # A slice past the end still needs the width of the tokens.
    labels = np.asarray(tokenizer(here or texts[:1]))[: len(here)]
    yield {
      "labels": pad_rows(labels, size),
      "_mask": np.arange(size) < len(here),
      "index": np.arange(start, start + size),
    }


def read_batches(
  source: Any,
  tokenizer: Any,
  transform: Callable[..., Any],
  batch_size: int,
  count: int | None = None,
) -> pipeline.Batches:
  """This process's slices of batches of a source, in its order.

  Args:
    source: of the records.
    tokenizer: maps texts to token ids.
    transform: makes a picture of a record.
    batch_size: the most rows, of all processes together.
    count: records that batches are made for, where these are but some of them:
      so all have one size.
  """
  count = len(source) if count is None else count
  return pipeline.eval_batches(
    source,
    tokenizer,
    transform,
    batch_size=batch_rows(batch_size, count),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def batch_rows(batch_size: int, count: int) -> int:
  """Rows of a batch: no more than needed, and divided over the processes.

  Args:
    batch_size: the most rows, of all processes together.
    count: rows there are.

  Raises:
    ValueError: `batch_size` does not divide over the processes.
  """
  processes = jax.process_count()
  if batch_size < 1 or batch_size % processes:
    raise ValueError(
      f"evaluation batch_size={batch_size} does not divide over {processes}"
      f" processes; choose a positive multiple of {processes}."
    )
  return min(batch_size, max(count + -count % processes, processes))


def pad_rows(rows: np.ndarray, size: int) -> np.ndarray:
  """Appends zero rows to `(n, ...)` until there are `size`."""
  padding = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
  return np.pad(rows, padding) if size > len(rows) else rows


def _embed(embed, batches, key):
  rows = collect(lambda batch: embed(batch[key]), batches)
  return Rows(rows.z.astype(np.float32), rows.index)


def collect(
  function: Callable[[Mapping[str, np.ndarray]], Any], batches: Batches
) -> Rows:
  """Runs a function on every batch and keeps the rows that count.

  Args:
    function: maps a batch of `n` rows to `(n, d)`.
    batches: dicts with `_mask` and `index`, as of `embed_images`.

  Returns:
    The same rows on every process, in the order of the batches.
  """
  z, mask, index, pending = [], [], [], None
  for batch in batches:
    # The next batch is under way before the last one is waited for.
    computing = function(batch)
    if pending is not None:
      z.append(np.asarray(pending))
    pending = computing
    mask.append(np.asarray(batch["_mask"], bool))
    index.append(np.asarray(batch["index"]))
  if pending is None:
    return Rows(np.zeros((0, 0), np.float32), np.zeros(0, np.int64))
  z.append(np.asarray(pending))
  z, mask, index = (_gather(np.stack(x)) for x in (z, mask, index))
  return Rows(z[mask], index[mask].astype(np.int64))


def _gather(local):
  """Joins `(batches, n, ...)` rows of all processes in global order."""
  if jax.process_count() > 1:
    # (process, batch, row): a batch's slices stand in the processes' order.
    local = np.asarray(multihost_utils.process_allgather(local))
    local = np.moveaxis(local, 0, 1)
    return local.reshape(-1, *local.shape[3:])
  return local.reshape(-1, *local.shape[2:])
