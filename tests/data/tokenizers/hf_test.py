import json
import sys

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data.tokenizers import load
from tests.data.tokenizers import models

PAD, CLS, SEP, MASK = 0, 2, 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("hf")
  for kind in ("bert", "plain"):
    (path / kind).mkdir()
    models.hugging_face(kind).save(str(path / kind / "tokenizer.json"))
  return path


def row(folder, spec, length=8, text="a red circle"):
  tokenizer = load(f"hf:{folder}/{spec}", length)
  ids = tokenizer([text])[0].tolist()
  return tokenizer, ids


def test_a_file_or_its_folder(folder):
  _, ids = row(folder, "bert")
  assert row(folder, "bert/tokenizer.json")[1] == ids


def test_follows_a_file_that_adds_tokens(folder):
  tokenizer, ids = row(folder, "bert")
  want = models.hugging_face("bert").encode("a red circle").ids
  assert ids == want + [PAD] * (8 - len(want))
  assert ids[0] == CLS and want[-1] == SEP
  assert tokenizer.decode(ids) == "a red circle"
  assert tokenizer.reserved == 2
  for length in (3, 4):
    assert row(folder, "bert", length)[1] == [*want[: length - 1], SEP]
  with pytest.raises(ConfigError, match="text_length=2 must be 3 or above"):
    load(f"hf:{folder}/bert", 2)


def test_ends_texts_of_a_file_that_adds_none(folder):
  tokenizer, ids = row(folder, "plain")
  end = tokenizer.eos
  assert end == tokenizer.pad == 0  # <|endoftext|>
  want = models.hugging_face("plain").encode("a red circle").ids
  assert ids == want + [end] * (8 - len(want))
  assert row(folder, "plain", 2)[1] == [want[0], end]
  bare = row(folder, "plain?special=1", 2)[1]
  assert bare == want[:2]


def test_own_tokens(folder):
  want = (
    models.hugging_face("bert")
    .encode("a red circle", add_special_tokens=False)
    .ids
  )
  fill = [PAD] * (6 - len(want))
  assert row(folder, "bert?special=0")[1] == [*want, SEP, *fill, PAD]
  assert row(folder, "bert?bos=[CLS]")[1] == [CLS, *want, SEP, *fill]
  assert row(folder, "bert?end=[MASK]")[1] == [*want, MASK, *fill, PAD]
  tokenizer, ids = row(folder, "bert?bos=[CLS]&end=[MASK]&pad=[SEP]")
  assert ids == [CLS, *want, MASK, *[SEP] * len(fill)]
  assert tokenizer.decode(ids) == "a red circle"
  assert row(folder, "bert?pad=[MASK]")[1][-1] == MASK


def test_special_tokens_in_a_caption_are_text(folder):
  for spec, special in (("bert", "[SEP]"), ("plain", "<|endoftext|>")):
    tokenizer, ids = row(folder, spec, 64, f"a {special} red")
    used = {tokenizer.pad, *(() if spec == "plain" else (SEP,))}
    ended = [i for i in ids if i in used]
    # At the end alone.
    assert ids[-len(ended) :] == ended


def test_padding_and_truncation_of_the_file(folder, tmp_path):
  file = models.hugging_face("bert")
  file.enable_padding(
    direction="left", pad_id=MASK, pad_token="[MASK]", length=20
  )
  file.enable_truncation(2, direction="left")
  file.save(str(tmp_path / "tokenizer.json"))
  # Which token pads is taken from the file, where and how long is not.
  want = row(folder, "bert?pad=[MASK]")[1]
  assert row(tmp_path, "tokenizer.json")[1] == want
  for options, same in (
    ("?pad=[PAD]", ""),
    ("?special=0", "?special=0&pad=[MASK]"),
  ):
    got = row(tmp_path, f"tokenizer.json{options}")[1]
    assert got == row(folder, f"bert{same}")[1]


def test_lower(folder):
  assert (
    row(folder, "plain?lower=1", 30, "A RED É")[1]
    == (row(folder, "plain", 30, "a red é")[1])
  )
  assert (
    row(folder, "plain?lower=ascii", 30, "A RED É")[1]
    == (row(folder, "plain", 30, "a red É")[1])
  )
  assert (
    row(folder, "plain?canonical=1", 30, "A, RED_É")[1]
    == (row(folder, "plain", 30, "a red é")[1])
  )


def test_ids_above_the_number_of_tokens(tmp_path):
  file = json.loads(models.hugging_face("plain").to_str())
  file["model"]["vocab"]["zzzz"] = 5000
  (tmp_path / "tokenizer.json").write_text(json.dumps(file))
  assert load(f"hf:{tmp_path}", 8).vocab_size == 5001


def test_refuses_by_name(folder, tmp_path, monkeypatch):
  models.hugging_face("plain", tokens=["<unk>"]).save(
    str(tmp_path / "endless.json")
  )
  for spec, message in (
    (f"hf:{__file__}", "is not a tokenizer.json"),
    (f"hf:{folder}", "cannot read .*tokenizer.json: No such file"),
    (f"hf:{folder}/bert?end=[SPE]", r"'\[SPE\]' is not a token.*'\[SEP\]'"),
    (f"hf:{folder}/bert?pad=nothing", "'nothing' is not a token of the file"),
    (f"hf:{folder}/bert?special=1&end=[SEP]", "give one or the other"),
    (f"hf:{tmp_path}/endless.json", "none of .*name its token with end="),
    (f"hf:{tmp_path}/endless.json?special=1", "name its token with pad="),
  ):
    with pytest.raises(ConfigError, match=message):
      load(spec, 16)
  assert load(f"hf:{tmp_path}/endless.json?special=1&pad=<unk>", 9).pad == 0
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with pytest.raises(ConfigError, match=r"pip install -e '\.\[formats\]"):
    load(f"hf:{folder}/bert", 16)


def test_same_ids_as_encode_batch(folder):
  file = models.hugging_face("plain")
  file.encode_special_tokens = True
  texts = [t.replace("\udcff", "?") for t in models.mixed(100)]
  ids = load(f"hf:{folder}/plain?special=1", 400)(texts)
  for got, want in zip(ids, file.encode_batch(texts), strict=True):
    np.testing.assert_array_equal(got[: len(want.ids)], want.ids[:400])
