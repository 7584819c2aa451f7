"""What is counted and measured, against counting by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image

from aced.data.check import facts
from aced.data.check.findings import QUANTILES, quantiles
from aced.data.check.needs import Settings
from aced.data.tokenizers import Tokenizer
from tests import ghostscript
from tests.data.check.tools import EVIL, SMALL, encode, look, scene
from tests.data.sources.tar_test import archive, pairs


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
  assert (example.index, example.where) == (
    6,
    f"line 7 of {str(messy).removeprefix('jsonl:')}",
  )
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
  assert list(found.tokens.values()) == by_hand(
    [len(t.strip()) + 1 for t in texts]
  )
  assert (found.cut, found.cut_share) == (2, 0.4)  # Above 64.
  assert found.per_picture["max"] == 2
  # The end counts: 63 bytes and the end fit.
  for length, cut in ((63, 0), (64, 1)):
    report = look(write([(encode(scene(0)), "y" * length)]))
    assert report.captions.cut == cut
  report = look(write([(encode(scene(0)), "z" * 5000)]))
  assert report.captions.tokens["max"] == facts.MOST_TOKENS


def test_captions_that_may_not_be_what_was_meant(write):
  texts = ["a cat", "two\nlines", ["b", "c\nd"], "caf\ufffd", "end\r\n"]
  spec = write([(encode(scene(k)), t) for k, t in enumerate(texts)])
  told = {r.name: (r.count, r.examples[0].index) for r in look(spec).remarks}
  assert told == {"several_lines": (2, 1), "lost_letters": (1, 3)}
  lines = {r.name for r in look(f"{spec}?lines=1").remarks}
  assert lines == {"lost_letters"}


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


def test_formats_are_told_by_their_first_bytes():
  for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF"):
    assert facts.image_format(encode(scene(0), kind)) == kind
  assert facts.image_format(encode(scene(0), "WEBP")) == "WebP"
  assert facts.image_format(np.asarray(scene(0))) == "array"


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


def test_one_caption_for_all_is_not_fit(write):
  pictures = [(encode(scene(k)), "the same") for k in range(6)]
  report = look(write(pictures))
  assert not report.fit
  assert "100.0% of the records have one and the same" in report.reasons[0]


def test_damaged_shards_are_told(tmp_path):
  path = tmp_path / "x.tar"
  path.write_bytes(archive(pairs(40))[:60_100])
  report = look(f"webdataset:{path}")
  assert any(f"{path}: it" in warning for warning in report.warnings)


def greys(values, **options):
  return encode(Image.fromarray(values), "TIFF", **options)


def test_pictures_that_are_read_by_a_guess_are_told(write):
  """Each by its name, with the first of them."""
  ramp = np.arange(3600).reshape(60, 60) / 3600
  floats = greys(ramp.astype(np.float32))
  levels = greys((ramp * 255).astype(np.int32))
  dark = encode(Image.fromarray((ramp * 4095).astype(np.uint16)), "PNG")
  frames = [scene(k) for k in range(2)]
  moving = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
  small = encode(scene(3), "TIFF", tiffinfo={0x00FE: 1})
  pictures = [scene(9), scene(8), floats, floats, levels, dark, moving, small]
  spec = write(
    [(p if isinstance(p, bytes) else encode(p), "a") for p in pictures]
  )
  report = look(spec)
  assert {r.name: r.count for r in report.remarks} == {
    "floats_to_1": 2,
    "first_of_several": 1,
    "ints_to_255": 1,
    "high_bits_unused": 1,
    "nearly_black": 1,
    "thumbnail": 1,
  }
  first = report.remarks[0]
  assert (first.name, first.share) == ("floats_to_1", 2 / 8)
  assert [e.index for e in first.examples] == [2, 3]
  assert first.examples[0].where.startswith("line 3 of ")
  told = [w for w in report.warnings if "(floats_to_1)" in w]
  assert told == [
    "25.0% of the records (floats_to_1): floats of no stored range, taken for"
    f" 0..1; the first is line 3 of {spec.removeprefix('jsonl:')}"
  ]
  assert any("read in 2 ways, picture by picture" in w for w in report.warnings)
  # Frames are an ordinary thing: they are counted, and not warned of.
  assert not any("first_of_several" in w for w in report.warnings)
  assert "greys" not in " ".join(look("synthetic:train?size=20").warnings)


def test_what_cannot_be_read_by_any_rule_is_a_cause(write):
  ramp = np.linspace(-1, 1, 3600, dtype=np.float32).reshape(60, 60)
  report = look(write([(greys(ramp), "a"), (encode(scene(0)), "b")]))
  (cause,) = report.causes
  assert (cause.name, cause.count) == ("unknown_range", 1)
  assert "greys from -1 to 1" in cause.examples[0].detail
  assert report.remarks == ()


def test_no_picture_starts_a_program(write, monkeypatch, tmp_path):
  spec = write([(ghostscript.EPS, "a"), (encode(scene(0)), "b")], "eps")
  started = ghostscript.watch(monkeypatch, tmp_path)
  report = look(spec)
  assert report.causes[0].name == "not_an_image"
  assert report.causes[0].examples[0].detail.startswith("EPS, a program")
  assert not started.exists()
