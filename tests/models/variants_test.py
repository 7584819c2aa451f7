"""Named sizes against published models."""

import pytest

from aced.models import TextTransformer, ViT, costs, variants


@pytest.mark.parametrize(
  ("variant", "millions"),
  [
    ("Ti/16", 5.72),
    ("S/16", 22.05),
    ("B/16", 86.57),
    ("L/16", 304.33),
    ("H/14", 632.05),
  ],
)
def test_image_towers_have_the_published_sizes(variant, millions):
  # Of ViT at 224 px with a class token and 1,000 classes. Its class token has
  # a position as well, at most 1,280 more parameters: below the rounding.
  tower = ViT(variant=variant, pool_type="tok", num_classes=1000)
  assert costs.count_image(tower, 224).params / 1e6 == pytest.approx(
    millions, abs=0.007
  )


@pytest.mark.parametrize(
  ("variant", "size", "millions"),
  [("B/16", 224, 92.88), ("L/16", 256, 315.96), ("So400m/14", 224, 427.68)],
)
def test_image_towers_of_siglip_have_the_published_sizes(
  variant, size, millions
):
  tower = ViT(variant=variant, pool_type="map")
  assert costs.count_image(tower, size).params / 1e6 == pytest.approx(
    millions, abs=0.005
  )


def test_what_is_given_wins_over_the_variant():
  image = ViT(variant="S/16", depth=3, patch_size=(8, 4))
  assert variants.expand_image(image) == (384, 3, 1536, 6, (8, 4))
  bare = ViT(variant="S", patch_size=(32, 32))
  assert variants.expand_image(bare) == variants.decode_image("S/32")
  text = TextTransformer(variant="B", mlp_dim=99, num_heads=8)
  assert variants.expand_text(text) == (768, 12, 99, 8, ())
  explicit = TextTransformer(width=8, depth=1, num_heads=2)
  assert variants.expand_text(explicit).mlp_dim == 32


def test_a_field_that_is_given_must_fit_the_variant():
  with pytest.raises(ValueError, match="width=100 is not divisible by num_he"):
    variants.expand_text(TextTransformer(variant="B", width=100))
  with pytest.raises(ValueError, match="depth=-1"):
    variants.expand_image(ViT(variant="B/16", depth=-1))


@pytest.mark.parametrize(
  ("variant", "message"),
  [
    ("b/16", "width 'b' is not known.*Did you mean 'B'"),
    ("so400/14", "Did you mean 'So400m'"),
    ("B", "must be a width and a patch size"),
    ("B/0", "must be a width and a patch size"),
    ("B/sixteen", "must be a width and a patch size"),
  ],
)
def test_unknown_variants_are_refused(variant, message):
  with pytest.raises(ValueError, match=message):
    variants.decode_image(variant)


@pytest.mark.parametrize("name", variants.PAIRS)
def test_named_pairs_meet_in_the_width_of_the_image_tower(name):
  config = variants.pair_config(name)
  width = variants.decode_image(config["image"]["variant"]).width
  assert config["out_dim"] == (None, width)
  assert variants.pair(name).text_length == 64
