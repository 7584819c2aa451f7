"""What is there where weights were looked for and cannot be read."""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aced import contents
from aced.models.trees import ParamsError

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHERS = (".msgpack", ".h5", ".gguf", ".onnx", ".npz", ".safetensors")
_REMOTE = re.compile(r"(https?|hf|gs|s3)://|hf-hub:")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BIG_VISION = "checkpoint.bv"
_FROM_BIG_VISION = (
  "a checkpoint of big_vision's, as aced.bv.trainer writes them, which is not"
  " read here. Write it as an .npz, which is: python -c 'import aced.bv;"
  " aced.bv.register(); from big_vision import utils; from aced.models.params"
  ' import save_npz; save_npz("student.npz", utils.load_checkpoint_ts('
  '"WORKDIR/checkpoint.bv")["params"])\''
)


def no_file(path: pathlib.Path, wanted: Sequence[str] = ()) -> Exception:
  """The error for a file of weights that is not there.

  Args:
    path: of the file.
    wanted: the names of all shards that are not there, if it is one of several.
  """
  if wanted:
    return FileNotFoundError(
      f"{len(wanted)} shards that its index names are not in {path.parent}:"
      f" {', '.join(wanted[:3])}{' ...' if len(wanted) > 3 else ''}; fetch"
      " them."
    )
  start, beside = f"no weights at {path}; ", _weights_in(path.parent)
  pickled = [name for name in beside if name.endswith(PICKLED)]
  readable = [name for name in beside if name.endswith(".safetensors")]
  if readable:
    return FileNotFoundError(
      f"{start}there is {', '.join(readable)}: rename it if that is the same"
      " model in this format."
    )
  if pickled:
    return FileNotFoundError(
      f"{start}there is {', '.join(pickled)}: {contents.PICKLE}."
      f" {convert(path.parent / pickled[0], path)}"
    )
  if beside:
    return FileNotFoundError(
      f"{start}there is {', '.join(beside)}, which is not read here; fetch its"
      " safetensors."
    )
  return FileNotFoundError(f"{start}check the path.")


def convert(source: pathlib.Path, target: pathlib.Path) -> str:
  """How safetensors are made of a pickle."""
  return (
    "Fetch the same weights as safetensors; or, if you trust the file, make"
    " them of it where torch is installed: python -c 'import torch,"
    " safetensors.torch as s; s.save_file({k: v.clone().contiguous() for k, v"
    f' in torch.load("{source}", map_location="cpu", weights_only=True)'
    f'.items()}}, "{target}")\''
  )


def not_whole(path: pathlib.Path, form: str, problem: Any) -> ParamsError:
  """The error for a file that is there and is not of its format.

  Args:
    path: of the file.
    form: its format.
    problem: what was found wrong.
  """
  found = "" if path.is_dir() else contents.describe(path)
  if found.startswith(contents.PICKLE):
    found = f"{found}. {convert(path, path.with_suffix('.safetensors'))}"
  if found:
    return ParamsError(f"{path} is not a whole {form} file: it is {found}.")
  return ParamsError(
    f"{path} is not a whole {form} file: {problem}; fetch it again."
  )


def unknown_config(
  path: pathlib.Path, config: Mapping[str, Any], known: Iterable[str]
) -> Exception:
  """The error for a `config.json` that names no model that can be read.

  Args:
    path: of the file.
    config: its content.
    known: the types of model that can be.
  """
  if told := _folder(path.parent):
    return ParamsError(f"{path.parent} holds {told}.")
  if any(str(name).startswith("student.") for name in config):
    return FileNotFoundError(
      f"{path.parent} is the workdir of a run that has no checkpoints yet; let"
      " it train until it saves one."
    )
  return ParamsError(
    f"{path}: model_type={config.get('model_type')!r} cannot be read; expected"
    f" one of {', '.join(known)}."
  )


def nothing(where: str) -> Exception | None:
  """The error for what is neither weights nor a run; None if nothing is there.

  Args:
    where: as it was given.
  """
  path = pathlib.Path(where)
  if where.startswith("local-dir:"):
    return FileNotFoundError(
      f"{where!r}: name the folder alone, {where.partition(':')[2]!r}."
    )
  if _REMOTE.match(where):
    return FileNotFoundError(
      f"{where!r} is not on this machine, and nothing is fetched here. Fetch"
      " the whole folder, such as by `hf download OWNER/NAME --local-dir"
      " FOLDER`, and name it."
    )
  if _BIG_VISION in path.name:
    return ParamsError(f"{where} is {_FROM_BIG_VISION}.")
  if path.is_file():
    return _file(path)
  if path.is_dir():
    told = _folder(path)
    return ParamsError(f"{path} holds {told}.") if told else None
  if _HUB_NAME.fullmatch(where) and not path.parent.exists():
    return FileNotFoundError(
      f"no weights at {where!r}. If that is a name on a hub: nothing is fetched"
      f" here; fetch it by `hf download {where} --local-dir FOLDER`, and name"
      " the folder. If it is a run: there is no such workdir."
    )
  return None


def _file(path):
  found = contents.describe(path)
  pickled = found.startswith(contents.PICKLE)
  if pickled or (not found and path.suffix in PICKLED):
    target = path.with_suffix(".safetensors")
    return ParamsError(f"{path} is {contents.PICKLE}. {convert(path, target)}")
  return ParamsError(
    f"{path} is {found or 'a file of a format that is not read here'}; expected"
    " an .npz or .safetensors file, or the folder of a model or run."
  )


def _folder(path):
  """What a folder holds that is no model and no run of `aced.train`."""
  if any(path.glob(f"{_BIG_VISION}*")):
    return _FROM_BIG_VISION
  if path.name == "checkpoints" or path.parent.name == "checkpoints":
    workdir = path.parent if path.name == "checkpoints" else path.parent.parent
    step = "" if path.name == "checkpoints" else f"@{path.name}"
    if (workdir / "config.json").is_file():
      return f"checkpoints of a run; name its workdir, {workdir}{step}"
  beside = _weights_in(path)
  if beside and not (path / "config.json").is_file():
    return (
      f"{', '.join(beside)} without the config.json (of Hugging Face) or"
      " open_clip_config.json that says of which model; put it beside them"
    )
  return ""


def _weights_in(folder):
  if not folder.is_dir():
    return []
  names = (path.name for path in folder.iterdir() if path.is_file())
  return sorted(n for n in names if n.endswith((*PICKLED, *_OTHERS)))
