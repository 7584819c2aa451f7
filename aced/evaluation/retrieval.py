"""Recall at k of image-text retrieval, in both directions and their mean."""

from collections.abc import Sequence

import numpy as np

# Similarities held at a time: 64 MiB of float64, whatever the gallery.
_BLOCK = 2**23


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
  image_of_text = np.asarray(image_of_text)
  group = np.arange(len(zimg)) if image_group is None else image_group
  group = np.asarray(group)
  _check(zimg, ztxt, image_of_text, group)
  check_ks(ks)
  group_of_text = group[image_of_text]
  queries = np.isin(group, group_of_text)
  rank = {
    "image_to_text": ranks(zimg[queries], ztxt, group[queries], group_of_text),
    "text_to_image": ranks(ztxt, zimg, group_of_text, group),
  }
  metrics = {}
  for k in ks:
    recall = {way: float(np.mean(rank[way] < k)) for way in rank}
    metrics |= {f"{way}/R@{k}": value for way, value in recall.items()}
    metrics[f"mean/R@{k}"] = sum(recall.values()) / len(recall)
  return metrics


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
    query_group: `(q,)` integers, each of them somewhere in `gallery_group`.
    gallery_group: `(m,)` integers.

  Returns:
    `(q,)` int64: how many items come before the first of the right group.
  """
  gallery = np.asarray(gallery, np.float64)
  position = np.arange(len(gallery))[None, :]
  block = max(1, _BLOCK // len(gallery))
  rank = np.empty(len(queries), np.int64)
  for start in range(0, len(queries), block):
    here = slice(start, start + block)
    # Summed in float64 and rounded once, so that equal rows tie exactly and
    # no rank hangs on the order in which a BLAS kernel adds up.
    similarity = np.asarray(queries[here], np.float64) @ gallery.T
    similarity = similarity.astype(np.float32)
    same = query_group[here, None] == gallery_group[None, :]
    first = np.where(same, similarity, -np.inf).argmax(axis=1)[:, None]
    best = np.take_along_axis(similarity, first, axis=1)
    ahead = (similarity > best) | ((similarity == best) & (position < first))
    rank[here] = ahead.sum(axis=1)
  return rank


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
