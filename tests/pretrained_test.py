"""Models loaded to be used: pictures and texts in, embeddings out."""

import io

import numpy as np
import pytest
from PIL import Image

import aced
from aced.config import ConfigError
from aced.evaluation import zero_shot
from aced.train import train
from tests.models.formats.reading_test import save
from tests.train_test import smoke


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of a few steps."""
  from tests.conftest import REPOSITORY

  folder = tmp_path_factory.mktemp("pretrained") / "run"
  train(smoke(REPOSITORY, "iid", total_steps=3), folder)
  return folder


def pictures(n=3, size=40, seed=0):
  rng = np.random.default_rng(seed)
  return list(rng.integers(0, 256, (n, size, size, 3), np.uint8))


def png(array):
  file = io.BytesIO()
  Image.fromarray(array).save(file, "PNG")
  return file.getvalue()


def test_pictures_are_taken_in_every_form(run, tmp_path):
  model, arrays = aced.load(run), pictures()
  (tmp_path / "a.png").write_bytes(png(arrays[1]))
  mixed = [png(arrays[0]), tmp_path / "a.png", Image.fromarray(arrays[2])]
  pixels = model.pixels(arrays)
  assert pixels.shape == (3, 32, 32, 3) and pixels.dtype == np.uint8
  np.testing.assert_array_equal(model.pixels(mixed), pixels)
  z = model.embed_images(mixed)
  np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
  assert model.pixels([]).shape == (0, 32, 32, 3)
  assert model.embed_images([]).shape == (0, z.shape[1])
  assert model.logits([], ["a", "b"]).shape == (0, 2)


def test_open_pictures_are_those_of_their_files(run):
  """Turned as EXIF says, and what can be seen through laid on white."""
  model, rng = aced.load(run), np.random.default_rng(0)
  clear = Image.fromarray(rng.integers(0, 256, (40, 40, 4), np.uint8), "RGBA")
  deep = Image.fromarray(rng.integers(0, 65536, (40, 40)).astype(np.uint16))
  turned = Image.fromarray(pictures()[0])
  exif = Image.Exif()
  exif[0x0112] = 3
  for image, options in ((clear, {}), (deep, {}), (turned, {"exif": exif})):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    opened = Image.open(io.BytesIO(file.getvalue()))
    np.testing.assert_array_equal(
      model.pixels([opened]), model.pixels([file.getvalue()])
    )


def test_embeddings_are_those_of_the_model(run, monkeypatch):
  monkeypatch.setattr("aced.pretrained.BATCH", 8)
  model, arrays = aced.load(run), pictures(n=11)
  texts = [f"a photo of {k}" for k in range(9)]
  zimg, ztxt, out = model.model.apply(
    {"params": model.params}, model.pixels(arrays), model.tokens(texts)
  )
  # Batches and devices sum in another order: some roundings of 6e-8.
  close = {"rtol": 1e-5, "atol": 1e-5}
  np.testing.assert_allclose(model.embed_images(arrays), zimg, **close)
  np.testing.assert_allclose(model.embed_texts(texts), ztxt, **close)
  wanted = out["t"][0] * (zimg @ ztxt.T) + out["b"][0]
  np.testing.assert_allclose(
    model.logits(arrays, texts), wanted, rtol=1e-4, atol=1e-4
  )


def test_classes_are_told_by_the_mean_of_their_prompts(run):
  model, arrays, names = aced.load(run), pictures(), ["cat", "dog", "sea"]
  templates = ("{}", "a photo of a {}")
  classes = []
  for name in names:
    z = model.embed_texts([t.replace("{}", name) for t in templates])
    mean = zero_shot.normalise(z).mean(0)
    classes.append(mean / np.linalg.norm(mean))
  logits = model.scale * model.embed_images(arrays) @ np.transpose(classes)
  wanted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  found = model.classify(arrays, names, templates)
  np.testing.assert_allclose(found, wanted, rtol=1e-4)
  np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
  for several in (np.array, iter, tuple, lambda x: (y for y in x)):
    same = model.classify(iter(arrays), several(names), several(templates))
    np.testing.assert_array_equal(same, found)
  with pytest.raises(ValueError, match="class_names is empty"):
    model.classify(arrays, [])
  for wrong, message in (
    ([0, 1], r"class_names\[0\]=0 is of type int, not a text"),
    (np.arange(2), r"class_names\[0\]=.* is of type int64, not a text"),
    ({"cat": 0}, "class_names is of type dict"),
    (None, "class_names is of type NoneType"),
  ):
    with pytest.raises(ValueError, match=message):
      model.classify(arrays, wrong)
  with pytest.raises(ValueError, match="templates='a {}' must be a list"):
    model.classify(arrays, names, "a {}")


def test_an_npz_file_wants_its_tokenizer_for_texts_alone(tmp_path):
  save(tmp_path / "w.npz", text__vocab_size=300)
  model = aced.load(tmp_path / "w.npz")
  assert model.embed_images(pictures()).shape == (3, 8)
  for use in (model.embed_texts, lambda t: model.classify(pictures(), t)):
    with pytest.raises(ConfigError, match="does not say which tokenizer"):
      use(["a text"])
  save(tmp_path / "few.npz", text__vocab_size=50)
  with pytest.raises(ConfigError, match=r"258 ids, and .*few.npz knows 50"):
    aced.load(tmp_path / "few.npz", tokenizer="bytes")
  model = aced.load(tmp_path / "w.npz", tokenizer="bytes")
  assert model.embed_texts(["a text"]).shape == (1, 8)
  larger = aced.load(tmp_path / "w.npz", image_size=16)
  assert larger.pixels(pictures()).shape[1] == 16
  assert larger.params["img"]["pos_embedding"].shape == (1, 16, 8)


def test_what_is_no_list_is_refused(run):
  model = aced.load(run)
  with pytest.raises(ValueError, match=r"images='a.png' must be a list"):
    model.embed_images("a.png")
  with pytest.raises(ValueError, match="texts='a cat' must be a list"):
    model.embed_texts("a cat")
  with pytest.raises(ValueError, match="class_names='ab' must be a list"):
    model.classify(pictures(), "ab")
  with pytest.raises(ValueError, match=r"texts\[1\]=b'b' is of type bytes"):
    model.embed_texts(["a", b"b"])
  texts = ["a cat", "a dog"]
  np.testing.assert_array_equal(
    model.embed_texts(np.array(texts)), model.embed_texts(texts)
  )
  for one in (pictures()[0], Image.fromarray(pictures()[0]), None, 3):
    with pytest.raises(ValueError, match="must be a list"):
      model.embed_images(one)
  with pytest.raises(ValueError, match="a picture of type NoneType; expected"):
    model.embed_images([None])
