"""The tokenizer of a released model, found in its Hugging Face folder."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from aced.config import ConfigError
from aced.data.tokenizers.base import write_spec
from aced.data.tokenizers.loading import load_tokenizer

FILE = "tokenizer.json"
OWN = "tokenizer_config.json"
MODEL = "config.json"
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

  Args:
    folder: of the model. `tokenizer_config.json` says which class the tokenizer
      is of, and if it does not, `config.json` which model.
    text_length: ids of a row.

  Raises:
    ConfigError: there is no tokenizer, or one that cannot be followed.
  """
  folder = pathlib.Path(folder).expanduser()
  own, model = _json(folder / OWN), _json(folder / MODEL)
  kind = own.get("tokenizer_class") or model.get("tokenizer_class")
  kind = str(kind or CLASSES.get(model.get("model_type"), ""))
  kind = kind.removesuffix("Fast")
  if model.get("model_type") == "siglip2":
    kind = SIGLIP2  # transformers 5 takes it, whatever the folder says.
  there = [name for name in (FILE, *PIECES) if (folder / name).is_file()]
  if kind == SIGLIP and PIECES[0] in there:
    spec = _siglip(folder / PIECES[0], _stated(folder, kind, own, {}))
  elif FILE in there and kind != SIGLIP:
    file = _json(folder / FILE)
    spec = _file(folder / FILE, kind, _stated(folder, kind, own, file))
  elif there and kind in ("GemmaTokenizer", SIGLIP2):
    spec = _gemma(folder / there[0], kind, _stated(folder, kind, own, {}))
  else:
    raise _missing(folder, kind)
  load_tokenizer(spec, text_length)
  return spec


def _json(path: pathlib.Path) -> Mapping[str, Any]:
  """The table in a file; an empty one if there is no file."""
  try:
    found = json.loads(path.read_text("utf-8"))
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise ConfigError(f"{path} is not JSON: {error}.") from error
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
) -> dict[str, Any]:
  """What holds of a tokenizer: names of tokens, sides, what is added."""
  padding = file.get("padding") or {}
  stated = {
    "pad_token": padding.get("pad_token"),
    "padding_side": str(padding.get("direction") or "").lower(),
  }
  found = DEFAULTS.get(kind, {}) | {k: v for k, v in stated.items() if v}
  for table in (_json(folder / "special_tokens_map.json"), own):
    for key, value in table.items():
      if value is not None:
        name = value.get("content") if isinstance(value, dict) else value
        found[key] = name if key.endswith("_token") else value
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
    pad=None if pad == end else _piece(path, pad),
  )


def _piece(path: pathlib.Path, name: str) -> int:
  import sentencepiece

  model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
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
  return write_spec("hf", path, lower=lower, special=True, pad=pad)


def _gemma(path: pathlib.Path, kind: str, stated: Mapping[str, Any]) -> str:
  return write_spec(
    "sentencepiece",
    path,
    style="siglip2",
    lower="1" if kind == SIGLIP2 else "0",
    bos=bool(stated.get("add_bos_token")),
    eos="sticky" if stated.get("add_eos_token") else "none",
    pad=_piece(path, stated["pad_token"]),
  )
