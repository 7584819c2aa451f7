import contextlib
import dataclasses
import io
import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
from PIL import Image, ImageFilter

from aced.config import ConfigError
from aced.data import check, duplicates, facts, survey
from aced.data.__main__ import main
from aced.data.check import Settings
from aced.data.check_text import plain, text
from aced.data.findings import QUANTILES, quantiles
from aced.data.needs import Rate, needs
from aced.data.records import Source, SourceError
from aced.data.sources import open_source
from aced.data.tokenizers import Tokenizer, load_tokenizer

SMALL = Settings(batch_size=2, filter_ratio=0.5, image_size=32)
EVIL = '<script>alert(1)</script><img src="http://a.b/c.png" onerror="x()">'


def scene(seed, width=120, height=90):
  """A picture with the frequencies of a photograph."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (9, 12, 3), np.uint8)
  picture = Image.fromarray(small).resize((width, height), 3)
  return picture.filter(ImageFilter.GaussianBlur(1))


def encode(picture, kind="JPEG", **options):
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


@pytest.fixture
def write(tmp_path):
  """Writes `(bytes or name, text)` as a set; returns its spec."""

  def write_set(pairs, name="set"):
    lines = []
    for k, (image, caption) in enumerate(pairs):
      if isinstance(image, bytes):
        (tmp_path / f"{name}{k}").write_bytes(image)
        image = f"{name}{k}"
      lines.append(json.dumps({"image": image, "text": caption}))
    path = tmp_path / f"{name}.jsonl"
    path.write_text("\n".join(lines))
    return f"jsonl:{path}"

  return write_set


@pytest.fixture
def messy(write):
  """Four usable records of eleven."""
  return write(
    [
      (encode(scene(0)), "a hill"),
      (encode(scene(1, 40, 90), "PNG"), [" A Hill", "", "two\nhills"]),
      (encode(scene(2, 20, 30), "WEBP"), EVIL),
      (encode(scene(0))[:500], "cut short"),
      (b"<html>no picture</html>", "a page"),
      (b"", "nothing"),
      ("none.jpg", "a hill"),
      ("none.jpg", "  "),  # At fault twice.
      (encode(scene(3)), ""),
      (encode(scene(4)), [None, 7]),
      (encode(scene(5, 30, 20), "BMP"), "x" * 100),
    ]
  )


def look(spec, settings=SMALL, **options):
  return check.check(open_source(spec), settings, **options)


def comparable(report):
  """A report without what hangs on the clock."""
  report = json.loads(json.dumps(report))
  report.pop("rate")
  report["needs"].pop("hours")
  return report


class Failing(Source):
  """Pictures, of which one raises an error and one ends the process."""

  def __init__(self, size, raises=-1, deadly=-1):
    self.size, self.raises, self.deadly = size, raises, deadly

  def __len__(self):
    return self.size

  def __getitem__(self, index):
    if index == self.raises:
      raise OSError(5, "the disk is gone")
    if index == self.deadly:
      os._exit(3)
    return {"image": np.asarray(scene(index)), "text": f"number {index}"}

  def __repr__(self):
    return "failing"


def test_counts_causes(messy):
  report = look(messy)
  assert (report.records, report.read, report.usable) == (11, 11, 4)
  assert {c.name: c.count for c in report.causes} == {
    "missing_image": 2,
    "empty_caption": 2,
    "damaged_image": 1,
    "not_an_image": 1,
    "empty_image": 1,
    "caption_not_text": 1,
  }
  # The most frequent come first, with the records in the order of the source.
  assert report.causes[0].name == "empty_caption"
  assert [e.index for e in report.causes[0].examples] == [7, 8]
  example = report.causes[1].examples[0]
  assert (example.index, example.where) == (6, f"record 6 of {messy}")
  assert example.detail.endswith("none.jpg: No such file or directory")
  assert report.causes[0].share == 2 / 11
  assert not report.fit
  assert "63.6% of the records read cannot be used" in report.reasons[0]
  assert look(messy, dataclasses.replace(SMALL, max_bad=0.7)).fit


def test_only_the_first_examples_are_kept(write):
  report = look(write([("none.jpg", "a")] * 50 + [(encode(scene(0)), "b")]))
  assert [e.index for e in report.causes[0].examples] == [0, 1, 2]
  assert report.causes[0].count == 50


def test_measures_pictures(messy):
  found = look(messy).pictures
  assert found.formats == {"JPEG": 1, "PNG": 1, "WebP": 1, "BMP": 1}
  sizes = [(120, 90), (40, 90), (20, 30), (30, 20)]
  assert list(found.width.values()) == by_hand([w for w, _ in sizes])
  assert list(found.height.values()) == by_hand([h for _, h in sizes])
  assert found.megapixels["max"] == 0.0108
  assert found.encoded_bytes["max"] == len(encode(scene(1, 40, 90), "PNG"))
  assert (found.small, found.small_share) == (2, 0.5)  # Below 32.
  assert (found.long, found.flat) == (1, 0)
  assert look("synthetic:train?size=20").pictures.formats == {"array": 20}


def by_hand(values):
  values = sorted(values)
  return [
    values[max(math.ceil(q * len(values)) - 1, 0)] for q in QUANTILES.values()
  ]


def test_quantiles():
  for n in (1, 2, 7, 100, 333):
    values = np.random.default_rng(n).integers(0, 50, n)
    assert list(quantiles(values).values()) == by_hand(values)
  assert quantiles(np.zeros(0)) == {}


def test_counts_tokens(messy, write):
  found = look(messy).captions
  texts = ["a hill", " A Hill", "two\nhills", EVIL, "x" * 100]
  assert found.count == 5
  assert list(found.tokens.values()) == by_hand([len(t) + 1 for t in texts])
  assert (found.cut, found.cut_share) == (2, 0.4)  # Above 64.
  assert found.per_picture["max"] == 2
  # The end counts: 63 bytes and the end fit.
  for length, cut in ((63, 0), (64, 1)):
    report = look(write([(encode(scene(0)), "y" * length)]))
    assert report.captions.cut == cut
  report = look(write([(encode(scene(0)), "z" * 5000)]))
  assert report.captions.tokens["max"] == facts.MOST_TOKENS


class Words(Tokenizer):
  """A word is 5; `closed` ends texts itself, as files of others can."""

  vocab_size, content = 9, b""

  def __init__(self, pad, eos, bos=None, closed=None):
    self.length, self.pad, self.eos, self.bos = 6, pad, eos, bos
    self.closed = closed

  @property
  def reserved(self):
    return super().reserved + (self.closed is not None)

  def _encode(self, text):
    end = [] if self.closed is None else [self.closed]
    return [5] * min(len(text.split()), 6 - self.reserved) + end

  def _decode(self, ids):
    raise NotImplementedError


@pytest.mark.parametrize(
  ("tokenizer", "around"),
  [
    (Words(pad=0, eos=1), 1),
    (Words(pad=1, eos=1), 1),
    (Words(pad=0, eos=1, bos=2), 2),
    (Words(pad=1, eos=1, bos=2), 2),
    (Words(pad=0, eos=None), 0),
    (Words(pad=0, eos=None, closed=1), 1),
    (Words(pad=1, eos=None, closed=1), 1),
    (Words(pad=1, eos=None, bos=2, closed=1), 2),
  ],
)
def test_start_and_end_count_even_where_padding_looks_like_them(
  tokenizer, around
):
  found = facts.count_tokens(tokenizer, ["", "a", "a b c", "a b c d e f g h"])
  assert found.tolist() == [around, around + 1, around + 3, 6]


def test_repeated_captions(write):
  texts = [
    "a",
    "B",
    " b ",
    ["c", "c"],
    ["A", "d", "b"],
    "e",
    "STRASSE",
    "straße",
  ]
  spec = write([(encode(scene(k)), t) for k, t in enumerate(texts)])
  found = look(spec).captions
  assert found.distinct == 6
  assert found.repeated == 6 and found.repeated_share == 6 / 8
  # One that a record repeats itself is shared with nobody.
  assert found.most_repeated == (("B", 3), ("a", 2), ("STRASSE", 2))


def test_copies_are_found_and_others_are_not(write):
  pictures = [encode(scene(k)) for k in range(20)]
  copies = [
    encode(scene(3), "WEBP", quality=60),
    encode(scene(3).resize((200, 150), 3), quality=70),
    encode(scene(7).resize((60, 45), 3), "PNG"),
    pictures[11],
    # Equal pixels, other bytes.
    encode(scene(20), "PNG"),
    encode(scene(20), "WEBP", lossless=True),
  ]
  blank = [
    encode(Image.new("RGB", (50, 50), c)) for c in ("red", "red", "blue")
  ]
  spec = write([(x, str(k)) for k, x in enumerate(pictures + copies + blank)])
  report = look(spec)
  found = report.duplicates
  assert report.pictures.flat == 3
  assert (found.same, found.alike, found.groups) == (2, 5, 4)
  assert found.alike_share == 5 / 29
  assert [(g.size, g.records) for g in found.largest] == [
    (3, (3, 20, 21)),
    (2, (7, 22)),
    (2, (11, 23)),
    (2, (24, 25)),
  ]


def test_colour_tells_pictures_apart():
  disc = np.hypot(*np.mgrid[-1:1:64j, -1:1:64j]) < 0.6
  pictures = np.full((4, 64, 64, 3), 255, np.uint8)
  # Two reds, and a green as dark as they.
  for picture, colour in zip(pictures, ([200, 30, 30], [202, 30, 30])):
    picture[disc] = colour
  pictures[2][disc] = [20, 115, 20]
  found = [duplicates.likeness(p) for p in pictures]
  assert len({f.hash for f in found[:3]}) == 1
  _, alike = duplicates.group(
    np.arange(3, dtype=np.uint64),
    np.array([f.hash for f in found[:3]], np.uint64),
    np.stack([f.look for f in found[:3]]),
  )
  assert alike[0] == alike[1] != alike[2]
  assert [f.flat for f in found] == [False, False, False, True]


def near_by_hand(hashes, distance):
  return {
    (i, j)
    for i in range(len(hashes))
    for j in range(i)
    if int(hashes[i] ^ hashes[j]).bit_count() <= distance
  }


def clustered(seed, n=300):
  """Hashes of which many differ in few bits, and some in none."""
  rng = np.random.default_rng(seed)
  hashes = rng.integers(0, 2**64, n, dtype=np.uint64)[
    rng.integers(0, n // 4, n)
  ]
  for _ in range(4):
    bit = rng.integers(0, 64, n).astype(np.uint64)
    hashes ^= rng.integers(0, 2, n).astype(np.uint64) << bit
  return hashes


@pytest.mark.parametrize("distance", [0, 1, 3])
def test_near_pairs_are_all_that_are_near(distance):
  hashes = clustered(distance)
  found = {
    (int(max(p)), int(min(p)))
    for pairs in duplicates.near_pairs(hashes, distance)
    for p in pairs
  }
  assert found == near_by_hand(hashes, distance)
  assert len(found) >= 3


def test_near_pairs_of_nothing_and_of_too_much():
  assert list(duplicates.near_pairs(np.zeros(0, np.uint64), 3)) == []
  with pytest.raises(ValueError, match="distance=4"):
    list(duplicates.near_pairs(np.zeros(2, np.uint64), 4))


def test_groups_are_those_of_all_near_pairs():
  hashes = clustered(9)
  digests = np.arange(300, dtype=np.uint64)
  digests[100:120] = digests[:20]  # Equal pixels have equal hashes.
  hashes[100:120] = hashes[:20]
  same, alike = duplicates.group(
    digests, hashes, np.zeros((300, 8, 8, 3), np.uint8)
  )
  parent = list(range(300))

  def root(i):
    return i if parent[i] == i else root(parent[i])

  for i, j in near_by_hand(hashes, duplicates.DISTANCE):
    parent[root(i)] = root(j)
  roots = np.array([root(i) for i in range(300)])
  assert ((roots[:, None] == roots) == (alike[:, None] == alike)).all()
  assert ((digests[:, None] == digests) == (same[:, None] == same)).all()
  assert len(set(roots)) < 150


def test_a_look_differs_by_what_there_is_to_see():
  rng = np.random.default_rng(0)
  looks = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)
  looks[1] = looks[0] // 2
  found = duplicates.look_differences(looks)(np.array([[0, 0], [0, 1], [0, 2]]))
  a, b = looks[:2].astype(float)
  spread = [np.square(x - x.mean((0, 1))).sum() for x in (a, b)]
  expected = np.square(a - b).sum() / np.mean(spread)
  np.testing.assert_allclose(found[:2], [0, expected], rtol=1e-6)
  assert 1.5 < found[2] < 2.5


def test_records_are_spread_evenly():
  assert survey.spread(5, 0).tolist() == survey.spread(5, 9).tolist()
  assert survey.spread(5, 0).tolist() == [0, 1, 2, 3, 4]
  assert survey.spread(10, 4).tolist() == [0, 2, 5, 7]
  assert survey.spread(10**12, 2).tolist() == [0, 5 * 10**11]
  report = look("synthetic:train?size=100", records=10)
  assert (report.records, report.read, report.usable) == (100, 10, 10)
  assert report.sample == tuple(range(0, 100, 10))
  assert "evenly spread" in text(report)


def test_needs():
  settings = Settings(
    batch_size=100, filter_ratio=0.8, train_examples=950, step_seconds=2
  )
  rate = Rate(records=9, waiting=0.0, per_core=50.0, cores=4, machine=200.0)
  found = needs(settings, 1000, rate)
  assert (found.super_batch, found.steps, found.pairs) == (500, 10, 5000)
  assert (found.epochs, found.hours) == (5, 5000 / 200 / 3600)
  assert (found.images_per_second, found.cores) == (250, 5)
  unknown = needs(settings, 1000, None)
  assert unknown.hours is None and unknown.cores is None
  assert Settings(batch_size=7, filter_ratio=0).super_batch == 7


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"batch_size": 0}, "--batch_size=0"),
    ({"train_examples": 0}, "--train_examples=0"),
    ({"max_bad": 1.5}, "--max_bad=1.5"),
    ({"step_seconds": 0.0}, "--step_seconds=0"),
    ({"filter_ratio": 1.0}, r"filter_ratio=1.0 must lie in \[0, 1\)"),
    ({"batch_size": 10, "filter_ratio": 0.3}, "not a whole number"),
    ({"image_size": 0}, "image_size=0"),
    ({"text_length": 1}, "text_length=1"),
    ({"tokenizer": "byte"}, "Did you mean 'bytes'"),
  ],
)
def test_wrong_settings_are_refused_before_the_pass(options, message):
  with pytest.raises(ConfigError, match=message):
    check.check(Failing(1, deadly=0), Settings(**options))


def test_an_error_that_is_no_fault_of_a_record_is_told():
  report = check.check(Failing(40, raises=7), SMALL)
  assert report.usable == 39
  (cause,) = report.causes
  assert (cause.name, cause.count) == (facts.RAISES, 1)
  assert cause.examples[0].detail == "OSError: [Errno 5] the disk is gone"
  assert not report.fit and "would end a run" in report.reasons[0]


def test_a_record_that_ends_its_process_does_not_end_the_check():
  tokenizer = load_tokenizer("bytes", 1024)
  pools = survey._Pools(Failing(2, deadly=1), tokenizer, 1)
  found = facts.join(pools.examine([np.array([0]), np.array([1])], lambda x: x))
  others = facts.examine(Failing(1), tokenizer, [0])
  assert found.read == 2 and found.causes == {"reader_died": 1}
  assert found.examples["reader_died"][0].index == 1
  assert (found.pictures == others.pictures).all()
  assert (found.captions == others.captions).all()


def test_the_record_that_ends_processes_is_found_by_halving(monkeypatch):
  source, tokenizer = Failing(32, deadly=21), load_tokenizer("bytes", 64)
  started = []

  class Pool:
    def submit(self, function, indices):
      started.append(len(indices))
      if 21 in indices:
        raise BrokenProcessPool
      task = Future()
      task.set_result(facts.examine(source, tokenizer, indices))
      return task

  pools = survey._Pools(source, tokenizer, 1)
  monkeypatch.setattr(
    pools, "_pool", lambda workers: contextlib.nullcontext(Pool())
  )
  found = pools._alone(np.arange(32))
  assert found.causes == {"reader_died": 1}
  assert found.examples["reader_died"][0].index == 21
  rest = [k for k in range(32) if k != 21]
  assert found.pictures["index"].tolist() == rest
  assert sorted(started) == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32]


def test_many_deaths_are_no_accident(monkeypatch):
  monkeypatch.setattr(survey, "MOST_DEATHS", 0)
  pools = survey._Pools(Failing(1), load_tokenizer("bytes", 64), 2)
  with pytest.raises(SourceError, match="record 0 of failing, ended the"):
    pools._died(0)


def test_the_command_gives_the_same_with_processes(messy, tmp_path, capsys):
  """It also runs as a program, and says what is wrong with its status."""
  strict = {**os.environ, "PYTHONWARNINGS": "error"}
  argv = ["check", messy, "--batch_size=2", "--filter_ratio=0.5"]
  argv += ["--image_size=32"]
  # More than one chunk, or the processes would have nothing to share.
  big = tmp_path / "big.jsonl"
  lines = (tmp_path / "set.jsonl").read_text().splitlines()
  big.write_text("\n".join(lines * 8))
  argv[1] = f"jsonl:{big}"
  done = subprocess.run(
    [sys.executable, "-m", "aced.data", *argv, "--workers=2"]
    + [f"--json={tmp_path / 'a.json'}"],
    capture_output=True,
    text=True,
    env=strict,
  )
  assert done.returncode == 1, done.stderr
  assert "not fit: 63.6%" in done.stdout
  assert "Traceback" not in done.stderr
  assert main([*argv, "--workers=0", f"--json={tmp_path / 'b.json'}"]) == 1
  a, b = (json.loads((tmp_path / f"{x}.json").read_text()) for x in "ab")
  assert comparable(a) == comparable(b)
  assert a["usable"] == 32 and a["fit"] is False
  assert a["duplicates"]["same"] == 28
  assert a["causes"][0]["examples"][0]["index"] == 7
  capsys.readouterr()


def test_statuses(messy, write, tmp_path, capsys):
  good = write([(encode(scene(k)), str(k)) for k in range(4)], "good")
  run = ["--workers=0", "--batch_size=2", "--filter_ratio=0.5"]
  assert main(["check", good, *run]) == 0
  assert capsys.readouterr().out.endswith("  fit to train on\n")
  assert main(["check", good, "--workers=0"]) == 1
  assert "a super-batch of 5,120 pairs is more than the source has (4)" in (
    capsys.readouterr().out.replace("\n           ", " ")
  )
  assert main(["check", messy, *run, "--max_bad=0.7"]) == 0
  capsys.readouterr()
  empty = write([("none", "a")], "empty")
  assert main(["check", empty, *run]) == 1
  out = capsys.readouterr().out
  assert "no record that was read can be used" in out and "images/s" not in out
  for argv, message in (
    (["jsonl:none.jsonl"], "SourceError: source 'jsonl:none.jsonl'"),
    ([good, "--filter_ratio=2"], "ConfigError: the settings of the run"),
    ([good, f"--output={tmp_path}"], "is a folder"),
    ([good, f"--json={messy[6:]}/x.json"], "its folder cannot be made"),
  ):
    assert main(["check", *argv, "--workers=0"]) == 2
    out, err = capsys.readouterr()
    assert message in err and not out and "Traceback" not in err
  for argv in ([], ["check"], ["check", good, "--records=-1"]):
    with pytest.raises(SystemExit) as error:
      main(argv)
    assert error.value.code == 2
  for word in ("inf", "nan", "1.5", "many"):
    with pytest.raises(SystemExit):
      main(["check", good, f"--train_examples={word}"])


def test_an_interrupt_needs_no_traceback(monkeypatch, capsys):
  def interrupted(options):
    raise KeyboardInterrupt

  monkeypatch.setattr(check, "run", interrupted)
  assert main(["check", "synthetic:train"]) == 130
  assert capsys.readouterr().err == "interrupted\n"


def test_warnings(write):
  pairs = [(encode(scene(0)), "the same words " * 9)] * 6
  pairs += [(encode(Image.new("RGB", (9, 9))), "b")] * 2
  report = look(write(pairs), dataclasses.replace(SMALL, image_size=100))
  assert [w.split(" of ")[0] for w in report.warnings] == [
    "62.5%",  # Copies.
    "75.0%",  # Cut.
    "100.0%",  # Small.
    "100.0%",  # Captions that are shared.
    "25.0%",  # Flat.
  ]
  assert report.fit
  hurried = dataclasses.replace(SMALL, step_seconds=1e-9)
  assert "cores for reading" in look(write(pairs), hurried).warnings[-1]


def test_the_sheet_asks_for_nothing_and_escapes_captions(write, tmp_path):
  pairs = [(encode(scene(k)), EVIL) for k in range(3)]
  pairs += [(encode(scene(0), "PNG"), "half \ud800"), ("<b>.jpg", "gone")]
  spec = write(pairs)
  page = tmp_path / "pages" / "sheet.html"
  argv = ["check", spec, "--workers=0", "--max_bad=1", f"--output={page}"]
  assert main([*argv, "--batch_size=2", "--filter_ratio=0"]) == 0
  html = page.read_text(encoding="utf-8")
  assert "<script" not in html and "<b>" not in html
  assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
  sources = re.findall(r'(?:src|href|data|action)\s*=\s*"([^"]*)', html)
  assert len(sources) == 4 + 2  # The sample, and a group of two.
  for source in sources:
    assert source.startswith("data:image/jpeg;base64,")
  assert not re.search(r"url\(|@import|<(link|iframe|object|base)", html)
  # Whatever else says http is a caption or its policy.
  rest = html.replace("http://a.b/c.png", "").replace("http-equiv", "")
  assert "http" not in rest
  for part in ("missing_image", "half ?", "2 pictures", "3 x", "#4", "tokens"):
    assert part in html
  assert os.listdir(page.parent) == ["sheet.html"]


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "x.json"
  check.write(path, "old")

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  with pytest.raises(OSError, match="No space"):
    check.write(path, "new")
  assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.json"]


def test_nothing_that_moves_the_cursor_is_printed(write):
  caption = "\x1b[2J wiped \u202e\ud800"
  spec = write([(encode(scene(k)), caption) for k in range(2)])
  printed = text(look(spec))
  assert "wiped" in printed
  assert all(c.isprintable() or c == "\n" for c in printed)
  assert plain("a\x1b[2Jb\n") == "a\ufffd[2Jb\ufffd"
  assert plain("x" * 300) == "x" * 199 + "…"


def test_formats_are_told_by_their_first_bytes():
  for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF"):
    assert facts.image_format(encode(scene(0), kind)) == kind
  assert facts.image_format(encode(scene(0), "WEBP")) == "WebP"
  assert facts.image_format(b"RIFFsizeWAVE") == "other"
  assert facts.image_format(b"") == "other"


def test_real_photographs(shared_data):
  spec = f"jsonl:{shared_data}/grocery/train.jsonl"
  report = look(spec, Settings(batch_size=64, image_size=96), records=660)
  assert report.fit and report.usable == 660
  lines = (shared_data / "grocery" / "train.jsonl").read_text().splitlines()
  texts = [json.loads(line)["text"] for line in lines][::4]
  assert report.captions.distinct == len(set(texts))
  tokens = by_hand([len(t.encode()) + 1 for t in texts])
  assert list(report.captions.tokens.values()) == tokens
  assert report.pictures.formats == {"JPEG": 660}
  assert report.pictures.shorter_side["min"] == 96
  assert (report.duplicates.alike, report.pictures.flat) == (0, 0)
