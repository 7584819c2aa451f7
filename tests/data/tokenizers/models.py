"""Small tokenizers of every kind, made of a few captions."""

import functools
import gzip
import io
import itertools
import random

import sentencepiece

from aced.data.sources import open_source

# What captions may hold beside plain words.
ODD = (
  "",
  " ",
  "a",
  "A Red CIRCLE",
  "Ünïcödé ÉTÉ 🙂 and 漢字",
  "don't   say\t\"it's\"\nagain",
  "x" * 100,
  "1,234.5% of a_b-c & d &amp; e",
  "\udcff\x00",
  "</s> <eos> [SEP] <|endoftext|> <end_of_text>",
)


@functools.cache
def captions(count=1000):
  source = open_source(f"synthetic:train?size={count}")
  return [source.fields(i)["text"] for i in range(count)]


def mixed(count, seed=0):
  """Texts of captions and odd ones in turn, some of them long."""
  rng = random.Random(seed)
  return [
    rng.choice(["", " ", "  "]).join(
      rng.choice(ODD if rng.random() < 0.4 else captions())
      for _ in range(rng.choice([1, 1, 2, 3, 6]))
    )
    for _ in range(count)
  ]


def sentencepiece_model(**options):
  """Trains a model; the ids are those that `train_sentencepiece` gives."""
  model = io.BytesIO()
  defaults = {
    "vocab_size": 400,
    "model_type": "bpe",
    "pad_id": 0,
    "eos_id": 1,
    "unk_id": 2,
    "bos_id": -1,
    "hard_vocab_limit": False,
    "minloglevel": 2,
  }
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([*captions(), *"abcdefghijklmnopqrstuvwxyz"]),
    model_writer=model,
    **defaults | options,
  )
  return model.getvalue()


def gemma_model():
  """A model with the special ids of Gemma's, and its fall-back to bytes."""
  return sentencepiece_model(
    vocab_size=600,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    eos_piece="<eos>",
    bos_piece="<bos>",
    byte_fallback=True,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
  )


def hugging_face(kind, **special):
  """A `tokenizers.Tokenizer`: "bert" adds [CLS] and [SEP], "plain" nothing.

  `special` are the names of its special tokens, of "plain" alone.
  """
  import tokenizers as lib

  if kind == "bert":
    made = lib.Tokenizer(lib.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = lib.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = lib.pre_tokenizers.BertPreTokenizer()
    made.decoder = lib.decoders.WordPiece()
    trainer = lib.trainers.WordPieceTrainer(
      vocab_size=300,
      special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    )
  else:
    made = lib.Tokenizer(lib.models.BPE())
    made.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = lib.decoders.ByteLevel()
    trainer = lib.trainers.BpeTrainer(
      vocab_size=500,
      special_tokens=special.get("tokens", ["<|endoftext|>"]),
      initial_alphabet=lib.pre_tokenizers.ByteLevel.alphabet(),
    )
  made.train_from_iterator(captions(), trainer)
  if kind == "bert":
    pair = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = lib.processors.TemplateProcessing(
      single="[CLS] $A [SEP]", special_tokens=pair
    )
  return made


def byte_letters():
  """Byte -> the character that stands for it in the files of GPT-2 and CLIP.

  Bytes that are printable in Latin-1 stand for themselves, the others are
  numbered from 256.
  """
  letters, spare = {}, 256
  for byte in range(256):
    if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
      letters[byte] = chr(byte)
    else:
      letters[byte], spare = chr(spare), spare + 1
  return letters


def clip_merges(count=120, texts=None):
  """Merges learnt from captions, most frequent pair first."""
  letters = byte_letters()
  words = {}
  for text in texts or [*captions(), "ünïcödé 漢字 it's don't 🙂"] * 2:
    for word in text.lower().split():
      symbols = [letters[b] for b in word.encode()]
      symbols[-1] += "</w>"
      words[tuple(symbols)] = words.get(tuple(symbols), 0) + 1
  merges = []
  for _ in range(count):
    pairs = {}
    for word, times in words.items():
      for pair in itertools.pairwise(word):
        pairs[pair] = pairs.get(pair, 0) + times
    if not pairs:
      break
    best = max(sorted(pairs), key=pairs.get)
    merges.append(best)
    words = {join(word, best): times for word, times in words.items()}
  return merges


def join(word, pair):
  """A word with every occurrence of a pair made one symbol."""
  out, i = [], 0
  while i < len(word):
    if word[i : i + 2] == pair:
      out.append("".join(pair))
      i += 2
    else:
      out.append(word[i])
      i += 1
  return tuple(out)


def clip_file(merges, packed=True):
  """The bytes of a vocabulary file."""
  lines = ['"small.txt#version: 0.2', *(f"{a} {b}" for a, b in merges), ""]
  data = "\n".join(lines).encode()
  return gzip.compress(data) if packed else data


def write(folder):
  """Writes one of each model into a folder and returns name -> spec."""
  (folder / "c4.model").write_bytes(sentencepiece_model())
  (folder / "gemma.model").write_bytes(gemma_model())
  (folder / "clip.txt.gz").write_bytes(clip_file(clip_merges()))
  for kind in ("bert", "plain"):
    hugging_face(kind).save(str(folder / f"{kind}.json"))
  return {
    "bytes": "bytes",
    "c4": f"sentencepiece:{folder}/c4.model",
    "gemma": f"sentencepiece:{folder}/gemma.model",
    "bert": f"hf:{folder}/bert.json",
    "plain": f"hf:{folder}/plain.json",
    "clip": f"clip:{folder}/clip.txt.gz",
  }
