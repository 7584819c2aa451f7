"""The frame of pages."""

import html.parser

import numpy as np

from aced.pages import frame

NASTY = '</td><script src="http://x/">alert(1)</script>&"'


class Tags(html.parser.HTMLParser):
  """The tags of a page, and those left open."""

  def __init__(self, text):
    super().__init__()
    self.found, self.open = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.found.append(tag)
    if tag not in ("meta", "img"):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.found.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def everything():
  pixels = np.zeros((300, 200, 3), np.uint8)
  card = frame.card(pixels, NASTY, [frame.caption(NASTY)])
  return frame.page(
    NASTY,
    frame.section(
      NASTY,
      frame.figures([(NASTY, NASTY)]),
      frame.verdict("good", NASTY, ["a note"]),
      frame.table([NASTY, "b"], [[NASTY, "1"]]),
      frame.details(NASTY, frame.mapping({"a": NASTY})),
      frame.cards([card, frame.card(None, "", [], NASTY)]),
    ),
  )


def test_a_page_is_well_formed_and_what_it_tells_is_escaped():
  tags = Tags(everything())
  assert not tags.open
  assert "script" not in tags.found
  assert {"table", "figure", "dl", "details"} <= set(tags.found)


def test_a_page_asks_for_nothing_else():
  text = everything()
  assert "default-src 'none'" in text
  assert "<link" not in text and 'src="data:image/jpeg' in text


def test_thumbnails_are_small():
  uri = frame.thumbnail(np.zeros((3000, 100, 3), np.uint8))
  assert len(uri) < 2000


def test_what_is_empty_leaves_nothing():
  assert frame.section("x", "", "") == ""
  assert frame.cards([]) == ""
  assert len(frame.short("a" * 1000)) == frame.MOST_CHARACTERS
