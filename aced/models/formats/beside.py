"""What weights do not say themselves: `aced.json`, a file beside them.

An .npz file of an export has one. It names the tokenizer, whose model lies in
the same folder, and how pictures are brought to their size.
"""

import json
import pathlib
from typing import Any

from aced.files import write_json
from aced.models.trees import ParamsError

FILE = "aced.json"
FIELDS = ("tokenizer", "resize")


def write(folder: pathlib.Path, *, tokenizer: str, resize: str) -> None:
  """Writes `aced.json`.

  Args:
    folder: of the weights.
    tokenizer: the spec; its path, if it has one, is a name in `folder`. ""
      where the tokenizer is not known.
    resize: "bilinear" or "bicubic".
  """
  write_json(folder / FILE, {"tokenizer": tokenizer, "resize": resize})


def read(folder: pathlib.Path) -> dict[str, Any]:
  """Reads the fields of `aced.Weights` that `aced.json` has.

  Args:
    folder: of the weights.

  Returns:
    "tokenizer" and "resize"; nothing where there is no such file. The path of
    the tokenizer is made one inside `folder`.

  Raises:
    ParamsError: the file is there and is not such a table, or the tokenizer
      does not lie in `folder`.
  """
  path = folder / FILE
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise ParamsError(f"{path} is not JSON: {error}") from error
  fields = found if isinstance(found, dict) else {}
  if not all(isinstance(fields.get(name), str) for name in FIELDS):
    raise ParamsError(
      f"{path} must be a table of texts with {' and '.join(FIELDS)}, as"
      " aced.export writes it; restore it, or remove it and give tokenizer=."
    )
  kind, colon, name = fields["tokenizer"].partition(":")
  # A file of others may not name one that lies elsewhere.
  if "/" in name.partition("?")[0]:
    raise ParamsError(
      f"{path}: the tokenizer {fields['tokenizer']!r} must be a file in the"
      " same folder, named without a path; remove the table, and give"
      " tokenizer=."
    )
  spec = f"{kind}:{folder / name}" if colon else kind
  return {"tokenizer": spec, "resize": fields["resize"]}
