"""Data of the benchmarks of the input pipeline: pictures, captions, shards."""

import functools
import io
import pathlib
import shutil

import numpy as np
from PIL import Image, ImageDraw

WORDS = 800  # Different words in the captions.
LETTERS = list("aaabcdeeefghiiklmnooprrsstttuvw")


def once(folder, make):
  """Has `make(part)` fill a folder that is not there yet; returns the folder.

  It gets its name when it is whole, so that one cut short is made again.
  """
  folder = pathlib.Path(folder)
  if folder.exists():
    return folder
  part = folder.with_name(folder.name + ".part")
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  make(part)
  part.rename(folder)
  return folder


def photo(seed, number, width, height):
  """Encodes a picture that costs a decoder what a photograph does.

  Noise at every scale, twice as strong at twice the scale, as in photographs;
  things with sharp edges before it; the noise of a sensor on top.
  """
  rng = np.random.default_rng((seed, number))
  pixels = _clouds(rng, width, height) + _things(rng, width, height)
  pixels += rng.normal(0, rng.uniform(2, 5), (height, width, 1))
  image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
  return jpeg(image)


def _clouds(rng, width, height):
  """Smooth structure: coarse noise, made larger again and again."""
  levels = [k for k in range(7, -1, -1) if min(width, height) >> k >= 2]
  pixels = np.full((2, 2, 3), 128, np.float32)
  for level in levels:
    size = width >> level, height >> level
    pixels = _enlarged(pixels, size)
    strength = 20 * 2 ** (level / 2 - 2)
    shape = pixels.shape[:2]
    grey, colours = rng.normal(0, strength, (*shape, 1)), 0
    if level > 2:  # Colours change more slowly than brightness.
      colours = rng.normal(0, strength / 2, (*shape, 3))
    if level:  # The finest noise is that of the sensor.
      pixels = pixels + (grey + colours).astype(np.float32)
  return pixels


def _enlarged(pixels, size):
  bands = (Image.fromarray(pixels[..., k]) for k in range(3))
  method = Image.Resampling.BILINEAR
  return np.stack([np.asarray(b.resize(size, method)) for b in bands], axis=-1)


def _things(rng, width, height):
  """What is added to the pixels within shapes with sharp edges."""
  image = Image.new("RGB", (width, height), (128, 128, 128))
  draw = ImageDraw.Draw(image)
  for _ in range(rng.integers(6, 14)):
    colour = tuple(int(x) for x in rng.integers(80, 176, 3))
    centre = rng.uniform(0, 1, 2) * (width, height)
    corners = centre + rng.normal(0, 0.15, (4, 2)) * (width, height)
    if rng.random() < 0.5:
      low, high = corners.min(0), corners.max(0)
      draw.ellipse([*low, *high], fill=colour)
    else:
      draw.polygon([tuple(c) for c in corners], fill=colour)
  return np.asarray(image).astype(np.float32) - 128


def jpeg(image):
  """A JPEG of quality 90, colours at half the size (4:2:0)."""
  stream = io.BytesIO()
  image.save(stream, "JPEG", quality=90, subsampling="4:2:0")
  return stream.getvalue()


def small_picture(seed, number, size):
  """A JPEG of a few smooth blobs, for benchmarks that decoding is no part of.

  Its pixels hang on the number, so that no two are alike.
  """
  rng = np.random.default_rng((seed, number))
  coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
  return jpeg(coarse.resize((size, size), Image.Resampling.BICUBIC))


def caption(seed, number):
  """Eight to sixteen words; short ones are more frequent, as in English."""
  rng = np.random.default_rng((seed, 1, number))
  ranks = WORDS ** rng.uniform(0, 1, rng.integers(8, 17))
  return " ".join(_word(int(rank)) for rank in ranks)


@functools.cache
def _word(rank):
  rng = np.random.default_rng((7, rank))
  return "".join(rng.choice(LETTERS, 2 + min(rank, 40) // 8 + rng.integers(3)))


def photo_set(folder, *, records, shards, width, height, seed=0):
  """Tar shards of `KEY.jpg`, `KEY.txt` and `KEY.json`, made once.

  They are written with the package webdataset, and `captions.txt` beside them.
  """

  def make(part):
    import webdataset

    captions = [caption(seed, number) for number in range(records)]
    for shard, numbers in enumerate(np.array_split(np.arange(records), shards)):
      with webdataset.TarWriter(str(part / f"{shard:04}.tar")) as writer:
        for number in numbers.tolist():
          writer.write(
            {
              "__key__": f"{number:08}",
              "jpg": photo(seed, number, width, height),
              "txt": captions[number],
              "json": {"number": number, "width": width, "height": height},
            }
          )
    (part / "captions.txt").write_text("\n".join(captions) + "\n")

  name = f"photos_{records}_{shards}_{width}x{height}"
  return once(pathlib.Path(folder) / name, make)


def small_set(folder, *, records, shards, size=32, seed=0):
  """Tar shards of small pictures and captions, made once."""

  def make(part):
    import webdataset

    for shard, numbers in enumerate(np.array_split(np.arange(records), shards)):
      with webdataset.TarWriter(str(part / f"{shard:04}.tar")) as writer:
        for number in numbers.tolist():
          writer.write(
            {
              "__key__": f"{number:08}",
              "jpg": small_picture(seed, number, size),
              "txt": caption(seed, number),
            }
          )

  name = f"small_{records}_{shards}_{size}"
  return once(pathlib.Path(folder) / name, make)
