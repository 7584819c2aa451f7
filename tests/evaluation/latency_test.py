"""Latencies are medians of compiled passes of one tower each."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.evaluation import latency as module
from aced.evaluation.latency import latency
from aced.models import build
from aced.training import sharding

SIZE, LENGTH = 8, 5


class Model:
  """The contract of a model; notes what it was traced with."""

  def __init__(self):
    self.traced = []

  def apply(self, variables, image, text, train):
    assert not train
    p = variables["params"]["p"]
    self.traced.append(
      tuple(x if x is None else (x.shape, x.dtype.name) for x in (image, text))
    )
    zimg = None if image is None else image.mean((1, 2)) * p
    ztxt = None if text is None else text * p
    return zimg, ztxt, {"t": 1.0}


def params():
  return {"p": np.float32(2.0)}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_tower_is_traced_once_and_alone(batch_size):
  model = Model()
  got = latency(model, params(), SIZE, LENGTH, batch_size=batch_size, repeats=4)
  # As batches have them.
  picture = ((batch_size, SIZE, SIZE, 3), "uint8")
  tokens = ((batch_size, LENGTH), "int32")
  assert model.traced == [(picture, None), (None, tokens)]
  assert set(got) == {"image_ms", "text_ms", "batch_size", "repeats"}
  assert got["image_ms"] > 0 and got["text_ms"] > 0
  assert (got["batch_size"], got["repeats"]) == (batch_size, 4)
  assert all(type(value) in (int, float) for value in got.values())


def test_each_tower_is_compiled_once(monkeypatch):
  compiled = []
  compile_lowered = jax.stages.Lowered.compile

  def noted(self, *args, **kwargs):
    compiled.append(self)
    return compile_lowered(self, *args, **kwargs)

  monkeypatch.setattr(jax.stages.Lowered, "compile", noted)
  latency(Model(), params(), SIZE, LENGTH, repeats=7)
  assert len(compiled) == 2


class Passes:
  """A clock, and compiled passes that take known milliseconds by it."""

  def __init__(self, taken):
    self.now, self.taken, self.waited = 0.0, iter(taken), 0

  def perf_counter(self):
    return self.now

  def __call__(self, params, rows):
    return self

  def block_until_ready(self):
    self.now += next(self.taken) / 1e3
    self.waited += 1


def test_median_of_the_passes_after_a_first_one(monkeypatch):
  # The first pass of each tower is slow, and is none of those that count.
  image, text = [1e6, 5.0, 1.0, 2.0, 900.0], [1e6, 0.5, 0.25, 0.125, 0.0625]
  clock = Passes(image + text)
  monkeypatch.setattr(module, "time", clock)
  stage = types.SimpleNamespace(compile=lambda: clock)
  jitted = types.SimpleNamespace(lower=lambda *args: stage)
  monkeypatch.setattr(module.jax, "jit", lambda function: jitted)
  got = latency(Model(), params(), SIZE, LENGTH, repeats=4)
  # Differences of seconds near 2,000, with an error of 1e-13 each.
  assert got["image_ms"] == pytest.approx(3.5, abs=1e-6)
  assert got["text_ms"] == pytest.approx(0.1875, abs=1e-6)
  assert clock.waited == 10


def test_a_slower_tower_takes_longer():
  class Slow(Model):
    def apply(self, variables, image, text, train):
      zimg, ztxt, out = super().apply(variables, image, text, train)
      if image is not None:
        x = jnp.ones((200, 200)) + zimg.sum()
        for _ in range(10):
          x = jnp.tanh(x @ x)
        zimg = zimg + x.mean()
      return zimg, ztxt, out

  got = latency(Slow(), params(), SIZE, LENGTH, repeats=3)
  # Ten products of 16 MFLOPs against one of five numbers.
  assert got["image_ms"] > 5 * got["text_ms"]


def test_runs_on_one_device_wherever_parameters_lie():
  tower = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 12}
  model = build(
    {
      "image": {**tower, "patch_size": (4, 4), "pool_type": "map"},
      "text": {**tower, "vocab_size": 11},
      "out_dim": (None, 8),
      "bias_init": -10.0,
    }
  )
  picture = jnp.zeros((1, SIZE, SIZE, 3), jnp.uint8)
  tokens = jnp.zeros((1, LENGTH), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), picture, tokens)
  spread = sharding.replicated(sharding.make_mesh({"data": -1, "fsdp": 1}))
  variables = jax.device_put(
    jax.tree.map(lambda x: np.full(x.shape, 0.1, x.dtype), shapes), spread
  )
  assert len(variables["params"]["t"].sharding.device_set) == 8
  got = latency(model, variables["params"], SIZE, LENGTH, repeats=2)
  assert got["image_ms"] > 0 and got["text_ms"] > 0
