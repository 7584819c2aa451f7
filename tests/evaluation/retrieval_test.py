"""Recall against a full, stable sort of similarities summed exactly."""

import math

import numpy as np
import pytest

from aced.evaluation import retrieval as module
from aced.evaluation.retrieval import ranks, retrieval


def brute_force(queries, gallery, correct, k):
  """Share of queries with a right item in the first k of a stable sort."""
  hits = []
  for q, query in enumerate(queries):
    similarity = [
      np.float32(math.fsum(float(a) * float(b) for a, b in zip(query, row)))
      for row in gallery
    ]
    first = np.argsort(-np.asarray(similarity), kind="stable")[:k]
    hits.append(any(correct(q, j) for j in first))
  return np.mean(hits)


def make(seed=0, n=23, d=4, captions=3, noise=0.8):
  rng = np.random.default_rng(seed)
  zimg = rng.standard_normal((n, d))
  image_of_text = rng.permutation(np.repeat(np.arange(n), captions))
  ztxt = zimg[image_of_text] + noise * rng.standard_normal((n * captions, d))
  return zimg.astype(np.float32), ztxt.astype(np.float32), image_of_text


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("grouped", [False, True])
def test_equals_brute_force(captions, grouped):
  zimg, ztxt, of = make(captions=captions)
  # Copies of pictures and captions, so that there are exact ties.
  zimg[7], zimg[20], ztxt[5] = zimg[2], zimg[2], ztxt[11]
  group = np.arange(len(zimg))
  if grouped:
    group[[7, 20]] = 2
  got = retrieval(zimg, ztxt, of, (1, 2, 5), group if grouped else None)
  for k in (1, 2, 5):
    i2t = brute_force(zimg, ztxt, lambda q, j: group[of[j]] == group[q], k)
    t2i = brute_force(ztxt, zimg, lambda q, j: group[j] == group[of[q]], k)
    assert got[f"image_to_text/R@{k}"] == pytest.approx(i2t)
    assert got[f"text_to_image/R@{k}"] == pytest.approx(t2i)
    assert got[f"mean/R@{k}"] == pytest.approx((i2t + t2i) / 2)
  assert 0.05 < got["mean/R@1"] < 0.95  # Neither trivial nor hopeless.


def test_of_equal_items_the_lower_index_is_first():
  same = np.ones((4, 2), np.float32)
  got = retrieval(same, same, np.arange(4), ks=(1, 3, 4))
  assert [got[f"mean/R@{k}"] for k in (1, 3, 4)] == [0.25, 0.75, 1.0]


def test_pictures_of_a_group_count_as_one():
  z = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
  alone = retrieval(z, z, np.arange(4), ks=(1,))
  grouped = retrieval(z, z, np.arange(4), (1,), np.array([5, 5, 8, 9]))
  assert alone["mean/R@1"] == 0.75 and grouped["mean/R@1"] == 1.0


def test_blocks_do_not_change_ranks(monkeypatch):
  zimg, ztxt, of = make(n=40, captions=2)
  ztxt[3] = ztxt[9]
  group = np.arange(40)
  want = ranks(zimg, ztxt, group, of)
  for block in (1, 80 * 7):
    monkeypatch.setattr(module, "_BLOCK", block)
    np.testing.assert_array_equal(ranks(zimg, ztxt, group, of), want)


def test_image_without_a_text_is_no_query_but_a_distractor():
  zimg = np.array([[1.0, 0.0], [0.9, 0.0], [0.0, 1.0]], np.float32)
  got = retrieval(zimg, zimg[1:], np.array([1, 2]), ks=(1,))
  # Picture 0 is nearer to the text of picture 1 than picture 1 itself.
  assert got["image_to_text/R@1"] == 1.0
  assert got["text_to_image/R@1"] == 0.5


def test_more_ranks_than_items_is_a_hit():
  zimg, ztxt, of = make(n=3, captions=1)
  assert retrieval(zimg, ztxt, of, ks=(10,))["mean/R@10"] == 1.0


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"zimg": np.zeros((0, 4))}, "zimg has shape"),
    ({"ztxt": np.ones((69, 3))}, "ztxt 3"),
    ({"image_of_text": np.zeros(69)}, "image_of_text is float64"),
    ({"image_of_text": np.full(69, 23)}, "23..23"),
    ({"image_of_text": np.arange(5)}, "shape"),
    ({"image_group": np.arange(5)}, "image_group"),
    ({"ks": (0, 1)}, "ks="),
    ({"ks": ()}, "ks="),
  ],
)
def test_refuses(change, message):
  zimg, ztxt, of = make()
  arguments = {"zimg": zimg, "ztxt": ztxt, "image_of_text": of} | change
  with pytest.raises(ValueError, match=message):
    retrieval(**arguments)


def test_diverged_model_is_not_a_perfect_one():
  zimg, ztxt, of = make()
  zimg[4] = np.nan
  with pytest.raises(ValueError, match="1 of 23 rows"):
    retrieval(zimg, ztxt, of)
