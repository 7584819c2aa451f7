"""Recall against a full, stable sort of similarities summed exactly."""

import math
import tracemalloc

import numpy as np
import pytest

from aced.evaluation import retrieval as module
from aced.evaluation.retrieval import ranks, retrieval, retrieval_ranks


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


def place(query, gallery, right):
  """Where the first right item stands in a stable sort of exact sums."""
  similarity = np.float32(
    [math.fsum(row) for row in np.float64(gallery) * np.float64(query)]
  )
  order = np.argsort(-similarity, kind="stable")
  return np.flatnonzero(right[order])[0]


@pytest.mark.parametrize("block", [None, 1, 7 * 60])
@pytest.mark.parametrize("grouped", [False, True])
def test_ranks_of_every_query(monkeypatch, grouped, block):
  if block:
    monkeypatch.setattr(module, "_BLOCK", block)
  zimg, ztxt, of = make(n=60, d=96, captions=4, noise=3.0)
  # Copies within a picture and across pictures, and pictures without a text.
  ztxt[of == 7] = ztxt[5]
  ztxt[11:200:9] = ztxt[5]
  zimg[30:40] = zimg[3]
  of[np.isin(of, (12, 33, 41))] = 50
  group = np.arange(60)
  if grouped:
    group[30:36], group[58:] = 3, -4
  got = retrieval_ranks(zimg, ztxt, of, group if grouped else None)
  has_text = np.flatnonzero(np.isin(group, group[of]))
  np.testing.assert_array_equal(got.image_index, has_text)
  want = [place(zimg[i], ztxt, group[of] == group[i]) for i in has_text]
  np.testing.assert_array_equal(got.image_rank, want)
  want = [place(z, zimg, group == group[i]) for z, i in zip(ztxt, of)]
  np.testing.assert_array_equal(got.text_rank, want)
  assert {x.dtype for x in got} == {np.dtype(np.int64)}
  # The copies reach both first places and others.
  assert np.ptp(got.image_rank) > 5 and np.ptp(got.text_rank) > 5


def test_recall_is_the_mean_of_the_ranks():
  zimg, ztxt, of = make()
  got, found = retrieval(zimg, ztxt, of, (3,)), retrieval_ranks(zimg, ztxt, of)
  assert got["image_to_text/R@3"] == np.mean(found.image_rank < 3)
  assert got["text_to_image/R@3"] == np.mean(found.text_rank < 3)


@pytest.mark.parametrize("block", [1, 80 * 7, 10**6])
def test_blocks_do_not_change_ranks(monkeypatch, block):
  zimg, ztxt, of = make(n=40, captions=2)
  ztxt[3] = ztxt[9]
  # One large group, that no block holds.
  group = np.maximum(np.arange(40), 25)
  both = retrieval_ranks(zimg, ztxt, of, group)
  want = ranks(zimg, ztxt, group, group[of])
  np.testing.assert_array_equal(both.image_rank, want)
  monkeypatch.setattr(module, "_BLOCK", block)
  found = retrieval_ranks(zimg, ztxt, of, group)
  for name in found._fields:
    np.testing.assert_array_equal(getattr(found, name), getattr(both, name))
  np.testing.assert_array_equal(ranks(zimg, ztxt, group, group[of]), want)


def test_two_products_may_round_one_pair_apart(monkeypatch):
  zimg, ztxt, of = make()
  want = retrieval_ranks(zimg, ztxt, of)
  similarity = module._similarity

  def rounded_down_within_a_group(rows, columns):
    found = similarity(rows, columns)
    return found if len(columns) > 1 else np.nextafter(found, -np.inf)

  monkeypatch.setattr(module, "_similarity", rounded_down_within_a_group)
  found = retrieval_ranks(zimg, ztxt, of)
  np.testing.assert_array_equal(found.image_rank, want.image_rank)
  np.testing.assert_array_equal(found.text_rank, want.text_rank)


def test_all_of_one_group_are_first():
  zimg, ztxt, of = make()
  got = retrieval_ranks(zimg, ztxt, of, np.zeros(len(zimg), int))
  assert not got.image_rank.any() and not got.text_rank.any()


def test_a_query_whose_group_is_not_there_is_never_a_hit():
  zimg, ztxt, of = make()
  group = np.arange(len(zimg))
  want = ranks(zimg, ztxt, group, of)
  group[4] = -1
  got = ranks(zimg, ztxt, group, of)
  assert got[4] == len(ztxt)
  np.testing.assert_array_equal(np.delete(got, 4), np.delete(want, 4))


@pytest.mark.parametrize("groups", [400, 1])
def test_memory_is_that_of_a_block(monkeypatch, groups):
  # 400 x 4,000 similarities are 6.4 MB in float32, in blocks of 4,096 of them.
  monkeypatch.setattr(module, "_BLOCK", 2**12)
  zimg, ztxt, of = make(n=400, captions=10)
  tracemalloc.start()
  retrieval_ranks(zimg, ztxt, of, np.arange(400) % groups)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 0.8e6


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
