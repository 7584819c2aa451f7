"""Copies are found, and nothing else is."""

import numpy as np
import pytest
from PIL import Image

from aced.data.check import duplicates
from tests.data.check.tools import encode, look, scene


def near_by_hand(hashes, distance):
  return {
    (i, j)
    for i in range(len(hashes))
    for j in range(i)
    if int(hashes[i] ^ hashes[j]).bit_count() <= distance
  }


def clustered(seed, n=300):
  """Hashes of which many differ in few bits, and some in none."""
  rng = np.random.default_rng(seed)
  hashes = rng.integers(0, 2**64, n, dtype=np.uint64)[
    rng.integers(0, n // 4, n)
  ]
  for _ in range(4):
    bit = rng.integers(0, 64, n).astype(np.uint64)
    hashes ^= rng.integers(0, 2, n).astype(np.uint64) << bit
  return hashes


def test_copies_are_found_and_others_are_not(write):
  pictures = [encode(scene(k)) for k in range(20)]
  copies = [
    encode(scene(3), "WEBP", quality=60),
    encode(scene(3).resize((200, 150), 3), quality=70),
    encode(scene(7).resize((60, 45), 3), "PNG"),
    pictures[11],
    # Equal pixels, other bytes.
    encode(scene(20), "PNG"),
    encode(scene(20), "WEBP", lossless=True),
  ]
  blank = [
    encode(Image.new("RGB", (50, 50), c)) for c in ("red", "red", "blue")
  ]
  spec = write([(x, str(k)) for k, x in enumerate(pictures + copies + blank)])
  report = look(spec)
  found = report.duplicates
  assert report.pictures.flat == 3
  assert (found.same, found.alike, found.groups) == (2, 5, 4)
  assert found.alike_share == 5 / 29
  assert [(g.size, g.records) for g in found.largest] == [
    (3, (3, 20, 21)),
    (2, (7, 22)),
    (2, (11, 23)),
    (2, (24, 25)),
  ]


def test_colour_tells_pictures_apart():
  disc = np.hypot(*np.mgrid[-1:1:64j, -1:1:64j]) < 0.6
  pictures = np.full((4, 64, 64, 3), 255, np.uint8)
  # Two reds, and a green as dark as they.
  for picture, colour in zip(pictures, ([200, 30, 30], [202, 30, 30])):
    picture[disc] = colour
  pictures[2][disc] = [20, 115, 20]
  found = [duplicates.likeness(p) for p in pictures]
  assert len({f.hash for f in found[:3]}) == 1
  _, alike = duplicates.group(
    np.arange(3, dtype=np.uint64),
    np.array([f.hash for f in found[:3]], np.uint64),
    np.stack([f.look for f in found[:3]]),
  )
  assert alike[0] == alike[1] != alike[2]
  assert [f.flat for f in found] == [False, False, False, True]


@pytest.mark.parametrize("distance", [0, 1, 3])
def test_near_pairs_are_all_that_are_near(distance):
  hashes = clustered(distance)
  found = {
    (int(max(p)), int(min(p)))
    for pairs in duplicates.near_pairs(hashes, distance)
    for p in pairs
  }
  assert found == near_by_hand(hashes, distance)
  assert len(found) >= 3


def test_near_pairs_of_nothing_and_of_too_much():
  assert list(duplicates.near_pairs(np.zeros(0, np.uint64), 3)) == []
  with pytest.raises(ValueError, match="distance=4"):
    list(duplicates.near_pairs(np.zeros(2, np.uint64), 4))


def test_groups_are_those_of_all_near_pairs():
  hashes = clustered(9)
  digests = np.arange(300, dtype=np.uint64)
  digests[100:120] = digests[:20]  # Equal pixels have equal hashes.
  hashes[100:120] = hashes[:20]
  same, alike = duplicates.group(
    digests, hashes, np.zeros((300, 8, 8, 3), np.uint8)
  )
  parent = list(range(300))

  def root(i):
    return i if parent[i] == i else root(parent[i])

  for i, j in near_by_hand(hashes, duplicates.DISTANCE):
    parent[root(i)] = root(j)
  roots = np.array([root(i) for i in range(300)])
  assert ((roots[:, None] == roots) == (alike[:, None] == alike)).all()
  assert ((digests[:, None] == digests) == (same[:, None] == same)).all()
  assert len(set(roots)) < 150


def test_a_look_differs_by_what_there_is_to_see():
  rng = np.random.default_rng(0)
  looks = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)
  looks[1] = looks[0] // 2
  found = duplicates.look_differences(looks)(np.array([[0, 0], [0, 1], [0, 2]]))
  a, b = looks[:2].astype(float)
  spread = [np.square(x - x.mean((0, 1))).sum() for x in (a, b)]
  expected = np.square(a - b).sum() / np.mean(spread)
  np.testing.assert_allclose(found[:2], [0, expected], rtol=1e-6)
  assert 1.5 < found[2] < 2.5
