"""Finds out what weights there are, and reads them."""

import json
import os
import pathlib

from aced import contents
from aced.models import saved, trees
from aced.models.build import complete
from aced.models.formats import beside, hf, infer, npz, open_clip
from aced.models.formats.weights import Weights
from aced.models.trees import ParamsError

FORMATS = (
  "an .npz file of big_vision, a Hugging Face folder of SigLIP, SigLIP 2 or"
  " CLIP, a folder or .safetensors file of open_clip, or the workdir of a run"
)
# What values of other types and signs than expected lead to.
UNCLEAR = (TypeError, ValueError, KeyError, AttributeError, ArithmeticError)
# Of a run's config: what its student sees.
INPUT = ("image_size", "text_length", "resize", "tokenizer")


def read(where: str | os.PathLike) -> Weights:
  """Reads weights, with what they say of their model.

  Args:
    where: of one of `FORMATS`; behind an .npz file may stand ":subtree", and
      behind a workdir "@STEP" or "@best".

  Returns:
    The `Weights`, every parameter in its place.

  Raises:
    FileNotFoundError: there is nothing there, or a part is missing.
    ParamsError: they are damaged, of a kind that cannot be read, or do not fit
      the model that they name.
  """
  where = os.path.expanduser(os.fspath(where))
  try:
    return _read(where)
  except (ParamsError, FileNotFoundError, ImportError):
    raise
  except UNCLEAR as error:
    raise ParamsError(
      f"{where}: its config is not of the form that such weights have:"
      f" {type(error).__name__}: {error}"
    ) from error


def _read(where):
  path = pathlib.Path(where)
  if where.endswith(".npz") or ".npz:" in where:
    return _npz(where)
  if path.suffix == ".safetensors" and path.is_file():
    found = contents.describe(path)
    # The length that such a file begins with may look like a pickle's start.
    if found and found != contents.PICKLE:
      raise ParamsError(f"{path} is {found}.")
  if _is_open_clip(path):
    return open_clip.read(path)
  if is_foreign(path):
    return hf.read(path)
  return of_run(where).fitted()


def is_foreign(path: pathlib.Path) -> bool:
  """Whether these are weights of Hugging Face or open_clip."""
  # A run's config has the name of that of a Hugging Face folder.
  ours = (path / saved.CHECKPOINTS).is_dir()
  return _is_open_clip(path) or ((path / hf.CONFIG).is_file() and not ours)


def _is_open_clip(path):
  return path.suffix == ".safetensors" or (path / open_clip.CONFIG).is_file()


def _npz(where):
  file, _, subtree = where.partition(".npz:")
  path = pathlib.Path(f"{file}.npz" if subtree else where).expanduser()
  params = npz.load_npz(path, subtree)
  try:
    config, image_size, text_length = infer.infer(params)
  except ParamsError as error:
    raise ParamsError(f"{where}: {error}") from error
  return Weights(
    "an .npz file",
    path,
    params,
    config,
    image_size,
    text_length,
    **beside.read(path.parent),
  ).fitted()


def of_run(where: str) -> Weights:
  """A run of ours: the student, as its config describes it.

  Raises:
    FileNotFoundError, ParamsError: as `read`.
  """
  params = saved.load_checkpoint(where)
  folder, step = saved.find_checkpoint(where)
  path = folder.parent / "config.json"
  try:
    config = json.loads(path.read_text("utf-8"))
    given = {name: config[f"input.{name}"] for name in INPUT}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ParamsError(
      f"{path} does not say of which model the checkpoints are: {error!r}"
    ) from error
  if any(name.startswith("decoder.model.") for name in config):
    along = config.get("decoder.freeze") is False
    encoder = "in it, trained along" if along else config.get("student.init")
    raise ParamsError(
      f"{where} is a text decoder's run: it has no text tower and embeds"
      f" nothing; aced.load_captioner loads it, no format of aced.export holds"
      f" one, and its encoder is {encoder}."
    )
  fields = trees.unflatten(
    {
      k.removeprefix("student.").replace(".", "/"): v
      for k, v in config.items()
      if k.startswith("student.") and v not in (None, [], "")
    }
  )
  fields.pop("init", None)
  text = dict(fields.get("text") or {})
  embedding = params.get("txt", {}).get("Embed_0", {}).get("embedding")
  if embedding is not None:
    text.setdefault("vocab_size", int(embedding.shape[0]))
  return Weights(
    kind=f"a run of ours, at step {step}",
    where=folder.parent,
    params=params,
    config=complete({**fields, "text": text}),
    step=step,
    **given,
  )
