"""Importing this package changes nothing for the others in a process."""

import json
import subprocess
import sys

IMPORT = """
import csv, importlib, json, logging, os, pathlib, pkgutil, signal, socket, sys
import warnings
import absl.logging, jax, numpy, pyvips
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin
from PIL import AvifImagePlugin

Image.init()

def settings():
  return {
    "Pillow": [
      Image.MAX_IMAGE_PIXELS, Image.WARN_POSSIBLE_FORMATS, sorted(Image.OPEN),
      ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK,
      PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY,
      TiffImagePlugin.READ_LIBTIFF, AvifImagePlugin.DEFAULT_MAX_THREADS,
    ],
    "libvips": [
      pyvips.cache_get_max(), pyvips.cache_get_max_mem(),
      pyvips.cache_get_max_files(), pyvips.concurrency_get(),
    ],
    "jax": {name: repr(v) for name, v in jax.config.values.items()},
    "logging": [
      logging.getLogger(n).level for n in (None, "jax", "absl", "asyncio")
    ] + [logging.root.manager.disable, absl.logging.get_verbosity()],
    "numpy": numpy.geterr(),
    "limits": [
      csv.field_size_limit(), sys.getrecursionlimit(),
      socket.getdefaulttimeout(),
    ],
    "signals": [
      repr(signal.getsignal(k)) for k in (signal.SIGTERM, signal.SIGINT)
    ],
  }

ours = []

def is_ours(frame):
  return frame.f_globals["__name__"].split(".")[0] == "aced"

def watched(function):
  def call(*args, **options):
    if is_ours(sys._getframe(1)):
      ours.append([function.__name__, args, options.get("module")])
    return function(*args, **options)
  return call

def audit(event, args):
  if event in ("os.putenv", "os.unsetenv"):
    frame = sys._getframe(1)
    while frame.f_globals["__name__"] in ("os", "_collections_abc"):
      frame = frame.f_back
    if is_ours(frame):
      ours.append([event, repr(args)])

for name in ("filterwarnings", "simplefilter", "resetwarnings"):
  setattr(warnings, name, watched(getattr(warnings, name)))
sys.addaudithook(audit)
before, seen = settings(), 0

import aced

root = pathlib.Path(aced.__file__).parent
for module in pkgutil.walk_packages([str(root)], "aced."):
  if module.name.endswith("__main__") or ".bv." in module.name + ".":
    continue
  try:
    importlib.import_module(module.name)
    seen += 1
  except ImportError as error:
    assert "aced" not in (error.name or ""), error
after = settings()
changed = {k: [v, after[k]] for k, v in before.items() if after[k] != v}
print(json.dumps([seen, ours, changed], default=repr))
"""


def test_imports_change_no_settings_of_others(repository):
  done = subprocess.run(
    [sys.executable, "-c", IMPORT],
    cwd=repository,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  seen, ours, changed = json.loads(done.stdout.splitlines()[-1])
  assert seen > 100
  assert ours == [] and changed == {}
