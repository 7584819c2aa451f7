"""Embeddings of any framework in, positions out: selection for other trainers.

`select_batch` is `sample_jointly` for a loop that is not written in JAX: it
takes arrays of numpy, torch or jax, checks them, runs the compiled sampler and
answers with arrays of the same kind. Neither numpy nor torch is imported here:
whoever passes their arrays has done so.
"""

import math
import operator
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aced.curation import samplers
from aced.curation.scores import LOSSES, SCORES, check_choice, needed_models
from aced.curation.sizes import check_sizes
from aced.embeddings import Embeddings, named

METHODS = {
  "joint": samplers.sample_jointly,
  "independent": samplers.sample_independently,
  "uniform": samplers.sample_uniformly,
}
# An array of numpy, torch or jax. Their types cannot be named without them.
Array = Any
# Rows that were normalised in bfloat16 are off by up to 0.006 (a norm rounded,
# a quotient rounded, each to 8 bits); rows that never were, by far more.
NORM_TOLERANCE = 0.01
SIDES = ("zimg", "ztxt")
_STATIC = ("method", "batch_size", "num_chunks", "score", "loss", "normalize")
# Scales start at 10 or 14 and grow to about 100 (CLIP) or 120 (SigLIP). Their
# logarithms, which are the parameters, are below the one, what was raised to
# the power twice above the other.
LOGARITHMS, EXPONENTIALS = 5.0, 1000.0
_WARNED: set[str] = set()


class SelectedBatch(NamedTuple):
  """The pairs to train on, and how they were drawn.

  Attributes:
    indices: `(b,)` positions in the super-batch, in the order drawn, as the
      kind of array that came in: torch int64 on the same device, numpy int64 or
      jax int32.
    mask: `(b,)` bool of the same kind; False where the super-batch ran out of
      valid pairs, and the item there must not be learnt from. All True where no
      `mask` was given.
    kept_score: mean score of the pairs drawn, in nats.
    pool_score: mean score of the pairs they were drawn from. For the method
      "joint" both are means over chunks, of scores given the earlier chunks.
    effective_sample_size: how many candidates had a real chance in a draw,
      `1 / sum p^2`, mean over chunks: 1 is a decided draw, the number of
      candidates a uniform one.
  """

  indices: Array
  mask: Array
  kept_score: float
  pool_score: float
  effective_sample_size: float


def select_batch(
  student: Embeddings | tuple | Mapping[str, Any] | None,
  reference: Embeddings | tuple | Mapping[str, Any] | None,
  *,
  batch_size: int,
  method: str = "joint",
  score: str = "learnability",
  num_chunks: int = 16,
  loss: str = "sigmoid",
  gain: float = 1.0,
  temperature: float = 1.0,
  seed: int = 0,
  mask: Array | None = None,
  normalize: bool = False,
) -> SelectedBatch:
  """Selects the pairs of a super-batch that are most worth learning.

  For a loop in torch, numpy or JAX, outside `jax.jit`; the draw is that of
  `sample_jointly(jax.random.key(seed), ...)` on the same arrays. Compiled once
  for each set of shapes and names; other embeddings, scales, gains, seeds and
  masks compile nothing anew. Runs where the arrays are (those of numpy on JAX's
  default device), and returns when it is done.

  A model is `(zimg, ztxt, t, b)`: `Embeddings`, a tuple (`b` may be left out),
  or a dict with these keys or those of open_clip (`image_features`,
  `text_features`, `logit_scale`, `logit_bias`), so that what an open_clip
  model's `forward` returns fits as it is. `zimg`, `ztxt` are `(n, d)` L2-
  normalised, of any float dtype; `n` is the super-batch, and the widths of
  student and reference may differ. `t` and `b` are numbers, or arrays of one:
  what multiplies similarities and what is added to them. In open_clip `t` is
  `model.logit_scale.exp()`, not the parameter itself, and `b` is
  `model.logit_bias`; 0 or None for a CLIP model, which has none. A `t` below 5
  or above 1,000 is warned of, once: it is likely that the exponential was not
  taken, or taken twice.

  Args:
    student: the model that is trained, without dropout; None for the score
      "easy_reference" and for the method "uniform".
    reference: the frozen model; None for the score "hard" and for "uniform".
    batch_size: `b`, how many pairs to keep.
    method: "joint" (JEST, ACID), "independent" (RHO-LOSS style) or "uniform".
    score: "learnability", "easy_reference" or "hard".
    num_chunks: in how many chunks the joint method draws; divides `batch_size`.
    loss: "sigmoid" (SigLIP) or "softmax" (CLIP), which both models must have
      been trained with: it says what their `t` and `b` mean.
    gain: multiplies scores; the higher, the stricter.
    temperature: divides them, at least 0; 0 takes the highest scores.
    seed: of the draw, 0 to 2**32 - 1. Pass the step: equal seeds draw equal
      batches from equal embeddings.
    mask: `(n,)` bool, False for pairs that must not be drawn; neither are their
      values checked.
    normalize: divide the rows of all embeddings by their norms first, instead
      of refusing those of another norm than 1.

  Returns:
    The `SelectedBatch`. Gradients do not flow: torch tensors are detached.

  Raises:
    TypeError: an array of another kind, a dtype that is no float (`mask`: no
      bool), or a call inside a JAX transformation.
    ValueError: shapes that do not fit, values that are not finite, rows that
      are not normalised, a name that is not known, or a size, scale or seed
      that is out of range.
  """
  check_choice("method", method, METHODS)
  check_choice("loss", loss, LOSSES)
  gain, temperature = _scalar("gain", gain), _scalar("temperature", temperature)
  if temperature < 0:
    raise ValueError(f"temperature={temperature} must be 0 or above.")
  models = _models(student, reference, score, needed=method != "uniform")
  arrays = {f"{k}.{z}": getattr(models[k], z) for k in models for z in SIDES}
  arrays |= {} if mask is None else {"mask": mask}
  n = _check_shapes(arrays)
  check_sizes(n, batch_size, num_chunks if method == "joint" else 1)
  drawn, report = _draw(
    _key(seed),
    _to_jax(arrays),
    {name: (model.t, model.b) for name, model in models.items()},
    gain,
    temperature,
    method=method,
    batch_size=batch_size,
    num_chunks=num_chunks,
    score=score,
    loss=loss,
    normalize=bool(normalize),
  )
  # One wait for all; positions stay on their device if jax asked for them.
  stats, report = jax.device_get((drawn[2:], report))
  _check_rows(report)
  for name, model in models.items():
    _warn_of_scale(f"{name}.t", model.t)
  found = _like(next(iter(arrays.values())), *drawn[:2])
  return SelectedBatch(*found, *(float(x) for x in stats))


@partial(jax.jit, static_argnames=_STATIC)
def _draw(
  key, arrays, scales, gain, temperature, *, method, normalize, **names
):
  """The draw, and what is wrong with the rows it was made from.

  `arrays` are "student.zimg" and so on, and perhaps "mask"; `scales` `(t, b)`
  of each model. Returns the fields of a `SelectedBatch` as arrays, and of each
  embedding its `_row_report`.
  """
  arrays = dict(arrays)
  mask = arrays.pop("mask", None)
  report = {k: _row_report(z, mask, normalize) for k, z in arrays.items()}
  if normalize:
    arrays = {k: _unit(z) for k, z in arrays.items()}
  models = {
    name: Embeddings(arrays[f"{name}.zimg"], arrays[f"{name}.ztxt"], *scale)
    for name, scale in scales.items()
  }
  drawn = METHODS[method](
    key,
    models.get("student"),
    models.get("reference"),
    gain=gain,
    temperature=temperature,
    mask=mask,
    **names,
  )
  effective = drawn.effective_sample_size.mean()
  stats = drawn.kept_score, drawn.pool_score, effective
  return (drawn.indices, drawn.mask, *stats), report


def _row_report(z, mask, normalize):
  """How many valid rows are not finite, how many have a bad norm, and one."""
  valid = jnp.ones((z.shape[0],), bool) if mask is None else mask
  finite = jnp.isfinite(z).all(axis=1)
  norm = _norms(z)
  bad = (norm == 0) if normalize else jnp.abs(norm - 1) > NORM_TOLERANCE
  bad &= valid & finite
  worst = norm[jnp.argmax(jnp.where(bad, jnp.abs(norm - 1), -1.0))]
  return (valid & ~finite).sum(), bad.sum(), worst


def _norms(z):
  return jnp.linalg.norm(z.astype(jnp.float32), axis=1)


def _unit(z):
  """Rows of norm 1 in float32; rows of zeros, if they are masked, stay."""
  norm = _norms(z)
  return z.astype(jnp.float32) / jnp.where(norm == 0, 1.0, norm)[:, None]


def _models(student, reference, score, needed):
  """The models that `score` looks at, by name; all of them if `needed`."""
  if needed:
    needed_models(student, reference, score)  # Refuses a missing one by name.
  check_choice("score", score, SCORES)
  given = {"student": student, "reference": reference}
  return {
    name: _as_embeddings(name, given[name])
    for name, sign in zip(given, SCORES[score], strict=True)
    if sign and given[name] is not None
  }


def _as_embeddings(name, model):
  """`Embeddings` of a tuple or dict, with `t` and `b` as Python floats."""
  model = named(name, model)
  t = _scalar(f"{name}.t", model.t)
  if t <= 0:
    raise ValueError(
      f"{name}.t={t:g} must be positive: it multiplies similarities, and is"
      " the exponential of the parameter (in open_clip logit_scale.exp())."
    )
  return model._replace(t=t, b=_scalar(f"{name}.b", model.b))


def _warn_of_scale(name, t):
  """Warns, once, of a scale that is likely to be something else."""
  if LOGARITHMS <= t <= EXPONENTIALS or name in _WARNED:
    return
  if t < LOGARITHMS:
    meant = f"its logarithm; pass exp(t), {math.exp(t):.4g}"
  else:
    meant = f"its exponential; pass log(t), {math.log(t):.4g}"
  warnings.warn(
    f"{name}={t:.4g}, which multiplies similarities, looks like {meant}."
    " Trained models have about 10 to 200. If it is meant:"
    f' warnings.filterwarnings("ignore", "{name}").',
    stacklevel=3,  # Where `select_batch` was called.
  )
  _WARNED.add(name)


def _scalar(name, x):
  """A number, or an array of one, as a finite Python float."""
  _refuse_tracer(name, x)
  shape = tuple(getattr(x, "shape", ()))
  if shape not in ((), (1,)):
    raise ValueError(f"{name} has shape {shape}; expected one number.")
  value = float(x.item() if hasattr(x, "item") else x)
  if not math.isfinite(value):
    raise ValueError(f"{name}={value} is not finite.")
  return value


def _key(seed):
  seed = operator.index(seed)
  if not 0 <= seed < 2**32:  # Beyond, JAX would drop the higher bits.
    raise ValueError(f"seed={seed} must lie in 0 to 2**32 - 1; pass the step.")
  return jax.random.key(seed)


def _check_shapes(arrays):
  """Returns the size of the super-batch, on which all arrays must agree."""
  if not arrays:
    raise ValueError(
      "nothing tells the size of the super-batch: pass `mask`, `student` or"
      " `reference`."
    )
  shapes = {k: tuple(x.shape) for k, x in arrays.items() if _kind(k, x)}
  for name, shape in shapes.items():
    wanted = "(n,)" if name == "mask" else "(n, d)"
    if len(shape) != (1 if name == "mask" else 2):
      raise ValueError(f"{name} has shape {shape}; expected {wanted}.")
  for name, shape in shapes.items():
    other = name.replace("ztxt", "zimg")
    if shape[1:] != shapes[other][1:]:
      raise ValueError(
        f"{other} has shape {shapes[other]} and {name} {shape}; the two must be"
        " of one width."
      )
  sizes = {name: shape[0] for name, shape in shapes.items()}
  if len({*sizes.values()}) > 1:
    raise ValueError(
      "all arrays must hold the same pairs, and their lengths differ:"
      f" {', '.join(f'{name} {n}' for name, n in sizes.items())}."
    )
  return next(iter(sizes.values()))


def _kind(name, x):
  """Whose array `x` is, told by where its class was defined."""
  _refuse_tracer(name, x)
  for base in type(x).__mro__ if hasattr(x, "shape") else ():
    package = base.__module__.partition(".")[0]
    if package in ("numpy", "torch"):
      return package
  if isinstance(x, jax.Array):
    return "jax"
  raise TypeError(
    f"{name} is a {type(x).__module__}.{type(x).__name__}; expected an array of"
    " numpy, torch or jax."
  )


def _refuse_tracer(name, x):
  if isinstance(x, jax.core.Tracer):
    raise TypeError(
      f"{name} is traced: select_batch reads values, so it runs outside jit,"
      " grad and vmap; inside them call sample_jointly."
    )


def _to_jax(arrays):
  """The same as jax arrays, all where the first one is."""
  arrays = {name: _array(name, x) for name, x in arrays.items()}
  home = next(iter(arrays.values())).devices()
  if len(home) > 1:  # Split over a mesh, which JAX follows.
    return arrays
  return {
    name: x if x.devices() == home else jax.device_put(x, *home)
    for name, x in arrays.items()
  }


def _array(name, x):
  x = _of_torch(x) if _kind(name, x) == "torch" else jnp.asarray(x)
  wanted = jnp.bool if name == "mask" else jnp.floating
  if not jnp.issubdtype(x.dtype, wanted):
    what = "bool" if name == "mask" else "a float dtype"
    raise TypeError(f"{name} is of dtype {x.dtype}; expected {what}.")
  # Only where JAX was told to keep float64, which no score needs.
  return x.astype(jnp.float32) if x.dtype == jnp.float64 else x


def _of_torch(x):
  """The tensor's memory as a jax array; a copy where it cannot be shared."""
  x = x.detach()
  platform = {"cpu": "cpu", "cuda": "gpu"}.get(x.device.type)
  if platform != "cpu" and not _has(platform):
    x, platform = x.cpu(), "cpu"
  if _has(platform):
    return jnp.from_dlpack(x.contiguous())  # It knows no other strides.
  # Where JAX_PLATFORMS leaves out the CPU. Not all dtypes are known to numpy.
  return jnp.asarray((x.float() if x.is_floating_point() else x).numpy())


def _has(platform):
  """Whether this process's JAX runs on "cpu" or "gpu"."""
  try:
    return bool(platform and jax.local_devices(backend=platform))
  except RuntimeError:  # What JAX says of a platform that is not there.
    return False


def _check_rows(report):
  """Refuses embeddings that no score can be made of, by their `_row_report`."""
  for name, (broken, off, norm) in report.items():
    if broken:
      raise ValueError(
        f"{name} has NaN or infinite values in {broken} rows; look for a"
        " model that diverged or overflowed, or pass False for them in `mask`."
      )
    if off:
      raise ValueError(
        f"{name} has {off} rows that are not L2-normalised (one of norm"
        f" {norm:.4g}); expected norms within {NORM_TOLERANCE} of 1: normalise"
        " them first, or pass normalize=True, which refuses only zeros."
      )


def _like(sample, indices, mask):
  """Positions and mask as the kind of array that `sample` is."""
  kind = _kind("the input", sample)
  if kind == "jax":
    return indices, mask
  indices, mask = jax.device_get((indices, mask))
  if kind == "numpy":
    return indices.astype("int64"), mask.copy()  # Else it is read-only.
  torch = sys.modules["torch"]
  return (
    torch.tensor(indices, dtype=torch.int64, device=sample.device),
    torch.tensor(mask, dtype=torch.bool, device=sample.device),
  )
