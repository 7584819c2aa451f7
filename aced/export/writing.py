"""Writes a student in several formats, whole or not at all, and checks each."""

import importlib.util
import itertools
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from aced.config import ConfigError, did_you_mean
from aced.export import card, carried, fits
from aced.export.hf_folder import export_hf, pipeline_problem
from aced.export.onnx_graph import export_onnx
from aced.export.stablehlo import export_stablehlo
from aced.models import build
from aced.models.formats import beside, read
from aced.models.formats.npz import save_npz
from aced.models.two_towers import TwoTowers
from aced.pretrained import Pretrained

NPZ = "big_vision.npz"
PROBES = 4  # Pictures and texts by which a format is checked.
# Embeddings of unit length: float32 roundings stay far below, eight-bit weights
# and bfloat16 do not.
EXACT, ROUNDED = 1e-4, 0.2

Embed = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]


class Written(NamedTuple):
  """One format, as it was written.

  Attributes:
    name: of the format.
    files: relative to the output.
    megabytes: of all its files.
    difference: the largest between an embedding's numbers and the student's,
      relative to the largest number.
    int8: whether its weights are rounded to eight bits.
    notes: what its users must know.
  """

  name: str
  files: tuple[str, ...]
  megabytes: float
  difference: float
  int8: bool
  notes: tuple[str, ...] = ()


def export(
  student: Pretrained,
  output: str | os.PathLike,
  formats: Sequence[str],
  *,
  int8: bool = False,
  say: Callable[[str], None] = lambda _: None,
) -> list[Written]:
  """Writes a student, its formats' folders and a model card.

  Args:
    student: from `aced.load`.
    output: the folder; it must not be there, or be empty. It appears whole.
    formats: of `FORMATS`.
    int8: whether "stablehlo" and "onnx" have their matrices in eight bits.
    say: is told what goes on, and what users of a format must know.

  Returns:
    What was written.

  Raises:
    ConfigError: an unknown format, one that cannot express the student, `int8`
      without a format that has it, or a folder that is taken.
    RuntimeError: what was written does not compute what the student does.
  """
  output = pathlib.Path(output).expanduser().resolve()
  check_request(student, output, formats, int8=int8)
  if int8:
    rounded, kept = _by_rounding(formats)
    if kept:
      say(f"--int8 rounds {rounded}; it does not change {kept}")
  part = output.with_name(f".{output.name}.part-{os.getpid()}")
  written = []
  try:
    part.mkdir(parents=True)
    for name in formats:
      say(f"writing {name}")
      notes = FORMATS[name].write(student, part, int8)
      for note in notes:
        say(f"{name}: {note}")
      written.append(_check(student, part, name, int8)._replace(notes=notes))
    text = card.write(student, written)
    (part / "README.md").write_text(text, encoding="utf-8")
    os.replace(part, output)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return written


def check_request(
  student: Pretrained,
  output: pathlib.Path,
  formats: Sequence[str],
  *,
  int8: bool = False,
) -> None:
  """Refuses what cannot be written, before anything is; see `export`."""
  for name in formats:
    if name not in FORMATS:
      raise ConfigError(
        f"format {name!r} is not known; it is one of {', '.join(FORMATS)}."
        f"{did_you_mean(name, FORMATS)}"
      )
  if not formats or len(set(formats)) != len(formats):
    raise ConfigError(
      f"formats={','.join(formats)!r} must be one or more, each once, of"
      f" {', '.join(FORMATS)}."
    )
  if int8 and not any(FORMATS[name].rounds for name in formats):
    raise ConfigError(
      f"--int8 changes none of --formats={','.join(formats)}; those that can be"
      f" in eight bits are {_by_rounding(FORMATS)[0]}."
    )
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise ConfigError(
      f"--output={output} is there already; name a folder that is not, or is"
      " empty."
    )
  if output == pathlib.Path.cwd():
    raise ConfigError(
      f"--output={output} is the current folder, which cannot be replaced; name"
      " one inside it."
    )
  for name in formats:
    fits.check(student.model, name)
    for package in FORMATS[name].packages:
      if importlib.util.find_spec(package) is None:
        raise ConfigError(
          f"format {name!r} needs the package {package}: pip install"
          f' -e ".[{FORMATS[name].extra}]", or leave it out of --formats.'
        )
  if "hf" in formats:
    student.tokens([])  # Says so where there is no tokenizer.


def _by_rounding(formats):
  """Names of the formats with eight-bit weights, and of those without."""
  return tuple(
    " and ".join(name for name in formats if FORMATS[name].rounds == rounds)
    for rounds in (True, False)
  )


class Format(NamedTuple):
  """How a format is written and read back.

  Attributes:
    write: `(student, folder, int8) -> notes` for its users.
    embed: `(folder, student) -> Embed`, by what was written alone.
    inside: its files in the folder, as patterns; the first is of its weights.
    rounds: whether it can have eight-bit weights.
    packages: that it needs, of the extra of the next field.
    extra: of this package.
  """

  write: Callable[[Pretrained, pathlib.Path, bool], tuple[str, ...]]
  embed: Callable[[pathlib.Path, Pretrained], Embed]
  inside: tuple[str, ...]
  rounds: bool = False
  packages: tuple[str, ...] = ()
  extra: str = ""


def _sizes(student):
  return {
    "image_size": student.image_size,
    "text_length": student.text_length,
  }


def _write_npz(student, folder, int8):
  save_npz(folder / NPZ, student.params)
  carried.carry(student, folder)
  return ()


def _write_hf(student, folder, int8):
  export_hf(student, folder / "hf")
  problem = pipeline_problem(student.text_length)
  return (problem,) if problem else ()


def _write_stablehlo(student, folder, int8):
  folder /= "stablehlo"
  tokenize, notes = _carry_for_programs(student, folder)
  export_stablehlo(
    student.model,
    student.params,
    folder,
    int8=int8,
    tokenize=tokenize,
    **_sizes(student),
  )
  return notes


def _write_onnx(student, folder, int8):
  folder /= "onnx"
  export_onnx(
    student.model, student.params, folder, int8=int8, **_sizes(student)
  )
  return _carry_for_programs(student, folder)[1]


def _carry_for_programs(student, folder):
  """Writes the tokenizer; returns the package that reads it, and notes."""
  carried.carry(student, folder)
  if student.tokenizer is None:
    return "", ("it carries no tokenizer, as the student's is not known.",)
  problem = carried.carry_file(student, folder)
  if not problem:
    return "tokenizers", ()
  return "aced", (
    f"it carries no tokenizer.json, and its texts need aced: {problem}",
  )


def _read_back(where, student):
  """Reads weights again, as the model that they say they are of."""
  weights = read(where)
  return _embed_by(build(_in_float32(weights.config)), weights.params)


def _embed_by(model, params):
  def embed(pixels, ids):
    return model.apply({"params": params}, pixels, ids)[:2]

  return jax.jit(embed)


def _in_float32(config):
  """The config of a model whose products are all in float32."""
  config = dict(config)
  if config.get("model", "two_towers") == "two_towers":
    for tower in ("image", "text"):
      config[tower] = {**config[tower], "dtype_mm": "float32"}
  return config


def _embed_stablehlo(folder, student):
  """Runs the loader that lies in the folder, as a user would."""
  path = folder / "stablehlo" / "loader.py"
  spec = importlib.util.spec_from_file_location("aced_exported_loader", path)
  loader = importlib.util.module_from_spec(spec)
  written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
  try:
    spec.loader.exec_module(loader)
  finally:
    sys.dont_write_bytecode = written
  return lambda pixels, ids: (
    loader.embed_images(pixels),
    loader.embed_texts(ids),
  )


def _embed_onnx(folder, student):
  import onnxruntime

  def run(tower, rows):
    session = onnxruntime.InferenceSession(
      folder / "onnx" / f"{tower}.onnx", providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    dtype = np.int32 if "int32" in given.type else rows.dtype
    dtype = np.int64 if "int64" in given.type else dtype
    return session.run(None, {given.name: rows.astype(dtype)})[0]

  return lambda pixels, ids: (run("image", pixels), run("text", ids))


FORMATS = {
  "hf": Format(
    _write_hf,
    lambda folder, s: _read_back(folder / "hf", s),
    ("hf/**/*",),
    packages=("safetensors", "tokenizers"),
    extra="hf",
  ),
  "npz": Format(
    _write_npz,
    lambda folder, s: _read_back(folder / NPZ, s),
    (NPZ, beside.FILE, *carried.MODELS.values()),
  ),
  "stablehlo": Format(
    _write_stablehlo,
    _embed_stablehlo,
    ("stablehlo/**/*",),
    rounds=True,
  ),
  "onnx": Format(
    _write_onnx,
    _embed_onnx,
    ("onnx/**/*",),
    rounds=True,
    packages=("onnx", "onnxruntime"),
    extra="onnx",
  ),
}


def _check(student, folder, name, int8):
  """Compares a format with the student on pictures and texts of noise."""
  rng = np.random.default_rng(0)
  side, length = student.image_size, student.text_length
  pixels = rng.integers(0, 256, (PROBES, side, side, 3), np.uint8)
  ids = rng.integers(0, _vocabulary(student), (PROBES, length), np.int32)
  # Of bfloat16 only the programs keep the roundings.
  same = student.model
  if name != "stablehlo" and isinstance(student.model, TwoTowers):
    same = build(_in_float32(student.weights.config))
  wanted = _embed_by(same, student.params)(pixels, ids)
  found = FORMATS[name].embed(folder, student)(pixels, ids)
  # `np.max` keeps what is not a number, which `max` may drop.
  worst = float(
    np.max(
      [
        np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max()
        for a, b in zip(found, wanted, strict=True)
      ]
    )
  )
  int8 = int8 and FORMATS[name].rounds
  if not worst <= (ROUNDED if int8 or _is_half(same) else EXACT):
    raise RuntimeError(
      f"the {name} files do not compute what the student does: embeddings"
      f" differ by {worst:.2g}; nothing was written."
    )
  found = (sorted(folder.glob(pattern)) for pattern in FORMATS[name].inside)
  files = [path for path in itertools.chain(*found) if path.is_file()]
  return Written(
    name,
    tuple(str(path.relative_to(folder)) for path in files),
    sum(path.stat().st_size for path in files) / 1e6,
    worst,
    int8,
  )


def _vocabulary(student):
  return student.params["txt"]["Embed_0"]["embedding"].shape[0]


def _is_half(model):
  towers = getattr(model, "image", {}), getattr(model, "text", {})
  return any(tower.get("dtype_mm") == "bfloat16" for tower in towers)
