import collections
import pickle

import numpy as np
import pytest

from aced.data import faults
from aced.data.records import Source, SourceError


class Letters(Source):
  """Record `i` has caption `i`, or one of few captions, and a flat picture."""

  def __init__(self, size, captions=10**9):
    self.size, self.captions = size, captions

  def __len__(self):
    return self.size

  def __repr__(self):
    return f"Letters({self.size})"

  def __getitem__(self, index):
    image = np.full((6, 5, 3), index % 256, np.uint8)
    text = f"caption {index % self.captions}"
    return {"image": image, "text": text, "number": index}


def test_truth_is_told_and_true():
  clean = Letters(400)
  noisy = faults.inject(clean, 0.7, seed=3)
  assert noisy.has_faults and not clean.has_faults
  for i in range(400):
    got, want = noisy[i], clean[i]
    kind = got["fault"]
    assert got["clean"] is (kind == faults.NONE)
    same_text = got["text"] == want["text"]
    same_image = np.array_equal(got["image"], want["image"])
    if kind == faults.NONE:
      assert same_text and same_image
    elif kind == faults.SWAPPED:
      assert not same_text and same_image
      assert got["text"].startswith("caption")
    elif kind == faults.JUNK:
      assert same_image and not got["text"].startswith("caption")
    elif kind == faults.DUPLICATE:
      other = clean[got["number"]]
      assert got["number"] != i and got["text"] == other["text"]
      assert np.array_equal(got["image"], other["image"])
    else:
      assert same_text and got["image"].shape == want["image"].shape
      assert (got["image"].std() > 0) == (kind == faults.NOISE)
    if kind != faults.DUPLICATE:
      assert got["number"] == i


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_rates_and_shares(rate):
  size = 4000
  noisy = faults.inject(Letters(size), rate, seed=1)
  count = collections.Counter(noisy.fields(i)["fault"] for i in range(size))
  expected = {faults.NONE: 1 - rate} | {
    code: rate * faults.WEIGHTS[kind] for kind, code in faults.KINDS.items()
  }
  for code, share in expected.items():
    # Five standard deviations of a binomial share; none if it is certain.
    slack = 5 * np.sqrt(share * (1 - share) / size)
    assert abs(count[code] / size - share) <= slack + 1e-12


def test_chosen_kinds_alone():
  noisy = faults.inject(Letters(200), 1.0, ("junk", "blank"))
  kinds = {noisy[i]["fault"] for i in range(200)}
  assert kinds == {faults.JUNK, faults.BLANK}


def test_depends_on_seed_and_index_alone():
  make = lambda seed: faults.inject(Letters(60), 0.5, seed=seed)  # noqa: E731
  first, again = make(0), pickle.loads(pickle.dumps(make(0)))
  backwards = [again[i] for i in reversed(range(60))][::-1]
  for i, record in enumerate(backwards):
    np.testing.assert_equal(first[i], record)
    fields = first.fields(i)
    assert "image" not in fields
    np.testing.assert_equal(fields, {k: record[k] for k in fields})
  codes = [first[i]["fault"] for i in range(60)]
  assert codes != [make(1)[i]["fault"] for i in range(60)]


def test_a_swap_that_changes_nothing_is_clean():
  only = faults.inject(Letters(20, captions=1), 1.0, ("swapped",))
  assert all(only[i]["clean"] for i in range(20))
  few = faults.inject(Letters(20, captions=2), 1.0, ("swapped",))
  for i in range(20):
    assert few[i]["text"] != Letters(20, captions=2)[i]["text"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"rate": 1.2}, "noise=1.2"),
    ({"rate": float("nan")}, "noise=nan"),
    ({"rate": 0.1, "seed": -1}, "noise_seed=-1"),
    ({"rate": 0.1, "kinds": ("swaped",)}, "mean 'swapped'"),
    ({"rate": 0.1, "kinds": ()}, "must name kinds"),
    ({"rate": 0.1, "kinds": ("junk", "junk")}, "once each"),
  ],
)
def test_refuses(options, message):
  with pytest.raises(SourceError, match=message):
    faults.inject(Letters(5), **options)


def test_refuses_sources_that_do_not_fit():
  with pytest.raises(SourceError, match="one record"):
    faults.inject(Letters(1), 0.5)
  with pytest.raises(SourceError, match="knows its own faults"):
    faults.inject(faults.inject(Letters(5), 0.5), 0.5)
