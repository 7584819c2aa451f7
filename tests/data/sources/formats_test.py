"""The same 1,000 pairs, stored in every format, give the same batches."""

import gzip
import io
import json

import numpy as np
import pytest
from PIL import Image

from aced.data.convert import command
from aced.data.pipeline import superbatches
from aced.data.records import SourceError
from aced.data.sources import open_source
from aced.data.tokenizers import load_tokenizer
from aced.data.transforms import Transform

COUNT = 1000
KINDS = ("jpg", "png", "webp")


@pytest.fixture(scope="module")
def pairs():
  """Encoded pictures of three formats, captions, and a field beside them."""
  rng = np.random.default_rng(0)
  found = []
  for k in range(COUNT):
    kind, file = KINDS[k % 3], io.BytesIO()
    pixels = rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(3, 0).repeat(3, 1)
    form = {"jpg": "JPEG"}.get(kind, kind.upper())
    Image.fromarray(pixels).save(file, form)
    caption = f"Bild {k}: ein Ärger mit “{k % 7}”" if k % 5 else f"photo {k}"
    found.append((kind, file.getvalue(), caption, f"class {k % 10}"))
  return found


def write_jsonl(folder, pairs):
  lines = []
  for k, (kind, data, text, label) in enumerate(pairs):
    (folder / f"{k}.{kind}").write_bytes(data)
    record = {"image": f"{k}.{kind}", "text": text, "name": label}
    lines.append(json.dumps(record))
  (folder / "pairs.jsonl").write_text("\n".join(lines))
  return f"jsonl:{folder}/pairs.jsonl?label=name"


def write_webdataset(folder, pairs):
  webdataset = pytest.importorskip("webdataset")
  for first in range(0, COUNT, 300):
    path = folder / f"{first // 300:04d}.tar"
    with webdataset.TarWriter(str(path)) as tar:
      for k, (kind, data, text, label) in enumerate(pairs[first:][:300]):
        tar.write(
          {
            "__key__": f"{first + k:08d}",
            kind: data,
            "txt": text,
            "json": {"name": label, "width": 24},
          }
        )
  return f"webdataset:{folder}/{{0000..0003}}.tar?label=json.name"


def write_parquet(folder, pairs, struct=False):
  pyarrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  for number, part in enumerate((pairs[:600], pairs[600:])):
    images = [data for _, data, _, _ in part]
    if struct:
      images = [{"bytes": data, "path": None} for data in images]
    table = pyarrow.table(
      {
        "picture": images,
        "caption": [text for *_, text, _ in part],
        "name": [label for *_, label in part],
      }
    )
    parquet.write_table(table, folder / f"{number}.parquet", row_group_size=100)
  options = "image=picture&text=caption&label=name"
  return f"parquet:{folder}/*.parquet?{options}"


def write_hf(folder, pairs):
  datasets = pytest.importorskip("datasets")
  features = datasets.Features(
    {
      "image": datasets.Image(),
      "text": datasets.Value("string"),
      "label": datasets.ClassLabel(names=[f"class {k}" for k in range(10)]),
    }
  )
  data = datasets.Dataset.from_dict(
    {
      "image": [{"bytes": data, "path": None} for _, data, _, _ in pairs],
      "text": [text for *_, text, _ in pairs],
      "label": [label for *_, label in pairs],
    },
    features=features,
  )
  data.save_to_disk(str(folder / "saved"))
  return f"hf:{folder}/saved"


def write_converted(folder, pairs, form):
  spec = write_jsonl(folder, pairs)
  done = command.convert(
    spec, folder / "out", format=form, shard_records=300, workers=1
  )
  return done.spec


def write_tfds(folder, pairs):
  from aced.data.tfds_builder import AcedPairs, PairsConfig

  builder = AcedPairs(
    data_dir=folder / "data",
    config=PairsConfig(name="mine", source=write_jsonl(folder, pairs)),
    file_format="array_record",
  )
  builder.download_and_prepare()
  return f"tfds:aced_pairs/mine:train?data_dir={folder}/data"


@pytest.fixture(scope="module")
def write(tmp_path_factory, pairs):
  def write(kind):
    folder = tmp_path_factory.mktemp(kind)
    if kind in ("array_record", "tar"):
      form = {"tar": "webdataset"}.get(kind, kind)
      return write_converted(folder, pairs, form)
    if kind == "struct":
      return write_parquet(folder, pairs, struct=True)
    if kind == "mixture":
      return f"mixture:{write_jsonl(folder, pairs)}&limit=400;" + (
        f"jsonl:{folder}/pairs.jsonl?start=400&label=name"
      )
    return WRITERS[kind](folder, pairs)

  return write


WRITERS = {
  "jsonl": write_jsonl,
  "webdataset": write_webdataset,
  "parquet": write_parquet,
  "hf": write_hf,
  "tfds": write_tfds,
}


def read(source, steps=3):
  with superbatches(
    source,
    load_tokenizer("bytes", 32),
    Transform(16, crop_scale=(0.5, 1.0), flip=True),
    batch_size=400,
    seed=1,
    num_steps=steps,
  ) as batches:
    return list(batches)


@pytest.fixture(scope="module")
def want(write):
  return read(open_source(write("jsonl")))


CONVERTED = "array_record", "tar", "tfds"
STORED = "webdataset", "parquet", "struct", "hf", "mixture"


@pytest.mark.parametrize("kind", [*STORED, *CONVERTED])
def test_the_same_batches(write, want, pairs, kind):
  source = open_source(write(kind))
  assert len(source) == COUNT
  assert all(batch["_mask"].all() for batch in want)
  for got, batch in zip(read(source), want, strict=True):
    assert got.keys() == batch.keys()
    for key, value in batch.items():
      np.testing.assert_array_equal(got[key], value)
  for k in (0, 299, 300, 999):
    record, fields = source[k], source.fields(k)
    assert bytes(record["image"]) == pairs[k][1]
    assert "image" not in fields
    assert fields["text"] == record["text"] == pairs[k][2]
    assert fields["label"] == pairs[k][3]
    assert source.where(k)
  with pytest.raises(IndexError):
    source[COUNT]


@pytest.mark.parametrize("kind", ["tar", "parquet", "jsonl", "array_record"])
@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"<!DOCTYPE html><html>404</html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid x\n", "git lfs pull"),
    (gzip.compress(b"x" * 100, mtime=0), "compressed by gzip: unpack it"),
  ],
)
def test_files_that_are_something_else_are_named(
  tmp_path, kind, content, message
):
  if kind == "parquet":
    pytest.importorskip("pyarrow")
  (tmp_path / f"x.{kind}").write_bytes(content)
  opened = {"tar": "webdataset"}.get(kind, kind)
  with pytest.raises(SourceError, match=rf"x\.{kind}.*{message}"):
    open_source(f"{opened}:{tmp_path}/x.{kind}")
