"""The encoder of a text decoder: the image tower of what was trained before."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from aced import config as config_lib
from aced import models
from aced.models import flexi, saved
from aced.models import params as params_lib
from aced.models.formats import read
from aced.models.formats.weights import shapes
from aced.models.trees import ParamsError, merge
from aced.training import blueprint, workdir
from aced.training.build import RANDOM

# Where its parameters are among those that are frozen, or that are trained.
ENCODER = "encoder"
# Of a two-tower model, what embedding pictures takes.
_KEPT = ("img", "t", "b")


def load_encoder(config: ConfigDict) -> tuple[ConfigDict, nn.Module, Any]:
  """The encoder of `config.student`, and what embedding pictures takes of it.

  Returns:
    The config with the encoder's towers written out, the model, and its
    parameters on the host.

  Raises:
    ConfigError: there is nothing to start from.
    FileNotFoundError, ParamsError: the weights cannot be read.
  """
  table, size = config.student, config.input.image_size
  if not table.init:
    raise config_lib.ConfigError(
      "config.student.init is empty; give what holds the encoder's weights, the"
      " workdir of a run, an .npz file, a folder of Hugging Face or open_clip,"
      f" or {RANDOM!r} for a control that has learnt nothing."
    )
  if table.init == RANDOM:
    if config.decoder.freeze:
      logging.warning("the encoder has random weights: it has learnt nothing.")
    encoder = blueprint.build_model(table, vocab_size=1)
    picture = jnp.zeros((1, size, size, 3))
    params = jax.jit(functools.partial(encoder.init, train=False))(
      jax.random.key(0), picture, None
    )["params"]
    return config, encoder, _kept(jax.device_get(params))
  along = _trained_along(table.init)
  if along is not None:
    return _of_decoder_run(config, *along)
  weights = read(table.init)
  _tell_of_resize(config, weights.resize)
  params = weights.params
  if size != weights.image_size:
    like = shapes(weights.config, size, weights.text_length)
    params = merge(flexi.resample(params, like)[0], like)
    logging.warning(
      "the encoder saw pictures of %d px, and sees %d px here: its position"
      " embeddings are resampled.",
      weights.image_size,
      size,
    )
  plain = config_lib.to_plain(config)
  plain["student"] |= {"variant": "", "bias_init": None, **weights.config}
  encoder = models.build(weights.config)
  return config_lib.resolve(plain), encoder, _kept(params)


def _tell_of_resize(config: ConfigDict, own: str) -> None:
  """Warns where pictures come to the encoder otherwise than it is used to."""
  if own not in ("", config.input.resize):
    logging.warning(
      "the encoder was trained on pictures resized by %s; here they are by %s,"
      " as config.input.resize says.",
      own,
      config.input.resize,
    )


def _trained_along(where: str) -> tuple[ConfigDict, Any] | None:
  """The config of a decoder's run, and its parameters; None of other weights.

  Raises:
    ParamsError: the run's encoder was frozen, and is elsewhere.
  """
  try:
    folder, _ = saved.find_checkpoint(where)
    told = workdir.config_of(folder.parent)
  except (FileNotFoundError, ParamsError, workdir.WorkdirError):
    return None
  if not told.decoder.model:
    return None
  params = saved.load_checkpoint(where)
  if ENCODER not in params:
    raise ParamsError(
      f"the run {where} trained a decoder on the encoder of"
      f" {told.student.init}; give that in config.student.init."
    )
  return told, params[ENCODER]


def _of_decoder_run(config, told, params):
  """As `load_encoder`, of an encoder that was trained along with a decoder."""
  if config.input.image_size != told.input.image_size:
    raise config_lib.ConfigError(
      f"config.input.image_size={config.input.image_size}, and"
      f" {config.student.init} was trained on {told.input.image_size}."
    )
  _tell_of_resize(config, told.input.resize)
  plain, init = config_lib.to_plain(config), config.student.init
  plain["student"] = config_lib.to_plain(told.student) | {"init": init}
  config = config_lib.resolve(plain)
  return config, blueprint.build_model(config.student, 1), _kept(params)


def _kept(params):
  wrong = [
    name
    for name, value in params_lib.flatten(params["img"]).items()
    if not np.isfinite(np.asarray(value, np.float32)).all()
  ]
  if wrong:
    raise ParamsError(
      f"{len(wrong)} parameters of the encoder are not finite, such as"
      f" {wrong[0]}; name an earlier checkpoint."
    )
  return {name: params[name] for name in _KEPT if name in params}
