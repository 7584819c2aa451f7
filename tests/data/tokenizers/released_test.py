import json

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data.tokenizers import load
from aced.data.tokenizers.released import find
from tests.data.tokenizers import models

LENGTH = 20
START, END = "<|startoftext|>", "<|endoftext|>"


def write(folder, name, content):
  (folder / name).write_text(json.dumps(content))


def clip(folder, **own):
  """A tokenizer like CLIP's, as it is saved for transformers."""
  import tokenizers as lib

  letters = [*lib.pre_tokenizers.ByteLevel.alphabet()]
  merges = models.clip_merges()
  pieces = [
    *sorted(letters),
    *(f"{c}</w>" for c in sorted(letters)),
    *("".join(pair) for pair in merges),
    START,
    END,
  ]
  vocab = {piece: index for index, piece in enumerate(pieces)}
  made = lib.Tokenizer(
    lib.models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token=END)
  )
  made.normalizer = lib.normalizers.Sequence(
    [
      lib.normalizers.NFC(),
      lib.normalizers.Replace(lib.Regex(r"\s+"), " "),
      lib.normalizers.Lowercase(),
    ]
  )
  words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
  made.pre_tokenizer = lib.pre_tokenizers.Sequence(
    [
      lib.pre_tokenizers.Split(lib.Regex(words), "removed", invert=True),
      lib.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  made.post_processor = lib.processors.RobertaProcessing(
    (END, vocab[END]), (START, vocab[START]), False, False
  )
  made.add_special_tokens([START, END])
  made.save(str(folder / "tokenizer.json"))
  write(folder, "config.json", {"model_type": "clip"})
  names = {"bos_token": START, "eos_token": END, "unk_token": END}
  content = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}
  write(folder, "tokenizer_config.json", content | names | own)
  return vocab, merges


def gemma(folder, model="siglip2", **own):
  """A tokenizer like SigLIP 2's: merges, no prefix, an end from the file."""
  import tokenizers as lib
  from sentencepiece import sentencepiece_model_pb2

  from aced.export import hf_pieces

  data = models.gemma_model()
  proto = sentencepiece_model_pb2.ModelProto.FromString(data)
  made = lib.Tokenizer(hf_pieces._bpe(proto))
  made.normalizer = lib.normalizers.Replace(" ", "▁")
  made.pre_tokenizer = lib.pre_tokenizers.Split(" ", "merged_with_previous")
  made.decoder = lib.decoders.Sequence(
    [lib.decoders.Replace("▁", " "), lib.decoders.ByteFallback()]
  )
  made.post_processor = lib.processors.TemplateProcessing(
    single="$A:0 <eos>:0", special_tokens=[("<eos>", 1)]
  )
  made.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
  made.enable_padding(pad_id=0, pad_token="<pad>", length=LENGTH)
  made.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer.model").write_bytes(data)
  write(folder, "config.json", {"model_type": model})
  content = {"tokenizer_class": "GemmaTokenizerFast", "padding_side": "right"}
  write(folder, "tokenizer_config.json", content | own)


def siglip(folder, **own):
  """A sentencepiece model, as SigLIP has it."""
  data = models.sentencepiece_model(model_type="unigram")
  (folder / "spiece.model").write_bytes(data)
  write(folder, "config.json", {"model_type": "siglip"})
  content = {"tokenizer_class": "SiglipTokenizer", "model_max_length": LENGTH}
  write(folder, "tokenizer_config.json", content | own)


def texts():
  """No names of special tokens, which are text here; no "_" (see `find`)."""
  some = [t.replace("\udcff", "?") for t in models.mixed(300)]
  odd = ("<", "_", "\x00")
  return [t for t in some if not any(o in t for o in odd)] + ["", " ", "-a-"]


def their_ids(folder, some):
  transformers = pytest.importorskip(
    "transformers", reason="its ids are wanted; of the extra `parity`"
  )
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  found = theirs(some, padding="max_length", truncation=True, max_length=LENGTH)
  return type(theirs).__name__, np.asarray(found["input_ids"])


FLAGS = {"model": "siglip", "add_bos_token": True, "add_eos_token": True}
PARITY = [
  (siglip, {}, "SiglipTokenizer", "?style=siglip&canonical=1"),
  (siglip, {"pad_token": "<pad>"}, "SiglipTokenizer", "&canonical=1&pad=0"),
  (clip, {}, "CLIPTokenizer", f"?special=1&pad={END}"),
  (clip, {"pad_token": "!"}, "CLIPTokenizer", "?special=1&pad=!"),
  (gemma, {"model": "siglip"}, "GemmaTokenizer", "?special=1&pad=<pad>"),
  (gemma, {}, "Siglip2Tokenizer", "?lower=1&special=1&pad=<pad>"),
  # The file's own tokens are added, whatever is said beside it.
  (gemma, FLAGS, "GemmaTokenizer", "?special=1&pad=<pad>"),
]


@pytest.mark.parametrize(("make", "own", "kind", "want"), PARITY)
def test_finds_the_spec(tmp_path, make, own, kind, want):
  make(tmp_path, **own)
  spec = find(tmp_path, LENGTH)
  assert f":{tmp_path}/" in spec and spec.endswith(want)
  assert load(spec, LENGTH)(["a red circle"]).shape == (1, LENGTH)


@pytest.mark.parity
@pytest.mark.parametrize(("make", "own", "kind", "want"), PARITY)
def test_ids_are_those_of_transformers(tmp_path, make, own, kind, want):
  make(tmp_path, **own)
  some = texts()
  assert len(some) > 200
  name, theirs = their_ids(tmp_path, some)
  assert name == kind
  ours = load(find(tmp_path, LENGTH), LENGTH)(some)
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parity
def test_what_differs_of_siglips(tmp_path):
  siglip(tmp_path)
  some = ["a_red_circle", "a red </s> circle"]
  _, theirs = their_ids(tmp_path, [*some, "aredcircle", "a red circle"])
  ours = load(find(tmp_path, LENGTH), LENGTH)([*some, "a red s circle"])
  np.testing.assert_array_equal(theirs[0], theirs[2])  # "_" is taken out.
  np.testing.assert_array_equal(ours[0], theirs[3])  # It is a space.
  np.testing.assert_array_equal(ours[1], ours[2])  # </s> is text.
  assert (theirs[1] == 1).nonzero()[0][0] < (ours[1] == 1).nonzero()[0][0]


@pytest.mark.parity
def test_finds_what_transformers_saved(tmp_path):
  clip(tmp_path, pad_token="!")
  transformers = pytest.importorskip(
    "transformers", reason="saves a folder; of the extra `parity`"
  )
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  theirs.save_pretrained(tmp_path / "again")
  write(tmp_path / "again", "config.json", {"model_type": "clip"})
  some = texts()
  ours = load(find(tmp_path / "again", LENGTH), LENGTH)(some)
  np.testing.assert_array_equal(ours, their_ids(tmp_path, some)[1])


@pytest.mark.parity
@pytest.mark.parametrize("model", ["siglip", "siglip2"])
@pytest.mark.parametrize(
  "own", [{}, {"add_bos_token": True, "add_eos_token": True}]
)
def test_model_of_gemma_without_a_file(tmp_path, model, own):
  gemma(tmp_path, model=model, **own)
  (tmp_path / "tokenizer.json").unlink()
  spec = find(tmp_path, LENGTH)
  assert f"?style=siglip2&lower={int(model == 'siglip2')}&" in spec
  some = texts()
  np.testing.assert_array_equal(
    load(spec, LENGTH)(some), their_ids(tmp_path, some)[1]
  )


def test_our_own_folder(tmp_path):
  from aced.export.hf_tokenizer import write_tokenizer

  (tmp_path / "a").mkdir()
  siglip(tmp_path / "a")
  options = "?style=siglip&pad=0"
  tokenizer = load(f"sentencepiece:{tmp_path}/a/spiece.model{options}", LENGTH)
  write_tokenizer(tokenizer, tmp_path / "b")
  write(tmp_path / "b", "config.json", {"model_type": "siglip"})
  some = [*texts(), "a </s> b_c"]
  ours = load(find(tmp_path / "b", LENGTH), LENGTH)(some)
  np.testing.assert_array_equal(ours, tokenizer(some))


def test_class_is_that_of_the_model_where_none_is_named(tmp_path):
  siglip(tmp_path)
  (tmp_path / "tokenizer_config.json").unlink()
  assert find(tmp_path, LENGTH).endswith("?style=siglip&canonical=1")
  write(tmp_path, "config.json", {})
  with pytest.raises(ConfigError, match="its class .not named.: looked for"):
    find(tmp_path, LENGTH)


def test_names_of_tokens_in_another_file(tmp_path):
  clip(tmp_path)
  tokens = {"pad_token": {"content": "!", "lstrip": False}}
  write(tmp_path, "special_tokens_map.json", tokens)
  assert find(tmp_path, LENGTH).endswith("&pad=!")


def test_refuses_by_name(tmp_path):
  with pytest.raises(ConfigError, match="looked for tokenizer.json, s"):
    find(tmp_path, LENGTH)
  siglip(tmp_path)
  with pytest.raises(ConfigError, match="text_length=1 must be 2"):
    find(tmp_path, 1)
  siglip(tmp_path, do_lower_case=False)
  with pytest.raises(ConfigError, match="do_lower_case=false keeps case"):
    find(tmp_path, LENGTH)
  siglip(tmp_path, pad_token="[FILL]")
  with pytest.raises(ConfigError, match=r"no piece '\[FILL\]'"):
    find(tmp_path, LENGTH)
  siglip(tmp_path, truncation_side="left")
  with pytest.raises(ConfigError, match="truncation_side='left'; rows are cut"):
    find(tmp_path, LENGTH)
  (tmp_path / "spiece.model").unlink()
  with pytest.raises(ConfigError, match="(?s)looked for spiece.model.*tokeniz"):
    find(tmp_path, LENGTH)
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(ConfigError, match="config.json is no table"):
    find(tmp_path, LENGTH)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ConfigError, match="config.json is not JSON"):
    find(tmp_path, LENGTH)


def test_refuses_what_rows_cannot_have(tmp_path):
  gemma(tmp_path, padding_side="left")
  with pytest.raises(ConfigError, match="padding_side='left'"):
    find(tmp_path, LENGTH)
  gemma(tmp_path, pad_token="a&b")
  with pytest.raises(ConfigError, match="'a&b' cannot be named in a spec"):
    find(tmp_path, LENGTH)


def test_refuses_a_file_that_its_class_contradicts(tmp_path):
  gemma(tmp_path, model="siglip")
  path = tmp_path / "tokenizer.json"
  file = json.loads(path.read_text())
  file["truncation"] = {"direction": "Left", "max_length": 8, "stride": 0}
  file["truncation"]["strategy"] = "LongestFirst"
  path.write_text(json.dumps(file))
  with pytest.raises(ConfigError, match="truncation_side='left'; rows are cut"):
    find(tmp_path, LENGTH)
  models.hugging_face("bert").save(str(path))
  own = {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"}
  write(tmp_path, "tokenizer_config.json", own | {"do_lower_case": False})
  with pytest.raises(ConfigError, match="do_lower_case=False, and tokenizer.j"):
    find(tmp_path, LENGTH)
  write(tmp_path, "tokenizer_config.json", own | {"do_lower_case": True})
  assert find(tmp_path, LENGTH).endswith("?special=1&pad=[PAD]")


@pytest.mark.parametrize(
  "name", ["tokenizer.json", "tokenizer_config.json", "config.json"]
)
def test_says_what_a_file_is_that_is_none(tmp_path, name):
  gemma(tmp_path)
  pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
  (tmp_path / name).write_text(pointer)
  with pytest.raises(
    ConfigError, match=f"{name} is a Git LFS pointer, not the"
  ):
    find(tmp_path, LENGTH)


def test_says_what_a_model_is_that_is_none(tmp_path):
  for own in ({}, {"pad_token": "<pad>"}):
    siglip(tmp_path, **own)
    (tmp_path / "spiece.model").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(ConfigError, match="spiece.model is.* a web page, perh"):
      find(tmp_path, LENGTH)


def test_merges_alone_are_to_be_converted(tmp_path):
  vocab, merges = clip(tmp_path)
  (tmp_path / "tokenizer.json").unlink()
  write(tmp_path, "vocab.json", vocab)
  lines = ["#version: 0.2", *map(" ".join, merges), ""]
  (tmp_path / "merges.txt").write_text("\n".join(lines))
  with pytest.raises(ConfigError, match="AutoTokenizer.from_pretrained"):
    find(tmp_path, LENGTH)
