"""The command: what it refuses, prints and returns."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from aced.config import ConfigError
from aced.data.__main__ import main
from aced.data.check import command as check
from aced.data.check.needs import Rate, Settings, needs
from aced.data.check.text import plain, text
from tests.data.check.tools import (
  EVIL,
  SMALL,
  Failing,
  comparable,
  encode,
  look,
  scene,
)


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


def test_remarks_are_printed_within_the_width(write, capsys, tmp_path):
  ramp = np.linspace(0, 1, 3600, dtype=np.float32).reshape(60, 60)
  floats = encode(Image.fromarray(ramp), "TIFF")
  page = tmp_path / "sheet.html"
  spec = write([(floats, "a"), (encode(scene(0)), "b"), (b"%PDF-1.4", "c")])
  main(["check", spec, "--workers=0", f"--output={page}"])
  out = capsys.readouterr().out
  start = out.index("── records to look at ─")
  lines = out[start:].splitlines()[:3]
  assert lines[1].split() == ["floats_to_1", "1", "50.0%"]
  assert lines[2] == (
    "    floats of no stored range, taken for 0..1; the first:"
  )
  # Only the name of a file may be longer.
  assert all(len(x) <= 80 or str(tmp_path) in x for x in out.splitlines())
  assert "PDF, a document rather than a picture" in " ".join(out.split())
  assert "floats of no stored range" in page.read_text()
