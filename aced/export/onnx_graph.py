"""Both towers as ONNX files, which ONNX Runtime and many others run.

The graph is written node by node from the modules' fields, without a
converter. It computes what `TwoTowers` does without dropout.

Matrices of int8 go through DequantizeLinear, and a runtime may do with it as it
likes. ONNX Runtime 1.32 keeps them as they are, but rounds the activations of
their products to int8 too: an ACED-F1 of random weights took half the memory
of float32 and a fifth less time for pictures, at a cosine to float32 of at
least 0.9995. With its session option `session.qdq_matmulnbits_accuracy_level`
at "0" activations stay in float32 (0.9997, but 15% slower than float32).
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from aced import __version__
from aced.export import int8 as int8_lib
from aced.export import onnx_ops as ops
from aced.models import params as params_lib
from aced.models import transformer, variants, vit
from aced.models.build import towers
from aced.models.two_towers import TwoTowers

FILES = {"image": "image.onnx", "text": "text.onnx"}
INPUTS = {"image": "image", "text": "labels"}
OUTPUT = "embedding"
IR_VERSION = 9  # Of the same age as the opset, so that old runtimes read it.
# Weights beyond it lie in "FILE.data" beside: no protobuf has 2 GiB.
LARGEST_FILE = 2**31 - 2**24


def export_onnx(
  model: TwoTowers,
  params: Mapping[str, Any],
  folder: str | os.PathLike,
  *,
  image_size: int,
  text_length: int,
  int8: bool = False,
) -> list[pathlib.Path]:
  """Writes `image.onnx` and `text.onnx`.

  They take "image", uint8 `(n, image_size, image_size, 3)`, and "labels",
  int32 `(n, text_length)`, and give "embedding", `(n, d)` float32,
  L2-normalised; `n` is free. Everything is computed in float32, also where
  the model says dtype_mm="bfloat16". The metadata of each file has
  "image_size", "text_length" and what the log-odds `t * zimg @ ztxt + b` of a
  match need: "t", the scale itself, and "b", 0 for a model without a bias.

  Args:
    model: two towers that each give one embedding.
    params: its parameters, layers stacked or apart.
    folder: made if it is not there; each file in it appears whole.
    image_size: side of the pictures in pixels.
    text_length: tokens of a text.
    int8: whether matrices are stored as int8 (see `int8.quantise`) and widened
      by the graph.

  Returns:
    The files: of each tower one, or two where it has more than 2 GiB.

  Raises:
    ValueError: another kind of model, or one that leaves tokens unpooled.
    ParamsError: the parameters do not fit the model at these sizes.
    ImportError: the package onnx is not installed.
  """
  if not isinstance(model, TwoTowers):
    raise ValueError(
      f"a {type(model).__name__} cannot be exported to ONNX, where the graph of"
      " 'two_towers' alone is known; export it to StableHLO"
      " (aced.export.stablehlo), which takes any model."
    )
  found = towers(model)
  if found["image"].pool_type == "none":
    raise ValueError(
      "image.pool_type='none' leaves tokens and no embedding to export; ONNX"
      " export takes map, gap and tok."
    )
  ops.package()
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  params = _fitted(model, params, image_size, text_length)
  metadata = {
    "image_size": image_size,
    "text_length": text_length,
    "t": float(np.exp(params["t"][0])),
    "b": float(params["b"][0]) if "b" in params else 0.0,
  }
  if int8:
    params = int8_lib.quantise(params)
  image = _image_tower(found["image"], params["img"], image_size)
  files = _save(folder, "image", *image, metadata)
  text = _text_tower(found["text"], params["txt"], text_length)
  return files + _save(folder, "text", *text, metadata)


def _fitted(model, params, image_size, text_length):
  """The parameters as float32 on the host, layers apart."""
  like = jax.eval_shape(
    model.init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32),
    jax.ShapeDtypeStruct((1, text_length), np.int32),
  )
  params = jax.tree.map(np.asarray, jax.device_get(params))
  return params_lib.unstack_layers(params_lib.merge(params, like["params"]))


def _image_tower(tower, params, image_size):
  """The graph, its input `(dtype, shape)` and the width of its output."""
  graph, shape = ops.Graph(), variants.expand_image(tower)
  d, grid = shape.width, [image_size // side for side in shape.patch_size]
  length = grid[0] * grid[1]
  x = graph.add("Cast", "img", INPUTS["image"], to=ops.FLOAT)
  x = graph.add("Div", "img", x, graph.number(127.5))
  x = graph.add("Sub", "img", x, graph.number(1.0))
  x = _patches(graph, x, params["embedding"], shape)
  if tower.posemb == "learn":
    positions = params["pos_embedding"]
  else:
    positions = transformer.sincos2d_positions(*grid, d)
  positions = graph.constant("img/pos_embedding", positions)
  x = graph.add("Add", "img", x, positions)
  if tower.token_drop:
    kept = vit.kept_tokens(length, tower.token_drop).astype(np.int64)
    kept = graph.constant("img/kept_tokens", kept)
    x = graph.add("Gather", "img", x, kept, axis=1)
  if tower.pool_type == "tok":
    x = graph.add("Concat", "img", _class_token(graph, params, d), x, axis=1)
  if tower.pre_norm:
    norm = params["pre_norm"]
    x = ops.layer_norm(graph, x, norm, "img/pre_norm", tower.norm_eps)
  x = ops.encoder(
    graph,
    x,
    params["Transformer"],
    "img/Transformer",
    tower,
    shape.depth,
  )
  x = _pool(graph, x, params, "img", tower)
  pixels = (image_size, image_size, 3)
  return graph, (np.uint8, pixels), _finish(graph, x, params, "img", tower, d)


def _text_tower(tower, params, text_length):
  """As `_image_tower`."""
  graph, shape = ops.Graph(), variants.expand_text(tower)
  x = _embed_tokens(graph, params["Embed_0"]["embedding"])
  positions = graph.constant("txt/pos_embedding", params["pos_embedding"])
  x = graph.add("Add", "txt", x, positions)
  x = ops.encoder(
    graph,
    x,
    params["Encoder_0"],
    "txt/Encoder_0",
    tower,
    shape.depth,
    mask=np.tri(text_length, dtype=bool) if tower.causal else None,
  )
  x = _pool(graph, x, params, "txt", tower)
  width = _finish(graph, x, params, "txt", tower, shape.width)
  return graph, (np.int32, (text_length,)), width


def _patches(graph, x, params, shape):
  """Pictures `(n, h, w, 3)` to patches `(n, l, d)`."""
  name, d = "img/embedding", shape.width
  # Pictures and kernel get their channels first, as ONNX has them.
  x = graph.add("Transpose", name, x, perm=(0, 3, 1, 2))
  kernel = graph.weight(
    f"{name}/kernel", params["kernel"], (*shape.patch_size, 3, d), (3, 2, 0, 1)
  )
  bias = graph.constant(f"{name}/bias", params["bias"])
  x = graph.add("Conv", name, x, kernel, bias, strides=shape.patch_size)
  x = graph.reshape(name, x, ops.KEEP, d, -1)
  return graph.add("Transpose", name, x, perm=(0, 2, 1))


def _class_token(graph, params, d):
  """The class token `(n, 1, d)`, for as many rows as there are pictures."""
  token = graph.constant("img/cls", params["cls"])
  rows = graph.add("Shape", "img/cls", INPUTS["image"], start=0, end=1)
  rest = graph.integers(1, d)
  shape = graph.add("Concat", "img/cls", rows, rest, axis=0)
  return graph.add("Expand", "img/cls", token, shape)


def _embed_tokens(graph, table):
  """Ids `(n, l)` to embeddings `(n, l, d)`; of int8, rows are widened alone."""
  name, ids = "txt/Embed_0", INPUTS["text"]
  if not int8_lib.is_quantised(table):
    table = graph.constant(f"{name}/embedding", table)
    return graph.add("Gather", name, table, ids)
  rows, scales = (
    graph.add("Gather", name, graph.constant(f"{name}/{k}", table[k]), ids)
    for k in ("int8", "scale")
  )
  return graph.add(
    "Mul", name, graph.add("Cast", name, rows, to=ops.FLOAT), scales
  )


def _pool(graph, x, params, name, tower):
  """Tokens `(n, l, d)` to `(n, d)`."""
  kind = tower.pool_type
  if kind == "map":
    at = f"{name}/MAPHead_0"
    return ops.map_head(graph, x, params["MAPHead_0"], at, tower)
  if kind == "gap":
    axes = graph.integers(1)
    return graph.add("ReduceMean", name, x, axes, keepdims=0)
  if kind == "argmax":
    ids = INPUTS["text"]
    place = graph.add("ArgMax", name, ids, axis=1, keepdims=1)  # The first.
    return graph.add("GatherND", name, x, place, batch_dims=1)
  place = {"tok": 0, "first": 0, "last": -1}[kind]
  place = graph.constant(f"{name}/place", np.array(place, np.int64))
  return graph.add("Gather", name, x, place, axis=1)


def _finish(graph, x, params, name, tower, width):
  """The head, if there is one, and the norm; returns the output's width."""
  if tower.num_classes:
    width = tower.num_classes
    x = ops.dense(graph, x, params["head"], f"{name}/head", width)
  norm = graph.add("ReduceL2", name, x, graph.integers(1), keepdims=1)
  norm = graph.add("Add", name, norm, graph.number(1e-8))
  graph.add("Div", name, x, norm, output=OUTPUT)
  return width


def _save(folder, tower, graph, given, width, metadata):
  """Writes the file of a tower, and that of its weights if it is large."""
  onnx, name = ops.package(), FILES[tower]
  large = sum(x.nbytes for x in graph.constants.values()) > LARGEST_FILE
  with _beside(folder, name) as part:
    proto = graph.model(
      (INPUTS[tower], *given),
      (OUTPUT, width),
      tower,
      part / f"{name}.data" if large else None,
    )
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = "aced", __version__
    onnx.helper.set_model_props(
      proto, {k: str(value) for k, value in metadata.items()}
    )
    onnx.save_model(proto, part / name)
    # By its path, as a model of more than 2 GiB cannot be checked otherwise.
    onnx.checker.check_model(str(part / name), full_check=True)
    # The weights first: a graph that is there can be run.
    names = sorted((path.name for path in part.iterdir()), reverse=True)
    for each in names:
      os.replace(part / each, folder / each)
  return sorted(folder / each for each in names)


@contextlib.contextmanager
def _beside(folder, name):
  """A folder for files on their way to this one."""
  part = folder / f".{name}.part-{os.getpid()}"
  part.mkdir()
  try:
    yield part
  finally:
    shutil.rmtree(part)
