"""Names of data and weights without the folders that they lie in.

A model card is read by others: where something lies on a machine of ours, or in
whose bucket, is of no use to them.
"""

import re

# Kinds of sources whose place may be a name with slashes, and no path, such as
# "tfds:name/config:split" and "hf:owner/name:split".
NAMED = ("tfds", "hf", "synthetic")
# Options of sources that are folders.
FOLDERS = ("data_dir", "index")
# How a place starts that is surely a path: a root, a home, a bucket.
PATH = re.compile(r"/|~|\.\.?/|\w+://|[A-Za-z]:[\\/]")
_WEIGHT = re.compile(r"\s*[0-9.]+(?:[eE][+-]?[0-9]+)?\s*\*\s*")


def of_source(spec: str) -> str:
  """A spec of `aced.data`, with the last name of each path."""
  if spec.startswith("mixture:"):
    parts = spec.removeprefix("mixture:").split(";")
    return "mixture:" + ";".join(map(_of_part, parts))
  return _of_part(spec)


def of_tokenizer(spec: str) -> str:
  """A spec of a tokenizer, with the name of its file."""
  head, mark, options = spec.partition("?")
  kind, colon, path = head.partition(":")
  return f"{kind}{colon}{of_weights(path)}{mark}{options}"


def of_weights(where: str) -> str:
  """What stands behind the last slash; a slash at the end counts as none."""
  return re.split(r"[/\\]", where.rstrip("/\\"))[-1]


def _of_part(spec):
  """A spec that is no mixture; a weight may stand before it."""
  weight = _WEIGHT.match(spec)
  weight = weight[0] if weight else ""
  head, mark, query = spec[len(weight) :].partition("?")
  kind, colon, where = head.partition(":")
  if not colon or not kind.isidentifier():
    kind, colon, where = "", "", head  # A path without a kind.
  if kind not in NAMED or PATH.match(where):
    # "hf:FOLDER:split": of a path with a slash at its end, too.
    where = of_weights(re.sub(r"[/\\]+(?=:|$)", "", where))
  options = (_of_option(option) for option in query.split("&"))
  return f"{weight}{kind}{colon}{where}{mark}{'&'.join(options)}"


def _of_option(option):
  name, equals, value = option.partition("=")
  if name in FOLDERS or PATH.match(value):
    value = of_weights(value)
  return f"{name}{equals}{value}"
