"""The tokenizer and the resizing of a student, beside what was written of it.

`aced.json` names the tokenizer by a spec, with a copy of its model beside it:
`aced.load` takes both up, and they give exactly the student's ids. Programs get
`tokenizer.json` too, which needs no more than the package tokenizers.
"""

import importlib.util
import pathlib

from aced.config import ConfigError
from aced.data.tokenizers.base import Tokenizer
from aced.data.tokenizers.clip import Clip
from aced.data.tokenizers.hf import HuggingFace
from aced.data.tokenizers.sentencepieces import SentencePiece
from aced.export import hf_tokenizer
from aced.models.formats import beside
from aced.pretrained import Pretrained

# Kind of tokenizer -> the name of its model's copy. Names of a user's files
# stay with the user; `tokenizer.json` is what `hf_tokenizer` writes.
MODELS = {
  SentencePiece: "tokenizer.model",
  HuggingFace: "tokenizer.own.json",
  Clip: "tokenizer.merges.txt",
}


def carry(student: Pretrained, folder: pathlib.Path) -> None:
  """Writes `aced.json` and the model of the tokenizer, if it has one.

  Args:
    student: whose tokenizer may be None: then the resizing alone is said.
    folder: made if it is not there.

  Raises:
    ConfigError: the copy does not give the ids of the original.
    OSError: a file cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer, spec = student.tokenizer, ""
  if tokenizer is not None:
    spec = spec_of(tokenizer)
    if type(tokenizer) in MODELS:
      path = folder / MODELS[type(tokenizer)]
      path.write_bytes(_model(tokenizer))
      _check(tokenizer, path)
  beside.write(folder, tokenizer=spec, resize=student.transform.resize)


def carry_file(student: Pretrained, folder: pathlib.Path) -> str:
  """Writes `tokenizer.json` for programs, where it can say the tokenizer.

  Args:
    student: as for `carry`.
    folder: made if it is not there.

  Returns:
    Why it was not written; "" if it was.
  """
  if student.tokenizer is None:
    return "the student's tokenizer is not known"
  if importlib.util.find_spec("tokenizers") is None:
    return "the package tokenizers is not installed (the extra 'hf')"
  try:
    hf_tokenizer.write_tokenizer(student.tokenizer, folder)
  except ConfigError as error:
    # What it says may be shown to others, who have no use for a path of ours.
    return str(error).replace(
      student.tokenizer.spec, spec_of(student.tokenizer)
    )
  return ""


def spec_of(tokenizer: Tokenizer) -> str:
  """The spec of a tokenizer's copy, relative to the folder that it is in."""
  head, mark, options = tokenizer.spec.partition("?")
  kind = head.partition(":")[0]
  name = MODELS.get(type(tokenizer))
  return f"{kind}:{name}{mark}{options}" if name else tokenizer.spec


def _model(tokenizer):
  """The bytes of a tokenizer's model, as its kind reads them."""
  if isinstance(tokenizer, Clip):
    lines = ["#version: 0.2", *map(" ".join, tokenizer._merges)]
    return "\n".join(lines).encode("utf-8")
  if isinstance(tokenizer, HuggingFace):
    return tokenizer._file
  return tokenizer._model


def _check(tokenizer, path):
  """Refuses a copy with other ids; those of other kinds are the very bytes."""
  if not isinstance(tokenizer, Clip):
    return
  if Clip(path, tokenizer.length).content != tokenizer.content:
    raise ConfigError(
      f"tokenizer {tokenizer.spec!r} has a copy that gives other ids; nothing"
      " was written."
    )
