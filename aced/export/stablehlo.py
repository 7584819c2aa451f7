"""Programs of the towers that jax runs by itself, for any number of rows.

StableHLO is the portable form of what XLA compiles. A program outlives the
code it was traced from: jax promises to run it for six months at least, and
other compilers of StableHLO take it too.
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from aced.export import int8 as int8_lib
from aced.files import whole
from aced.models import params as params_lib

WEIGHTS = "weights.npz"
PROGRAMS = {"image": "image.stablehlo", "text": "text.stablehlo"}
LOADER_FILE = "loader.py"
LOADER = '''\
"""Embeds pictures and texts with the programs beside this file.

    from loader import {names}, scale, bias

It needs jax, and flatbuffers to read programs{needs}.
Pictures are uint8 `(n, {size}, {size}, 3)`, texts int32 `(n, {length})`;
embeddings are float32 `(n, {width})`, of length one. A picture and a text match
with log-odds `scale * zimg @ ztxt + bias`. Each number of rows is compiled when
it is first seen.
"""

import functools
import pathlib

import jax.export

HERE = pathlib.Path(__file__).resolve().parent
WEIGHTS = jax.device_put(
  dict(jax.numpy.load(HERE / "weights.npz", allow_pickle=False))
)


def load(name):
  """The function `x -> embeddings` of one tower."""
  program = jax.export.deserialize(bytearray((HERE / name).read_bytes()))
  (used, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
  return jax.tree_util.Partial(
    jax.jit(program.call), {{name: WEIGHTS[name] for name in used}}
  )


embed_images, embed_texts = load("image.stablehlo"), load("text.stablehlo")
scale, bias = (
  float(jax.numpy.exp(WEIGHTS["t"][0])),
  float(WEIGHTS.get("b", [0.0])[0]),
)
'''
# What makes ids -> what the loader has for it. Of `carried`: the files beside.
TOKENIZE = {
  "": "",
  "tokenizers": '''

@functools.cache
def tokenizer():
  """The tokenizer beside this file."""
  import tokenizers

  file = tokenizers.Tokenizer.from_file(str(HERE / "tokenizer.json"))
  file.encode_special_tokens = True  # Its name in a text is text.
  return file


def tokenize(texts):
  """The ids of a list of texts, as `embed_texts` takes them."""
  rows = [tokenizer().encode(text).ids for text in texts]
  return jax.numpy.asarray(rows, "int32").reshape(-1, {length})
''',
  "aced": '''

@functools.cache
def tokenizer():
  """The tokenizer beside this file, which tokenizer.json cannot hold."""
  from aced.data.tokenizers import load_tokenizer
  from aced.models.formats import beside

  return load_tokenizer(beside.read(HERE)["tokenizer"], {length})


def tokenize(texts):
  """The ids of a list of texts, as `embed_texts` takes them."""
  return tokenizer()(texts)
''',
}


def export_stablehlo(
  model: Any,
  params: Mapping[str, Any],
  folder: str | os.PathLike,
  *,
  image_size: int,
  text_length: int,
  int8: bool = False,
  tokenize: str = "",
  platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> list[pathlib.Path]:
  """Writes both towers as programs, their weights apart, and a loader.

  The programs take `(weights, x)`: the weights they use, by name, and uint8
  pictures `(n, image_size, image_size, 3)` or int32 texts `(n, text_length)`;
  they return `(n, d)` float32, L2-normalised. Products keep the model's
  dtype, also bfloat16. `weights.npz` holds these weights in float32, or with
  `int8` as "NAME/int8" and "NAME/scale" (see `int8.quantise`), the logarithm
  "t" of the scale and the bias "b" where there is one.

  Args:
    model: anything with the contract of two towers.
    params: its parameters.
    folder: made if it is not there; each file in it appears whole.
    image_size: side of the pictures in pixels.
    text_length: tokens of a text.
    int8: whether matrices are stored as int8 and widened in the program.
    tokenize: of `TOKENIZE`, the package by which the loader makes ids of texts
      with the files that `carried` writes beside it; "" leaves that out.
    platforms: the programs run on, in jax's names.

  Returns:
    The files.

  Raises:
    ValueError: the model gives no `(n, d)` embeddings, or as it raises itself.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  params = jax.tree.map(_as_float32, params)
  inputs = {
    "image": (np.uint8, (image_size, image_size, 3)),
    "text": (np.int32, (text_length,)),
  }
  weights, files, width = {}, [], 0
  for tower, (dtype, shape) in inputs.items():
    function = _tower(model, tower)
    used = _used(function, params, jax.ShapeDtypeStruct((1, *shape), dtype))
    mine = {k: v for k, v in params_lib.flatten(params).items() if k in used}
    if int8:
      mine = params_lib.flatten(int8_lib.quantise(mine))
    (n,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, *shape), dtype)
    with _without_paths():
      program = jax.export.export(
        jax.jit(_program(function, params)), platforms=platforms
      )(jax.eval_shape(lambda mine=mine: mine), x)
    width = _width(model, tower, program.out_avals[0].shape)
    files.append(_write(folder / PROGRAMS[tower], bytes(program.serialize())))
    weights |= mine
  for name, value in _scale_and_bias(model, params, text_length).items():
    if name in weights:
      raise ValueError(
        f"the towers of a {type(model).__name__} use a parameter {name!r}; in"
        f" {WEIGHTS} that is the name of the scale or the bias: rename it."
      )
    weights[name] = value
  params_lib.save_npz(folder / WEIGHTS, weights)
  loader = _loader(tokenize, size=image_size, length=text_length, width=width)
  return [
    *files,
    folder / WEIGHTS,
    _write(folder / LOADER_FILE, loader.encode()),
  ]


def _loader(tokenize, **sizes):
  """The code of the loader."""
  names, needs = "embed_images, embed_texts", ""
  if tokenize:
    names, needs = f"{names}, tokenize", f"; `tokenize` needs {tokenize}"
  code = LOADER.format(names=names, needs=needs, **sizes)
  if not tokenize:
    return code.replace("import functools\n", "")
  return code + TOKENIZE[tokenize].format(**sizes)


def _as_float32(value):
  value = np.asarray(jax.device_get(value))
  floating = jnp.issubdtype(value.dtype, jnp.floating)
  return value.astype(np.float32) if floating else value


def _tower(model, tower):
  """`(params, x) -> (n, d)` float32 of one tower."""

  def embed(params, x):
    given = (x, None) if tower == "image" else (None, x)
    zimg, ztxt, _ = model.apply({"params": params}, *given)
    return (zimg if tower == "image" else ztxt).astype(jnp.float32)

  return embed


def _used(function, params, x):
  """Names of the parameters that a function's value depends on."""
  flat = params_lib.flatten(params)
  exported = jax.export.export(
    jax.jit(lambda flat, x: function(params_lib.unflatten(flat), x))
  )(jax.eval_shape(lambda: flat), x)
  # Of rows without a number jax keeps every argument. It sorts a dict's keys.
  names = sorted(flat)
  return {names[k] for k in exported.module_kept_var_idx if k < len(names)}


def _program(function, params):
  """`(weights, x) -> (n, d)`; weights as `weights.npz` has them."""
  # Flax asks for every parameter of a model; what is not used takes no place
  # in the program.
  blank = {
    k: np.broadcast_to(np.zeros((), v.dtype), v.shape)
    for k, v in params_lib.flatten(params).items()
  }

  def embed(weights, x):
    tree = int8_lib.dequantise(params_lib.unflatten(weights))
    flat = {**blank, **params_lib.flatten(tree)}
    return function(params_lib.unflatten(flat), x)

  return embed


@contextlib.contextmanager
def _without_paths():
  """Keeps the paths of source files on this machine out of a program."""
  name = "jax_traceback_in_locations_limit"
  before = jax.config.values[name]
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)


def _width(model, tower, shape):
  if len(shape) == 2:
    return shape[1]
  raise ValueError(
    f"the {tower} tower of a {type(model).__name__} gives an array of shape"
    f" {shape}; expected (n, d), one embedding for each: pool its tokens."
  )


def _scale_and_bias(model, params, text_length):
  """`{"t": log scale, "b": bias}`, `(1,)` float32; "b" if there is one."""

  @jax.jit  # Leaves out the tower itself.
  def wanted(params):
    text = jnp.zeros((1, text_length), jnp.int32)
    _, _, out = model.apply({"params": params}, None, text)
    t = out.get("t/parameter", jnp.log(out.get("t", jnp.ones(1))))
    return {"t": t, **{k: out[k] for k in ("b",) if k in out}}

  found = jax.device_get(wanted(params))
  return {k: v.reshape(1).astype(np.float32) for k, v in found.items()}


def _write(path, content):
  with whole(path) as part:
    part.write_bytes(content)
  return path
