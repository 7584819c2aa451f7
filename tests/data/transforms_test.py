import dataclasses
from concurrent import futures

import jax
import numpy as np
import pytest
from PIL import Image

from aced.config import ConfigError
from aced.data import transforms
from aced.data.decoding import decode
from aced.data.records import BadRecord
from aced.data.transforms import Transform, random_box, resize
from tests.data.decoding_test import encode, photo


def test_resize_averages_what_it_leaves_out():
  # A board of single pixels has no structure at a quarter of its size.
  board = np.indices((64, 64)).sum(axis=0) % 2 * 255
  board = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
  for method in transforms.METHODS:
    small = resize(board, 16, method).astype(float)
    inner = small[2:-2, 2:-2]
    # Halfway between black and white, up to a few levels of ringing.
    assert np.abs(inner - 127.5).max() < 6
  flat = np.full((50, 20, 3), 77, np.uint8)
  assert (resize(flat, 33) == 77).all()
  assert resize(flat, 33).shape == (33, 33, 3)
  assert resize(board, 64) is board


def textured(height, width, seed=0):
  """A photo-like picture: detail at every scale, more of it at the large."""
  rng = np.random.default_rng(seed)
  image = np.zeros((height, width, 3))
  for step in (64, 16, 4, 1):
    noise = rng.normal(size=(-(-height // step), -(-width // step), 3))
    grown = np.kron(noise, np.ones((step, step, 1)))[:height, :width]
    image += grown * step**0.5 * 4
  return (127 + image).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("method", transforms.METHODS)
@pytest.mark.parametrize(
  "shape", [(480, 640), (300, 500), (240, 320), (50, 400), (20, 30), (224, 224)]
)
def test_resize_is_that_of_tensorflow_and_jax(method, shape):
  # jax.image.resize is TensorFlow's antialiased resize, in float32.
  image, size = textured(*shape), 160
  name = {"bilinear": "linear", "bicubic": "cubic"}[method]
  want = np.asarray(
    jax.image.resize(image.astype(np.float32), (size, size, 3), name)
  ).clip(0, 255)
  error = resize(image, size, method) - want
  # Both round twice, once after each direction, libvips with weights of six
  # bits: at most 2 levels away, and half of one on average.
  assert np.abs(error).max() <= 2.5
  assert np.abs(error).mean() <= 0.5


def test_noise_is_resized_as_well_on_average():
  # Nothing is harder: every weight that is rounded shows.
  noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
  for method, name in (("bilinear", "linear"), ("bicubic", "cubic")):
    want = np.asarray(
      jax.image.resize(noise.astype(np.float32), (256, 256, 3), name)
    ).clip(0, 255)
    error = resize(noise, 256, method) - want
    # Weights of six bits: of values spread over 255 levels, an error of
    # 255 / 128 at most for each of a few weights.
    assert np.abs(error).mean() <= 1.0
    assert np.abs(error).max() <= 20


def test_what_is_set_up_for_a_size_is_used_for_no_other():
  images = [textured(400 + 37 * k, 500 + 11 * k, k) for k in range(4)]

  def alone(image, size):
    transforms._shrink._graphs.clear()
    return resize(image, size)

  want = [alone(image, 160 + 3 * k) for k, image in enumerate(images)]

  def again(_):
    return [resize(image, 160 + 3 * k) for k, image in enumerate(images)]

  with futures.ThreadPoolExecutor(4) as pool:
    for found in pool.map(again, range(12)):
      for got, expected in zip(found, want, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_box_is_that_part_of_the_picture():
  for shape in ((60, 80), (480, 640)):
    image, box = textured(*shape), (0.25, 0.5, 0.75, 1.0)
    part = image[shape[0] // 2 :, shape[1] // 4 : 3 * shape[1] // 4]
    got = resize(image, 40, "bilinear", box).astype(int)
    inner = got[2:-2, 2:-2] - resize(part, 40)[2:-2, 2:-2]
    assert np.abs(inner).max() <= 2  # At its edges Pillow looks beyond a box.


@pytest.mark.parametrize("turn", [1, 6])
def test_large_jpegs_are_decoded_small(turn):
  exif = Image.Exif()
  exif[0x0112] = turn
  data = encode(textured(700, 1000), "JPEG", quality=92, exif=exif.tobytes())
  full = decode(data)
  assert full.shape == ((700, 1000, 3) if turn == 1 else (1000, 700, 3))
  # 3/8 of 700 is enough for 256; 1/4 is not.
  small = decode(data, lambda h, w: (256, 256))
  assert sorted(small.shape[:2]) == [263, 375]
  assert decode(data, lambda h, w: (400, 400)).shape == full.shape
  record = {"image": data}
  fast = Transform(256)(record).astype(float)
  exact = Transform(256, shrink=False)(record)
  np.testing.assert_array_equal(exact, resize(full, 256))
  # Leaving out DCT coefficients is another filter than the triangle, so fine
  # detail differs; a shift by half a pixel would differ about twice as much.
  error = np.abs(fast - exact)
  moved = np.abs(exact.astype(float) - np.roll(exact, 1, 1))
  assert error.mean() < 4 and error.mean() < moved.mean() / 2


def test_a_crop_is_decoded_as_large_as_it_needs():
  record = {"image": encode(textured(1000, 1000), "JPEG", quality=92)}
  fast = Transform(200, crop_scale=(0.1, 0.3))
  exact = dataclasses.replace(fast, shrink=False)
  for seed in range(5):
    pair = [t(record, np.random.default_rng(seed)) for t in (fast, exact)]
    error = np.abs(pair[0].astype(float) - pair[1])
    assert error.mean() < 5


def test_views_are_one_crop_at_several_sizes():
  record = {"image": encode(textured(90, 120), "PNG")}
  transform = Transform(32, crop_scale=(0.3, 0.6), flip=True)
  for seed in range(4):
    views = transform.views(record, (32, 64), np.random.default_rng(seed))
    assert [v.shape for v in views] == [(32, 32, 3), (64, 64, 3)]
    alone = transform(record, np.random.default_rng(seed))
    np.testing.assert_array_equal(views[0], alone)
    smaller = resize(np.ascontiguousarray(views[1]), 32).astype(int)
    # Two resizings blur more than one, no more than this on such a picture.
    assert np.abs(smaller - views[0]).mean() < 12


def test_random_box_has_the_area_drawn_and_fits():
  rng = np.random.default_rng(0)
  areas, lefts, ratios = [], [], []
  for _ in range(2000):
    left, top, right, bottom = random_box((0.3, 0.9), rng)
    assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    areas.append((right - left) * (bottom - top))
    ratios.append((right - left) / (bottom - top))
    lefts.append(left)
  assert min(areas) >= 0.3 - 1e-9 and max(areas) <= 0.9 + 1e-9
  # Five standard errors of the mean of a uniform number.
  assert np.mean(areas) == pytest.approx(0.6, abs=5 * 0.6 / 12**0.5 / 2000**0.5)
  assert min(ratios) >= 0.75 - 1e-9 and max(ratios) <= 4 / 3 + 1e-9
  assert np.std(lefts) > 0.02
  whole = random_box((1.0, 1.0), rng)
  assert whole == pytest.approx((0, 0, 1, 1))


def test_transform():
  record = {"image": encode(photo())}
  plain = Transform(16)
  np.testing.assert_array_equal(plain(record), resize(photo(), 16))
  bicubic = Transform(16, "bicubic")(record)
  assert not np.array_equal(bicubic, plain(record))
  random = Transform(16, crop_scale=(0.3, 0.9), flip=True)
  seen = [random(record, np.random.default_rng(s)) for s in (0, 0, 1)]
  np.testing.assert_array_equal(seen[0], seen[1])
  assert not np.array_equal(seen[0], seen[2])
  with pytest.raises(ValueError, match="no random generator"):
    random(record)
  with pytest.raises(BadRecord, match="missing_image"):
    plain({})


def test_flip_mirrors_half():
  transform = Transform(16, flip=True)
  rng = np.random.default_rng(0)
  plain = Transform(16)({"image": photo()})
  flips = 0
  for _ in range(200):
    image = transform({"image": photo()}, rng)
    flipped = np.array_equal(image, plain[:, ::-1])
    assert flipped or np.array_equal(image, plain)
    flips += flipped
  assert 65 <= flips <= 135  # Five standard deviations about 100.


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"image_size": 0}, "image_size=0"),
    ({"resize": "bilinar"}, "mean 'bilinear'"),
    ({"crop_scale": (0.0, 1.0)}, r"crop_scale=\(0.0, 1.0\)"),
    ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
    ({"crop_scale": (0.5,)}, "crop_scale"),
  ],
)
def test_transform_refuses(options, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(Transform(16), **options)
