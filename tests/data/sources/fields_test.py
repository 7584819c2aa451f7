import numpy as np
import pytest

from aced.data.records import BadRecord, captions
from aced.data.sources.fields import (
  Fields,
  json_object,
  label_of,
  plain,
  texts,
)


@pytest.mark.parametrize(
  ("stored", "want"),
  [
    ("a cat", "a cat"),
    ("\ufeffa cat", "a cat"),
    ("a cat\r\n", "a cat"),
    ("a cat\r", "a cat"),
    (" a\r\ncat ", "a\ncat"),
    (b"\xef\xbb\xbfa cat\r\n", "a cat"),
    ("caf\u00e9".encode(), "caf\u00e9"),
    (["a\r", b"b\n", np.str_("c ")], ["a", "b", "c"]),
    (np.array(["a\n", "b"], object), ["a", "b"]),
    ("", ""),
    (None, None),
    (3, 3),
  ],
)
def test_texts_are_cleaned(stored, want):
  assert texts(plain(stored)) == want


def test_lines_are_captions_where_it_is_said():
  text = "\ufeffa cat\r\n\r\n  two cats \r\n"
  assert texts(text) == "a cat\n\n  two cats"
  assert texts(text, lines=True) == ["a cat", "two cats"]
  assert texts(["a\nb", "c"], lines=True) == ["a", "b", "c"]
  assert texts(None, lines=True) is None
  stored = {"image": b"x", "text": text}
  assert Fields(lines=True).record(stored)["text"] == ["a cat", "two cats"]


@pytest.mark.parametrize(
  ("stored", "message"),
  [
    ("a cat".encode("utf-16"), "is UTF-16: .*anew as UTF-8"),
    ("a cat".encode("utf-16-le"), "has null characters, as UTF-16"),
    ("caf\u00e9".encode("latin-1"), "is not UTF-8: .*anew as UTF-8"),
    ([b"\xff"], "is not UTF-8"),
    (3, "is 3 of type int, not a string"),
    ({"raw": "a"}, "of type dict"),
  ],
)
def test_what_is_no_text_is_counted(stored, message):
  record = Fields().record({"image": b"x", "text": stored})
  with pytest.raises(BadRecord, match=message) as error:
    captions(record)
  assert error.value.cause == "caption_not_text"


@pytest.mark.parametrize(
  ("stored", "want"),
  [
    ("cat\r\n", "cat"),
    ("\ufeffcat", "cat"),
    (b"cat\n", "cat"),
    (7, "7"),
    (7.0, "7"),
    (0.5, "0.5"),
    (np.int64(7), "7"),
    (["cat"], "cat"),
    (True, "True"),
    (float("nan"), None),
    (None, None),
  ],
)
@pytest.mark.parametrize("name", [None, "kind"])
def test_a_label_is_text_however_it_is_stored(stored, want, name):
  stored = {"image": b"x", "text": "a", name or "label": stored}
  assert Fields(label=name).record(stored)["label"] == want


def test_what_is_no_label_stays():
  assert label_of(["a", "b"]) == ["a", "b"]
  assert label_of({"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
  ("stored", "message"),
  [
    ({"image": None}, "the field 'image' is null"),
    ({"image": ""}, "the field 'image' is empty"),
    ({"photo": b"x"}, "no field 'image'; there are photo, and .image=NAME"),
    ({"image": {"bytes": None, "path": None}}, "'image' is null"),
    ({"image": "a.jpg"}, "is the text 'a.jpg'; expected the encoded bytes"),
    ({"image": [1, 2]}, "of type list; expected encoded bytes, or a path"),
  ],
)
def test_why_there_is_no_picture(stored, message):
  image = Fields().record(stored)["image"]
  assert isinstance(image, BadRecord) and image.cause == "missing_image"
  with pytest.raises(BadRecord, match=message):
    raise image


def test_pictures_by_path_where_there_is_a_folder(tmp_path):
  (tmp_path / "a.jpg").write_bytes(b"picture")
  for image in ("a.jpg", {"bytes": None, "path": "a.jpg"}):
    record = Fields().record({"image": image}, folder=str(tmp_path))
    assert record["image"] == b"picture"
  record = Fields(image="file").record({"file": "a.jpg"}, folder=str(tmp_path))
  assert (record["image"], record["file"]) == (b"picture", "a.jpg")


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"{", "cannot be read"),
    (b"[1]", "is of type list"),
    (b'{"a": ' + b"[" * 100_000, "cannot be read"),
    (b'{"a": ' + b"1" * 5000 + b"}", "cannot be read: .*digits"),
    (b'{"a": "\xff"}', "cannot be read: .*utf-8"),
  ],
)
def test_what_is_no_json_object(data, message):
  with pytest.raises(BadRecord, match=message) as error:
    json_object(data)
  assert error.value.cause == "bad_line"


def test_json_with_a_mark():
  assert json_object(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
