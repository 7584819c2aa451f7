import functools
import io
import json

import numpy as np
import pytest
from PIL import Image

from aced.config import ConfigError
from aced.data.decoding import decode
from aced.data.tokenizers import load
from aced.data.transforms import VIPS_PIXELS, Transform
from aced.export.hf_processor import write_processor
from aced.export.hf_tokenizer import write_tokenizer
from aced.models.formats.preprocessing import read_processor

# Smaller, as large, narrow, larger, and more than the threefold.
SIZES = ((20, 30), (64, 64), (64, 40), (70, 90), (130, 200), (300, 250))
both = pytest.mark.parametrize("resize", ["bilinear", "bicubic"])


@functools.cache
def picture(height, width):
  """Smooth colours with some grain, `(h, w, 3)` uint8."""
  rng = np.random.default_rng(height * width)
  rough = rng.integers(0, 256, (3 + height // 32, 3 + width // 32, 3), np.uint8)
  smooth = Image.fromarray(rough).resize((width, height), 3)
  grain = rng.normal(0, 4, (height, width, 3))
  return (np.asarray(smooth) + grain).clip(0, 255).round().astype(np.uint8)


def encoded(pixels, name="PNG", **options):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, name, **options)
  return file.getvalue()


def image_processor(folder, backend):
  transformers = pytest.importorskip(
    "transformers", reason="makes the pixels; of the extra `parity`"
  )
  pytest.importorskip("torchvision", reason="resizes for transformers")
  return transformers.AutoImageProcessor.from_pretrained(
    folder, backend=backend
  )


def levels(processor, transform, data):
  """Differences of a processor's pixels and ours, `(h, w, 3)`, of 255."""
  with Image.open(io.BytesIO(data)) as image:
    found = processor(image.convert("RGB"), return_tensors="np")
  (theirs,) = np.asarray(found["pixel_values"])
  ours = transform({"image": data}).astype(np.float32) / 127.5 - 1
  assert theirs.shape == (3, *ours.shape[:2])
  return np.abs(ours - theirs.transpose(1, 2, 0)) * 127.5


@both
def test_writes_what_is_read_back(tmp_path, resize):
  write_processor(tmp_path, image_size=48, resize=resize)
  assert {p.name for p in tmp_path.iterdir()} == {
    "preprocessor_config.json",
    "processor_config.json",
  }
  half = (0.5,) * 3
  assert read_processor(tmp_path) == {
    "image_size": 48,
    "resize": resize,
    "mean": half,
    "std": half,
  }


def test_refuses_by_name(tmp_path):
  with pytest.raises(ConfigError, match="'bicubc'.*Did you mean 'bicubic'"):
    write_processor(tmp_path, image_size=8, resize="bicubc")
  with pytest.raises(ConfigError, match="image_size=0 must be 1"):
    write_processor(tmp_path, image_size=0, resize="bicubic")
  assert not list(tmp_path.iterdir())


@pytest.mark.parity
def test_is_a_processor_with_our_tokenizer(tmp_path):
  transformers = pytest.importorskip(
    "transformers", reason="reads what is written; of the extra `parity`"
  )
  pytest.importorskip("torchvision", reason="resizes for transformers")
  tokenizer = load("bytes", 16)
  write_tokenizer(tokenizer, tmp_path)
  write_processor(tmp_path, image_size=24, resize="bilinear")
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
  for kind in (transformers.AutoProcessor, transformers.SiglipProcessor):
    processor = kind.from_pretrained(tmp_path)
    assert type(processor) is transformers.SiglipProcessor
    found = processor(
      text=["a red circle", "x" * 99],
      images=[picture(30, 40)],
      padding="max_length",
      truncation=True,
      return_tensors="np",
    )
    assert found.keys() == {"input_ids", "pixel_values"}
    want = tokenizer(["a red circle", "x" * 99])
    np.testing.assert_array_equal(found["input_ids"], want)
    assert found["pixel_values"].shape == (1, 3, 24, 24)


@pytest.mark.parity
@both
@pytest.mark.parametrize(
  # Pillow's pixels are ours; torchvision's weights have fewer bits, and its
  # values between the two directions are rounded elsewhere.
  ("backend", "most", "mean"),
  [("pil", 0.001, 0.001), ("torchvision", 1.001, 0.3)],
)
def test_same_pixels(tmp_path, resize, backend, most, mean):
  write_processor(tmp_path, image_size=64, resize=resize)
  processor = image_processor(tmp_path, backend)
  for size in SIZES:
    found = levels(processor, Transform(64, resize), encoded(picture(*size)))
    assert found.max() < most and found.mean() < mean, size


@pytest.mark.parity
@both
def test_large_pictures(tmp_path, resize):
  """Those that libvips makes smaller: its weights have six bits."""
  assert VIPS_PIXELS < 400 * 350
  write_processor(tmp_path, image_size=224, resize=resize)
  for backend in ("pil", "torchvision"):
    processor = image_processor(tmp_path, backend)
    data = encoded(picture(400, 350))
    found = levels(processor, Transform(224, resize), data)
    assert found.max() < 3.001 and found.mean() < 0.3


@pytest.mark.parity
@both
def test_jpeg(tmp_path, resize):
  """A fast DCT and simple upsampling of colours, and what may be left out."""
  write_processor(tmp_path, image_size=64, resize=resize)
  processor = image_processor(tmp_path, "pil")
  for size in SIZES:
    data = encoded(picture(*size), "JPEG", quality=92)
    # The decoder alone is the cause: of its pixels they make ours.
    whole = Transform(64, resize, shrink=False)
    found = levels(processor, whole, data)
    assert found.max() < 8 and found.mean() < 1.5, size
    assert levels(processor, whole, encoded(decode(data))).max() < 0.001
    # Smooth pictures hardly show that they were decoded at a fraction.
    found = levels(processor, Transform(64, resize), data)
    assert found.max() < 20 and found.mean() < 3, size


@pytest.mark.parity
@both
@pytest.mark.parametrize("size", [32, 224])
def test_photos(tmp_path, shared_data, resize, size):
  write_processor(tmp_path, image_size=size, resize=resize)
  processor = image_processor(tmp_path, "torchvision")
  photos = sorted((shared_data / "coco_cc").rglob("*.jpg"))[:60:4]
  assert len(photos) > 5
  means = []
  for path in photos:
    data = path.read_bytes()
    with Image.open(path) as image:
      same = encoded(np.asarray(image.convert("RGB")))
    found = levels(processor, Transform(size, resize), same)
    # Bicubic overshoots, and torchvision clips it between the directions.
    assert found.max() < 3.001 and found.mean() < 0.3
    found = levels(processor, Transform(size, resize, shrink=False), data)
    assert found.max() < 12 and found.mean() < 1.5
    means.append(levels(processor, Transform(size, resize), data).mean())
  # Photos of 128 pixels and more, decoded at a quarter: edges move.
  assert np.max(means) < (12 if size == 32 else 1.5)
  assert np.mean(means) < (5 if size == 32 else 1.5)
