import pickle
from concurrent import futures

import fsspec
import pytest

from aced.data.records import SourceError
from aced.data.sources import storage
from aced.data.sources.storage import Storage, expand


@pytest.fixture
def folder(tmp_path):
  for name in ("a-00.tar", "a-01.tar", "a-02.tar", "b.txt"):
    (tmp_path / name).write_bytes(name.encode() * 10)
  (tmp_path / "sub").mkdir()
  return tmp_path


@pytest.fixture
def bucket():
  """A file system that is reached by fsspec, like a bucket."""
  files = fsspec.filesystem("memory")
  files.mkdirs("/set", exist_ok=True)
  for k in range(3):
    files.pipe(f"/set/{k:02d}.tar", bytes(range(100 * k, 100 * k + 50)))
  yield "memory://set"
  files.rm("/set", recursive=True)


def names(paths):
  return [path.rsplit("/", 1)[-1] for path in paths]


def test_patterns(folder, bucket):
  assert names(expand(f"{folder}/a-{{00..02}}.tar")) == [
    "a-00.tar",
    "a-01.tar",
    "a-02.tar",
  ]
  assert names(expand(f"{folder}/a-{{00,02}}.tar")) == ["a-00.tar", "a-02.tar"]
  assert names(expand(f"{folder}/*")) == [
    "a-00.tar",
    "a-01.tar",
    "a-02.tar",
    "b.txt",
  ]
  assert names(expand(f"{folder}/a-0[12].tar,{folder}/b.txt")) == [
    "a-01.tar",
    "a-02.tar",
    "b.txt",
  ]
  # Each file once, however often it is named.
  assert names(expand(f"{folder}/b.txt,{folder}/*.txt")) == ["b.txt"]
  assert expand(f"{bucket}/{{00..01}}.tar") == [
    f"{bucket}/00.tar",
    f"{bucket}/01.tar",
  ]
  assert names(expand(f"{bucket}/*.tar")) == ["00.tar", "01.tar", "02.tar"]
  assert expand(f"file://{folder}/b.txt") == [f"{folder}/b.txt"]


@pytest.mark.parametrize(
  "name", ["[2024] set", "{a,b}", "a, b", "{00..02}", "x[", "]y", "a*b"]
)
def test_a_name_that_exists_is_taken_as_it_stands(folder, name):
  (folder / name).mkdir()
  (folder / name / "x-00.tar").write_bytes(b"x")
  for pattern in ("x-00.tar", "x-*.tar", "*"):
    want = [f"{folder}/{name}/x-00.tar"]
    assert expand(f"{folder}/{name}/{pattern}") == want
  if not name.startswith("{"):
    assert expand(f"{folder}/{name}/x-{{00..00}}.tar") == want
  (folder / f"{name}.tar").write_bytes(b"x")
  assert expand(f"{folder}/{name}.tar") == [f"{folder}/{name}.tar"]


@pytest.mark.parametrize(
  ("pattern", "message"),
  [
    ("{}/a-{{00..03}}.tar", r"no file .*a-03.tar. Did you mean 'a-0[0-2].tar'"),
    ("{}/*.jpg", "names no file"),
    ("{}", "is a folder; name the files in it"),
    ("{}/a-{{00..01.tar", "braces .* do not match"),
    ("", "names no file"),
    ("nosuch://x/y", "cannot be reached.*gcsfs"),
  ],
)
def test_patterns_that_name_nothing(folder, pattern, message):
  with pytest.raises(SourceError, match=message):
    expand(pattern.format(folder))


def test_reads_anywhere(folder, bucket):
  for paths, size in (
    ([str(folder / "a-00.tar"), str(folder / "b.txt")], 50),
    ([f"{bucket}/00.tar", f"{bucket}/01.tar"], 50),
  ):
    found = pickle.loads(pickle.dumps(Storage(paths)))
    with fsspec.open(paths[1]) as file:
      whole = file.read()
    assert len(whole) == size
    assert found.read(1, 0, size) == whole
    assert found.read(1, 7, 5) == whole[7:12]
    assert found.read(1, 45, 100) == whole[45:]
    assert found.read(1, 7, 0) == b""
    assert found.stamp(1)[0] == size


def test_a_file_written_anew_has_another_stamp(folder):
  found = Storage([str(folder / "b.txt")])
  before = found.stamp(0)
  (folder / "b.txt").write_bytes(b"x" * before[0])
  assert found.stamp(0) != before


def test_few_files_are_open_and_threads_do_not_see_it(folder, monkeypatch):
  monkeypatch.setattr(storage, "OPEN_FILES", 2)
  paths = []
  for k in range(20):
    path = folder / f"{k}.bin"
    path.write_bytes(bytes([k]) * 64)
    paths.append(str(path))
  found = Storage(paths)
  with futures.ThreadPoolExecutor(8) as pool:
    order = [k % 20 for k in range(2000)]
    got = list(pool.map(lambda k: found.read(k, 3, 9), order))
  assert got == [bytes([k]) * 9 for k in order]
  assert len(found._open) == 2
