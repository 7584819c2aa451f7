import io
import tarfile

import numpy as np
import pytest

from aced.data.sources import tar


def archive(members, form=tarfile.USTAR_FORMAT):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w", format=form) as file_:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      file_.addfile(info, io.BytesIO(data))
  return file.getvalue()


def pairs(count, start=0, size=700):
  rng = np.random.default_rng(start)
  for k in range(start, start + count):
    yield f"{k:06d}.jpg", rng.bytes(int(rng.integers(1, size)))
    yield f"{k:06d}.json", b'{"n": %d}' % k
    yield f"{k:06d}.txt", f"text {k}".encode()


def scan(data, window=8192):
  def read(offset, size):
    return data[offset : offset + size]

  return list(tar.scan(read, len(data), window))


@pytest.mark.parametrize(
  "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
@pytest.mark.parametrize("window", [512, 8192, 2**20])
def test_members_are_where_tarfile_finds_them(form, window):
  long = "d" * 90 + "/" + "n" * 95
  members = [*pairs(20), (f"{long}.jpg", b"x" * 5000), ("ü/é.txt", b"y")]
  data = archive(members, form)
  with tarfile.open(fileobj=io.BytesIO(data)) as file_:
    want = [(m.name, m.offset_data, m.size) for m in file_]
  assert len(want) == 62
  assert scan(data, window) == want


def test_links_devices_and_folders_are_passed_over():
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w") as file_:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
      info = tarfile.TarInfo("0001.jpg")
      info.type, info.linkname = kind, "/etc/passwd"
      file_.addfile(info)
    folder = tarfile.TarInfo("0002.jpg")
    folder.type = tarfile.DIRTYPE
    file_.addfile(folder)
    info = tarfile.TarInfo("0003.jpg")
    info.size = 4
    file_.addfile(info, io.BytesIO(b"data"))
  assert [name for name, *_ in scan(file.getvalue())] == ["0003.jpg"]


def test_archives_one_after_the_other():
  data = archive(pairs(3)) + archive(pairs(2, 3))
  assert len(scan(data)) == 15


def test_after_a_damaged_header_the_next_whole_one_is_found():
  data = bytearray(archive(pairs(10)))
  want = scan(bytes(data))
  data[want[9][1] - 512 : want[9][1] - 400] = b"\xff" * 112
  found = scan(bytes(data))
  damage = [item for item in found if isinstance(item, str)]
  assert len(damage) == 1 and "are no headers" in damage[0]
  assert [i for i in found if not isinstance(i, str)] == [*want[:9], *want[10:]]


@pytest.mark.parametrize("cut", [100, 5000, 9999])
def test_an_archive_that_ends_early(cut):
  data = archive(pairs(10))
  whole = scan(data)
  found = scan(data[:cut])
  members = [item for item in found if not isinstance(item, str)]
  assert members == [m for m in whole if m[1] <= cut]
  complete = all(m[1] + m[2] <= cut for m in members)
  damage = [item for item in found if isinstance(item, str)]
  assert complete or "too early" in damage[-1]


@pytest.mark.parametrize(
  ("name", "want"),
  [
    ("0001.jpg", ("0001", "jpg")),
    ("a.b/0001.JPG", ("a.b/0001", "jpg")),
    ("./x/7.seg.png", ("./x/7", "seg.png")),
    ("README", None),
    (".hidden.txt", None),
    ("x/._0001.jpg", None),
    ("__meta__.json", None),
  ],
)
def test_names(name, want):
  assert tar.member_name(name) == want


def header(name, size, kind=b"0"):
  """A header block with a size that may be none."""
  info = tarfile.TarInfo(name)
  block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
  block[124:136] = size
  block[156:157] = kind
  block[148:156] = b" " * 8
  block[148:155] = b"%06o\0" % sum(block)
  return bytes(block)


NEGATIVE = b"\xff" * 11 + b"\x00"
HUGE = b"\x80" + b"\x7f" * 11


@pytest.mark.parametrize("size", [NEGATIVE, HUGE, b"notoctal\0\0\0\0"])
@pytest.mark.parametrize("kind", [b"0", b"L", b"x"])
def test_sizes_that_cannot_be_are_damage(size, kind):
  whole = archive(pairs(2))
  data = header("0.jpg", size, kind) + whole
  found = scan(data)
  assert isinstance(found[0], str) and "are no headers" in found[0]
  moved = [(name, at + 512, size) for name, at, size in scan(whole)]
  assert found[1:] == moved


def test_an_archive_without_its_end_may_be_cut():
  data = archive(pairs(3))
  whole = scan(data)
  last = whole[-2][1] + 512  # After the json of the last record.
  *found, damage = scan(data[:last])
  assert found == whole[:-1]
  assert damage == "it has no end, and may be cut short"


def test_a_name_in_the_value_of_another_key_is_none():
  info = tarfile.TarInfo("0.jpg")
  info.size = 3
  info.pax_headers = {"comment": "12 path=evil.pkl\n", "mtime": "1.5"}
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as out:
    out.addfile(info, io.BytesIO(b"abc"))
  assert [item[0] for item in scan(file.getvalue())] == ["0.jpg"]
