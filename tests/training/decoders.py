"""Tiny decoders, for tests of their runs."""

import functools

import jax

from aced import config as config_lib
from aced.training import decoding
from tests.training.decoding_test import IMAGE, LENGTH, SIZE, TOWER

DECODER = {"width": 32, "depth": 1, "mlp_dim": 64, "num_heads": 2}
STEPS = 80
COLOURS = {
  "red": (255, 0, 0),
  "green": (0, 255, 0),
  "blue": (0, 0, 255),
  "gray": (128, 128, 128),
}


def base(**changes):
  """A tiny config of a contrastive run, with `section__key` changes."""
  config = config_lib.default()
  config.batch_size, config.total_steps = 8, 3
  config.input.update(
    source="synthetic:train?size=64&image_size=16",
    image_size=SIZE,
    text_length=LENGTH,
  )
  config.student.image.update(IMAGE)
  config.student.text.update(TOWER)
  config.student.out_dim = (None, 16)
  config.log.update(every_steps=1, progress=False, report=False, page=False)
  plain = config_lib.to_plain(config)
  for key, value in changes.items():
    *sections, field = key.split("__")
    table = plain
    for section in sections:
      table = table[section]
    table[field] = value
  return plain


def decoded(where="random", **changes):
  """A tiny config of a decoder's run."""
  given = {
    "student__init": str(where),
    "decoder__model": DECODER,
    "input__source": "synthetic:train?size=64&image_size=16&asked=5",
    **changes,
  }
  return base(**given)


def build(config):
  return decoding.build(config_lib.resolve(config))


def tokens_of(run, image):
  """Tokens of pictures, on one device."""
  tokens = jax.jit(functools.partial(decoding.picture_tokens, run.encoder))
  return tokens(jax.device_get(run.frozen["encoder"]), image)
