import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from aced.config import ConfigError
from aced.data import faults
from aced.data.pipeline import (
  eval_batches,
  eval_captions,
  record_index,
  superbatches,
)
from aced.data.records import CAUSES
from aced.data.sources import open_source
from aced.data.tokenizers import load
from aced.data.transforms import Transform

TOKENIZER = load("bytes", 24)
AUGMENT = Transform(16, crop_scale=(0.4, 1.0), flip=True)
PLAIN = Transform(16)
SETS = (
  "emoji/train",
  "emoji/test_vendor",
  "emoji/test_concept",
  "grocery/train",
  "grocery/val",
  "grocery/test",
  "signdigits/train",
  "signdigits/test",
  "coco_cc/test",
)


@pytest.fixture(scope="module")
def source():
  return open_source("synthetic:train?size=50&image_size=16&noise=0.5")


def read(source, transform=AUGMENT, **options):
  options = {"batch_size": 24, "seed": 5, "num_steps": 6} | options
  with superbatches(source, TOKENIZER, transform, **options) as batches:
    return list(batches)


@pytest.fixture(scope="module")
def whole(source):
  return read(source, num_threads=1, prefetch=1)


def assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100, 1009])
def test_every_epoch_is_a_permutation(size):
  epochs = [
    [record_index(epoch * size + i, size, 3) for i in range(size)]
    for epoch in range(3)
  ]
  assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
  if size > 3:
    assert epochs[0] != epochs[1] != epochs[2] != list(range(size))
    other = [record_index(i, size, 4) for i in range(size)]
    assert other != epochs[0]
  plain = [record_index(i, size, 3, shuffle=False) for i in range(2 * size)]
  assert plain == [*range(size), *range(size)]


def test_shuffling_is_even():
  # Where the first tenth of the records goes, over many seeds: chi-squared
  # over ten bins has mean 9 and standard deviation 4.2.
  count = np.zeros(10)
  for seed in range(200):
    for position in range(10):
      count[record_index(position, 100, seed) // 10] += 1
  chi2 = ((count - 200) ** 2 / 200).sum()
  assert chi2 < 9 + 5 * 4.2


def test_batches_are_the_stream_read_plainly(source, whole):
  for step, batch in enumerate(whole):
    for row in range(24):
      position = step * 24 + row
      index = record_index(position, 50, 5)
      assert batch["index"][row] == index
      record = source[index]
      assert batch["fault"][row] == record["fault"]
      rng = np.random.default_rng((5, position))
      np.testing.assert_array_equal(batch["image"][row], AUGMENT(record, rng))
      labels = TOKENIZER([record["text"]])[0]
      np.testing.assert_array_equal(batch["labels"][row], labels)
  assert all(batch["_mask"].all() for batch in whole)


def test_columns(whole, source):
  shapes = {k: (v.shape, v.dtype.name) for k, v in whole[0].items()}
  assert shapes == {
    "image": ((24, 16, 16, 3), "uint8"),
    "labels": ((24, 24), "int32"),
    "_mask": ((24,), "bool"),
    "index": ((24,), "int32"),
    "error": ((24,), "int8"),
    "fault": ((24,), "int8"),
  }
  plain = open_source("synthetic:train?size=50&image_size=16")
  assert "fault" not in read(plain, num_steps=1)[0]


@pytest.mark.parametrize(
  "options",
  [
    {"num_threads": 3},
    {"num_threads": 5, "prefetch": 4},
    {"num_workers": 2, "num_threads": 2},
  ],
)
def test_readers_change_nothing(source, whole, options):
  assert_same(read(source, **options), whole)


@pytest.mark.parametrize(
  "shares",
  [
    [range(0, 12), range(12, 24)],
    # Devices of a process need not stand next to each other in a mesh.
    [[0, 1, 6, 7, 20, 21, 22, 23], [2, 3, 4, 5], [*range(8, 20)]],
  ],
)
def test_processes_share_the_same_batches(source, whole, shares):
  parts = [read(source, rows=rows) for rows in shares]
  order = np.argsort(np.concatenate([np.array(rows) for rows in shares]))
  joined = [
    {k: np.concatenate([share[k] for share in step])[order] for k in step[0]}
    for step in zip(*parts, strict=True)
  ]
  assert_same(joined, whole)


@pytest.mark.parametrize("start", [0, 1, 4, 6])
def test_resuming_is_skipping(source, whole, start):
  assert_same(
    read(source, start_step=start, num_steps=6 - start), whole[start:]
  )


def test_epochs_differ_in_augmentation_and_order(source):
  first, second = read(source, num_steps=2, batch_size=50)
  assert sorted(first["index"]) == sorted(second["index"]) == list(range(50))
  one, two = (np.argsort(b["index"]) for b in (first, second))
  assert not np.array_equal(one, two)
  assert not np.array_equal(first["image"][one], second["image"][two])


def test_large_batches_are_read_in_parts():
  source = open_source("synthetic:train?size=600&image_size=16")
  (batch,) = read(source, PLAIN, batch_size=600, num_steps=1)
  want = [record_index(i, 600, 5) for i in range(600)]
  assert batch["index"].tolist() == want


class Listed(list):
  """Records in memory."""

  def __repr__(self):
    return "Listed()"


def bad_records():
  file = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
  Image.fromarray(noise).save(file, "PNG")
  png = file.getvalue()
  return Listed(
    [
      {"image": png, "text": "fine"},
      {"image": png, "text": ["", 3, "one is fine"]},
      {"text": "a"},
      {"image": b"", "text": "a"},
      {"image": b"nonsense", "text": "a"},
      {"image": png[:60], "text": "a"},
      {"image": png, "text": ""},
      {"image": png, "text": " \n"},
      {"image": png, "text": []},
      {"image": png, "text": 7},
      {"image": png},
      {"image": np.zeros((2, 9, 3), np.uint8), "text": "a"},
    ]
  )


CODES = [
  "none",
  "none",
  "missing_image",
  "empty_image",
  "not_an_image",
  "damaged_image",
  "empty_caption",
  "empty_caption",
  "empty_caption",
  "caption_not_text",
  "caption_not_text",
  "too_small",
]


def test_bad_records_are_masked_with_their_cause():
  source = bad_records()
  options = {"batch_size": len(source), "num_steps": 1, "shuffle": False}
  (batch,) = read(source, **options)
  assert batch["error"].tolist() == [CAUSES[name] for name in CODES]
  np.testing.assert_array_equal(batch["_mask"], batch["error"] == 0)
  assert not batch["image"][~batch["_mask"]].any()
  nothing = TOKENIZER([""])
  bad = batch["labels"][~batch["_mask"]]
  np.testing.assert_array_equal(bad, np.repeat(nothing, len(bad), axis=0))
  assert TOKENIZER.decode(batch["labels"][1]) == "one is fine"
  assert batch["index"].tolist() == list(range(len(source)))


def test_one_of_several_captions_is_drawn():
  image = np.zeros((16, 16, 3), np.uint8)
  texts = [f"caption {k}" for k in range(5)]
  source = Listed([{"image": image, "text": texts}] * 8)
  batches = read(source, PLAIN, batch_size=8, num_steps=20)
  drawn = [TOKENIZER.decode(row) for b in batches for row in b["labels"]]
  counts = [drawn.count(text) for text in texts]
  # 160 draws of five: five standard deviations of a binomial about 32.
  assert sum(counts) == 160 and all(abs(c - 32) <= 25 for c in counts)


def test_a_failing_source_stops_the_run():
  class Broken(Listed):
    def __getitem__(self, index):
      raise OSError("the disk is gone")

  source = Broken([{}] * 4)
  with (
    superbatches(
      source, TOKENIZER, PLAIN, batch_size=4, seed=0, num_steps=1
    ) as batches,
    pytest.raises(OSError, match="the disk is gone"),
  ):
    next(batches)


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_reads_all_in_order(source, processes):
  shares = []
  for index in range(processes):
    share = eval_batches(
      source,
      TOKENIZER,
      PLAIN,
      batch_size=16,
      process_index=index,
      process_count=processes,
    )
    shares.append(list(share))
  joined = [
    {k: np.concatenate([part[k] for part in step]) for k in step[0]}
    for step in zip(*shares, strict=True)
  ]
  assert len(joined) == 4
  index = np.concatenate([batch["index"] for batch in joined])
  mask = np.concatenate([batch["_mask"] for batch in joined])
  assert index.tolist() == [*range(50), *[-1] * 14]
  assert mask.tolist() == [True] * 50 + [False] * 14
  images = np.concatenate([batch["image"] for batch in joined])
  for i in range(50):
    np.testing.assert_array_equal(images[i], PLAIN(source[i]))


def test_evaluation_masks_pictures_alone():
  source = bad_records()
  (batch,) = eval_batches(source, TOKENIZER, PLAIN, batch_size=len(source))
  readable = ["image" not in name and name != "too_small" for name in CODES]
  assert batch["_mask"].tolist() == readable
  assert list(eval_batches(Listed(), TOKENIZER, PLAIN, batch_size=4)) == []
  texts, index = eval_captions(source)
  assert texts[:2] == ["fine", "one is fine"]
  assert index.tolist() == [0, 1, 2, 3, 4, 5, 11]


def test_evaluation_does_not_augment(source):
  with pytest.raises(ValueError, match="no random generator"):
    next(eval_batches(source, TOKENIZER, AUGMENT, batch_size=4))


def test_all_captions(tmp_path):
  path = tmp_path / "x.jsonl"
  texts = [["a", "b"], "c", [], ["d", ""]]
  path.write_text("\n".join(json.dumps({"text": t}) for t in texts))
  captions, index = eval_captions(open_source(str(path)))
  assert captions == ["a", "b", "c", "d"]
  assert index.tolist() == [0, 0, 1, 3]
  # Pictures are not drawn for it, and faults are seen all the same.
  noisy = open_source("synthetic:val?size=20&noise=1&faults=junk")
  captions, _ = eval_captions(noisy)
  assert captions == [noisy[i]["text"] for i in range(20)]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"batch_size": 51}, "super-batch of 51 pairs is larger .* of 50"),
    ({"rows": [0, 24]}, r"rows=\[0, 24\] must be some of the 24 rows"),
    ({"rows": []}, r"rows=\[\] must be"),
    ({"batch_size": 0}, "must be some of the 0 rows"),
    ({"start_step": -1}, "start_step=-1"),
    ({"num_steps": -1}, "num_steps=-1"),
    ({"seed": -1}, "seed=-1"),
    ({"num_threads": 0}, "num_threads=0"),
    ({"prefetch": 0}, "prefetch=0"),
  ],
)
def test_refuses(source, options, message):
  with pytest.raises(ConfigError, match=message):
    read(source, **options)


def test_close_ends_early(source):
  batches = superbatches(
    source, TOKENIZER, PLAIN, batch_size=24, seed=0, num_steps=10**6
  )
  assert len(list(itertools.islice(batches, 2))) == 2
  batches.close()
  batches.close()


@pytest.mark.parametrize("name", SETS)
def test_real_sets_make_batches(shared_data, name):
  source = open_source(f"jsonl:{shared_data / name}.jsonl?noise=0.3")
  (batch,) = read(source, batch_size=128, num_steps=1)
  assert batch["_mask"].all() and not batch["error"].any()
  spread = batch["image"].astype(float).std(axis=(1, 2, 3))
  blank = batch["fault"] == faults.BLANK
  assert (spread[blank] == 0).all()
  assert np.median(spread[~blank]) > 10
