"""An EPS, and a Ghostscript that leaves a trace where it is started."""

import contextlib
import io

from PIL import EpsImagePlugin, Image

EPS = (
  b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n"
  b"1 0 0 setrgbcolor 0 0 40 40 rectfill showpage\n%%EOF\n"
)


def watch(monkeypatch, folder):
  """Puts a program `gs` on the path; returns the file that it would make.

  Pillow by itself does start it: else a test of it would say nothing.
  """
  started, program = folder / "started", folder / "programs" / "gs"
  program.parent.mkdir()
  program.write_text(f"#!/bin/sh\necho >> {started}\necho 10.0\n")
  program.chmod(0o755)
  monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
  monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
  # It draws nothing.
  with Image.open(io.BytesIO(EPS)) as image, contextlib.suppress(OSError):
    image.load()
  assert started.exists()
  started.unlink()
  return started
