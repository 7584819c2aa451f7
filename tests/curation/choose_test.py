"""The selection for other trainers: against the samplers and brute force."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.curation import (
  choose,
  sample_independently,
  sample_jointly,
  sample_uniformly,
  select_batch,
)

SAMPLERS = {
  "joint": sample_jointly,
  "independent": sample_independently,
  "uniform": sample_uniformly,
}


def mapped(f, *models):
  """The models with `f` applied to their embeddings."""
  return [(f(zimg), f(ztxt), *scale) for zimg, ztxt, *scale in models]


@pytest.fixture
def models(make_embeddings):
  """A student and a reference of other width and scale, of numpy arrays."""

  def make(n=48):
    student = make_embeddings(0, n=n, d=16)
    wide = make_embeddings(1, n=n, d=24, noise=0.3, t=20.0, b=-8.0)
    return mapped(np.array, student, wide)

  return make


@pytest.fixture
def torch():
  return pytest.importorskip("torch", reason="the extra `parity` has torch")


def nll(model):
  """`-log p` of every logit as positive and as negative, in float64."""
  zimg, ztxt = (np.asarray(z, np.float64) for z in model[:2])
  l_nn = model[2] * zimg @ ztxt.T + model[3]
  return np.logaddexp(0, -l_nn), np.logaddexp(0, l_nn)


def test_greedy_equals_brute_force_in_float64(models):
  """The loss of the selected set with and without each candidate."""
  student, reference = models(n=40)

  def loss(model, chosen):
    positive, negative = (x[np.ix_(chosen, chosen)] for x in nll(model))
    off = ~np.eye(len(chosen), dtype=bool)
    return np.diagonal(positive).sum() + negative[off].sum()

  def score(chosen):
    return loss(student, chosen) - loss(reference, chosen)

  want = []
  for _ in range(3):
    before = score(want) if want else 0.0
    gain = [
      -np.inf if i in want else score([*want, i]) - before for i in range(40)
    ]
    want += np.argsort(-np.array(gain))[:4].tolist()
  got = select_batch(
    student, reference, batch_size=12, num_chunks=3, temperature=0
  )
  np.testing.assert_array_equal(got.indices, want)
  assert got.mask.all() and got.effective_sample_size == 1.0


@pytest.mark.parametrize(
  ("method", "score", "loss"),
  [
    ("joint", "learnability", "sigmoid"),
    ("joint", "hard", "softmax"),
    ("independent", "easy_reference", "sigmoid"),
    ("independent", "learnability", "softmax"),
    ("uniform", "learnability", "sigmoid"),
    ("uniform", "hard", "softmax"),
  ],
)
def test_the_draw_is_that_of_the_sampler(models, method, score, loss):
  student, reference = models()
  student = None if score == "easy_reference" else student
  reference = None if score == "hard" else reference
  mask = np.random.default_rng(0).random(48) < 0.8
  sizes = {"batch_size": 12, "num_chunks": 3, "score": score, "loss": loss}
  sizes |= {"gain": 0.7, "temperature": 2.0, "mask": mask}
  got = select_batch(student, reference, method=method, seed=5, **sizes)
  want = jax.jit(
    lambda *models: SAMPLERS[method](
      jax.random.key(5),
      *(m and choose.Embeddings(*m) for m in models),
      **sizes,
    )
  )(student, reference)
  np.testing.assert_array_equal(got.indices, want.indices)
  np.testing.assert_array_equal(got.mask, want.mask)
  # Of one program each, whose sums may be taken in another order.
  effective = float(want.effective_sample_size.mean())
  assert got.kept_score == pytest.approx(float(want.kept_score), rel=1e-5)
  assert got.pool_score == pytest.approx(float(want.pool_score), rel=1e-5)
  assert got.effective_sample_size == pytest.approx(effective, rel=1e-5)


def test_kinds_of_arrays_come_back_as_they_came(models):
  both = models()
  for given in (both, [{"zimg": m[0], "ztxt": m[1], "t": 5} for m in both]):
    got = select_batch(*given, batch_size=16)
    assert type(got.indices) is type(got.mask) is np.ndarray
    assert got.indices.dtype == np.int64 and got.mask.dtype == bool
    # They are the caller's, to write to.
    assert got.indices.flags.writeable and got.mask.flags.writeable
    assert [type(x) for x in got[2:]] == [float] * 3
  got = select_batch(*jax.tree.map(jnp.asarray, both), batch_size=16)
  assert isinstance(got.indices, jax.Array) and isinstance(got.mask, jax.Array)
  assert got.indices.dtype == jnp.int32 and got.mask.dtype == bool


def test_names_of_open_clip_and_scales_of_every_form(models):
  student, reference = models()
  want = select_batch(student, reference, batch_size=16).indices
  names = "image_features", "text_features", "logit_scale", "logit_bias"
  named = [
    dict(zip(names, (*m[:2], np.float32(m[2]), jnp.full((1,), m[3]))))
    for m in (student, reference)
  ]
  named[0]["other"] = None
  np.testing.assert_array_equal(
    select_batch(*named, batch_size=16).indices, want
  )
  without = [(m[0], m[1], np.full((1,), m[2])) for m in (student, reference)]
  named = [m | {"logit_bias": None} for m in named]
  np.testing.assert_array_equal(
    select_batch(*without, batch_size=16).indices,
    select_batch(*named, batch_size=16).indices,
  )


def test_the_seed_alone_decides(models):
  both = models()
  draws = [
    tuple(select_batch(*both, batch_size=16, seed=s).indices.tolist())
    for s in (0, 1, 2**32 - 1, np.int64(1), 0)
  ]
  assert draws[0] == draws[4] and draws[1] == draws[3]
  assert len({*draws}) == 3
  uniform = select_batch(
    None, None, method="uniform", mask=np.ones(9, bool), batch_size=9
  )
  assert sorted(uniform.indices.tolist()) == list(range(9))


def test_calls_with_the_same_shapes_compile_once(models, monkeypatch):
  traces = []

  def counting(*args, **kwargs):
    traces.append(kwargs["batch_size"])
    return sample_jointly(*args, **kwargs)

  monkeypatch.setitem(choose.METHODS, "joint", counting)
  compiled = []

  def listener(name, _seconds, **_):
    if name == "/jax/core/compile/backend_compile_duration":
      compiled.append(name)

  student, reference = models(n=52)  # No other test has this size.
  kwargs = {"batch_size": 26, "num_chunks": 2, "mask": np.ones(52, bool)}
  select_batch(student, reference, **kwargs)
  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    for step in range(1, 6):
      select_batch(
        (-student[0], student[1], 10.0 + step, np.full((1,), -step)),
        reference,
        gain=step,
        temperature=1 / step,
        seed=step,
        **kwargs | {"mask": np.arange(52) > step},
      )
    assert traces == [26] and not compiled
    select_batch(student, reference, **kwargs | {"batch_size": 12})
    assert traces == [26, 12] and compiled  # Both counters do count.
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)


def test_a_pool_that_runs_out_is_told_by_the_mask(models):
  student, reference = models()
  mask = np.arange(48) % 6 == 0
  student[0][1], student[1][2] = np.nan, 0.0  # Rows that are masked.
  got = select_batch(student, reference, batch_size=16, num_chunks=4, mask=mask)
  assert got.mask.sum() == 8
  assert sorted(got.indices[got.mask]) == np.flatnonzero(mask).tolist()
  assert np.isfinite(got[2:]).all()


def test_rows_are_normalised_on_demand(models):
  student, reference = models()
  want = select_batch(student, reference, batch_size=16).indices
  scale = np.random.default_rng(0).uniform(0.1, 9, (48, 1)).astype(np.float32)
  student = (student[0] * scale, student[1] / scale, *student[2:])
  with pytest.raises(ValueError, match=r"student.zimg has 4\d rows that are"):
    select_batch(student, reference, batch_size=16)
  got = select_batch(student, reference, batch_size=16, normalize=True)
  np.testing.assert_array_equal(got.indices, want)
  student[1][3:5] = 0
  with pytest.raises(ValueError, match="student.ztxt has 2 rows that are not"):
    select_batch(student, reference, batch_size=16, normalize=True)


def test_rows_normalised_in_half_precision_are_let_pass():
  """Norm and quotient in bfloat16, as under autocast, at common widths."""
  for dtype in (jnp.bfloat16, jnp.float16):
    for width in (8, 512):
      z = jax.random.normal(jax.random.key(width), (2048, width)).astype(dtype)
      z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
      assert z.dtype == dtype
      got = select_batch((z, z[::-1], 10.0), None, score="hard", batch_size=16)
      assert got.mask.all()


def spoil(model, **parts):
  return choose.Embeddings(*model)._replace(**parts)


def test_what_cannot_be_scored_is_refused_by_name(models):
  student, reference = models()
  broken = student[0].copy()
  broken[[3, 7]] = np.nan
  broken[9, 0] = np.inf
  cases = [
    ({"student": spoil(student, zimg=broken)}, "student.zimg has NaN.* 3 rows"),
    ({"reference": spoil(reference, ztxt=reference[1] * 1.02)}, "one of norm"),
    ({"student": spoil(student, ztxt=student[1][:, :8])}, "one width"),
    ({"student": spoil(student, ztxt=student[1][:9])}, "student.ztxt 9"),
    ({"student": spoil(student, zimg=student[0][0])}, r"expected \(n, d\)"),
    ({"reference": [x[:20] for x in reference[:2]] + [1]}, "reference.zimg 20"),
    ({"mask": np.ones(7, bool)}, "mask 7"),
    ({"mask": np.ones((48, 1), bool)}, r"mask has shape \(48, 1\)"),
    ({"student": spoil(student, t=-2.0)}, "student.t=-2 must be positive"),
    ({"student": spoil(student, t=np.ones(2))}, r"student.t has shape \(2,\)"),
    ({"student": spoil(student, b=np.nan)}, "student.b=nan is not finite"),
    ({"student": student[:2]}, "student, a tuple, has no zimg"),
    ({"student": {"zimg": student[0], "t": 1}}, "a dict, has no ztxt; exp"),
    ({"reference": None}, "needs the embeddings of the reference"),
    ({"batch_size": 50}, "not divisible by num_chunks"),
    ({"method": "jont"}, "Did you mean 'joint'"),
    ({"gain": np.inf}, "gain=inf is not finite"),
    ({"temperature": -1}, "temperature=-1.0 must be"),
    ({"seed": -1}, r"seed=-1 must lie in 0 to 2\*\*32 - 1"),
    ({"seed": 2**32}, "pass the step"),
    ({"student": None, "reference": None, "method": "uniform"}, "pass `mask`"),
  ]
  good = {"student": student, "reference": reference, "batch_size": 16}
  for change, message in cases:
    with pytest.raises(ValueError, match=message):
      select_batch(**good | change)


@pytest.mark.parametrize(
  ("t", "what"),
  [
    (2.3, "looks like its logarithm; pass exp(t), 9.974"),
    (4.6, "looks like its logarithm; pass exp(t), 99.48"),
    (22026.5, "looks like its exponential; pass log(t), 10"),
  ],
)
def test_scales_that_look_like_logarithms_are_warned_of_once(
  models, monkeypatch, t, what
):
  monkeypatch.setattr(choose, "_WARNED", set())
  student, reference = models()
  plain = select_batch(student, reference, batch_size=16)
  given = (*reference[:2], np.float32(t), reference[3])
  with pytest.warns(UserWarning, match=re.escape(what)) as told:
    got = select_batch(student, given, batch_size=16)
  # It names its caller, and how to be rid of it.
  assert told[0].filename == __file__ and len(told) == 1
  assert str(told[0].message).startswith(f"reference.t={t:.4g}, which multi")
  assert '"ignore", "reference.t"' in str(told[0].message)
  # As before, and no second word of it: warnings are errors here.
  again = select_batch(student, given, batch_size=16)
  np.testing.assert_array_equal(again.indices, got.indices)
  assert not np.array_equal(plain.indices, got.indices)


def test_a_small_scale_that_is_meant_can_be_silenced(models, monkeypatch):
  monkeypatch.setattr(choose, "_WARNED", set())
  student, reference = models()
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "student.t")
    select_batch((*student[:2], 1.5), reference, batch_size=16)
  assert "student.t" in choose._WARNED


def test_arrays_of_other_kinds_are_refused_by_name(models):
  student, reference = models()
  good = {"student": student, "reference": reference, "batch_size": 16}
  cases = [
    ({"student": spoil(student, zimg=student[0].tolist())}, "zimg is a builti"),
    ({"student": spoil(student, zimg=student[0].astype(int))}, "a float dtype"),
    ({"mask": [True] * 48}, "mask is a builtins.list"),
    ({"mask": np.ones(48, int)}, "mask is of dtype int.*; expected bool"),
    ({"seed": 1.5}, "float"),
  ]
  for change, message in cases:
    with pytest.raises(TypeError, match=message):
      select_batch(**good | change)
  with pytest.raises(TypeError, match="student.zimg is traced: .* outside jit"):
    jax.jit(
      lambda z: select_batch((z, z, 1.0), None, score="hard", batch_size=16)
    )(student[0])


def test_wide_numbers_and_split_arrays_draw_the_same(models):
  student, reference = models()
  want = select_batch(student, reference, batch_size=16)
  wide = mapped(np.float64, student, reference)
  got = select_batch(*wide, batch_size=16)
  np.testing.assert_array_equal(got.indices, want.indices)
  with jax.enable_x64(True):
    got = select_batch(*wide, batch_size=16)
    np.testing.assert_array_equal(got.indices, want.indices)
    on_jax = mapped(jnp.asarray, *wide)
    assert on_jax[0][0].dtype == jnp.float64
    assert select_batch(*on_jax, batch_size=16).indices.dtype == jnp.int32
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  row = jax.NamedSharding(mesh, jax.P("data", None))
  split = mapped(lambda z: jax.device_put(z, row), student, reference)
  got = select_batch(*split, batch_size=16)
  np.testing.assert_array_equal(got.indices, want.indices)
  # Elsewhere than on the first device, and each model on another one.
  devices = jax.devices()
  student = mapped(lambda z: jax.device_put(z, devices[3]), student)
  reference = mapped(lambda z: jax.device_put(z, devices[5]), reference)
  got = select_batch(
    *student, *reference, batch_size=16, mask=np.ones(48, bool)
  )
  assert got.indices.devices() == {devices[3]}
  np.testing.assert_array_equal(got.indices, want.indices)


@pytest.mark.parity
def test_tensors_of_torch_draw_what_arrays_draw(models, torch):
  both = models()
  mask = np.arange(48) > 4
  for dtype in ("float32", "float64", "bfloat16", "float16"):
    kind = getattr(torch, dtype)
    given = mapped(lambda z, kind=kind: torch.tensor(z).to(kind), *both)
    # The same roundings, by jax.
    dtype = "float32" if dtype == "float64" else dtype
    rounded = mapped(lambda z, dtype=dtype: jnp.asarray(z, dtype), *both)
    want = select_batch(*rounded, batch_size=16, mask=mask, seed=3)
    got = select_batch(*given, batch_size=16, mask=torch.tensor(mask), seed=3)
    assert got.indices.dtype == torch.int64 and got.mask.dtype == torch.bool
    assert got.indices.tolist() == want.indices.tolist()
    assert got.kept_score == want.kept_score
    assert given[0][0][got.indices].shape == (16, 16)  # As a loop uses them.


@pytest.mark.parity
def test_tensors_with_gradients_strides_and_parameters(models, torch):
  student, reference = models()
  want = select_batch(student, reference, batch_size=16).indices.tolist()
  padded = torch.zeros(48, 40)
  padded[:, 1:33:2] = torch.tensor(student[0])
  text = torch.tensor(student[1]).T.contiguous().T.requires_grad_()
  bias = torch.nn.Parameter(torch.full((1,), student[3]))
  scale = torch.nn.Parameter(torch.tensor(student[2]).log())
  with torch.inference_mode():
    frozen = [torch.tensor(z) for z in reference[:2]]
  got = select_batch(
    (padded[:, 1:33:2], text * 1.0, scale.exp(), bias),
    (*frozen, *reference[2:]),
    batch_size=16,
  )
  assert got.indices.tolist() == want
  # torch and numpy may be mixed; the student's kind comes back.
  got = select_batch(student, (*frozen, *reference[2:]), batch_size=16)
  assert type(got.indices) is np.ndarray and got.indices.tolist() == want


@pytest.mark.parity
def test_tensors_are_shared_where_they_can_be_and_never_changed(torch):
  z = torch.nn.functional.normalize(torch.randn(64, 32), dim=1)
  assert choose._of_torch(z).unsafe_buffer_pointer() == z.data_ptr()
  got = select_batch((z, z, 10.0), None, score="hard", batch_size=16)
  z.zero_()  # The caller's memory is the caller's again.
  assert got.mask.all() and got.indices.max() < 64


@pytest.mark.parity
def test_tensors_of_a_device_that_jax_lacks_go_through_numpy(
  torch, monkeypatch
):
  monkeypatch.setattr(choose, "_has", lambda platform: False)
  z = torch.randn(8, 4)
  for kind in (torch.float32, torch.bfloat16, torch.float16):
    got = choose._of_torch(z.to(kind))
    np.testing.assert_array_equal(got, z.to(kind).float().numpy())
  assert choose._of_torch(z > 0).dtype == bool


@pytest.mark.parity
def test_what_a_model_of_open_clip_returns_fits_as_it_is(torch):
  open_clip = pytest.importorskip("open_clip", reason="the extra `parity`")
  vision = open_clip.CLIPVisionCfg(1, 64, 64, patch_size=8, image_size=16)
  words = open_clip.CLIPTextCfg(8, 50, width=32, heads=1, layers=1)
  torch.manual_seed(0)
  image, text = torch.randn(24, 3, 16, 16), torch.randint(1, 50, (24, 8))
  for bias in (-10.0, None):
    for as_dict in (False, True):
      model = open_clip.model.CLIP(
        16, vision, words, init_logit_bias=bias, output_dict=as_dict
      ).eval()
      out = model(image, text)
      got = select_batch(out, None, score="hard", batch_size=8, num_chunks=2)
      with torch.no_grad():
        zimg = model.encode_image(image, normalize=True)
        ztxt = model.encode_text(text, normalize=True)
      scale = model.logit_scale.exp(), model.logit_bias
      want = select_batch(
        (zimg, ztxt, *scale), None, score="hard", batch_size=8, num_chunks=2
      )
      assert got.indices.tolist() == want.indices.tolist()
