"""Models that are what their weights say."""

import numpy as np
import pytest

from aced import config as config_lib
from aced.models import params as params_lib
from aced.train import train
from aced.training import auto
from aced.training.build import build
from tests.models.formats.reading_test import save
from tests.train_test import smoke


def curated(repository, where, **changes):
  """A smoke config whose reference is what its weights say."""
  config = smoke(repository, total_steps=3, **changes)
  config["frozen"]["reference"] |= {"model": "auto", "init": str(where)}
  return config


@pytest.mark.slow
def test_a_reference_is_what_its_weights_say(repository, tmp_path):
  train(smoke(repository, "iid", total_steps=3), tmp_path / "run")
  given = curated(repository, tmp_path / "run")
  given["frozen"]["reference"]["image"]["remat"] = "full"
  run = build(given)
  table = run.config.frozen.reference
  assert table.model == "two_towers" and table.tokenizer == "bytes"
  assert table.image.width == 32  # And not 48, that of the config's own.
  assert table.image.remat == "full"
  wanted = params_lib.flatten(params_lib.load(tmp_path / "run"))
  for name, value in params_lib.flatten(run.frozen["reference"]).items():
    np.testing.assert_array_equal(value, wanted[name])
  # Filled once, it is filled for good: a run goes on with the same config.
  again = auto.fill(config_lib.resolve(given))
  assert config_lib.flatten(again) == config_lib.flatten(run.config)
  scores = train(given, tmp_path / "acid")
  assert scores == {}


def test_a_student_starts_from_what_there_is(repository, tmp_path):
  save(
    tmp_path / "w.npz",
    image_size=16,
    text_length=80,
    text__vocab_size=258,
    bias_init=-4.0,
  )
  config = smoke(repository, "iid", total_steps=3)
  config["student"] |= {"model": "auto", "init": str(tmp_path / "w.npz")}
  run = build(config)
  assert run.config.student.image.width == 8
  state = run.init_state()
  # Pictures are 32 pixels here: positions are resampled from 4 x 4.
  assert state.params["img"]["pos_embedding"].shape == (1, 64, 8)


def test_what_a_reference_sees_has_to_be_known(repository, tmp_path):
  save(tmp_path / "w.npz")
  config = curated(repository, tmp_path / "w.npz")
  with pytest.raises(
    config_lib.ConfigError, match=r"give it in config\.frozen\.reference\.tok"
  ):
    auto.fill(config_lib.resolve(config))
  config["frozen"]["reference"]["tokenizer"] = "bytes"
  filled = auto.fill(config_lib.resolve(config)).frozen.reference
  assert (filled.image_size, filled.text_length) == (8, 5)
  with pytest.raises(
    config_lib.ConfigError, match=r"vocab_size=11 .* less than the 258 ids"
  ):
    build(config)
  for init in ("", "random"):
    config["frozen"]["reference"]["init"] = init
    with pytest.raises(
      config_lib.ConfigError, match=r"frozen\.reference\.model='auto' reads"
    ):
      auto.fill(config_lib.resolve(config))
