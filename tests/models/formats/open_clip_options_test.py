"""Options of open_clip's configs: followed, or refused by name.

Weights are random, of our own; whether towers compute what open_clip's do is
for `open_clip_test.py`, of the extra `parity`.
"""

import copy
import json
import logging as python_logging

import numpy as np
import pytest
from absl import logging

import aced
from aced.config import ConfigError
from aced.models.formats import layout, open_clip, read, tensors, weights
from aced.models.params import ParamsError
from tests.models.two_towers_test import draw

WIDTH, LENGTH = 32, 16
LETTERS = [chr(code) for code in range(32, 127)]
TEXT = {
  "context_length": LENGTH,
  "vocab_size": 120,
  "width": WIDTH,
  "heads": 2,
  "layers": 1,
  "no_causal_mask": True,
  "proj_bias": True,
  "pool_type": "last",
  "norm_kwargs": {"eps": 1e-6},
  "hf_tokenizer_name": "some/name",
}
SIGLIP = {
  "embed_dim": WIDTH,
  "init_logit_bias": -10,
  "custom_text": True,
  "vision_cfg": {
    "image_size": 32,
    "timm_model_name": "vit_base_patch16_siglip_224",
    "timm_model_pretrained": False,
    "timm_pool": "map",
    "timm_proj": "none",
  },
  "text_cfg": TEXT,
}
PIXELS = {
  "mean": [0.5] * 3,
  "std": [0.5] * 3,
  "interpolation": "bicubic",
  "resize_mode": "squash",
}


@pytest.fixture
def log(caplog, monkeypatch):
  monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
  caplog.set_level(python_logging.WARNING)
  return caplog


def siglip(folder, pixels=PIXELS, whole=None, **text):
  """Writes a folder of a tiny SigLIP, whose tokenizer has a token a letter."""
  image = {
    "width": WIDTH,
    "depth": 1,
    "mlp_dim": 64,
    "num_heads": 2,
    "patch_size": (16, 16),
    "pool_type": "map",
    "activation": "gelu",
    "norm_eps": 1e-6,
  }
  tower = open_clip._text_tower(TEXT, "gelu")
  config = {
    "model": "two_towers",
    "image": image,
    "text": tower,
    "out_dim": (None, WIDTH),
    "bias_init": -10.0,
  }
  rules = [
    *open_clip.timm_rules(image),
    *open_clip._text(tower, "text.", True),
    layout.Rule("logit_scale", ("t",), "scalar"),
    layout.Rule("logit_bias", ("b",), "scalar"),
  ]
  params = draw(weights.shapes(config, 32, LENGTH), 0)
  tensors.write(folder / open_clip.WEIGHTS, layout.write(params, rules))
  tokenizer(folder)
  configure(folder, pixels, whole, **text)


def configure(folder, pixels=PIXELS, whole=None, **text):
  model = copy.deepcopy(SIGLIP) | (whole or {})
  model["text_cfg"] = TEXT | text
  content = {"model_cfg": model, "preprocess_cfg": pixels}
  (folder / open_clip.CONFIG).write_text(json.dumps(content))


def tokenizer(folder, **own):
  """Each printable letter of ASCII is a token, from 2 on; 1 is unknown."""
  import tokenizers as lib

  vocab = [("</s>", 0.0), ("<unk>", 0.0), *((c, -1.0) for c in LETTERS)]
  made = lib.Tokenizer(lib.models.Unigram(vocab, unk_id=1))
  made.post_processor = lib.processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 0)]
  )
  made.add_special_tokens(["</s>"])
  made.save(str(folder / "tokenizer.json"))
  names = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
  content = {"tokenizer_class": "T5Tokenizer"} | names | own
  (folder / "tokenizer_config.json").write_text(json.dumps(content))


def letters(text):
  """The ids of a text, by hand."""
  ids = [2 + ord(c) - 32 for c in text]
  return ids + [0] * (LENGTH - len(ids))


CLEANED = {
  None: "A_b & Dog!",  # As of "whitespace".
  "whitespace": "A_b & Dog!",
  "whitespace_underscore": "A b & Dog!",
  "lower": "a_b & dog!",
  "canonicalize": "a b dog",
}


@pytest.mark.parametrize("clean", CLEANED)
def test_texts_are_cleaned_as_the_config_says(tmp_path, clean):
  kwargs = {} if clean is None else {"clean": clean}
  off = {"strip_sep_token": False, "language": None, "reduction_mask": ""}
  siglip(tmp_path, tokenizer_kwargs=kwargs | off)
  model = aced.load(tmp_path)
  dirty, wanted = "  A_b &amp;amp;\n Dog! ", CLEANED[clean]
  assert model.tokens([dirty]).tolist() == [letters(wanted)]
  np.testing.assert_allclose(
    model.embed_texts([dirty]), model.embed_texts([wanted]), rtol=1e-6
  )
  configure(tmp_path, tokenizer_kwargs=None)
  assert aced.load(tmp_path).tokens(["A!"]).tolist() == [letters("A!")]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ({"tokenizer_kwargs": {"strip_sep_token": True}}, "strip_sep_token=True"),
    ({"tokenizer_kwargs": {"clean": "upper"}}, "clean='upper'"),
    ({"tokenizer_kwargs": {"language": "de"}}, "language='de'"),
    ({"tokenizer_kwargs": {"reduction_mask": "random"}}, "reduction_mask='ran"),
    ({"tokenizer_kwargs": {"add_eos_token": False}}, "add_eos_token=False"),
    ({"tokenizer_mode": "clips"}, "tokenizer_mode='clips'"),
  ],
)
def test_what_changes_ids_is_refused_by_name(tmp_path, text, message):
  siglip(tmp_path, **text)
  with pytest.raises(ConfigError, match=f"text_cfg says {message}.*changes id"):
    aced.load(tmp_path)
  # Not where the tokenizer is named.
  spec = f"hf:{tmp_path}/tokenizer.json"
  assert aced.load(tmp_path, tokenizer=spec).tokens(["a"]).shape == (1, LENGTH)


def test_rows_are_filled_up_at_the_right(tmp_path):
  """Whatever the files say: open_clip sets it."""
  siglip(tmp_path)
  tokenizer(tmp_path, padding_side="left")
  assert aced.load(tmp_path).tokens(["a b"]).tolist() == [letters("a b")]


def test_without_a_name_the_vocabulary_is_clips(tmp_path):
  from tests.data.tokenizers import released_test

  siglip(tmp_path, hf_tokenizer_name="")
  with pytest.raises(ConfigError, match="has no hf_tokenizer_name: open_clip"):
    aced.load(tmp_path)
  vocab, _ = released_test.clip(tmp_path)
  (tmp_path / "config.json").unlink()
  spec = aced.pretrained.released.find(tmp_path, LENGTH)
  assert spec.endswith("?clean=lower&special=1&pad=!")
  start, end = (vocab[t] for t in (released_test.START, released_test.END))
  ids = aced.data.tokenizers.load(spec, 6)(["A &amp;"])
  row = [start, vocab["a</w>"], vocab["&</w>"], end, 0, 0]
  assert ids.tolist() == [row]


@pytest.mark.parametrize(
  ("whole", "text", "message"),
  [
    ({"multimodal_cfg": {"width": 8}}, {}, "model_cfg.multimodal_cfg={'width'"),
    ({"audio_cfg": {"a": 1}}, {}, "model_cfg.audio_cfg="),
    ({}, {"pool_type": "eos", "eos_id": 1}, "pool_type='eos' cannot be read"),
    ({}, {"embed_cls": True}, "text_cfg.embed_cls=True is an option"),
    ({}, {"tokenizer_type": "tiktoken"}, "text_cfg.tokenizer_type='tiktoken'"),
    ({}, {"text_arch": "modern"}, "text_cfg.text_arch='modern' is an option"),
    ({}, {"variable_text": True}, "text_cfg.variable_text=True is an option"),
    ({}, {"proj_type": "none"}, "text_cfg.proj_type='none' is an option"),
    ({}, {"norm_kwargs": {"bias": False}}, "text_cfg.norm_kwargs={'bias'"),
    ({}, {"act_kwargs": {"approximate": "x"}}, "text_cfg.act_kwargs={'approx"),
  ],
)
def test_what_changes_the_model_is_refused_by_name(
  tmp_path, whole, text, message
):
  siglip(tmp_path, whole=whole, **text)
  with pytest.raises(ParamsError, match=message):
    read(tmp_path)


@pytest.mark.parametrize("proj", ["linear", "", None])
def test_an_image_tower_with_a_projection_is_refused(tmp_path, proj):
  vision = SIGLIP["vision_cfg"] | {"timm_proj": proj}
  siglip(tmp_path, whole={"vision_cfg": vision})
  with pytest.raises(ParamsError, match=f"timm_proj={proj!r} cannot be read"):
    read(tmp_path)


def test_what_is_harmless_changes_nothing(tmp_path):
  siglip(tmp_path)
  before = read(tmp_path)
  vision = SIGLIP["vision_cfg"] | {"patch_dropout": 0.5, "timm_drop_path": 0.1}
  vision |= {"output_tokens": True, "timm_model_kwargs": {}}
  whole = {"vision_cfg": vision, "init_logit_scale": 2.3, "quick_gelu": False}
  whole |= {"nonscalar_logit_scale": True, "output_dict": True}
  text = {"pad_id": 1, "eos_id": 7, "bos_id": 3, "hf_proj_type": "mlp"}
  text |= {"text_arch": "clip", "block_type": "default", "proj_type": "linear"}
  configure(tmp_path, whole=whole, **text)
  after = read(tmp_path)
  assert after.config == before.config
  for name, array in aced.models.params.flatten(before.params).items():
    again = aced.models.params.flatten(after.params)[name]
    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize(
  ("change", "resize", "told"),
  [
    ({}, "bicubic", ""),
    ({"interpolation": "bilinear"}, "bilinear", ""),
    ({"interpolation": "random"}, "bicubic", ""),
    ({"interpolation": None, "fill_color": 0, "size": 7}, "bicubic", ""),
    (
      {"resize_mode": "shortest"},
      "bicubic",
      "were cut out of the middle there",
    ),
    ({"resize_mode": None}, "bicubic", "were cut out of the middle there"),
    (
      {"resize_mode": "longest"},
      "bicubic",
      "were filled up at two sides there",
    ),
  ],
)
def test_pictures_are_made_as_the_config_says(
  tmp_path, log, change, resize, told
):
  siglip(tmp_path, pixels=PIXELS | change)
  weights = read(tmp_path)
  assert (weights.resize, weights.image_size) == (resize, 32)
  assert told in log.text and bool(told) == bool(log.records)


def test_pixels_may_be_one_number_or_left_out(tmp_path):
  siglip(tmp_path, pixels=PIXELS | {"mean": 0.5, "std": 0.5})
  half = read(tmp_path).params["img"]["embedding"]["bias"]
  configure(tmp_path)
  same = read(tmp_path).params["img"]["embedding"]["bias"]
  np.testing.assert_array_equal(half, same)
  configure(tmp_path, pixels={"mean": None, "std": None})
  usual = read(tmp_path).params["img"]["embedding"]["bias"]
  configure(tmp_path, pixels={"mean": open_clip.MEAN, "std": open_clip.STD})
  stated = read(tmp_path).params["img"]["embedding"]["bias"]
  np.testing.assert_array_equal(usual, stated)
  assert np.abs(usual - same).max() > 0.01


@pytest.mark.parametrize(
  "change", [{"interpolation": "lanczos"}, {"resize_mode": "x"}, {"mode": "L"}]
)
def test_pictures_of_another_kind_are_refused(tmp_path, change):
  siglip(tmp_path, pixels=PIXELS | change)
  ((name, value),) = change.items()
  with pytest.raises(ParamsError, match=f"preprocess_cfg.{name}={value!r} can"):
    read(tmp_path)
