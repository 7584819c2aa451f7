"""Sources for the tests of the check, and what it says of them."""

import io
import json
import os

import numpy as np
from PIL import Image, ImageFilter

from aced.data.check import command as check
from aced.data.check.needs import Settings
from aced.data.records import Source
from aced.data.sources import open_source

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
