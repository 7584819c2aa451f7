"""A trained decoder, ready to write."""

import gc
import weakref

import numpy as np
import pytest
from PIL import Image

import aced
from aced.data.prompts import SEPARATOR
from aced.models.params import ParamsError
from aced.train import train
from tests.training.decoders import base, build, decoded

SIZE = 16


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """An encoder of ours, and a decoder on it; both know nothing."""
  folder = tmp_path_factory.mktemp("captioner")
  train(base(total_steps=1), folder / "encoder")
  train(decoded(folder / "encoder", total_steps=1), folder / "decoder")
  return folder


@pytest.fixture(scope="module")
def captioner(runs):
  return aced.load_captioner(runs / "decoder")


def pictures(count):
  rng = np.random.default_rng(0)
  return list(rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8))


def test_it_writes_what_the_run_does(runs, captioner):
  run = build(decoded(runs / "encoder", total_steps=1))
  (write,) = run.evaluated()
  tokenizer, images = run.input.tokenizer, pictures(3)
  labels = tokenizer([f"caption:{SEPARATOR}"] * 3)
  rows = {"image": np.stack(images), "labels": labels}
  want = [tokenizer.decode(row) for row in write(captioner.params, rows)]
  assert captioner.caption(images) == want
  assert captioner.caption(images, num_beams=1, length_penalty=0.5) == want
  assert captioner.caption([]) == []


def test_a_picture_is_written_about_whatever_stands_beside_it(captioner):
  images = pictures(3)
  questions = ["what color?", "how many?", "is it red?"]
  alone = [
    captioner.answer([image], [question])[0]
    for image, question in zip(images, questions)
  ]
  assert captioner.answer(images, questions) == alone
  as_pillow = [Image.fromarray(image) for image in images]
  assert captioner.answer(as_pillow, questions) == alone
  assert captioner.answer(iter(images), np.array(questions)) == alone
  assert captioner.caption(iter(images)) == captioner.caption(images)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda c: c.caption(pictures(1)[0]), "images"),
    (lambda c: c.caption(Image.new("RGB", (8, 8))), "images"),
    (lambda c: c.answer(pictures(2), ["one?"]), "2 pictures and the prompts"),
    (lambda c: c.answer(pictures(1), "one?"), "prompts='one.' must be a"),
    (lambda c: c.answer(pictures(1), [3]), r"prompts\[0\]=3 is of type int"),
    (lambda c: c.write(pictures(2), ["a", "b", "c"]), "2 pictures"),
    (lambda c: c.write(pictures(2), "caption:"), r"write \['caption:'\]"),
    (lambda c: c.caption(pictures(1), num_beams=0), "num_beams=0"),
    (lambda c: c.caption(pictures(1), num_beams="2"), "num_beams='2'"),
    (lambda c: c.caption(pictures(1), length_penalty=-1), "length_penalty=-1"),
  ],
)
def test_what_is_wrong_is_refused(captioner, call, message):
  with pytest.raises((ValueError, TypeError), match=message):
    call(captioner)


def test_an_encoder_that_has_moved_is_looked_for_where_it_is_said_to_be(
  runs, captioner, tmp_path
):
  moved = tmp_path / "moved"
  (runs / "encoder").rename(moved)
  try:
    with pytest.raises(FileNotFoundError, match="encoder=PATH"):
      aced.load_captioner(runs / "decoder")
    found = aced.load_captioner(runs / "decoder", encoder=moved)
    assert found.caption(pictures(2)) == captioner.caption(pictures(2))
  finally:
    moved.rename(runs / "encoder")


def test_another_encoder_is_refused(runs, tmp_path):
  train(base(total_steps=1, seed=1), tmp_path / "other")
  with pytest.raises(ParamsError, match="was trained on an encoder of"):
    aced.load_captioner(runs / "decoder", encoder=tmp_path / "other")
  with pytest.raises(ParamsError, match=r"aced\.load loads"):
    aced.load_captioner(runs / "encoder")


def test_one_that_is_not_needed_any_more_is_freed(runs):
  one = aced.load_captioner(runs / "decoder")
  one.caption(pictures(1))
  there = weakref.ref(one)
  del one
  gc.collect()
  assert there() is None
