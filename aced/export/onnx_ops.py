"""Nodes of an ONNX graph, and the layers of the towers made of them.

Every layer takes the graph, its input, its parameters and its name: that in
the tree of parameters, by which its nodes and weights go in the file as well.
Values are named by strings. Rows are the first axis, of no fixed length.
"""

import collections
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from aced.export import int8 as int8_lib

OPSET = 20  # The first with Gelu; LayerNormalization came with 17.
FLOAT = 1  # Of onnx.TensorProto.
INLINE = 1024  # Bytes of a constant that stays in the graph: shapes and such.
PAGE = 4096  # Bytes; values that begin on one can be mapped into memory.
KEEP = 0  # In the shape of a Reshape: as long as the input is there.


def package() -> Any:
  """The package `onnx`, imported only when it is needed.

  Raises:
    ImportError: it is not installed, naming the extra that has it.
  """
  try:
    import onnx
  except ImportError as error:
    raise ImportError(
      "exporting to ONNX needs the package onnx: pip install -e '.[onnx]'."
    ) from error
  return onnx


class Graph:
  """The nodes and constants of a graph as it grows.

  Attributes:
    nodes: of ONNX, in the order of computation.
    constants: name -> array, the weights among them.
  """

  def __init__(self):
    self.nodes: list[Any] = []
    self.constants: dict[str, np.ndarray] = {}
    self._onnx = package()
    self._counts = collections.Counter()
    self._small: dict[Any, str] = {}

  def add(
    self,
    op: str,
    name: str,
    *inputs: str,
    output: str | None = None,
    **attributes: Any,
  ) -> str:
    """Adds a node of one output and returns the output's name.

    Args:
      op: of ONNX.
      name: of the module that the node is part of.
      *inputs: names of values.
      output: its name, if it must have a certain one.
      **attributes: of the node.
    """
    output = output or self._unique(f"{name}/{op}")
    self.nodes.append(
      self._onnx.helper.make_node(
        op, list(inputs), [output], name=output, **attributes
      )
    )
    return output

  def constant(self, name: str, value: np.ndarray) -> str:
    """Adds a constant and returns its name."""
    name = self._unique(name)
    self.constants[name] = np.asarray(value, order="C")
    return name

  def number(self, value: float) -> str:
    """A float32 scalar, stored once."""
    key = ("number", value)
    if key not in self._small:
      self._small[key] = self.constant(str(value), np.array(value, np.float32))
    return self._small[key]

  def integers(self, *values: int) -> str:
    """A list of int64 such as a shape, stored once."""
    if values not in self._small:
      name = "x".join(map(str, values))
      self._small[values] = self.constant(name, np.array(values, np.int64))
    return self._small[values]

  def reshape(self, name: str, x: str, *shape: int) -> str:
    """Reshapes; a side can be `KEEP`, one can be -1."""
    return self.add("Reshape", name, x, self.integers(*shape))

  def weight(self, name: str, leaf: Any, shape: tuple, order=None) -> str:
    """A weight in float32; of int8 it is widened by the graph.

    Args:
      name: of the constant.
      leaf: an array, or what `int8.quantise` makes of one.
      shape: the weight is brought to, channels last.
      order: of its axes afterwards; as they are if None.
    """

    def arranged(value, shape):
      value = np.asarray(value).reshape(shape)
      return value if order is None else value.transpose(order)

    if not int8_lib.is_quantised(leaf):
      return self.constant(name, arranged(leaf, shape))
    axis = len(shape) - 1
    return self.add(
      "DequantizeLinear",
      name,
      self.constant(f"{name}/int8", arranged(leaf["int8"], shape)),
      self.constant(f"{name}/scale", np.reshape(leaf["scale"], -1)),
      axis=axis if order is None else order.index(axis),
    )

  def model(
    self,
    given: tuple[str, Any, tuple[int, ...]],
    output: tuple[str, int],
    name: str,
    beside: pathlib.Path | None = None,
  ) -> Any:
    """The graph as a model of ONNX.

    Args:
      given: name, dtype and shape of a row of the one input.
      output: name and width of the one output, float32.
      name: of the graph.
      beside: a file that weights are written to; into the model if None.
    """
    helper = self._onnx.helper
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(given[1]))
    graph = helper.make_graph(
      self.nodes,
      name,
      [helper.make_tensor_value_info(given[0], dtype, ("n", *given[2]))],
      [helper.make_tensor_value_info(output[0], FLOAT, ("n", output[1]))],
      self._tensors(beside),
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset])

  def _tensors(self, beside):
    """The constants as tensors of ONNX, which may have their values beside.

    The package's own way there holds all weights in one protobuf first, which
    is refused where one tensor has 2 GiB.
    """
    make = self._onnx.numpy_helper.from_array
    if beside is None:
      return [make(value, name) for name, value in self.constants.items()]
    tensors = []
    with beside.open("wb") as file:
      for name, value in self.constants.items():
        if value.nbytes <= INLINE:
          tensors.append(make(value, name))
          continue
        file.write(bytes(-file.tell() % PAGE))
        where = {"location": beside.name, "offset": file.tell()}
        value.tofile(file)
        tensors.append(self._pointer(name, value, where))
    return tensors

  def _pointer(self, name, value, where):
    """A tensor whose values are in another file."""
    tensor = self._onnx.TensorProto(
      name=name,
      dims=value.shape,
      data_type=self._onnx.helper.np_dtype_to_tensor_dtype(value.dtype),
      data_location=self._onnx.TensorProto.EXTERNAL,
    )
    for key, text in {**where, "length": value.nbytes}.items():
      tensor.external_data.add(key=key, value=str(text))
    return tensor

  def _unique(self, name):
    """The name, with a number behind it when it is taken."""
    self._counts[name] += 1
    count = self._counts[name]
    return name if count == 1 else f"{name}_{count}"


def dense(graph: Graph, x: str, params: Mapping, name: str, width: int) -> str:
  """A dense layer to `width`; axes of its kernel beside that are one."""
  kernel = graph.weight(f"{name}/kernel", params["kernel"], (-1, width))
  bias = graph.constant(f"{name}/bias", np.reshape(params["bias"], -1))
  return graph.add("Add", name, graph.add("MatMul", name, x, kernel), bias)


def layer_norm(
  graph: Graph, x: str, params: Mapping, name: str, eps: float
) -> str:
  """A layer norm over the last axis."""
  scale, bias = (
    graph.constant(f"{name}/{k}", params[k]) for k in ("scale", "bias")
  )
  return graph.add(
    "LayerNormalization", name, x, scale, bias, axis=-1, epsilon=float(eps)
  )


def activation(graph: Graph, x: str, name: str, kind: str) -> str:
  """An activation of `transformer.ACTIVATIONS`.

  Raises:
    ValueError: ONNX export knows no such one.
  """
  if kind in ("gelu_tanh", "gelu"):
    approximate = "tanh" if kind == "gelu_tanh" else "none"
    return graph.add("Gelu", name, x, approximate=approximate)
  if kind == "quick_gelu":
    gate = graph.add("Mul", name, x, graph.number(1.702))
    return graph.add("Mul", name, x, graph.add("Sigmoid", name, gate))
  raise ValueError(
    f"activation={kind!r} has no ONNX graph here; it is one of gelu_tanh, gelu"
    " and quick_gelu."
  )


def mlp(graph: Graph, x: str, params: Mapping, name: str, kind: str) -> str:
  """`transformer.MlpBlock`."""
  hidden, width = (params[f"Dense_{k}"]["bias"].size for k in (0, 1))
  x = dense(graph, x, params["Dense_0"], f"{name}/Dense_0", hidden)
  x = activation(graph, x, name, kind)
  return dense(graph, x, params["Dense_1"], f"{name}/Dense_1", width)


def attention(
  graph: Graph,
  query: str,
  memory: str,
  params: Mapping,
  name: str,
  mask: np.ndarray | None = None,
) -> str:
  """Multi-head attention of flax, with the softmax in float32.

  Args:
    graph: it is added to.
    query: `(n, l, d)`; `n` may be 1 for one query of all rows.
    memory: `(n, m, d)`.
    params: of the four dense layers.
    name: of the module.
    mask: `(l, m)` bool, True where a query sees; all if None.
  """
  heads, size = params["query"]["bias"].shape
  # Keys with their features first, so that no transpose is left.
  orders = {"query": (0, 2, 1, 3), "key": (0, 2, 3, 1), "value": (0, 2, 1, 3)}
  found = {}
  for part, order in orders.items():
    x = query if part == "query" else memory
    x = dense(graph, x, params[part], f"{name}/{part}", heads * size)
    x = graph.reshape(f"{name}/{part}", x, KEEP, KEEP, heads, size)
    found[part] = graph.add("Transpose", f"{name}/{part}", x, perm=order)
  scaled = graph.add(
    "Div", name, found["query"], graph.number(float(np.sqrt(size)))
  )
  logits = graph.add("MatMul", name, scaled, found["key"])
  if mask is not None:
    seen = graph.constant(f"{name}/mask", mask)
    lowest = graph.number(float(np.finfo(np.float32).min))
    logits = graph.add("Where", name, seen, logits, lowest)
  weights = graph.add("Softmax", name, logits, axis=-1)
  x = graph.add("MatMul", name, weights, found["value"])
  x = graph.add("Transpose", name, x, perm=(0, 2, 1, 3))
  x = graph.reshape(name, x, KEEP, KEEP, heads * size)
  width = params["out"]["bias"].size
  return dense(graph, x, params["out"], f"{name}/out", width)


def encoder(
  graph: Graph,
  x: str,
  params: Mapping,
  name: str,
  tower: Any,
  depth: int,
  mask: np.ndarray | None = None,
) -> str:
  """`transformer.Encoder`, its layers apart: the blocks and a layer norm.

  Args:
    graph: it is added to.
    x: `(n, l, d)`.
    params: its parameters.
    name: of the module.
    tower: whose `activation` and `norm_eps` it has.
    depth: number of blocks.
    mask: as `attention` takes it.
  """
  part = "MultiHeadDotProductAttention_0"
  for k in range(depth):
    block, at = params[f"encoderblock_{k}"], f"{name}/encoderblock_{k}"
    norms = [
      (block[f"LayerNorm_{j}"], f"{at}/LayerNorm_{j}", tower.norm_eps)
      for j in (0, 1)
    ]
    y = layer_norm(graph, x, *norms[0])
    y = attention(graph, y, y, block[part], f"{at}/{part}", mask)
    x = graph.add("Add", at, x, y)
    y = layer_norm(graph, x, *norms[1])
    y = mlp(graph, y, block["MlpBlock_0"], f"{at}/MlpBlock_0", tower.activation)
    x = graph.add("Add", at, x, y)
  at = f"{name}/encoder_norm"
  return layer_norm(graph, x, params["encoder_norm"], at, tower.norm_eps)


def map_head(
  graph: Graph, x: str, params: Mapping, name: str, tower: Any
) -> str:
  """`transformer.MAPHead`: `(n, l, d)` to `(n, d)`."""
  part = "MultiHeadDotProductAttention_0"
  probe = graph.constant(f"{name}/probe", params["probe"])
  x = attention(graph, probe, x, params[part], f"{name}/{part}")
  norm, at = params["LayerNorm_0"], f"{name}/LayerNorm_0"
  y = layer_norm(graph, x, norm, at, tower.norm_eps)
  at = f"{name}/MlpBlock_0"
  y = mlp(graph, y, params["MlpBlock_0"], at, tower.activation)
  x = graph.add("Add", name, x, y)
  return graph.add("Squeeze", name, x, graph.integers(1))
