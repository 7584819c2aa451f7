"""Costs of programs against hand counts, XLA's own, and real HLO."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from aced.training import program

M, K, N = 6, 10, 14
DOT = 2 * M * K * N


def flops(function, *shapes):
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return program.flops(jax.jit(function).trace(*args).jaxpr)


def make_mesh(shape=(8,), names=("data",)):
  return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


def total(function):
  """A scalar that no product of the backward pass is linear in."""
  return lambda *args: jnp.sum(function(*args) ** 2)


@pytest.mark.parametrize("precision", [None, "highest"])
def test_a_product_counts_once_at_any_precision(precision):
  dot = functools.partial(jnp.dot, precision=precision)
  assert flops(dot, (M, K), (K, N)) == DOT


def test_batched_and_ragged_products():
  batched = functools.partial(jnp.einsum, "bhmk,bhkn->bmhn")
  assert flops(batched, (2, 3, M, K), (2, 3, K, N)) == 2 * 3 * DOT

  def ragged(x, w):
    return jax.lax.ragged_dot(x, w, jnp.array([2, 1, 3]))

  assert flops(ragged, (M, K), (3, K, N)) == DOT
  both = jax.grad(total(ragged), argnums=(0, 1))
  assert flops(both, (M, K), (3, K, N)) == 3 * DOT


def convolve(image, kernel, stride=1, padding="VALID", groups=1):
  return jax.lax.conv_general_dilated(
    *(image, kernel, (stride, stride), padding),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def test_patch_embedding():
  """Patches of 4 x 4 x 3 of a 12 x 8 image: 3 x 2 of them, to 5 features."""
  embed = functools.partial(convolve, stride=4)
  shapes = (2, 12, 8, 3), (4, 4, 3, 5)
  by_hand = 2 * (2 * 3 * 2) * (4 * 4 * 3) * 5
  assert flops(embed, *shapes) == by_hand
  both = jax.grad(total(embed), argnums=(0, 1))
  assert flops(both, *shapes) == 3 * by_hand


def test_convolution_leaves_out_padding_and_holes():
  """Of 3 taps at 5 places, 2 read padding: 13 a side. At stride 2, 7."""
  shapes = (1, 5, 5, 4), (3, 3, 2, 6)
  for stride, pairs in (1, 13), (2, 7):
    same = functools.partial(convolve, stride=stride, padding="SAME", groups=2)
    by_hand = 2 * pairs**2 * 2 * 6
    assert flops(same, *shapes) == by_hand
    both = jax.grad(total(same), argnums=(0, 1))
    assert flops(both, *shapes) == 3 * by_hand


def test_scans_multiply_and_a_while_counts_once():
  def layers(x, ws):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

  def nested(x, ws):
    return jax.lax.scan(lambda x, _: (layers(x, ws), None), x, length=3)[0]

  square = 2 * M * K * K
  assert flops(layers, (M, K), (5, K, K)) == 5 * square
  assert flops(nested, (M, K), (5, K, K)) == 15 * square

  def until(x, w):
    return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ w, x)

  assert flops(until, (M, K), (K, K)) == square


def test_a_conditional_costs_its_most_expensive_branch():
  def function(x, w):
    branches = [lambda x: x, lambda x: x @ w, lambda x: x @ w @ w]
    return jax.lax.switch(x[0, 0].astype(int), branches, x)

  assert flops(function, (M, K), (K, K)) == 2 * 2 * M * K * K


def test_a_backward_pass_costs_a_product_for_each_gradient():
  assert flops(jax.grad(total(jnp.dot), 1), (M, K), (K, N)) == 2 * DOT
  assert flops(jax.grad(total(jnp.dot), (0, 1)), (M, K), (K, N)) == 3 * DOT


def test_rematerialisation_pays_the_forward_pass_again():
  def block(x, v, w):
    return jnp.tanh(jnp.tanh(x @ v) @ w)

  shapes = (M, K), (K, N), (N, K)
  assert flops(block, *shapes) == 2 * DOT
  gradients = functools.partial(jax.grad, argnums=(0, 1, 2))
  assert flops(gradients(total(block)), *shapes) == 6 * DOT
  again = gradients(total(jax.checkpoint(block)))
  assert flops(again, *shapes) == 8 * DOT


def test_custom_derivatives_are_entered():
  @jax.custom_vjp
  def vjp(x, w):
    return x @ w

  vjp.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[1]))

  @jax.custom_jvp
  def jvp(x, w):
    return x @ w

  jvp.defjvps(lambda dx, _, x, w: dx @ w, lambda dw, _, x, w: x @ dw)
  assert flops(vjp, (M, K), (K, N)) == flops(jvp, (M, K), (K, N)) == DOT
  assert flops(jax.grad(total(vjp)), (M, K), (K, N)) == 2 * DOT


def test_shard_map_counts_every_device_of_its_axes():
  """Sharded rows cost what the whole does; what is replicated, 8 times."""
  mesh = make_mesh((4, 2), ("data", "model"))

  def count(rows, axes):
    specs = {"in_specs": (rows, P()), "out_specs": rows}
    mapped = jax.shard_map(jnp.dot, mesh=mesh, axis_names=axes, **specs)
    return flops(mapped, (8 * M, K), (K, N))

  both = {"data", "model"}
  assert count(P(("data", "model")), both) == 8 * DOT
  assert count(P("data"), {"data"}) == 8 * DOT
  assert count(P(), both) == 8 * 8 * DOT

  def inner(x, w):
    specs = {"in_specs": (P("model"), P()), "out_specs": P("model")}
    return jax.shard_map(jnp.dot, axis_names={"model"}, **specs)(x, w)

  specs = {"in_specs": (P("data"), P()), "out_specs": P("data")}
  nested = jax.shard_map(inner, mesh=mesh, axis_names={"data"}, **specs)
  assert flops(nested, (8 * M, K), (K, N)) == 8 * DOT


def test_a_kernel_counts_every_cell_of_its_grid():
  def kernel(x, w, out):
    out[...] = x[...] @ w[...]

  call = pl.pallas_call(
    kernel,
    grid=(4, 2),
    in_specs=[
      pl.BlockSpec((M, K), lambda i, j: (i, 0)),
      pl.BlockSpec((K, N), lambda i, j: (0, j)),
    ],
    out_specs=pl.BlockSpec((M, N), lambda i, j: (i, j)),
    out_shape=jax.ShapeDtypeStruct((4 * M, 2 * N), jnp.float32),
  )
  assert flops(call, (4 * M, K), (K, 2 * N)) == 8 * DOT


def flops_by_xla(function, *shapes):
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_xla_counts_a_product_the_same(stride):
  dot = functools.partial(jnp.einsum, "bhmk,bhkn->bmhn")
  same = functools.partial(convolve, stride=stride, padding="SAME")
  for function, *shapes in (
    (dot, (2, 3, M, K), (2, 3, K, N)),
    (same, (2, 5, 7, 4), (3, 3, 4, 6)),
  ):
    assert flops(function, *shapes) == flops_by_xla(function, *shapes)


def test_xla_counts_a_step_without_loops_the_same():
  """But for what is not a product, which is below 1% at these widths."""

  def model(image, kernel, v, w):
    patches = convolve(image, kernel, stride=4, padding="SAME")
    hidden = patches.reshape(-1, kernel.shape[-1])
    return jax.nn.relu(hidden @ v) @ w

  step = jax.grad(total(model), argnums=(1, 2, 3))
  shapes = (4, 30, 30, 3), (8, 8, 3, 256), (256, 512), (512, 256)
  assert 1 <= flops_by_xla(step, *shapes) / flops(step, *shapes) < 1.01


LOCAL = (16, 32)  # The shape of a device's part.
SIZE = 4 * math.prod(LOCAL)
ROUND = [(i, (i + 1) % 8) for i in range(8)]


def compiled(body):
  """The collectives of a function of its part of an array on 8 devices."""
  mapped = jax.shard_map(
    body,
    mesh=make_mesh(),
    in_specs=P("data"),
    out_specs=P("data"),
    check_vma=False,
  )
  array = jax.ShapeDtypeStruct((8 * LOCAL[0], LOCAL[1]), jnp.float32)
  return program.collectives(jax.jit(mapped).lower(array).compile().as_text())


@pytest.mark.parametrize(
  ("kind", "size", "collective", "how"),
  [
    ("all-reduce", SIZE, jax.lax.psum, {}),
    ("all-gather", 8 * SIZE, jax.lax.all_gather, {}),
    ("reduce-scatter", SIZE, jax.lax.psum_scatter, {"tiled": True}),
    ("collective-permute", SIZE, jax.lax.ppermute, {"perm": ROUND}),
    (
      "all-to-all",
      SIZE,
      jax.lax.all_to_all,
      {"split_axis": 0, "concat_axis": 0, "tiled": True},
    ),
  ],
)
def test_each_collective(kind, size, collective, how):
  costs = compiled(lambda x: collective(x, "data", **how))
  assert costs == {kind: program.Collective(1, size)}


def test_a_collective_in_a_scan_counts_every_turn():
  def body(x):
    def turn(x, _):
      return jnp.tanh(jax.lax.ppermute(x, "data", ROUND)), None

    def outer(x, _):
      x = jax.lax.scan(turn, x, length=5)[0]
      return jax.lax.psum(x, "data"), None

    return jax.lax.scan(outer, x, length=3)[0]

  assert compiled(body) == {
    "collective-permute": program.Collective(15, 15 * SIZE),
    "all-reduce": program.Collective(3, 3 * SIZE),
  }


def test_a_loop_of_unknown_length_counts_once():
  def body(x):
    return jax.lax.while_loop(
      lambda x: jnp.sum(x) < 9.0, lambda x: jax.lax.psum(x, "data"), x
    )

  assert compiled(body) == {"all-reduce": program.Collective(1, SIZE)}


def test_of_a_conditional_the_branch_that_moves_most_counts():
  def gather(x):
    return jnp.sum(jax.lax.all_gather(x, "data"), 0)

  def reduce(x):
    return jax.lax.psum(x, "data")

  def body(x):
    return jax.lax.cond(reduce(x[0, 0]) > 0, gather, reduce, x)

  assert compiled(body) == {
    "all-reduce": program.Collective(1, 4),
    "all-gather": program.Collective(1, 8 * SIZE),
  }


def module(*lines, shape="f32[8]{0}"):
  return "\n".join(
    [f"ENTRY %main (p: {shape}) -> {shape} {{"]
    + [f"  %p = {shape} parameter(0)", *(f"  {x}" for x in lines), "}"]
  )


@pytest.mark.parametrize(
  ("shape", "size"),
  [
    ("bf16[128,768]{1,0:T(8,128)(2,1)S(1)}", 2 * 128 * 768),
    ("f32[]{:T(128)}", 4),
    ("pred[3,5]{1,0}", 15),
    ("s4[7]{0:E(4)}", 4),
    ("u4[2,4]{1,0}", 4),
    ("f8e4m3fn[9]{0}", 9),
    ("f8e5m2[9]{0}", 9),
    ("c64[2]{0}", 16),
    ("(f32[8]{0}, /*index=1*/u8[8]{0:T(8)}, token[])", 40),
  ],
)
def test_shapes(shape, size):
  line = f"ROOT %x = {shape} all-to-all(%p), channel_id=1, dimensions={{0}}"
  costs = program.collectives(module(line, shape=shape))
  assert costs == {"all-to-all": program.Collective(1, size)}


@pytest.mark.parametrize(
  ("kind", "shape", "size"),
  [
    ("all-reduce", "f32[8]{0}", 32),
    (
      "all-gather",
      "((f32[8]{0}, s8[2]{0}), (f32[64]{0:T(8,128)}, s8[16]{0}))",
      4 * 64 + 16,
    ),
    ("reduce-scatter", "((f32[8]{0}), f32[1]{0}, u32[]{:S(2)})", 32),
    ("collective-permute", "(f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[])", 32),
    ("ragged-all-to-all", "((f32[8]{0}), f32[16]{0}, u32[])", 64),
  ],
)
def test_asynchronous_collectives_count_at_their_start(kind, shape, size):
  costs = program.collectives(
    module(
      f"%x = {shape} {kind}-start(%p), channel_id=1",
      f"ROOT %y = f32[8]{{0}} {kind}-done(%x)",
    )
  )
  assert costs == {kind: program.Collective(1, size)}


# What libtpu prints for v5e, v6e and v7x, cut to what matters: in a scan of 12
# layers a ring of 4 steps by twos, a gather whose start, overlapped step and
# end each repeat it, and a reduce-scatter; beside it a gather on SparseCore.
GATHER = """WHOLE all-gather(%x), channel_id=3, dimensions={0}, \
replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, \
frontend_attributes={chain_id="0"}, backend_config={"flag_configs":[],\
"async_collective_fusion_config":{"flag_start":"FLAG","flag_end":"FLAG"}}"""
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=4

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[]{:T(256)} parameter(0)
  %b = bf16[]{:T(256)} parameter(1)
  ROOT %sum = bf16[]{:T(256)} add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[8,16]) -> bf16[2,16] {
  %input = WHOLE parameter(0)
  %all-reduce.9 = WHOLE all-reduce(%input), channel_id=1, \
replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = SHARD dynamic-slice(%all-reduce.9), dynamic_slice_sizes={2,16}
}

%fused_computation.1 (x: bf16[2,16]) -> (bf16[2,16], bf16[8,16], u32[]) {
  %x = SHARD parameter(0)
  %all-gather.1 = GATHER_START
  ROOT %c = (SHARD, WHOLE, u32[]{:S(2)}) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (x: bf16[2,16]) -> bf16[8,16] {
  %x = SHARD parameter(0)
  ROOT %all-gather.2 = GATHER_AGAIN
}

%fused_computation.3 (x: bf16[2,16]) -> bf16[8,16] {
  %x = SHARD parameter(0)
  %all-gather.3 = GATHER_AGAIN
  ROOT %d = WHOLE custom-call(%all-gather.3), \
custom_call_target="AsyncCollectiveDone"
}

%windowed_body.sunk (ring: (bf16[2,16], u32[])) -> (bf16[2,16], u32[]) {
  %two..sunk = u32[]{:T(128)} constant(2)
  %ring = (SHARD, u32[]{:T(128)}) parameter(0)
  %x = SHARD get-tuple-element(%ring), index=0
  %i = u32[]{:T(128)} get-tuple-element(%ring), index=1
  %collective-permute-start.1 = (SHARD, SHARD, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%x), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %next = u32[]{:T(128)} add(%i, %two..sunk), metadata={op_name="add"}
  %collective-permute-done.1 = SHARD \
collective-permute-done(%collective-permute-start.1)
  ROOT %t = (SHARD, u32[]{:T(128)}) tuple(%collective-permute-done.1, %next)
}

%windowed_cond (ring: (bf16[2,16], u32[])) -> pred[] {
  %four = u32[]{:T(128)} constant(4)
  %ring = (SHARD, u32[]{:T(128)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%ring), index=1
  ROOT %lt = pred[]{:T(512)} compare(%i, %four), direction=LT
}

%wide.layer.sunk (wide: (s32[], bf16[2,16])) -> (s32[], bf16[2,16]) {
  %one..sunk = s32[]{:T(128)} constant(1)
  %zero = u32[]{:T(128)} constant(0)
  %wide = (s32[]{:T(128)}, SHARD) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%wide), index=0
  %copy.6 = s32[]{:T(128)S(6)} copy(%n)
  %next = s32[]{:T(128)} add(%copy.6, %one..sunk)
  %x = SHARD get-tuple-element(%wide), index=1
  %t = (SHARD, u32[]{:T(128)}) tuple(%x, %zero)
  %while.1 = (SHARD, u32[]{:T(128)}) while(%t), condition=%windowed_cond, \
body=%windowed_body.sunk, metadata={op_name="jit(step)/while/dot_general"}
  %async-collective-start = (SHARD, WHOLE, u32[]{:S(2)}) fusion(%x), \
kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, \
calls=%fused_computation.1
  %fusion.7 = WHOLE fusion(%x), kind=kOutput, calls=%async_collective_fusion.2
  %async-collective-done = WHOLE fusion(%x), kind=kCustom, \
calls=%fused_computation.3
  %fusion.8 = SHARD fusion(%async-collective-done), kind=kCustom, \
calls=%all-reduce-scatter.1
  ROOT %tuple.2 = (s32[]{:T(128)}, SHARD) tuple(%next, %fusion.8)
}

%wide.cond (wide: (s32[], bf16[2,16])) -> pred[] {
  %twelve = s32[]{:T(128)} constant(12)
  %wide = (s32[]{:T(128)}, SHARD) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%wide), index=0
  ROOT %lt = pred[]{:T(512)} compare(%n, %twelve), direction=LT
}

%called_computation (q: bf16[2,16], token: token[]) -> bf16[8,16] {
  %token = token[] parameter(1)
  %q = SHARD parameter(0)
  ROOT %all-gather.4 = WHOLE all-gather(%q), channel_id=2, dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main.6_spmd (param: bf16[2,16]) -> bf16[2,16] {
  %param = SHARD parameter(0)
  %none = s32[]{:T(128)} constant(0)
  %copy.3 = s32[]{:T(128)} copy(%none)
  %token = token[] custom-call(), custom_call_target="PrepareAsyncCallDone"
  %all-gather.cloned.call-start = ((SHARD, token[]), WHOLE) \
call-start(%param, %token), async_execution_thread="sparsecore", \
to_apply=%called_computation
  %all-gather.cloned.call-done = WHOLE call-done(%all-gather.cloned.call-start)
  %tuple.1 = (s32[]{:T(128)}, SHARD) tuple(%copy.3, %param)
  %while.2 = (s32[]{:T(128)}, SHARD) while(%tuple.1), condition=%wide.cond, \
body=%wide.layer.sunk, metadata={op_name="jit(step)/while"}
  ROOT %out = SHARD get-tuple-element(%while.2), index=1
}
"""


@pytest.fixture
def tpu_hlo():
  text = TPU.replace("GATHER_START", GATHER.replace("FLAG", "-1"))
  text = text.replace("GATHER_AGAIN", GATHER.replace("FLAG", "2"))
  text = text.replace("SHARD", "bf16[2,16]{1,0:T(8,128)(2,1)S(1)}")
  return text.replace("WHOLE", "bf16[8,16]{1,0:T(8,128)(2,1)}")


def test_tpu(tpu_hlo):
  shard = 2 * 2 * 16
  assert program.collectives(tpu_hlo) == {
    "collective-permute": program.Collective(12 * 2, 24 * shard),
    "all-gather": program.Collective(12 + 1, 13 * 4 * shard),
    "reduce-scatter": program.Collective(12, 12 * 4 * shard),
  }


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("constant(12)", "parameter(1)"),
    ("%none = s32[]{:T(128)} constant(0)", "%none = s32[] parameter(1)"),
    ("add(%copy.6, %one..sunk)", "multiply(%copy.6, %one..sunk)"),
    ("add(%copy.6, %one..sunk)", "add(%zero, %one..sunk)"),
    ("%n, %twelve), direction=LT", "%n, %twelve), direction=NE"),
  ],
)
def test_a_tpu_loop_without_a_constant_counter_counts_once(tpu_hlo, old, new):
  costs = program.collectives(tpu_hlo.replace(old, new))
  assert costs["collective-permute"].count == 2
  assert costs["reduce-scatter"].count == 1
