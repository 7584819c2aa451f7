import pytest
from absl import logging

from aced.config import ConfigError
from aced.data.tokenizers import KINDS, load, loading
from tests.data.tokenizers import models


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("byte", "'byte' is not known.*mean 'bytes'"),
    ("", "'' is not known; expected kind:path.*bytes, clip, hf, sentencepiece"),
    ("bytes:x", "bytes has no path; write 'bytes' alone"),
    ("bytes?lower=1", "'lower' is not an option of bytes; it has none"),
    ("sentencepeice:x", "mean 'sentencepiece'"),
    ("sentencepiece:", "sentencepiece needs the model, sentencepiece:path"),
    ("clip", "clip needs a file.*open_clip_torch"),
    ("clip:x?pad=1", "'pad' is not an option of clip; it has none"),
    ("hf", "hf needs the file, hf:path/tokenizer.json"),
    ("sentencepiece:x?lowr=1", "'lowr' is not an option.*mean 'lower'"),
    ("sentencepiece:x?lower=2", "lower=2 must be one of 0, 1, ascii"),
    ("sentencepiece:x?eos=stcky", "one of sticky, yes, none Did.*'sticky'"),
    ("sentencepiece:x?style=siglip3", "one of siglip, siglip2 Did you mean"),
    ("sentencepiece:x?bos=yes", "bos=yes must be one of 0, 1"),
    ("sentencepiece:x?pad=-1", "pad=-1 must be a whole number, 0 or above"),
    ("sentencepiece:x?pad=<pad>", "pad=<pad> must be a whole number"),
    ("sentencepiece:x?lower", "'lower' must be option=value"),
    ("sentencepiece:x?lower=", "'lower=' must be option=value"),
    ("sentencepiece:x?lower=1&lower=0", "'lower=0' must be.*each option once"),
  ],
)
def test_refuses_by_name(spec, message):
  with pytest.raises(ConfigError, match=f"^tokenizer '.*{message}"):
    load(spec, 16)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"bytes"}))
def test_says_where_a_missing_file_comes_from(kind, tmp_path):
  with pytest.raises(
    ConfigError, match=r"cannot read .*none: No such file"
  ) as e:
    load(f"{kind}:{tmp_path}/none", 16)
  assert {
    "clip": "open_clip_torch has in its folder open_clip",
    "hf": "comes with a model of Hugging Face",
    "sentencepiece": "python -m aced.data.tokenizers train",
  }[kind] in str(e.value)


def test_refuses_a_length_without_room_for_text():
  with pytest.raises(ConfigError, match="text_length=1 must be 2 or above"):
    load("bytes", 1)


@pytest.mark.parametrize(
  ("name", "few", "enough", "told"),
  [
    ("bytes", 2, 9, "keeps 1 of the 16 ids of 'a photo of a dog'"),
    ("bytes", 8, 9, "keeps 7 of the 16 ids"),
    ("bert", 3, 16, "keeps 1 of the "),
    ("c4", 2, 16, "keeps 1 of the "),
  ],
)
def test_a_length_that_leaves_nothing_is_told_of(
  tmp_path, caplog, monkeypatch, name, few, enough, told
):
  monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
  spec = models.write(tmp_path)[name]
  loading._warn_once.cache_clear()
  load(spec, few)
  load(spec, few)
  (record,) = caplog.records
  assert f"text_length={few} is surely not meant: tokenizer" in caplog.text
  assert told in record.getMessage()
  caplog.clear()
  tokenizer = load(spec, enough)
  assert not caplog.records
  count = tokenizer.count("a photo of a dog")
  assert load(spec, few).count("a photo of a dog") == count
  uncut = load(spec, 64)(["a photo of a dog"])[0]
  assert uncut[count + (name == "bert")] in (1, 3)  # The end.
