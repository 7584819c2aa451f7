"""Alarms of a run: signs of trouble that are told and never stop it.

Each is seen once a step, with numbers that are on the host, and returns a
message when it sets in. It is silent then until it has cleared, so that a log
is not flooded by what lasts.
"""

import collections
import math
import statistics
from collections.abc import Mapping

import numpy as np

from aced.training.sketch import sketch_of_all

LOSS_SPIKE, NARROW_DRAW, REPEATS = "loss_spike", "narrow_draw", "repeats"
KINDS = (LOSS_SPIKE, NARROW_DRAW, REPEATS)


class LossSpike:
  """A loss far above those of the steps before it.

  Every finite loss goes into the window, a spike too: the median hardly moves
  for a few of them, and a loss that stays high is the new normal after half a
  window. Losses that are not finite are `watch.Watch`'s, and are passed over
  here; so are spikes while the median is 0 or below, which no loss of
  `aced.objectives` is.

  Args:
    factor: above 1; alarm where the loss is above so many medians. 0 is off.
    window: losses whose median is taken, those of the steps before.
    least: losses that must have been seen before.
    calm: steps in a row without a spike after which it has cleared.

  Raises:
    ValueError: an argument out of its range.
  """

  def __init__(
    self, factor: float, window: int = 100, least: int = 20, calm: int = 10
  ):
    if factor != 0 and not 1 < factor < math.inf:
      raise ValueError(
        f"factor={factor} of LossSpike must be above 1, or 0 for no alarm."
      )
    if not 1 <= least <= window:
      raise ValueError(
        f"least={least} of LossSpike must be in 1..{window}, its window."
      )
    self._factor, self._least = factor, least
    self._losses: collections.deque[float] = collections.deque(maxlen=window)
    self._onset = _Onset(1, calm)

  def see(self, step: int, loss: float) -> str | None:
    """Takes the loss of a step; returns a message when a spike sets in."""
    if not self._factor or not math.isfinite(loss):
      return None
    count, median = len(self._losses), math.inf
    if count >= self._least:
      median = statistics.median(self._losses)
    self._losses.append(loss)
    if not self._onset.sees(0 < median < loss / self._factor):
      return None
    return (
      f"step {step}: the loss is {loss:.4g}, {loss / median:.3g} times the"
      f" median of the {count} steps before, {median:.4g}; expected no more"
      f" than {self._factor:g} times. Look at the data of that step and at"
      " norm/gradient there; if it comes again, lower"
      " config.optimizer.learning_rate or config.optimizer.clip."
    )


class NarrowDraw:
  """Draws that a few candidates of a super-batch have to themselves.

  Args:
    least: the effective sample size that a draw must have, see
      `curation.Selection`; 1 is a decided draw. 0 is off, as it should be where
      the highest scores are meant to be taken (temperature 0).
    patience: steps in a row below it after which the alarm sets in, and at or
      above it after which it has cleared.

  Raises:
    ValueError: an argument out of its range.
  """

  def __init__(self, least: float, patience: int = 10):
    if not 0 <= least < math.inf:
      raise ValueError(
        f"least={least} of NarrowDraw must be a number of candidates above 0,"
        " or 0 for no alarm."
      )
    if patience < 1:
      raise ValueError(f"patience={patience} of NarrowDraw must be 1 or above.")
    self._least, self._patience = least, patience
    self._onset = _Onset(patience, patience)

  def see(self, step: int, effective: float) -> str | None:
    """Takes the effective sample size of a step's draw, the least of chunks.

    Returns:
      A message when draws have been too narrow for long enough.
    """
    if not self._onset.sees(effective < self._least):
      return None
    return (
      f"step {step}: selection has collapsed: the effective sample size of a"
      f" draw is {effective:.3g}, and was below {self._least:g} for"
      f" {self._patience} steps in a row, so that few candidates have all the"
      " probability. Lower config.curation.gain or raise"
      " config.curation.temperature."
    )


# Of the estimate in `Repeats`: quantiles of a normal variable, 1 in 10,000
# above it and 1 in 200 below.
_HIGH, _LOW = 3.72, -2.58
_CLEAN = 0.7  # The share of a pool that curation may choose from alone.
_LEAST_EPOCHS = 4
_BLOCKS = 32  # The window moves on in as many parts, or up to twice as many.


class Repeats:
  """The same records chosen again and again.

  A window of some epochs is watched, in which a record is offered `m` times and
  record `i` chosen `c_i` times. With `F1 = sum c_i` and `F2 = sum c_i^2`, a
  choice falls on a record that is chosen `times = F2 / F1` times in all: `1 +
  (m - 1) r` by uniform choice of the share `r`, and `m` where the same records
  are chosen whenever they are offered.

  `F2` is estimated from the sketches. Most of it is `n c^2`, of the mean count
  `c = F1 / n` of the `n` records, which is known. So the mean is taken out:
  with `Z` the sum of sketches and `S` that of all records, once each,

      mean_k (Z_k - c S_k)^2    estimates    V = sum (c_i - c)^2
      times = V / F1 + c

  and what is left to chance is a part of `V`. With many records `Z_k - c S_k`
  is normal, `K` of them independent, so `K` times estimate over `V` is
  chi-squared with `K` degrees of freedom. Where a normal variable has the
  quantile `z`, it has (Wilson and Hilferty) `K q(z)`, `q(z) = (1 - 2 / (9 K) +
  z sqrt(2 / (9 K)))^3`. `V / F1`, with `r = c / m`, is

      1 - r                     uniform choice
      1 + (m - 1) r' - m r      uniform choice from a part of the records,
                                r' = r / part
      m (1 - r)                 always the same

  The limit is `factor` of the way from the first to the last, or `q(3.72)`
  times the second with a part of 0.7, if that is more: a curation that never
  chooses the 30% that are junk gives no alarm but in 1 run of 10,000. Where the
  limit is above `q(-2.58)` times the last, the alarm would miss it in more than
  1 run of 200, and nothing is judged: the sketch cannot tell the two apart.

  With `K = 64`, `q(3.72) = 1.80` and `q(-2.58) = 0.60`, and at 8 offers a ratio
  `r` up to 0.35 is judged (a filter ratio from 0.65 on), at 4 up to 0.2. A
  factor of 0.4 is 0.475 of the last at 8 offers, which is missed in 1 run of
  8,000; a half would be 0.56, 1 in 500. `K = 16` has `q(3.72) = 2.87` and
  `q(-2.58) = 0.32`: it could judge nothing.

  Overlapping windows of a run have the same signs and much the same counts, so
  the estimate is off by much the same in all of them; these are rates of runs
  more than of windows.

  Nothing is judged before the window is full, and so nothing at all in a run
  of fewer epochs than the window, or since it last went on; nor in a window of
  fewer than 4 epochs.

  Args:
    records: `n`, of the source.
    super_batch: records offered in a step.
    batch_size: records chosen in a step, or fewer; their ratio is `r`.
    window_epochs: epochs of the stream in the window.
    factor: the part of the way from chance to always the same, below 1; 0 is
      off.

  Attributes:
    steps: of the window, a few less where its parts would not be of one size.
    offers: `m`, how often each record is offered in it.

  Raises:
    ValueError: an argument out of its range.
  """

  def __init__(
    self,
    *,
    records: int,
    super_batch: int,
    batch_size: int,
    window_epochs: float = 8,
    factor: float = 0.4,
  ):
    if not 0 < batch_size <= super_batch or records < 1:
      raise ValueError(
        f"Repeats of {batch_size} chosen out of {super_batch}, of {records}"
        " records: expected 0 < batch_size <= super_batch, records >= 1."
      )
    if not 0 <= factor < 1 or not 0 < window_epochs < math.inf:
      raise ValueError(
        f"factor={factor} of Repeats must be in [0, 1), 0 for no alarm, and"
        f" window_epochs={window_epochs} above 0."
      )
    self._records, self._ratio = records, batch_size / super_batch
    steps = math.ceil(window_epochs * records / super_batch)
    self._block_steps = max(steps // _BLOCKS, 1)
    self._most_blocks = steps // self._block_steps
    self.steps = self._block_steps * self._most_blocks
    self.offers = self.steps * super_batch / records
    self._factor = factor if window_epochs >= _LEAST_EPOCHS else 0
    self._onset = _Onset(1, 1)
    # Whole numbers, so that adding and taking away leaves nothing behind.
    self._blocks: collections.deque[np.ndarray] = collections.deque()
    self._window = self._block = self._all = None
    self._seen = 0
    self._times: float | None = None

  @property
  def times(self) -> float | None:
    """How often a record that was chosen has been, within the window.

    An estimate, of the last time that a part of the window ended, and no more
    than `offers`; None before the window is full, and where nothing is judged.
    """
    return self._times

  @property
  def chance(self) -> float:
    """What `times` would be by uniform choice."""
    return 1 + (self.offers - 1) * self._ratio

  def limit(self, width: int) -> float | None:
    """The largest `V / F1` that is no alarm; None where nothing is judged.

    Args:
      width: `K` of the sketches.
    """
    m, r = self.offers, self._ratio
    if not self._factor:
      return None
    uniform, same = 1 - r, m * (1 - r)
    clean = 1 + (m - 1) * min(r / _CLEAN, 1.0) - m * r
    limit = uniform + self._factor * (same - uniform)
    limit = max(limit, _quantile(_HIGH, width) * clean)
    return limit if limit < _quantile(_LOW, width) * same else None

  def see(self, step: int, sketch: np.ndarray, chosen: int) -> str | None:
    """Takes the sketch of the records that a step has chosen.

    Args:
      step: its number.
      sketch: `(K,)` whole numbers, of `sketch.sketch`.
      chosen: how many records it is of.

    Returns:
      A message when repetition sets in.
    """
    limit = self.limit(len(sketch))
    if limit is None or not self._add(sketch, chosen):
      return None
    totals, chosen = self._window[:-1], int(self._window[-1])
    if not chosen:
      return None
    if self._all is None:
      self._all = sketch_of_all(self._records, len(totals))
    mean = chosen / self._records
    excess = float(np.square(totals - mean * self._all).mean()) / chosen
    self._times = min(excess + mean, self.offers)
    return self._message(step) if self._onset.sees(excess > limit) else None

  def _add(self, sketch, chosen) -> bool:
    """Adds a step; True when a part of the window ends and it is full."""
    row = np.append(np.rint(sketch).astype(np.int64), int(chosen))
    self._block = row if self._block is None else self._block + row
    self._seen += 1
    if self._seen % self._block_steps:
      return False
    new, self._block = self._block, None
    self._blocks.append(new)
    self._window = new if self._window is None else self._window + new
    if len(self._blocks) > self._most_blocks:
      self._window = self._window - self._blocks.popleft()
    return len(self._blocks) == self._most_blocks

  def _message(self, step) -> str:
    return (
      f"step {step}: the records chosen in the last {self.steps:,} steps were"
      f" chosen {self._times:.1f} times each on average; each was offered"
      f" {self.offers:.1f} times, and chance would choose one {self.chance:.1f}"
      " times. The student learns from few records again and again: train on"
      " more data, raise config.curation.temperature, or lower"
      " config.curation.filter_ratio."
    )


class Alarms:
  """All alarms of a run, seen with the metrics of its steps.

  Args:
    loss_factor: of `LossSpike`.
    least_effective: of `NarrowDraw`.
    patience: of `NarrowDraw`.
    repeats_factor: of `Repeats`, and so are those that follow.
    records: of the source.
    super_batch: records offered in a step.
    batch_size: records chosen in a step.
    window_epochs: epochs in the window.

  Attributes:
    counts: kind, of `KINDS` -> how often it has set in.
    loss_spike: the `LossSpike`.
    narrow_draw: the `NarrowDraw`.
    repeats: the `Repeats`.

  Raises:
    ValueError: an argument out of its range.
  """

  def __init__(
    self,
    *,
    records: int,
    super_batch: int,
    batch_size: int,
    loss_factor: float = 3.0,
    least_effective: float = 2.0,
    patience: int = 10,
    repeats_factor: float = 0.4,
    window_epochs: float = 8,
  ):
    self.loss_spike = LossSpike(loss_factor)
    self.narrow_draw = NarrowDraw(least_effective, patience)
    self.repeats = Repeats(
      records=records,
      super_batch=super_batch,
      batch_size=batch_size,
      window_epochs=window_epochs,
      factor=repeats_factor,
    )
    self.counts: collections.Counter[str] = collections.Counter()
    self._batch_size = batch_size

  def see(
    self,
    step: int,
    metrics: Mapping[str, float],
    sketch: np.ndarray | None = None,
  ) -> list[str]:
    """Takes what is known of a step; returns messages of what has set in.

    Args:
      step: its number.
      metrics: of the step. Read are "loss", "data/masked_trained" (the share
        of the batch that does not count; 0 if it is not there) and
        "curation/effective_sample_size_least". The alarm of one that is not
        there is silent.
      sketch: `(K,)`, of the records that were chosen; None: not known.
    """
    found = {}
    if "loss" in metrics:
      found[LOSS_SPIKE] = self.loss_spike.see(step, metrics["loss"])
    effective = metrics.get("curation/effective_sample_size_least")
    if effective is not None:
      found[NARROW_DRAW] = self.narrow_draw.see(step, effective)
    if sketch is not None:
      share = 1 - metrics.get("data/masked_trained", 0.0)
      chosen = round(self._batch_size * share)
      found[REPEATS] = self.repeats.see(step, sketch, chosen)
    told = {kind: message for kind, message in found.items() if message}
    self.counts.update(told.keys())
    return list(told.values())

  def metrics(self) -> dict[str, float]:
    """How often each kind has set in, by the names of metrics."""
    return {f"alarm/{kind}": float(self.counts[kind]) for kind in KINDS}


class _Onset:
  """When something sets in, and when it may set in again.

  Args:
    after: bad steps in a row after which it sets in.
    calm: good steps in a row after which it has cleared.
  """

  def __init__(self, after: int, calm: int):
    self._after, self._calm = after, calm
    self._on, self._row = False, 0

  def sees(self, bad: bool) -> bool:
    """Takes a step; whether it has just set in."""
    # Steps in a row that speak for a change.
    self._row = self._row + 1 if bad != self._on else 0
    if self._row < (self._calm if self._on else self._after):
      return False
    self._on, self._row = not self._on, 0
    return self._on


def _quantile(z: float, width: int) -> float:
  """A quantile of chi-squared over its `width` degrees of freedom.

  Args:
    z: the same quantile of a normal variable.
    width: the degrees of freedom.
  """
  part = 2 / (9 * width)  # Wilson and Hilferty, 1931.
  return max(1 - part + z * math.sqrt(part), 0.0) ** 3
