"""Signs, sums of them, and the second moments that they estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.training.sketch import WIDTH, signs, sketch, sketch_of_all

MODULUS = 2**32
GOLDEN = 0x9E3779B9


def mixed(x):
  """MurmurHash3's finalizer in Python's whole numbers."""
  x = (x ^ x >> 16) * 0x85EBCA6B % MODULUS
  x = (x ^ x >> 13) * 0xC2B2AE35 % MODULUS
  return x ^ x >> 16


def sign(record, k):
  spread = mixed((record + GOLDEN) % MODULUS)
  salt = mixed((k + 1) * GOLDEN % MODULUS)
  return 1 - 2 * (mixed(spread ^ salt) >> 31)


def table(records, width=WIDTH):
  """`(n, width)` signs, for sums that are made here."""
  return np.asarray(signs(jnp.asarray(records, jnp.int32), width), np.int64)


@pytest.mark.parametrize("width", [1, 16, 64])
def test_it_is_the_sum_of_the_signs_of_rows_that_count(width):
  rng = np.random.default_rng(width)
  index = rng.integers(0, 2**31 - 1, 40, np.int32)
  index[:3] = 0, 2**31 - 1, index[3]  # One twice.
  mask = rng.random(40) < 0.7
  want = [
    sum(sign(int(i), k) for i in index[mask].tolist()) for k in range(width)
  ]
  got = sketch(jnp.asarray(index), jnp.asarray(mask), width)
  assert got.dtype == jnp.float32 and got.shape == (width,)
  assert got.tolist() == want


def test_masked_rows_do_not_count_whatever_they_hold():
  index, mask = jnp.arange(8), jnp.arange(8) < 5
  want = sketch(index[:5], mask[:5])
  other = jnp.where(mask, index, -1)
  assert (sketch(index, mask) == want).all()
  assert (sketch(other, mask) == want).all()
  assert not sketch(index, jnp.zeros(8, bool)).any()
  assert want.any()


def test_rows_split_over_eight_devices_give_the_same():
  mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
  rows = jax.NamedSharding(mesh, jax.P("data"))
  index = jnp.arange(1000, 1800, dtype=jnp.int32)
  mask = index % 3 > 0
  split = jax.device_put((index, mask), rows)
  got = jax.jit(sketch)(*split)
  assert got.sharding.is_fully_replicated
  assert (got == sketch(index, mask)).all()


@pytest.mark.parametrize("count", [1, 1000, 2**16, 2**16 + 5])
def test_the_sketch_of_all_records(count):
  got = sketch_of_all(count, 8)
  assert got.dtype == np.int64
  np.testing.assert_array_equal(got, table(range(count), 8).sum(axis=0))


RANGES = [
  range(4096),
  range(10**6, 10**6 + 4096),
  range(0, 4096 * 8, 8),
  range(0, 4096 * 1000, 1000),
  range(0, 4096 * 2**18, 2**18),
]


@pytest.mark.parametrize("records", RANGES, ids=str)
def test_signs_are_balanced_and_uncorrelated(records):
  s = table(records)
  n = len(s)
  # Sums of n signs have the standard deviation sqrt(n); the largest of 64, of
  # 2,016 pairs and of 41,664 triples is below 5.5 of them but in 1 of 600.
  assert np.abs(s.sum(axis=0)).max() < 5.5 * n**0.5
  pairs = (s.T @ s)[np.triu_indices(WIDTH, 1)]
  assert np.abs(pairs).max() < 5.5 * n**0.5
  assert np.std(pairs) == pytest.approx(n**0.5, rel=0.1)
  for k in range(0, WIDTH, 8):
    triples = np.tril((s * s[:, [k]]).T @ s, -1)
    triples[k], triples[:, k] = 0, 0
    assert np.abs(triples).max() < 5.5 * n**0.5


@pytest.mark.parametrize("records", RANGES, ids=str)
@pytest.mark.parametrize("lag", [1, 2, 64, 1024])
def test_signs_of_records_that_are_apart_by_a_lag_are_uncorrelated(
  records, lag
):
  """What four-wise independence asks of: two pairs of records, any two signs.

  Products of neighbours, and products of those again (four records), have to
  cancel.
  """
  s = table(records)
  two = s[lag:] * s[:-lag]
  assert np.abs(two.sum(axis=0)).max() < 5.5 * len(two) ** 0.5
  four = two[2 * lag :] * two[: -2 * lag]
  assert np.abs(four.sum(axis=0)).max() < 5.5 * len(four) ** 0.5


@pytest.mark.parametrize("kind", ["consecutive", "strided", "random", "counts"])
def test_the_second_moment_is_unbiased_and_varies_as_it_should(kind):
  """Of signs that are four-wise independent the variance is `2 (F2^2 - F4)`."""
  rng = np.random.default_rng(0)
  n, sets = 60, 400
  first = np.arange(sets)[:, None] * 100_000
  records = (
    first
    + {
      "consecutive": np.arange(n),
      "strided": 1000 * np.arange(n),
      "random": rng.integers(0, 100_000, (sets, n)),
      "counts": np.arange(n),
    }[kind]
  )
  counts = np.ones(n, np.int64)
  if kind == "counts":
    counts = rng.integers(1, 9, n)
  s = table(records.reshape(-1), 64).reshape(sets, n, 64)
  f2, f4 = (counts**2).sum(), (counts**4).sum()
  single = np.square(np.einsum("snk,n->sk", s, counts)) / f2
  variance = 2 * (1 - f4 / f2**2)
  # Of 25,600 estimates: the mean within four standard errors; the variance,
  # whose own standard error is 2.6% (as chi-squared has it), within four too.
  assert single.mean() == pytest.approx(
    1, abs=4 * (variance / single.size) ** 0.5
  )
  assert single.var() == pytest.approx(variance, rel=0.11)
  # And of 64 together it is a 64th: they are as good as independent.
  assert single.mean(axis=1).var() == pytest.approx(variance / 64, rel=0.3)
