"""The sizes in which every experiment comes."""

import pytest

from aced.config import ConfigError, resolve
from aced.presets import SIZES, preset


@pytest.mark.parametrize("size", SIZES)
def test_sizes_resolve_and_the_reference_is_the_larger(size):
  found = preset(size)
  assert resolve(found.config).batch_size > 0
  assert found.variant == ""
  assert {"image", "text"} <= set(found.reference)


def test_the_paper_is_the_default():
  config = preset(None).config
  assert config.batch_size == 32_768
  assert config.total_examples == 13_000_000_000
  assert config.optimizer.learning_rate == 1e-3
  assert config.optimizer.weight_decay == 1e-4
  assert (config.optimizer.b2, config.optimizer.clip) == (0.95, 1.0)
  assert config.curation.num_chunks == 16


def test_variants_are_words_beside_the_size():
  assert preset("hard,smoke", ("hard",)).variant == "hard"
  with pytest.raises(ConfigError, match="Did you mean 'smoke'"):
    preset("smok")
  with pytest.raises(ConfigError, match="'soft' is not known here"):
    preset("hard,soft", ("hard",))
