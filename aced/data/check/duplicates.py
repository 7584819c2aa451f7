"""Pictures that are the same, or look the same: hashes, and groups by them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Bits mostly change in twos, as half of them lie above a median: of copies of
# photographs that were encoded anew, or halved, nine in ten differ in none or
# in two.
DISTANCE = 3
# Largest squared difference of two looks, as a share of their own variance.
# The hash knows shapes and no colours, and of a drawing on a plain ground few
# of its bits say anything: without this, a red and a green disc are the same.
# Copies of photographs (JPEG and WebP of quality 50, half the size) stayed
# below 0.02; of 971 pairs of drawn scenes with one hash, 965 lay above 0.05.
DIFFERENCE = 0.03
# Levels of 256. A picture whose deviation is less shows nothing, and the bits
# of its hash are rounding.
FLAT_BELOW = 1.0
LOOK_SIDE = 8

# Pictures that one is compared with, of those that share a band of its hash.
NEIGHBOURS = 1000

_GREY_SIDE = 32
_SLICE = 2**14  # Pairs at a time, so that their looks fit the memory.
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
    bool(np.asarray(small).std((0, 1)).max() < FLAT_BELOW),
  )


def group(
  digests: np.ndarray, hashes: np.ndarray, looks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Puts pictures into groups of the same, and of those that look the same.

  Likeness is handed on: if a is like b and b like c, all three are a group.

  Args:
    digests: `(n,)` uint64, equal where pixels are.
    hashes: `(n,)` uint64, of `likeness`.
    looks: `(n, 8, 8, 3)` uint8, of `likeness`.

  Returns:
    `(n,)` int group of equal pictures, and `(n,)` int group of alike ones, the
    latter made of whole groups of the former; counted from 0.
  """
  _, first, same = np.unique(digests, return_index=True, return_inverse=True)
  if not len(first):
    return same, same
  hashes, looks = hashes[first], looks[first]
  difference = look_differences(looks)
  edges = [np.zeros((0, 2), np.int64)]
  for pairs in near_pairs(hashes, DISTANCE):
    edges.append(pairs[difference(pairs) <= DIFFERENCE])
  a, b = np.concatenate(edges).T
  graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(first),) * 2)
  return same, connected_components(graph, directed=False)[1][same]


def near_pairs(hashes: np.ndarray, distance: int) -> Iterator[np.ndarray]:
  """Yields every pair of hashes that differ in few bits, at least once.

  Hashes that differ in three bits or fewer agree in one band of 16 bits out of
  four at least, so that only those which do are compared; and of those only
  the nearest `NEIGHBOURS` in the order of their values, lest a source whose
  pictures all have much the same hash take forever.

  Args:
    hashes: `(n,)` uint64.
    distance: most bits that differ, below the number of bands.

  Yields:
    `(m, 2)` positions.
  """
  if distance >= _BANDS:
    raise ValueError(
      f"distance={distance}: {_BANDS} bands find pairs that differ in"
      f" {_BANDS - 1} bits or fewer."
    )
  for band in range(_BANDS):
    values = hashes >> np.uint64(band * _BAND_BITS) & np.uint64(0xFFFF)
    order = np.lexsort((hashes, values))
    values, ordered = values[order], hashes[order]
    first = np.arange(len(hashes))
    # Each is compared with the next, then with the one after, and so on for as
    # long as any two that far apart agree in the band.
    for step in range(1, NEIGHBOURS + 1):
      first = first[: np.searchsorted(first, len(hashes) - step)]
      first = first[values[first] == values[first + step]]
      if not len(first):
        break
      differing = np.bitwise_count(ordered[first] ^ ordered[first + step])
      near = first[differing <= distance]
      for k in range(0, len(near), _SLICE):
        part = near[k : k + _SLICE]
        yield np.stack([order[part], order[part + step]], axis=1)


def look_differences(looks: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
  """Returns what says how much tiny pictures differ.

  Args:
    looks: `(n, 8, 8, 3)` uint8.

  Returns:
    `(m, 2)` positions -> `(m,)` float, the squared difference relative to what
    there is to see in them: 0 is equal, and about 2 is what two unrelated
    pictures have.
  """

  def dot(a, b):
    return np.einsum("nhwc,nhwc->n", a, b, dtype=np.int64)

  square = dot(looks, looks)
  level = np.square(looks.sum((1, 2), dtype=np.int64)).sum(1) / LOOK_SIDE**2
  spread = np.maximum(square - level, 1.0)

  def difference(pairs):
    a, b = pairs.T
    squared = square[a] + square[b] - 2 * dot(looks[a], looks[b])
    return 2 * squared / (spread[a] + spread[b])

  return difference
