"""Pictures that are the same, or look the same: hashes, and groups by them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Two of the 64 bits change together, about a median: a copy that was encoded
# anew, or halved, differs in none or in two.
DISTANCE = 3
# Largest squared difference of two looks, as a share of their own variance.
# The hash knows shapes and no colours, and of a drawing on a plain ground few
# of its bits say anything: without this, a red and a green disc are the same.
# Copies of photographs (JPEG and WebP of quality 50, half the size) stay below
# 0.02; of pairs that only share their hash, 19 in 20 lie above 0.05.
DIFFERENCE = 0.03
# Grey levels. A picture whose deviation is less shows nothing, and the bits of
# its hash are rounding.
FLAT_BELOW = 1.0
LOOK_SIDE = 8

_GREY_SIDE = 32
_BANDS, _BAND_BITS = 4, 16


class Likeness(NamedTuple):
  """What a picture looks like, in 200 bytes.

  Attributes:
    hash: 64 bits, of the lowest frequencies of its greys.
    look: `(8, 8, 3)` uint8, the picture made tiny.
    flat: whether it shows nothing, and is like any other that shows nothing.
  """

  hash: int
  look: np.ndarray
  flat: bool


def likeness(pixels: np.ndarray) -> Likeness:
  """Describes a picture so that copies of it can be found.

  A bit of the hash says whether a frequency is above the median of the 8 x 8
  lowest of a DCT of `(32, 32)` greys (pHash).

  Args:
    pixels: `(h, w, 3)` uint8.
  """
  picture = Image.fromarray(pixels)
  side, box = (_GREY_SIDE, _GREY_SIDE), Image.Resampling.BOX
  small = picture.resize(side, Image.Resampling.BILINEAR, reducing_gap=3.0)
  greys = np.asarray(small.convert("L"), np.float64)
  frequencies = dctn(greys, norm="ortho")[:8, :8].ravel()
  bits = np.packbits(frequencies > np.median(frequencies))
  return Likeness(
    int.from_bytes(bits.tobytes(), "big"),
    np.asarray(picture.resize((LOOK_SIDE, LOOK_SIDE), box)),
    bool(greys.std() < FLAT_BELOW),
  )


def group(
  digests: np.ndarray, hashes: np.ndarray, looks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Puts pictures into groups of the same, and of those that look the same.

  Likeness is handed on: if a is like b and b like c, all three are a group.

  Args:
    digests: `(n,)` uint64, equal where pixels are.
    hashes: `(n,)` uint64, from `likeness`, as is
    looks: `(n, 8, 8, 3)` uint8.

  Returns:
    `(n,)` int group of equal pictures, and `(n,)` int group of alike ones, the
    latter made of whole groups of the former; counted from 0.
  """
  _, first, same = np.unique(digests, return_index=True, return_inverse=True)
  if not len(first):
    return same, same
  hashes, looks = hashes[first], looks[first]
  edges = [np.zeros((0, 2), np.int64)]
  for pairs in near_pairs(hashes, DISTANCE):
    edges.append(pairs[look_difference(looks, pairs) <= DIFFERENCE])
  a, b = np.concatenate(edges).T
  graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(first),) * 2)
  return same, connected_components(graph, directed=False)[1][same]


def near_pairs(hashes: np.ndarray, distance: int) -> Iterator[np.ndarray]:
  """Yields every pair of hashes that differ in few bits, at least once.

  Hashes that differ in three bits or fewer agree in one band of 16 bits out of
  four at least, so that only those which do are compared.

  Args:
    hashes: `(n,)` uint64.
    distance: most bits that differ, below the number of bands.

  Yields:
    `(m, 2)` int64 of positions, the first below the second.
  """
  if distance >= _BANDS:
    raise ValueError(
      f"distance={distance}: {_BANDS} bands find pairs that differ in"
      f" {_BANDS - 1} bits or fewer."
    )
  for band in range(_BANDS):
    values = hashes >> np.uint64(band * _BAND_BITS) & np.uint64(0xFFFF)
    order = np.argsort(values, kind="stable")
    edges = np.flatnonzero(np.diff(values[order])) + 1
    for bucket in np.split(order, edges):
      yield from _pairs_within(bucket, hashes, distance)


def _pairs_within(bucket, hashes, distance) -> Iterator[np.ndarray]:
  """Yields the near pairs of a bucket, whose positions ascend."""
  for k in range(len(bucket) - 1):
    others = bucket[k + 1 :]
    differing = np.bitwise_count(hashes[others] ^ hashes[bucket[k]])
    near = others[differing <= distance]
    if len(near):
      yield np.stack([np.full_like(near, bucket[k]), near], axis=1)


def look_difference(looks: np.ndarray, pairs: np.ndarray) -> np.ndarray:
  """How much tiny pictures differ, relative to what there is to see in them.

  Args:
    looks: `(n, 8, 8, 3)` uint8.
    pairs: `(m, 2)` positions in them.

  Returns:
    `(m,)` float: 0 is equal, and about 2 is what two unrelated pictures have.
  """
  a, b = (looks[side].astype(np.float64) for side in pairs.T)
  difference = np.square(a - b).sum((1, 2, 3))
  spread = sum(
    np.square(x - x.mean((1, 2), keepdims=True)).sum((1, 2, 3)) for x in (a, b)
  )
  return difference / np.maximum(spread / 2, 1.0)
