"""Pages in a real browser: nothing fails, nothing is asked for, all is seen.

Screenshots are kept in `build/screenshots`.
"""

import shutil

import pytest

from aced import report
from studies import plot

pytestmark = pytest.mark.browser

FLAGS = (
  "--no-sandbox",
  "--disable-gpu",
  "--disable-background-networking",
)
PHONE, DESK = 390, 1200


@pytest.fixture(scope="module")
def browser():
  playwright = pytest.importorskip(
    "playwright.sync_api",
    reason="playwright is not installed: the extra `browser`",
  )
  path = shutil.which("chromium") or shutil.which("google-chrome")
  if path is None:
    pytest.skip("there is no Chromium: the Debian package chromium")
  with playwright.sync_playwright() as found:
    chromium = found.chromium.launch(executable_path=path, args=FLAGS)
    yield chromium
    chromium.close()


@pytest.fixture
def look(browser, repository):
  """Opens a file; returns what went wrong, what was asked for, and the page."""
  contexts = []

  def look(path, scheme, width, name):
    context = browser.new_context(
      color_scheme=scheme, viewport={"width": width, "height": 900}
    )
    contexts.append(context)
    page, wrong, asked = context.new_page(), [], []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    folder = repository / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{name}.{scheme}.{width}.png"
    page.screenshot(path=picture, full_page=True)
    outside = [
      url
      for url in asked
      if not url.startswith("data:") and url != path.as_uri()
    ]
    return wrong, outside, page

  yield look
  for context in contexts:
    context.close()


def check(wrong, outside, page):
  assert wrong == [] and outside == []
  width, wide = page.evaluate(
    "[document.documentElement.clientWidth,"
    " document.documentElement.scrollWidth]"
  )
  assert wide <= width, "the page has to be scrolled sideways"
  for chart in page.query_selector_all("svg.chart"):
    box = chart.bounding_box()
    assert box["width"] > 200 and box["height"] > 80
    # Text of 12 px is drawn as large as the chart: on a phone too, readable.
    drawn = float(chart.get_attribute("viewBox").split()[2])
    assert 12 * box["width"] / drawn >= 10
  broken = page.evaluate(
    "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
  )
  assert broken == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_page_of_a_run(look, make_run, scheme, width):
  path = report.write(make_run())
  wrong, outside, page = look(path, scheme, width, "run")
  check(wrong, outside, page)
  assert len(page.query_selector_all("svg.chart")) >= 7
  assert len(page.query_selector_all("figure img")) == 36
  ground, ink = page.evaluate(
    "(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))"
  )
  lightness = [sum(map(int, c[4:-1].split(","))) for c in (ground, ink)]
  assert (lightness[0] > lightness[1]) == (scheme == "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("name", ["scenes", "signdigits"])
def test_the_page_of_a_study(look, repository, tmp_path, name, scheme, width):
  plot.draw(repository / "docs" / "study" / name, tmp_path)
  path = tmp_path / "study.html"
  wrong, outside, page = look(path, scheme, width, f"study_{name}")
  check(wrong, outside, page)
  assert len(page.query_selector_all("svg.chart")) >= 4
