"""The files of cached embeddings, and what is refused of them."""

import json
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest

from aced.data import cache
from aced.data.cache import CacheError, Contents, EmbeddingCache

CONTENTS = Contents(
  identities={"model": "m", "input.source": "s"},
  records=10,
  shard_records=4,
  width=6,
  t=10.0,
  b=-5.0,
)


@pytest.fixture
def folder(tmp_path):
  """A cache of ten records with 1 to 3 captions, of which record 5 has none."""
  (tmp_path / cache.FILE).write_text(json.dumps(CONTENTS._asdict()))
  for shard in range(CONTENTS.shards):
    entries = [
      cache.encode(None if k == 5 else picture(k), captions(k))
      for k in CONTENTS.rows(shard)
    ]
    cache.write_shard(tmp_path, shard, CONTENTS, entries)
  return tmp_path


def picture(k):
  return np.full(6, k + 0.5, np.float32)


def captions(k):
  return [np.full(6, 100 * k + j, np.float32) for j in range(k % 3 + 1)]


def test_rows_of_any_shard_in_any_order(folder):
  found = EmbeddingCache(folder)
  indices, chosen = [9, 0, 5, 4, 2, 2], [0, 0, 0, 1, 2, 0]
  zimg, ztxt, usable = found.read(indices, chosen)
  assert zimg.dtype == ztxt.dtype == ml_dtypes.bfloat16
  assert usable.tolist() == [True, True, False, True, True, True]
  for row, (k, j) in enumerate(zip(indices, chosen, strict=True)):
    bf16 = np.dtype(ml_dtypes.bfloat16)
    want = picture(k).astype(bf16), captions(k)[j].astype(bf16)
    if k == 5:
      want = np.zeros(6), np.zeros(6)
    np.testing.assert_array_equal(zimg[row], want[0])
    np.testing.assert_array_equal(ztxt[row], want[1])


def test_a_caption_that_the_cache_has_not_is_not_usable(folder):
  assert not EmbeddingCache(folder).read([0], [1])[2].any()


def test_pickled_and_read_from_threads(folder):
  found = pickle.loads(pickle.dumps(EmbeddingCache(folder)))
  want, got = found.read(range(5), [0] * 5)[0], {}
  threads = [
    threading.Thread(target=lambda k=k: got.update({k: found.read([k], [0])}))
    for k in range(5)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for k in range(5):
    np.testing.assert_array_equal(got[k][0][0], want[k])


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "short"])
def test_a_cache_that_is_not_whole_is_refused(folder, damage):
  path = cache.shard_path(folder, 1, 3)
  if damage == "missing":
    path.unlink()
  elif damage == "empty":
    path.write_bytes(b"")
  elif damage == "cut":
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  else:  # Another shard, of fewer entries, in its place.
    path.write_bytes(cache.shard_path(folder, 2, 3).read_bytes())
  with pytest.raises(CacheError, match="1 of 3 shards are missing or cut") as e:
    EmbeddingCache(folder)
  assert "embeddings-00001-of-00003" in str(e.value)
  assert not cache.whole(folder, 1, CONTENTS)
  assert cache.whole(folder, 0, CONTENTS)


def test_a_damaged_entry_is_told_and_not_read(folder):
  path = cache.shard_path(folder, 0, 3)
  content = path.read_bytes()
  entry = cache.encode(picture(1), captions(1))
  place = content.index(entry)
  path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
  found = EmbeddingCache(folder)
  assert found.read([0], [0])[2].all()
  with pytest.raises(CacheError, match="is damaged.*Remove it and run"):
    found.read([1], [0])


def test_what_is_no_cache_is_refused(folder, tmp_path):
  with pytest.raises(CacheError, match="no cache of embeddings"):
    EmbeddingCache(tmp_path / "nothing")
  for text, message in (
    ("{", "is not what python -m aced.cache writes"),
    ("{}", "is not what python -m aced.cache writes"),
    (json.dumps(CONTENTS._replace(format=9)._asdict()), "is of format 9"),
  ):
    (folder / cache.FILE).write_text(text)
    with pytest.raises(CacheError, match=message):
      EmbeddingCache(folder)


def test_another_model_or_source_is_named(folder):
  found = EmbeddingCache(folder)
  found.check({"model": "m"})
  with pytest.raises(CacheError, match="input.source: it was made of s, and"):
    found.check({"model": "m", "input.source": "other"})


def test_a_shard_that_cannot_be_written_leaves_nothing(folder):
  with pytest.raises(TypeError):
    cache.write_shard(folder, 2, CONTENTS, ["not bytes", None])
  assert cache.whole(folder, 2, CONTENTS)
  assert not list(folder.glob(".*"))
