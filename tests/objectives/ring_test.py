"""Losses block by block against the dense ones: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced import objectives
from aced.objectives import blocks

B = 64
DISTILLING = {
  "sigmoid": objectives.sigmoid_distillation,
  "softmax": objectives.softmax_distillation,
}


@pytest.fixture
def mesh():
  return jax.make_mesh(
    (4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )


def losses(mesh, kind, name, teacher, mask):
  """`(dense, ring)` functions of the student's embeddings."""
  forms = objectives.DENSE, objectives.ring_form(mesh)
  more = () if kind == "contrastive" else (teacher,)

  def bind(loss):
    return lambda student: loss(student, *more, mask)

  return [bind(getattr(form, kind)[name]) for form in forms]


@pytest.mark.parametrize("block", [2**24, 3 * B])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
@pytest.mark.parametrize("kind", ["contrastive", "distillation"])
def test_equal_to_the_dense_loss(
  mesh, make_embeddings, monkeypatch, kind, name, devices, masked, block
):
  monkeypatch.setattr(blocks, "BLOCK", block)
  student = make_embeddings(0, n=B, d=16, t=10.0, b=-5.0)
  student = student._replace(t=jnp.float32(10.0), b=jnp.float32(-5.0))
  teacher = make_embeddings(1, n=B, d=24, t=30.0, b=-12.0)
  mask = np.ones(B, bool)
  mask[[0, 9, 63]] = False
  mask = jnp.asarray(mask) if masked else None
  dense, ring = losses(
    mesh if devices == 8 else None, kind, name, teacher, mask
  )
  want, want_gradient = jax.jit(jax.value_and_grad(dense))(student)
  got, gradient = jax.jit(jax.value_and_grad(ring))(student)
  assert float(got) == pytest.approx(float(want), rel=1e-6)
  for key, a, b in zip(student._fields, want_gradient, gradient, strict=True):
    # Sums of 64 terms in another order. A softmax has no gradient by its bias.
    scale = np.abs(a).max() if (name, key) != ("softmax", "b") else 1.0
    np.testing.assert_allclose(b, a, rtol=0, atol=3e-6 * scale, err_msg=key)
  if masked:
    assert not np.asarray(gradient.zimg)[[0, 9, 63]].any()


def test_all_masked_is_zero(mesh, make_embeddings):
  student = make_embeddings(0, n=B, d=16)
  for kind in ("contrastive", "distillation"):
    for name in ("sigmoid", "softmax"):
      _, ring = losses(mesh, kind, name, student, jnp.zeros(B, bool))
      value, gradient = jax.jit(jax.value_and_grad(ring))(student)
      assert float(value) == 0.0
      assert not np.asarray(gradient.zimg).any()


def test_bfloat16_embeddings_keep_their_dtype(mesh, make_embeddings):
  student = make_embeddings(0, n=B, d=16, dtype=jnp.bfloat16)
  dense, ring = losses(mesh, "contrastive", "sigmoid", None, None)
  want, got = jax.grad(dense)(student), jax.grad(ring)(student)
  assert got.zimg.dtype == jnp.bfloat16
  # One rounding to 8 bits at the end, of sums that are equal to 1e-6.
  np.testing.assert_allclose(
    np.asarray(got.zimg, np.float32),
    np.asarray(want.zimg, np.float32),
    rtol=2**-7,
    atol=1e-6,
  )


def test_memory_does_not_grow_with_the_devices_round_the_ring(make_embeddings):
  """Twice the devices with as many rows each: the same temporaries."""
  sizes = []
  for devices in (4, 8):
    mesh = jax.make_mesh(
      (devices,),
      ("data",),
      axis_types=(jax.sharding.AxisType.Auto,),
      devices=jax.devices()[:devices],
    )
    student = make_embeddings(0, n=128 * devices, d=16)
    where = jax.NamedSharding(mesh, jax.P("data"))
    student = student._replace(
      zimg=jax.device_put(student.zimg, where),
      ztxt=jax.device_put(student.ztxt, where),
    )
    loss = objectives.ring_form(mesh).contrastive["sigmoid"]
    compiled = jax.jit(jax.grad(loss)).lower(student).compile()
    sizes.append(compiled.memory_analysis().temp_size_in_bytes)
  # A few numbers for each device are told to all.
  assert sizes[1] < 1.05 * sizes[0]


def test_the_logits_are_never_whole(make_embeddings, monkeypatch):
  """On one device, in parts of 32 columns of 512."""
  monkeypatch.setattr(blocks, "BLOCK", 512 * 32)
  student = make_embeddings(0, n=512, d=16)
  peak = {}
  for name, form in (
    ("dense", objectives.DENSE),
    ("ring", objectives.ring_form(None)),
  ):
    loss = form.contrastive["sigmoid"]
    compiled = jax.jit(jax.grad(loss)).lower(student).compile()
    peak[name] = compiled.memory_analysis().temp_size_in_bytes
  assert peak["dense"] > 4 * 512 * 512
  assert peak["ring"] < peak["dense"] / 4


def test_blocks_are_small_and_no_smaller_than_they_must_be():
  assert blocks.parts_of(4096, 4096) == (1, 4096)
  assert blocks.parts_of(32_768, 32_768) == (64, 512)
  assert blocks.parts_of(2**25, 6) == (6, 1)
  assert blocks.parts_of(32_771, 32_771) == (65, 505)  # A prime; padded.


def test_a_batch_and_a_mesh_that_do_not_fit_are_refused(mesh, make_embeddings):
  loss = objectives.ring_form(mesh).contrastive["softmax"]
  with pytest.raises(ValueError, match="batch of 12 pairs does not divide"):
    loss(make_embeddings(0, n=12, d=8))
  explicit = jax.make_mesh((8,), ("x",))
  loss = objectives.ring_form(explicit).contrastive["sigmoid"]
  with pytest.raises(ValueError, match="expected Auto: make it with"):
    loss(make_embeddings(0, n=16, d=8))
