"""Parquet, Hugging Face and ArrayRecord: what only they can get wrong."""

import io
import pickle
from concurrent import futures

import fsspec
import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from aced.data.records import BadRecord, SourceError, captions
from aced.data.sources import examples, open_source, parquet


def png(colour):
  file = io.BytesIO()
  Image.new("RGB", (8, 8), (colour, 0, 0)).save(file, "PNG")
  return file.getvalue()


@pytest.fixture
def table(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  pq = pytest.importorskip("pyarrow.parquet")
  path = tmp_path / "x.parquet"
  columns = {
    "image": [png(k) if k != 5 else None for k in range(40)],
    "text": [[f"t{k}", "b"] if k % 2 else [f"t{k}"] for k in range(40)],
    "width": list(range(40)),
  }
  pq.write_table(pyarrow.table(columns), path, row_group_size=7)
  return path


def test_parquet(table, monkeypatch):
  monkeypatch.setattr(parquet, "KEPT_GROUPS", 2)
  source = pickle.loads(pickle.dumps(open_source(f"parquet:{table}")))
  assert len(source) == 40
  assert source[38] == {"image": png(38), "text": ["t38"], "width": 38}
  assert source[5]["image"].cause == "missing_image"
  assert source.where(15) == f"row 1 of row group 2 of {table}"
  order = [k * 7 % 40 for k in range(200)]
  with futures.ThreadPoolExecutor(8) as pool:
    got = list(pool.map(lambda k: source.fields(k)["width"], order))
  assert got == order
  assert len(source._tables) <= 2


def test_large_row_groups_are_told(table, monkeypatch, caplog):
  open_source(f"parquet:{table}")
  assert not caplog.text
  monkeypatch.setattr(parquet, "_LARGE_GROUP", 500)
  open_source(f"parquet:{table}")
  assert "in any order a record costs all of its group" in caplog.text


def test_few_parquet_files_are_open(table, tmp_path, monkeypatch):
  monkeypatch.setattr(parquet, "KEPT_FILES", 3)
  for k in range(9):
    (tmp_path / f"part{k}.parquet").write_bytes(table.read_bytes())
  source = open_source(f"parquet:{tmp_path}/part*.parquet")
  assert len(source) == 360
  for k in range(0, 360, 7):
    assert source.fields(k)["width"] == k % 40
    assert len(source._files) <= 3


def test_parquet_in_a_bucket(table):
  fsspec.filesystem("memory").pipe("/pq/x.parquet", table.read_bytes())
  source = open_source("parquet:memory://pq/*.parquet")
  assert source[3]["image"] == png(3)
  fsspec.filesystem("memory").rm("/pq", recursive=True)


def test_parquet_damage(table, tmp_path):
  data = bytearray(table.read_bytes())
  source = open_source(f"parquet:{table}")
  place = source._file(0).metadata.row_group(1).column(0).data_page_offset
  data[place : place + 40] = b"\xff" * 40
  (tmp_path / "bad.parquet").write_bytes(data)
  bad = open_source(f"parquet:{tmp_path}/bad.parquet")
  assert bad[8]["image"].cause == "damaged_record"
  assert bad[20] == source[20]
  (tmp_path / "no.parquet").write_bytes(b"PAR1 and no more")
  with pytest.raises(SourceError, match=r"no.parquet is cut short"):
    open_source(f"parquet:{tmp_path}/no.parquet")


def test_parquet_files_without_rows(table, tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  pq = pytest.importorskip("pyarrow.parquet")
  names = pq.ParquetFile(table).schema_arrow
  pq.ParquetWriter(tmp_path / "0.parquet", names).close()
  pq.write_table(pyarrow.table({"other": []}), tmp_path / "1.parquet")
  source = open_source(f"parquet:{tmp_path}/*.parquet")
  assert len(source) == 40 and source[38]["text"] == ["t38"]
  with pytest.raises(SourceError, match="holds no rows"):
    open_source(f"parquet:{tmp_path}/0.parquet")


def test_parquet_files_of_other_columns(table, tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  pq = pytest.importorskip("pyarrow.parquet")
  other = pyarrow.table({"image": [png(1)], "caption": ["a"]})
  pq.write_table(other, tmp_path / "y.parquet")
  with pytest.raises(
    SourceError, match=r"text=text: .*y\.parquet have no such"
  ):
    open_source(f"parquet:{tmp_path}/*.parquet")
  twice = pyarrow.Table.from_arrays(
    [["a"], ["b"], [png(1)]], ["text"] * 2 + ["image"]
  )
  pq.write_table(twice, tmp_path / "z.parquet")
  with pytest.raises(
    SourceError, match=r"z\.parquet has several columns 'text'"
  ):
    open_source(f"parquet:{tmp_path}/z.parquet")


def test_parquet_values_that_python_has_not(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  pq = pytest.importorskip("pyarrow.parquet")
  texts = pyarrow.array([b"caf\xe9", b"a"]).cast(pyarrow.binary())
  texts = pyarrow.StringArray.from_buffers(2, *texts.buffers()[1:])
  lists = pyarrow.ListArray.from_arrays([0, 1, 2], texts)
  columns = {
    "image": [png(1), png(2)],
    "text": texts,
    "several": lists,
    "when": pyarrow.array([1, 2], pyarrow.timestamp("ns")),
    "label": pyarrow.array([3.0, None], pyarrow.float64()),
  }
  pq.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
  for option in ("text=text", "text=several"):
    source = open_source(f"parquet:{tmp_path}/x.parquet?{option}")
    with pytest.raises(BadRecord, match="caption_not_text.*not UTF-8"):
      captions(source[0])
    assert captions(source[1]) == ["a"]
  assert (source[0]["label"], source[1]["label"]) == ("3", None)


def test_a_struct_with_a_path_that_is_no_utf8(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  pq = pytest.importorskip("pyarrow.parquet")
  path = pyarrow.array([b"caf\xe9.png"]).cast(pyarrow.binary())
  path = pyarrow.StringArray.from_buffers(1, *path.buffers()[1:])
  parts = [pyarrow.array([png(1)]), path]
  image = pyarrow.StructArray.from_arrays(parts, ["bytes", "path"])
  table = pyarrow.table({"image": image, "text": ["a"]})
  pq.write_table(table, tmp_path / "x.parquet")
  source = open_source(f"parquet:{tmp_path}/x.parquet")
  assert source[0] == {"image": png(1), "text": "a"}


def test_parquet_that_is_cut_short_is_told(table, tmp_path):
  (tmp_path / "cut.parquet").write_bytes(table.read_bytes()[:-50])
  with pytest.raises(SourceError, match=r"cut.parquet is cut short: .*again"):
    open_source(f"parquet:{tmp_path}/cut.parquet")


def test_pictures_stored_as_paths(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  pq = pytest.importorskip("pyarrow.parquet")
  (tmp_path / "1.png").write_bytes(png(1))
  structs = [{"bytes": None, "path": "1.png"}]
  for name, images in (("a", ["1.png"]), ("b", structs)):
    columns = {"image": images, "text": ["t"]}
    pq.write_table(pyarrow.table(columns), tmp_path / f"{name}.parquet")
    assert open_source(f"parquet:{tmp_path}/{name}.parquet")[0]["image"] == png(
      1
    )


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ("text=txt", r"text=txt: .* have image, text, width. Did you mean 'text'"),
    ("image=jpg", "image=jpg: the records of"),
    ("label=name", "label=name: the records of"),
  ],
)
def test_columns_that_are_not_there(table, options, message):
  with pytest.raises(SourceError, match=message):
    open_source(f"parquet:{table}?{options}")


def test_hugging_face(table, tmp_path):
  datasets = pytest.importorskip("datasets")
  folder = tmp_path / "set"
  folder.mkdir()
  (folder / "train.parquet").write_bytes(table.read_bytes())
  source = open_source(f"hf:{folder}:train")
  assert len(source) == 40 and source[7]["text"] == ["t7", "b"]
  assert source.fields(7) == {"text": ["t7", "b"], "width": 7}
  again = pickle.loads(pickle.dumps(source))
  assert again[7] == source[7]
  with pytest.raises(SourceError, match="no split 'tset'; there are train"):
    open_source(f"hf:{folder}:tset")
  with pytest.raises(SourceError, match="text=caption"):
    open_source(f"hf:{folder}:train?text=caption")
  several = {"a": source._data, "b": source._data.select(range(4))}
  datasets.DatasetDict(several).save_to_disk(str(tmp_path / "saved"))
  assert len(open_source(f"hf:{tmp_path}/saved:b")) == 4


@pytest.mark.parametrize(
  ("files", "message"),
  [
    (
      {"a": ['{"image": "1.jpg", "text": "a"}', '{"image": "1.j']},
      r"a\.jsonl cannot be read: .*",
    ),
    (
      {
        "a": ['{"image": "1.jpg", "text": "a"}'],
        "b": ['{"image": "1.jpg", "caption": "b"}'],
      },
      r"b\.jsonl has the columns caption, image, and .* has image, text",
    ),
  ],
)
def test_hugging_face_folders_that_are_broken(tmp_path, files, message):
  pytest.importorskip("datasets")
  for name, lines in files.items():
    (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
  with pytest.raises(SourceError, match=message):
    open_source(f"hf:{tmp_path}:train")


def test_hugging_face_classes_and_paths(tmp_path):
  datasets = pytest.importorskip("datasets")
  (tmp_path / "1.png").write_bytes(png(1))
  features = datasets.Features(
    {
      "image": datasets.Value("string"),
      "text": datasets.Value("string"),
      "label": datasets.ClassLabel(names=["cat", "dog"]),
    }
  )
  rows = {
    "image": ["1.png", "2.png", "1.png"],
    "text": ["a\r", "b", "c"],
    "label": [1, -1, None],
  }
  data = datasets.Dataset.from_dict(rows, features=features)
  data.save_to_disk(str(tmp_path))
  source = open_source(f"hf:{tmp_path}")
  assert source[0] == {"image": png(1), "text": "a", "label": "dog"}
  # A class of -1 is one that is not told, and not the last one.
  assert [source[k]["label"] for k in (1, 2)] == [None, None]
  assert "2.png: No such file" in str(source[1]["image"])


def test_hugging_face_opens_no_picture_itself(tmp_path):
  """Whatever column it is in, and however deep."""
  datasets = pytest.importorskip("datasets")
  picture, bad = datasets.Image(), {"bytes": b"%!PS-Adobe", "path": None}
  features = datasets.Features(
    {
      "image": picture,
      "text": datasets.Value("string"),
      "thumb": picture,
      "several": datasets.Sequence(picture),
      "deep": {"inner": picture},
    }
  )
  row = {"text": "a", "thumb": bad, "several": [bad], "deep": {"inner": bad}}
  row["image"] = {"bytes": png(1), "path": None}
  data = datasets.Dataset.from_list([row], features=features)
  data.save_to_disk(str(tmp_path))
  source = open_source(f"hf:{tmp_path}")
  assert source[0]["image"] == png(1) and source[0]["thumb"] == bad
  assert source.fields(0)["deep"] == {"inner": bad}


def test_a_split_of_what_has_none_is_refused(tmp_path):
  datasets = pytest.importorskip("datasets")
  rows = {"image": [png(1)], "text": ["a"]}
  datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path))
  assert len(open_source(f"hf:{tmp_path}")) == 1
  with pytest.raises(SourceError, match="one data set without splits; leave"):
    open_source(f"hf:{tmp_path}:test")


def write_records(path, records):
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    writer.write(examples.encode(record))
  writer.close()


def test_array_records(tmp_path):
  for k in range(3):
    write_records(
      tmp_path / f"{k}.array_record",
      ({"image": png(10 * k + j), "text": f"t{10 * k + j}"} for j in range(10)),
    )
  source = open_source(f"array_record:{tmp_path}/*.array_record")
  assert len(source) == 30
  assert source[17] == {"image": png(17), "text": "t17"}
  assert source.where(17) == f"record 7 of {tmp_path}/1.array_record"
  assert pickle.loads(pickle.dumps(source))[29] == source[29]
  with pytest.raises(SourceError, match="text=txt"):
    open_source(f"array_record:{tmp_path}/*.array_record?text=txt")
  with pytest.raises(SourceError, match="mount the bucket"):
    fsspec.filesystem("memory").pipe("/ar/0.array_record", b"x")
    open_source("array_record:memory://ar/0.array_record")


def test_array_records_that_are_damaged(tmp_path):
  path = tmp_path / "0.array_record"
  noise = np.random.default_rng(0)
  write_records(
    path, ({"image": noise.bytes(50_000), "text": f"t{k}"} for k in range(20))
  )
  data = bytearray(path.read_bytes())
  (tmp_path / "cut.array_record").write_bytes(data[: len(data) // 2])
  with pytest.raises(SourceError, match=r"cut.array_record is not a whole"):
    open_source(f"array_record:{tmp_path}/cut.array_record")
  middle = len(data) // 2
  data[middle : middle + 64] = bytes(
    255 - b for b in data[middle : middle + 64]
  )
  path.write_bytes(data)
  source = open_source(f"array_record:{path}")
  images = [source[k]["image"] for k in range(20)]
  bad = [image for image in images if not isinstance(image, bytes)]
  assert 1 <= len(bad) <= 3
  assert {image.cause for image in bad} == {"damaged_record"}


@pytest.mark.parametrize(
  "record",
  [
    {"text": ["a", "b"], "n": 3, "exact": 0.5, "not_float32": 0.1},
    {"text": "ä", "one": ["x"], "none": None, "empty": [], "yes": True},
    {"text": "a", "deep": {"a": [1, {"b": None}]}, "numbers": [1, 2]},
    {"text": "half \ud800 a pair", "large": 2**70, "mixed": [1, "a"]},
    {"text": "a", "json": "of its own", "other": {}},
  ],
)
def test_any_record_comes_back(record):
  record = {"image": b"\xff\xd8\x00", **record}
  assert examples.decode(examples.encode(record)) == record
