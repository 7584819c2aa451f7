"""Models from config tables."""

import pytest
from ml_collections import ConfigDict

from aced.models import build
from tests.models.two_towers_test import tiny


def test_named_pairs_and_what_is_given_beside_them():
  model = build({"variant": "ACED-F1", "text": {"vocab_size": 99}})
  assert model.image["variant"] == "B/32"
  assert model.text == {"variant": "S", "vocab_size": 99}
  assert model.out_dim == (None, 768)


def test_config_dicts_and_lists_will_do():
  config = ConfigDict(tiny())
  config.image.patch_size = [4, 4]
  assert build(config).image["patch_size"] == (4, 4)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model": "two_tower"}, "model='two_tower' is not known"),
    ({"image__widht": 8}, "image.widht is not a field.*Did you mean 'width'"),
    ({"text__scan": "yes"}, "text.scan='yes' is of type str"),
    ({"image__depth": 2.0}, "image.depth=2.0 is of type float"),
    ({"variant": "ACED-F9"}, "'ACED-F9' is not known.*Did you mean 'ACED-F"),
    ({"image__variant": "B-16"}, "such as 'B/16'"),
    ({"image__variant": "Q/16"}, "width 'Q' is not known"),
    ({"text__width": 0}, "the text tower needs a variant, or width, depth"),
    ({"text__num_heads": 3}, "text width=8 is not divisible by num_heads=3"),
    ({"image__patch_size": ()}, r"patch_size=\(\) must be"),
    ({"bias": 1.0}, "bias is not a field of TwoTowers.*'bias_init'"),
    ({"image": 3}, "image=3 must be a table of fields of ViT"),
    ({"out_dim": (None, 8, 8)}, r"out_dim=\(None, 8, 8\) is of type tuple"),
    ({"out_dim": (None, 9)}, "image embeddings are 8 wide and text embeddings"),
    ({"temperature_init": 0.0}, "temperature_init=0.0 must be positive"),
    ({"image__pool_type": "mean"}, "image.pool_type='mean' is not known"),
    ({"text__pool_type": "tok"}, "text.pool_type='tok' is not known"),
    ({"image__posemb": "rope"}, "image.posemb='rope' is not known.*learn"),
    ({"text__dtype_mm": "fp8"}, "text.dtype_mm='fp8' is not known.*bfloat16"),
    ({"image__dropout": 1.0}, "image.dropout=1.0 must be at least 0 and below"),
    ({"image__token_drop": -0.1}, "image.token_drop=-0.1 must be at least 0"),
    # A maker of policies is no policy.
    ({"text__remat": "save_only_these_names"}, "text.remat='save_only_these"),
  ],
)
def test_what_is_wrong_is_named(changes, message):
  with pytest.raises(ValueError, match=message):
    build(tiny(**changes))
