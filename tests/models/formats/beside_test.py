import pytest

from aced.models.formats import beside, read
from aced.models.params import ParamsError
from tests.models.formats.reading_test import save


@pytest.mark.parametrize(
  ("spec", "found"),
  [
    ("bytes", "bytes"),
    ("", ""),
    ("clip:merges.txt", "clip:{}/merges.txt"),
    ("sentencepiece:a.model?pad=0", "sentencepiece:{}/a.model?pad=0"),
  ],
)
def test_an_npz_file_is_what_the_file_beside_says(tmp_path, spec, found):
  save(tmp_path / "w.npz")
  beside.write(tmp_path, tokenizer=spec, resize="bicubic")
  weights = read(tmp_path / "w.npz")
  assert weights.tokenizer == found.format(tmp_path)
  assert weights.resize == "bicubic"


def test_nothing_is_said_without_one(tmp_path):
  save(tmp_path / "w.npz")
  assert beside.read(tmp_path) == {}
  weights = read(tmp_path / "w.npz")
  assert (weights.tokenizer, weights.resize) == ("", "")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "aced.json is not JSON"),
    ("[]", "must be a table of texts with tokenizer and resize"),
    ('{"tokenizer": "bytes"}', "must be a table of texts"),
    (
      '{"tokenizer": "sentencepiece:../a.model", "resize": "bilinear"}',
      "must be a file in the same folder",
    ),
    (
      '{"tokenizer": "hf:/a.json?pad=x/y", "resize": "bilinear"}',
      "must be a file in the same folder",
    ),
    ('{"tokenizer": null, "resize": "bilinear"}', "must be a table of texts"),
  ],
)
def test_a_damaged_one_is_named(tmp_path, text, message):
  save(tmp_path / "w.npz")
  (tmp_path / "aced.json").write_text(text)
  with pytest.raises(ParamsError, match=message):
    read(tmp_path / "w.npz")
