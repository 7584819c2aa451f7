"""What frozen embeddings tell of classes: nearest neighbours, a linear probe.

Both learn from labelled training rows and are scored on test rows. Rows are
scaled to length 1 first, so that nothing depends on the scale of a model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from absl import logging

from aced.evaluation.retrieval import check_finite
from aced.evaluation.zero_shot import normalise

# Values held at a time, whatever the size of the sets: 64 MiB of float64.
_BLOCK = 2**23

# CLIP's grid, from strong to weak; it is then refined around the best, by
# halving its step of two decades down to an eighth of a decade.
STRENGTHS = tuple(10.0**power for power in (6, 4, 2, 0, -2, -4, -6))
_HALVINGS = 4
# Share of the training rows of a class that the strength is chosen on, and how
# far fits converge for that, as those of CLIP: weak ones would take very long.
_HELD_OUT, _ROUGH = 0.2, 1e-4


class Prediction(NamedTuple):
  """Predicted classes, and how many are right.

  Attributes:
    metrics: `accuracy` over test rows, and `mean_per_class`, the mean over the
      classes that occur in the test rows of the accuracy within each.
    predicted: `(m,)` int64, the class of each test row.
    right: `(m,)` bool, whether it is the right one.
  """

  metrics: dict[str, float]
  predicted: np.ndarray
  right: np.ndarray


class LinearProbe(NamedTuple):
  """A linear classifier of frozen embeddings, and its predictions.

  Attributes:
    metrics, predicted, right: as of `Prediction`.
    l2: the strength of regularisation that was used.
    held_out: every strength that was tried -> accuracy on held-out training
      rows; empty where `l2` was given.
    classes: `(c,)` int64, the classes of the training rows, sorted.
    weight: `(d, c)` float64; logits are `normalise(z) @ weight + bias`.
    bias: `(c,)` float64.
    gradient: largest entry of the gradient of the mean objective, in the
      coordinates that are optimised in.
    converged: whether that is within the tolerance.
  """

  metrics: dict[str, float]
  predicted: np.ndarray
  right: np.ndarray
  l2: float
  held_out: dict[float, float]
  classes: np.ndarray
  weight: np.ndarray
  bias: np.ndarray
  gradient: float
  converged: bool


def knn(
  train: np.ndarray,
  train_labels: np.ndarray,
  test: np.ndarray,
  test_labels: np.ndarray,
  k: int = 20,
  temperature: float = 0.07,
  num_classes: int | None = None,
) -> Prediction:
  """Classifies by a weighted vote of the `k` nearest training rows.

  A neighbour of cosine similarity `s` has `exp(s / temperature)` votes (Wu et
  al., arXiv 1805.01978, section 3.4). Of equally near rows the lower index is
  the nearer; of classes with equal votes the lower one wins. Memory is that of
  the embeddings plus blocks of fixed size.

  Args:
    train: `(n, d)` embeddings of training rows.
    train_labels: `(n,)` integers, their classes.
    test: `(m, d)` embeddings of test rows.
    test_labels: `(m,)` integers. A class without a training row is never
      predicted, so its rows count as wrong.
    k: neighbours that vote, at most `n`.
    temperature: small values leave the vote to the nearest.
    num_classes: above all labels; None is the largest and one.

  Raises:
    ValueError: inputs that are empty, not finite or do not fit together, or
      training rows of one class alone.
  """
  train, train_labels, test, test_labels, classes = _check(
    train, train_labels, test, test_labels, num_classes
  )
  if not 1 <= k <= len(train) or k != int(k):
    raise ValueError(
      f"k={k} must be a whole number from 1 to {len(train)}, the number of"
      " training rows."
    )
  if not 0 < temperature < np.inf:
    raise ValueError(f"temperature={temperature} must be a number above 0.")
  block = max(1, _BLOCK // max(len(train), classes))
  predicted = np.empty(len(test), np.int64)
  for start in range(0, len(test), block):
    here = slice(start, start + block)
    # Rounded once, so that equal rows tie exactly on every machine.
    similarity = (test[here] @ train.T).astype(np.float32)
    nearest, similarity = _nearest(similarity, int(k))
    # The nearest has one vote: a small temperature must not overflow.
    votes = np.exp((similarity - similarity[:, :1]) / temperature)
    rows = len(votes)
    cell = np.arange(rows)[:, None] * classes + train_labels[nearest]
    votes = np.bincount(cell.ravel(), votes.ravel(), minlength=rows * classes)
    predicted[here] = votes.reshape(rows, classes).argmax(axis=1)
  return Prediction(*_score(predicted, test_labels))


def linear_probe(
  train: np.ndarray,
  train_labels: np.ndarray,
  test: np.ndarray,
  test_labels: np.ndarray,
  *,
  l2: float | Sequence[float] | None = None,
  seed: int = 0,
  max_iters: int = 1000,
  tolerance: float = 1e-6,
) -> LinearProbe:
  """Multinomial logistic regression on frozen embeddings, by L-BFGS.

  Minimises `sum_i cross_entropy_i + l2 / 2 * ||weight||^2` over the training
  rows; the bias is free. `l2` is 1 / C of scikit-learn (for two classes 2 / C,
  as that has one weight vector for both). The best of several `l2` is found on
  training rows that are held out, by accuracy and then cross-entropy; the probe
  is then fitted to all rows (CLIP, arXiv 2103.00020, appendix A.3). JAX
  computes on its default device, in float64, by blocks.

  Args:
    train: `(n, d)` embeddings of training rows.
    train_labels: `(n,)` integers, their classes.
    test: `(m, d)` embeddings of test rows.
    test_labels: `(m,)` integers. A class without a training row is never
      predicted, so its rows count as wrong.
    l2: a strength; or several, to choose from; or None for CLIP's search, over
      1e-6 to 1e6 in steps of two decades, and then around the best.
    seed: of which rows are held out, a fifth of each class.
    max_iters: of L-BFGS, for each fit.
    tolerance: a fit has converged where no entry of the gradient of the
      objective over `n` is larger. A final fit that has not logs a warning.

  Raises:
    ValueError: inputs that are empty, not finite or do not fit together;
      training rows of one class alone; or none that could be held out.
  """
  train, train_labels, test, test_labels, _ = _check(
    train, train_labels, test, test_labels
  )
  strengths = _check_strengths(l2)
  if not (max_iters >= 1 and tolerance > 0):
    raise ValueError(
      f"max_iters={max_iters} and tolerance={tolerance} must be above 0."
    )
  classes, target = np.unique(train_labels, return_inverse=True)
  problem = _Problem(train, target, max_iters)
  best, tried, start = strengths[0], {}, None
  if len(strengths) > 1:
    chosen = _hold_out(target, seed)
    best, tried, start = _search(problem, strengths, chosen, refine=l2 is None)
  table, gradient = problem.fit(best, np.ones(len(train)), tolerance, start)
  if gradient > tolerance:
    logging.warning(
      f"the linear probe of l2={best:g} stopped at a gradient of"
      f" {gradient:.1e}, above tolerance={tolerance:g}; give a larger l2"
      f" or tolerance, or more than max_iters={max_iters}."
    )
  weight, bias = problem.coefficients(table)
  starts = range(0, len(test), max(1, _BLOCK // len(classes)))[1:]
  found = [(z @ weight + bias).argmax(1) for z in np.split(test, starts)]
  return LinearProbe(
    *_score(classes[np.concatenate(found)], test_labels),
    l2=best,
    held_out=tried,
    classes=classes,
    weight=weight,
    bias=bias,
    gradient=gradient,
    converged=gradient <= tolerance,
  )


class _Problem:
  """Training rows on the device, to be fitted at several strengths.

  Rows are centred, and scaled by one number. As the bias is free and `l2` is
  scaled along, the minimum is the same one; L-BFGS gets there in fewer steps,
  for the embeddings of a model have most of their length in common.
  """

  def __init__(self, z, target, max_iters):
    self._mean = z.mean(axis=0)
    z = z - self._mean
    self._scale = float(np.sqrt(np.mean(z**2))) or 1.0
    self._size = (z.shape[1] + 1, int(target.max()) + 1)
    self._block = max(1, min(len(z), _BLOCK // max(self._size)))
    # No end by the loss: it stops to fall visibly long before the gradient.
    iters = {"maxiter": max_iters, "maxfun": 20 * max_iters}
    self._options = iters | {"ftol": 0.0}
    with jax.enable_x64(True):
      self._rows = self._blocks(z / self._scale), self._blocks(target)

  def fit(self, l2, used, tolerance, start=None) -> tuple[np.ndarray, float]:
    """Minimises over rows weighted by `used` `(n,)`; from zero, or `start`.

    Returns `(d + 1, c)` weights and, last, biases; and the largest gradient.
    """
    l2, count = l2 / self._scale**2, float(used.sum())
    start = np.zeros(self._size) if start is None else start
    options = self._options | {"gtol": tolerance}
    with jax.enable_x64(True):
      rows = *self._rows, self._blocks(used)

      def objective(flat):
        loss, gradient = _objective(flat.reshape(self._size), rows, l2)
        # Over the rows, so that one tolerance fits any number of them.
        return float(loss) / count, np.ravel(gradient) / count

      found = scipy.optimize.minimize(
        objective, start.ravel(), method="L-BFGS-B", jac=True, options=options
      )
    return found.x.reshape(self._size), float(np.abs(found.jac).max())

  def evaluate(self, table, used) -> tuple[float, float]:
    """Accuracy, and minus the mean cross-entropy, on rows `used` `(n,)`."""
    with jax.enable_x64(True):
      sums = _loss_and_hits(table, (*self._rows, self._blocks(used)))
    loss, accuracy = (float(x) / float(used.sum()) for x in sums)
    return accuracy, -loss

  def coefficients(self, table) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases for rows that are not centred and scaled."""
    weight = table[:-1] / self._scale
    return weight, table[-1] - self._mean @ weight

  def _blocks(self, rows):
    """`(n, ...)` -> `(blocks, size, ...)` on the device, padded with zeros."""
    padding = [(0, -len(rows) % self._block)] + [(0, 0)] * (rows.ndim - 1)
    rows = np.pad(rows, padding).reshape(-1, self._block, *rows.shape[1:])
    return jnp.asarray(rows)


def _of_block(table, z, target, used):
  """Sums over rows of their cross-entropy, and of which are right."""
  log_p = jax.nn.log_softmax(z @ table[:-1] + table[-1:])
  picked = jnp.take_along_axis(log_p, target[:, None], axis=1)[:, 0]
  hits = jnp.argmax(log_p, axis=1) == target
  return -jnp.sum(picked * used), jnp.sum(hits * used)


@jax.jit
def _objective(table, rows, l2):
  """The objective and its gradient, with the logits of a block at a time."""
  weight = jnp.asarray(table).at[-1].set(0.0)  # The bias is free.

  def add(total, block):
    differentiate = jax.value_and_grad(_of_block, has_aux=True)
    (loss, _), gradient = differentiate(table, *block)
    return (total[0] + loss, total[1] + gradient), None

  start = l2 / 2 * jnp.sum(weight**2), l2 * weight
  return jax.lax.scan(add, start, rows)[0]


@jax.jit
def _loss_and_hits(table, rows):
  """Sums over all rows, as of `_of_block`."""
  found = jax.lax.map(lambda block: _of_block(table, *block), rows)
  return jax.tree.map(jnp.sum, found)


def _search(problem, strengths, held_out, refine):
  """The best strength, the accuracy of all that were tried, and its table."""
  tables, found = {}, {}

  def attempt(l2, start):
    tables[l2], _ = problem.fit(l2, 1.0 - held_out, _ROUGH, start)
    found[l2] = problem.evaluate(tables[l2], held_out * 1.0)
    return tables[l2]

  def best():
    return max(found, key=lambda l2: (*found[l2], l2))

  start = None
  # From strong to weak, each from where the last one ended.
  for l2 in sorted(set(strengths), reverse=True):
    start = attempt(l2, start)
  for halving in range(_HALVINGS if refine else 0):
    middle, decades = best(), 0.5**halving
    for l2 in (middle * 10**decades, middle / 10**decades):
      if min(strengths) <= l2 <= max(strengths):
        attempt(l2, tables[middle])
  accuracies = {l2: found[l2][0] for l2 in sorted(found)}
  return best(), accuracies, tables[best()]


def _hold_out(target, seed):
  """Marks a share of each class, rounded up but never all; `(n,)` bool."""
  order = np.random.default_rng(seed).permutation(len(target))
  order = order[np.argsort(target[order], kind="stable")]
  count = np.bincount(target)
  place = np.arange(len(target)) - (np.cumsum(count) - count)[target[order]]
  size = np.minimum(np.ceil(_HELD_OUT * count), count - 1)
  chosen = np.zeros(len(target), bool)
  chosen[order] = place < size[target[order]]
  if not chosen.any():
    raise ValueError(
      "every class has one training row alone, so none can be held out to"
      " choose l2 on; give l2 as one number."
    )
  return chosen


def _nearest(similarity, k):
  """Columns of the `k` largest of each row, in order, and their values."""
  kth = np.partition(similarity, -k, axis=1)[:, -k, None]
  above, equal = similarity > kth, similarity == kth
  # `partition` keeps any of equal values; here the lower indices are kept.
  left = k - above.sum(axis=1, keepdims=True)
  kept = above | (equal & (np.cumsum(equal, axis=1) <= left))
  columns = np.nonzero(kept)[1].reshape(-1, k)
  values = np.take_along_axis(similarity, columns, axis=1).astype(np.float64)
  order = np.argsort(-values, axis=1, kind="stable")
  return [np.take_along_axis(x, order, axis=1) for x in (columns, values)]


def _score(predicted, labels):
  right = predicted == labels
  count = np.bincount(labels)
  hits = np.bincount(labels, weights=right)[count > 0]
  metrics = {
    "accuracy": float(right.mean()),
    "mean_per_class": float(np.mean(hits / count[count > 0])),
  }
  return metrics, predicted, right


def _check_strengths(l2):
  """Strengths to choose from, one alone where it is given."""
  strengths = STRENGTHS if l2 is None else tuple(np.atleast_1d(l2).tolist())
  if not strengths or not all(0 < value < np.inf for value in strengths):
    raise ValueError(
      f"l2={l2!r} must be a number above 0, a list of such, or None to search"
      " for it; at 0, classes that can be told apart have no optimum."
    )
  return tuple(float(value) for value in strengths)


def _check(train, train_labels, test, test_labels, num_classes=None):
  """Unit rows in float64, labels in int64, and the number of classes."""
  z = [np.asarray(train), np.asarray(test)]
  labels = [np.asarray(train_labels), np.asarray(test_labels)]
  top = np.inf if num_classes is None else num_classes - 1
  for k, name in enumerate(("train", "test")):
    check_finite(name, z[k])
    if labels[k].shape != (len(z[k]),) or labels[k].dtype.kind not in "iu":
      raise ValueError(
        f"{name}_labels is {labels[k].dtype} of shape {labels[k].shape};"
        f" expected one integer for each of the {len(z[k])} rows of {name}."
      )
    if labels[k].min() < 0 or labels[k].max() > top:
      raise ValueError(
        f"{name}_labels holds {labels[k].min()}..{labels[k].max()}; expected"
        f" classes from 0{'' if num_classes is None else f' to {top}'}."
      )
  if z[0].shape[1] != z[1].shape[1]:
    raise ValueError(
      f"train is {z[0].shape[1]} wide and test {z[1].shape[1]}; both must be"
      " embeddings of one model."
    )
  if labels[0].min() == labels[0].max():
    raise ValueError(
      f"train_labels holds the class {labels[0][0]} alone, so there is nothing"
      " to tell apart; give training rows of two classes or more."
    )
  z = [normalise(x.astype(np.float64)) for x in z]
  labels = [x.astype(np.int64) for x in labels]
  classes = num_classes or 1 + max(int(x.max()) for x in labels)
  return z[0], labels[0], z[1], labels[1], classes
