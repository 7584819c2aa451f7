import pytest

from aced.export import names


@pytest.mark.parametrize(
  ("spec", "shown"),
  [
    ("synthetic:train?size=20&noise=0.6", "synthetic:train?size=20&noise=0.6"),
    ("/home/bob/pairs/x.jsonl", "x.jsonl"),
    ("~/x.jsonl?limit=3", "x.jsonl?limit=3"),
    ("jsonl:/home/bob/my data/x.jsonl?image=a/b", "jsonl:x.jsonl?image=a/b"),
    ("parquet:sets/*.parquet", "parquet:*.parquet"),
    (
      "webdataset:gs://bucket/bob/{0000..0099}.tar?index=/home/bob/index/",
      "webdataset:{0000..0099}.tar?index=index",
    ),
    (
      "tfds:coco/2014:train?data_dir=data/tfds&text=captions/text",
      "tfds:coco/2014:train?data_dir=tfds&text=captions/text",
    ),
    ("hf:owner/name:train", "hf:owner/name:train"),
    ("hf:/home/bob/folder/:train", "hf:folder:train"),
    (
      "mixture:3*webdataset:/a/web/*.tar;1e-3 * jsonl:my/x.jsonl?limit=9;/b/c",
      "mixture:3*webdataset:*.tar;1e-3 * jsonl:x.jsonl?limit=9;c",
    ),
  ],
)
def test_a_source_keeps_its_name_and_options(spec, shown):
  assert names.of_source(spec) == shown


@pytest.mark.parametrize(
  ("where", "shown"),
  [
    ("/home/bob/runs/reference@best", "reference@best"),
    ("runs/reference/", "reference"),
    ("~/big.npz:img", "big.npz:img"),
    ("siglip", "siglip"),
    ("random", "random"),
    ("", ""),
  ],
)
def test_weights_keep_their_name(where, shown):
  assert names.of_weights(where) == shown


def test_a_tokenizer_keeps_its_name_and_options():
  assert names.of_tokenizer("bytes") == "bytes"
  spec = "sentencepiece:/home/bob/c4.model?style=siglip&pad=0"
  assert names.of_tokenizer(spec) == (
    "sentencepiece:c4.model?style=siglip&pad=0"
  )
