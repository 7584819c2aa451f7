"""The tokenizer of a released model, found in its Hugging Face folder."""

import json
import os
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

from aced import contents
from aced.config import ConfigError
from aced.data.tokenizers.base import write_spec
from aced.data.tokenizers.loading import load_tokenizer
from aced.data.tokenizers.texts import Clean

FILE = "tokenizer.json"
OWN = "tokenizer_config.json"
MODEL = "config.json"
OPEN_CLIP = "open_clip_config.json"
# Options of open_clip's tokenizers that do nothing where they are not set.
_OFF = ("strip_sep_token", "reduction_mask", "language")
_OFF += ("additional_special_tokens",)
MERGES = ("vocab.json", "merges.txt")
PIECES = ("spiece.model", "tokenizer.model")
# The class of a model's tokenizer, where the folder names none.
CLASSES = {
  "siglip": "SiglipTokenizer",
  "siglip2": "Siglip2Tokenizer",
  "clip": "CLIPTokenizer",
}
SIGLIP, SIGLIP2 = CLASSES["siglip"], CLASSES["siglip2"]
_GEMMA = {
  "bos_token": "<bos>",
  "eos_token": "<eos>",
  "pad_token": "<pad>",
  "padding_side": "left",
}
# What these classes of transformers take for a key that is left out.
DEFAULTS: dict[str, dict[str, str]] = {
  "CLIPTokenizer": {"pad_token": "<|endoftext|>"},
  "GemmaTokenizer": _GEMMA,
  SIGLIP: {"eos_token": "</s>", "pad_token": "</s>"},
  SIGLIP2: _GEMMA,
}


def find(folder: str | os.PathLike, text_length: int) -> str:
  """Returns the spec of a folder's tokenizer, for `load_tokenizer`.

  Rows are those of transformers 5, `AutoTokenizer.from_pretrained(folder)` with
  `padding="max_length", truncation=True, max_length=text_length`. So SigLIP's
  texts are put in lower case and lose their punctuation, though the models were
  trained with it, and texts of SigLIP 2 are put in lower case where the class
  is Siglip2Tokenizer. The exceptions: the name of a special token that is
  written out in a text is text here; and "_", which SiglipTokenizer takes out,
  is a space (see `texts.prepare`).

  Of a folder with `open_clip_config.json` they are those of open_clip, which
  cleans texts first as its option `clean` says, "whitespace" by default; and
  where it names no tokenizer of Hugging Face, cuts them by CLIP's vocabulary,
  in lower case, and fills up with 0.

  Args:
    folder: of the model. `tokenizer_config.json` says which class the tokenizer
      is of, and if it does not, `config.json` which model.
    text_length: ids of a row.

  Raises:
    ConfigError: there is no tokenizer, or one that cannot be followed.
  """
  folder = pathlib.Path(folder).expanduser()
  if (folder / OPEN_CLIP).is_file():
    return _of_open_clip(folder, text_length)
  spec = _of_transformers(folder, {})
  load_tokenizer(spec, text_length)
  return spec


def _of_transformers(folder: pathlib.Path, over: Mapping[str, Any]) -> str:
  """The spec of a folder's tokenizer; `over` is said in the place of files."""
  own, model = _json(folder / OWN), _json(folder / MODEL)
  kind = own.get("tokenizer_class") or model.get("tokenizer_class")
  kind = str(kind or CLASSES.get(model.get("model_type"), ""))
  kind = kind.removesuffix("Fast")
  if model.get("model_type") == "siglip2":
    kind = SIGLIP2  # transformers 5 takes it, whatever the folder says.
  there = [name for name in (FILE, *PIECES) if (folder / name).is_file()]
  if kind == SIGLIP and PIECES[0] in there:
    spec = _siglip(folder / PIECES[0], _stated(folder, kind, own, {}, over))
  elif FILE in there and kind != SIGLIP:
    file = _json(folder / FILE)
    stated = _stated(folder, kind, own, file, over)
    _check_case(folder, stated, file)
    spec = _file(folder / FILE, kind, stated)
  elif there and kind in ("GemmaTokenizer", SIGLIP2):
    stated = _stated(folder, kind, own, {}, over)
    spec = _gemma(folder / there[0], kind, stated)
  else:
    raise _missing(folder, kind)
  return spec


def _of_open_clip(folder: pathlib.Path, text_length: int) -> str:
  """The spec of the tokenizer of a folder of open_clip."""
  config = _json(folder / OPEN_CLIP)
  text = (config.get("model_cfg") or {}).get("text_cfg") or {}
  options = dict(text.get("tokenizer_kwargs") or {})
  options.pop("trust_remote_code", None)
  named = bool(text.get("hf_tokenizer_name"))
  clean = options.pop("clean", None) or ("whitespace" if named else "lower")
  options = {k: v for k, v in options.items() if v or k not in _OFF}
  if text.get("tokenizer_mode"):
    options["tokenizer_mode"] = text["tokenizer_mode"]
  if clean not in typing.get_args(Clean):
    options["clean"] = clean
  if options:
    found = ", ".join(f"{name}={value!r}" for name, value in options.items())
    raise ConfigError(
      f"{folder / OPEN_CLIP}: text_cfg says {found} of the tokenizer, which is"
      " not done here and changes ids; give tokenizer= of one that does the"
      " same."
    )
  # open_clip fills up at the right, whatever the files say.
  over = {"clean": clean, "padding_side": "right"}
  if not named:
    over["pad_token"] = _first_of_clip(folder)
  spec = _of_transformers(folder, over)
  load_tokenizer(spec, text_length)
  return spec


def _first_of_clip(folder: pathlib.Path) -> str:
  """The token 0 of CLIP's vocabulary, with which open_clip fills up rows."""
  model = _json(folder / FILE).get("model") or {}
  if model.get("end_of_word_suffix") != "</w>":
    raise ConfigError(
      f"{folder / OPEN_CLIP} has no hf_tokenizer_name: open_clip cuts these"
      f" texts by CLIP's own vocabulary, which {folder / FILE} is not; give"
      " tokenizer=clip:path/to/bpe_simple_vocab_16e6.txt.gz."
    )
  return next(t for t, index in model["vocab"].items() if index == 0)


def _json(path: pathlib.Path) -> Mapping[str, Any]:
  """The table in a file; an empty one if there is no file."""
  try:
    found = json.loads(path.read_text("utf-8"))
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise ConfigError(f"{path} {contents.not_json(path, error)}.") from error
  if not isinstance(found, dict):
    raise ConfigError(f"{path} is no table of options.")
  return found


def _missing(folder: pathlib.Path, kind: str) -> ConfigError:
  if all((folder / name).is_file() for name in MERGES) and kind != SIGLIP:
    return ConfigError(
      f"{folder} has {' and '.join(MERGES)} and no {FILE}, which is read here."
      " Write it, with the package transformers:"
      f" AutoTokenizer.from_pretrained({str(folder)!r})"
      f".save_pretrained({str(folder)!r}); or give tokenizer=."
    )
  looked = PIECES[:1] if kind == SIGLIP else (FILE, *PIECES)
  return ConfigError(
    f"{folder} has no tokenizer that can be read for its class"
    f" ({kind or 'not named'}): looked for {', '.join(looked)}. Copy it from"
    " where the model comes from, or give tokenizer=, such as"
    " sentencepiece:path/spiece.model?style=siglip."
  )


def _stated(
  folder: pathlib.Path,
  kind: str,
  own: Mapping[str, Any],
  file: Mapping[str, Any],
  over: Mapping[str, Any],
) -> dict[str, Any]:
  """What holds of a tokenizer: names of tokens, sides, what is added."""
  padding, truncation = (file.get(k) or {} for k in ("padding", "truncation"))
  stated = {
    "pad_token": padding.get("pad_token"),
    "padding_side": str(padding.get("direction") or "").lower(),
    "truncation_side": str(truncation.get("direction") or "").lower(),
  }
  found = DEFAULTS.get(kind, {}) | {k: v for k, v in stated.items() if v}
  for table in (_json(folder / "special_tokens_map.json"), own):
    for key, value in table.items():
      if value is not None:
        name = value.get("content") if isinstance(value, dict) else value
        found[key] = name if key.endswith("_token") else value
  found |= over
  for key in ("padding_side", "truncation_side"):
    if found.get(key, "right") != "right":
      raise ConfigError(
        f"{folder}: {key}={found[key]!r}; rows are cut and filled up at the"
        f" right here. Set it to 'right' in {OWN} if the model was trained so,"
        " or give tokenizer=."
      )
  return found


def _siglip(path: pathlib.Path, stated: Mapping[str, Any]) -> str:
  if not stated.get("do_lower_case", True):
    raise ConfigError(
      f"{path.parent / OWN}: do_lower_case=false keeps case and takes out"
      " punctuation, which is not done here; give tokenizer=."
    )
  end, pad = stated["eos_token"], stated["pad_token"]
  return write_spec(
    "sentencepiece",
    path,
    style="siglip",
    canonical=True,
    clean=stated.get("clean"),
    pad=None if pad == end else _piece(path, pad),
  )


def _piece(path: pathlib.Path, name: str) -> int:
  import sentencepiece

  try:
    model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
  except RuntimeError as error:
    found = contents.describe(path) or f"no sentencepiece model: {error}"
    raise ConfigError(f"{path} is {found}.") from error
  found = model.piece_to_id(name)
  if model.id_to_piece(found) != name:
    raise ConfigError(f"{path} has no piece {name!r}, which {OWN} pads with.")
  return found


def _file(path: pathlib.Path, kind: str, stated: Mapping[str, Any]) -> str:
  pad = stated.get("pad_token")
  if pad is not None and "&" in pad:
    raise ConfigError(
      f"{path}: the padding {pad!r} cannot be named in a spec, for its &; give"
      " tokenizer= of a file where it has another name."
    )
  lower = "1" if kind == SIGLIP2 else None
  # The file says which tokens are put around a text, and nothing else does:
  # transformers follows no add_bos_token or add_eos_token beside a file.
  clean = stated.get("clean")
  return write_spec("hf", path, lower=lower, clean=clean, special=True, pad=pad)


def _check_case(
  folder: pathlib.Path, stated: Mapping[str, Any], file: Mapping[str, Any]
) -> None:
  """Refuses a file of BERT's kind that its class puts in another case."""
  normalizer = file.get("normalizer") or {}
  said, done = stated.get("do_lower_case"), normalizer.get("lowercase")
  bert = normalizer.get("type") == "BertNormalizer"
  if bert and said is not None and bool(said) != bool(done):
    raise ConfigError(
      f"{folder / OWN}: do_lower_case={said}, and {FILE} has lowercase={done};"
      " make them agree, or give tokenizer=."
    )


def _gemma(path: pathlib.Path, kind: str, stated: Mapping[str, Any]) -> str:
  return write_spec(
    "sentencepiece",
    path,
    style="siglip2",
    clean=stated.get("clean"),
    lower="1" if kind == SIGLIP2 else "0",
    bos=bool(stated.get("add_bos_token")),
    eos="sticky" if stated.get("add_eos_token") else "none",
    pad=_piece(path, stated["pad_token"]),
  )
