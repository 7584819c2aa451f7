"""Recall at k of image-text retrieval, in both directions and their mean."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from aced.evaluation.outcomes import Retrieved

# Similarities held at a time: 32 MiB of float64, whatever the gallery.
_BLOCK = 2**22


class RetrievalRanks(NamedTuple):
  """Where each query finds its first right answer, counted from 0.

  Attributes:
    image_rank: `(q,)` int64, of the images that look for a text.
    image_index: `(q,)` int64, ascending: which row of `zimg` each of them is.
      An image without a text is none of them.
    text_rank: `(m,)` int64, of the texts that look for an image.
  """

  image_rank: np.ndarray
  image_index: np.ndarray
  text_rank: np.ndarray


def retrieval(
  zimg: np.ndarray,
  ztxt: np.ndarray,
  image_of_text: np.ndarray,
  ks: Sequence[int] = (1, 5, 10),
  image_group: np.ndarray | None = None,
) -> dict[str, float]:
  """Recall at `k` from images to texts, from texts to images, and their mean.

  An image is a hit if any of its texts is among the `k` nearest of all texts;
  a text is a hit if its image is among the `k` nearest of all images. Nearest
  is by inner product, and of equal ones the lower index comes first. An image
  without a text is no query, but stays in the gallery of the texts. Published
  COCO and Flickr numbers are of either direction or of the mean: compare like
  with like.

  Similarities are summed in float64 and rounded once to float32, so that equal
  rows tie and the order in which a BLAS kernel adds up does not show.
  Memory is that of the embeddings plus a block of similarities of fixed size.

  Args:
    zimg: `(n, d)` embeddings of images.
    ztxt: `(m, d)` embeddings of texts.
    image_of_text: `(m,)` integers, the row of `zimg` each text describes.
    ks: the ranks at which recall is taken.
    image_group: `(n,)` integers; images of one group, such as copies of one
      picture, count as the same image. None: every image is its own.

  Returns:
    `{"image_to_text/R@1": ..., "text_to_image/R@1": ..., "mean/R@1": ...}`
    for every `k`, as fractions of the queries.

  Raises:
    ValueError: inputs that are empty, not finite or do not fit together.
  """
  check_ks(ks)
  found = retrieval_ranks(zimg, ztxt, image_of_text, image_group)
  return Retrieved(
    image_rank=found.image_rank,
    image_index=found.image_index,
    text_rank=found.text_rank,
    text_index=np.asarray(image_of_text),
    clusters=len(zimg),
    ks=tuple(ks),
  ).metrics()


def retrieval_ranks(
  zimg: np.ndarray,
  ztxt: np.ndarray,
  image_of_text: np.ndarray,
  image_group: np.ndarray | None = None,
) -> RetrievalRanks:
  """The rank of every query, of which `retrieval` makes its recall.

  A query is a hit at `k` where its rank is below `k`: drawing queries again
  and again gives the interval of a recall.

  Args:
    zimg: `(n, d)` embeddings of images.
    ztxt: `(m, d)` embeddings of texts.
    image_of_text: `(m,)` integers, the row of `zimg` each text describes.
    image_group: `(n,)` integers or None, as in `retrieval`.

  Returns:
    The ranks of images among texts and of texts among images.

  Raises:
    ValueError: inputs that are empty, not finite or do not fit together.
  """
  image_of_text = np.asarray(image_of_text)
  group = np.arange(len(zimg)) if image_group is None else image_group
  group = np.asarray(group)
  _check(zimg, ztxt, image_of_text, group)
  group_of_text = group[image_of_text]
  text_rank, image_rank = _ranks(ztxt, zimg, group_of_text, group)
  image_index = np.flatnonzero(np.isin(group, group_of_text))
  return RetrievalRanks(image_rank[image_index], image_index, text_rank)


def ranks(
  queries: np.ndarray,
  gallery: np.ndarray,
  query_group: np.ndarray,
  gallery_group: np.ndarray,
) -> np.ndarray:
  """The rank, from 0, of the nearest gallery item of each query's own group.

  Memory is that of the embeddings plus a block of similarities of fixed size.

  Args:
    queries: `(q, d)`, and `gallery`: `(m, d)`, compared by inner product.
    gallery: of equal similarity, the lower index comes first.
    query_group: `(q,)` integers.
    gallery_group: `(m,)` integers.

  Returns:
    `(q,)` int64: how many items come before the first of the right group; all
    `m` of them where the gallery has none of that group.
  """
  return _ranks(queries, gallery, query_group, gallery_group)[0]


class _First(NamedTuple):
  """The nearest item of each query's own group: similarity and index."""

  near: np.ndarray
  index: np.ndarray

  @classmethod
  def of(cls, count):
    """Nothing found yet, for `count` queries."""
    return cls(np.full(count, -np.inf, np.float32), np.zeros(count, np.int64))


def _ranks(rows, columns, row_group, column_group):
  """`ranks` of rows among columns and of columns among rows, by one product."""
  rows, columns = np.asarray(rows), np.asarray(columns)
  first_row, first_column = _firsts(rows, columns, row_group, column_group)
  rank_row = np.zeros(len(rows), np.int64)
  rank_column = np.zeros(len(columns), np.int64)
  position = np.arange(len(columns))
  columns = np.asarray(columns, np.float64)
  for here in _blocks(np.arange(len(rows)), len(columns)):
    similarity = _similarity(rows[here], columns)
    # None of its own group comes before the first of them, however the two
    # products round.
    same = row_group[here, None] == column_group[None, :]
    similarity[same] = -np.inf
    ahead = _ahead(
      similarity,
      first_row.near[here, None],
      position[None, :] < first_row.index[here, None],
    )
    rank_row[here] = np.count_nonzero(ahead, axis=1)
    ahead = _ahead(
      similarity,
      first_column.near[None, :],
      here[:, None] < first_column.index[None, :],
    )
    rank_column += np.count_nonzero(ahead, axis=0)
  return rank_row, rank_column


def _firsts(rows, columns, row_group, column_group):
  """The `_First` of rows among columns and of columns among rows."""
  first_row, first_column = _First.of(len(rows)), _First.of(len(columns))
  rows_of, columns_of = _members(row_group), _members(column_group)
  for group in rows_of.keys() & columns_of.keys():
    its_columns = columns_of[group]
    z = np.asarray(columns[its_columns], np.float64)
    for here in _blocks(rows_of[group], len(z)):
      similarity = _similarity(rows[here], z)
      first_row.near[here] = similarity.max(axis=1)
      first_row.index[here] = its_columns[similarity.argmax(axis=1)]
      near = similarity.max(axis=0)
      # Blocks come in order, so that only a nearer one takes the place.
      nearer = near > first_column.near[its_columns]
      first_column.near[its_columns[nearer]] = near[nearer]
      index = here[similarity.argmax(axis=0)]
      first_column.index[its_columns[nearer]] = index[nearer]
  return first_row, first_column


def _members(group):
  """`{group: its indices, ascending}`."""
  order = np.argsort(group, kind="stable")
  values, starts = np.unique(group[order], return_index=True)
  return dict(zip(values.tolist(), np.split(order, starts[1:])))


def _blocks(indices, columns) -> Iterator[np.ndarray]:
  """Parts of `indices`, in order, of no more similarities than `_BLOCK`."""
  size = max(1, _BLOCK // columns)
  for start in range(0, len(indices), size):
    yield indices[start : start + size]


def _similarity(rows, columns):
  """Inner products: summed in float64, rounded once to float32.

  Sums of one pair in two orders differ by some 1e-16, which rounding hides in
  all but one of ten million pairs (8 of 125 million, at a width of 768).
  """
  return (np.asarray(rows, np.float64) @ columns.T).astype(np.float32)


def _ahead(similarity, near, before):
  """What is nearer than `near`, or as near and `before` it."""
  return (similarity > near) | ((similarity == near) & before)


def check_ks(ks: Sequence[int]) -> None:
  """Raises ValueError unless `ks` are ranks from 1 on, at least one."""
  if isinstance(ks, int) or not ks or min(ks) < 1:
    raise ValueError(f"ks={ks} must be a list of ranks from 1 on, as (1, 5).")


def check_finite(name: str, z: np.ndarray) -> None:
  """Raises ValueError unless `z` is `(n, d)`, not empty, and finite."""
  if z.ndim != 2 or not z.size:
    raise ValueError(
      f"{name} has shape {z.shape}; expected (n, d) with at least one row."
    )
  bad = np.count_nonzero(~np.isfinite(z).all(axis=1))
  if bad:
    # A NaN compares as neither above nor below, and would rank first.
    raise ValueError(
      f"{name} has values that are not finite in {bad} of {len(z)} rows; the"
      " model has diverged: evaluate an earlier checkpoint."
    )


def _check(zimg, ztxt, image_of_text, group):
  check_finite("zimg", zimg)
  check_finite("ztxt", ztxt)
  if zimg.shape[1] != ztxt.shape[1]:
    raise ValueError(
      f"zimg is {zimg.shape[1]} wide and ztxt {ztxt.shape[1]}; both must be"
      " embeddings of one model."
    )
  for name, array, like, size in (
    ("image_of_text", image_of_text, "ztxt", len(ztxt)),
    ("image_group", group, "zimg", len(zimg)),
  ):
    if array.shape != (size,) or array.dtype.kind not in "iu":
      raise ValueError(
        f"{name} is {array.dtype} of shape {array.shape}; expected one integer"
        f" for each of the {size} rows of {like}."
      )
  if image_of_text.min() < 0 or image_of_text.max() >= len(zimg):
    raise ValueError(
      f"image_of_text holds {image_of_text.min()}..{image_of_text.max()};"
      f" expected rows of zimg, 0..{len(zimg) - 1}."
    )
