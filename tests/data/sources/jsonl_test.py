import gzip
import json
import pickle
from concurrent import futures

import pytest

from aced.data.records import BadRecord, SourceError, captions
from aced.data.sources import jsonl, open_source, picture_files
from aced.data.sources.fields import Fields
from aced.data.sources.jsonl import Jsonl


@pytest.fixture
def write(tmp_path):
  def write_lines(*lines, name="pairs.jsonl"):
    text = [x if isinstance(x, str) else json.dumps(x) for x in lines]
    path = tmp_path / name
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path

  (tmp_path / "0.bin").write_bytes(b"zero")
  return write_lines


def test_reads_fields_and_bytes(write):
  line = {"image": "0.bin", "text": ["é", "b"], "extra": {"k": [1, None]}}
  source = Jsonl(write(line, "", "   ", {"image": "0.bin", "text": "c"}))
  assert len(source) == 2
  assert source[0] == line | {"image": b"zero"}
  assert source[1]["text"] == "c"
  assert source.fields(0) == {k: v for k, v in line.items() if k != "image"}
  assert repr(source).endswith("pairs.jsonl")
  for index in (2, -1):
    with pytest.raises(IndexError, match=f"record {index} of"):
      source[index]


def test_the_last_line_needs_no_end_and_a_mark_is_skipped(write):
  path = write("")
  path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}')
  source = Jsonl(path)
  assert [source.fields(i)["text"] for i in range(2)] == ["a", "b"]


def test_fields_can_be_chosen(write):
  line = {"file": "0.bin", "alt": "words", "name": "cat", "label": 3}
  source = Jsonl(write(line), Fields("file", "alt", "name"))
  assert source[0] | line | {"label": "cat", "image": b"zero"} == source[0]
  assert source[0]["text"] == "words"
  assert Jsonl(write(line), Fields(text="alt"))[0]["label"] == "3"
  with pytest.raises(SourceError, match=r"label=nam.*mean 'name'"):
    Jsonl(write(line), Fields(label="nam"))


@pytest.mark.parametrize(
  ("image", "cause"),
  [
    (None, "missing_image"),
    ("", "missing_image"),
    (7, "missing_image"),
    ("none.jpg", "missing_image"),
    (".", "missing_image"),
    ("0.bin/x", "missing_image"),
    ("a\0b", "missing_image"),
    ("x" * 300, "missing_image"),
    ("/etc/hostname", "outside_folder"),
    ("../0.bin", "outside_folder"),
    ("a/../../0.bin", "outside_folder"),
  ],
)
def test_pictures_that_cannot_be_had(write, image, cause):
  source = Jsonl(write({"image": image, "text": "a"}))
  assert isinstance(source[0]["image"], BadRecord)
  assert source[0]["image"].cause == cause
  assert source[0]["text"] == "a"


def test_no_image_or_text_field(write):
  record = Jsonl(write({"other": 1}))[0]
  assert record["image"].cause == "missing_image"
  assert record["text"] is None


def test_a_huge_file_is_not_read(write, monkeypatch):
  monkeypatch.setattr(picture_files, "MAX_BYTES", 3)
  source = Jsonl(write({"image": "0.bin", "text": "a"}))
  assert source[0]["image"].cause == "too_large"


@pytest.mark.parametrize("bad", ['{"text": ', "[1]", '"text"', "{'a': 1}"])
def test_malformed_lines_are_named(write, monkeypatch, bad):
  path = write({"text": "a"}, "", bad, {"text": "b"})
  with pytest.raises(SourceError, match=r"pairs\.jsonl, line 3: expected one"):
    Jsonl(path)
  # Past the part that is checked at opening, they are masked when read.
  monkeypatch.setattr(jsonl, "CHECKED_BYTES", 1)
  source = Jsonl(path)
  assert source.fields(2)["text"] == "b"
  image = source[1]["image"]
  assert image.cause == "bad_line"
  assert "pairs.jsonl, line 3: expected one" in image.detail


def test_not_utf8(write):
  path = write("")
  path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
  with pytest.raises(SourceError, match=r"line 2: .*utf-8"):
    Jsonl(path)


def test_missing_and_empty(write, tmp_path):
  path = write("", "  ")
  with pytest.raises(SourceError, match="holds no records"):
    Jsonl(path)
  with pytest.raises(SourceError, match=r"no file .*mean 'pairs\.jsonl'"):
    Jsonl(tmp_path / "pair.jsonl")
  with pytest.raises(SourceError, match="no file"):
    Jsonl(tmp_path / "no_folder" / "pair.jsonl")
  with pytest.raises(SourceError, match="is a folder"):
    Jsonl(tmp_path)


@pytest.mark.parametrize(
  "pattern",
  ["part-*.jsonl", "part-{{a,b}}.jsonl", "part-a.jsonl,{}/part-b.jsonl"],
)
def test_several_files(write, tmp_path, pattern):
  write({"image": "0.bin", "text": "a"}, {"text": "b"}, name="part-a.jsonl")
  write("", {"image": "0.bin", "text": "c"}, name="part-b.jsonl")
  pattern = f"{tmp_path}/" + pattern.format(tmp_path)
  for spec in (f"jsonl:{pattern}", pattern):
    source = open_source(spec)
    assert [source[k]["text"] for k in range(3)] == ["a", "b", "c"]
    assert source[2]["image"] == b"zero"
    assert source.where(1) == f"line 2 of {tmp_path}/part-a.jsonl"
    assert source.where(2) == f"line 2 of {tmp_path}/part-b.jsonl"
    assert pickle.loads(pickle.dumps(source))[2] == source[2]


def test_pictures_lie_beside_the_file_of_their_line(write, tmp_path):
  for name in ("x", "y"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "p.bin").write_bytes(name.encode())
    write({"image": "p.bin", "text": name}, name=f"{name}/pairs.jsonl")
  source = open_source(f"jsonl:{tmp_path}/*/pairs.jsonl")
  assert [source[k]["image"] for k in range(2)] == [b"x", b"y"]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (gzip.compress(b'{"text": "a"}', mtime=0), "compressed by gzip: unpack it"),
    ('{"text": "a"}\n'.encode("utf-16"), "is UTF-16: write it anew as UTF-8"),
    (b'[{"text": "a"}]', "is a JSON array: write one object a line"),
    (b'[\n  {"text": "a"}\n]', "is a JSON array"),
    (b"image,text\n1.jpg,a cat\n", r"is a table of text \(CSV\)"),
    (b"<!DOCTYPE html><html>404</html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    (b"", "is an empty file"),
    (b'{"text": "a"}\n{"text"', r"begins b'{\"text\"'\.$"),
  ],
)
def test_what_a_file_is_instead(tmp_path, content, message):
  (tmp_path / "x.jsonl").write_bytes(content)
  with pytest.raises(SourceError, match=message):
    open_source(f"jsonl:{tmp_path}/x.jsonl")


def test_numbers_of_thousands_of_digits_are_told(write):
  path = write({"text": "a"}, '{"text": "b", "n": ' + "1" * 5000 + "}")
  with pytest.raises(SourceError, match=r"line 2: .*digits"):
    Jsonl(path)


def test_lines_that_are_nested_too_deeply_are_masked(write):
  deep = "[" * 900 + "]" * 900
  path = write({"image": "0.bin", "text": "a"}, f'{{"text": "b", "d": {deep}}}')
  source = Jsonl(path)
  assert source[0]["text"] == "a"
  assert source[1]["image"].cause == "bad_line"
  with pytest.raises(BadRecord, match="bad_line"):
    captions(source.fields(1))


def test_a_bucket_is_refused():
  with pytest.raises(SourceError, match="mount the bucket"):
    open_source("jsonl:memory://x/y.jsonl")


def test_pickles_and_reads_from_threads(write):
  path = write(*({"image": "0.bin", "text": f"t{i}"} for i in range(500)))
  source = pickle.loads(pickle.dumps(Jsonl(path)))
  with futures.ThreadPoolExecutor(8) as pool:
    texts = list(pool.map(lambda i: source[i]["text"], range(500)))
  assert texts == [f"t{i}" for i in range(500)]
