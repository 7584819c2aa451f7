"""Alarms set in when they should, once, and not at what is right."""

import jax.numpy as jnp
import numpy as np
import pytest

from aced.training import alarms
from aced.training.alarms import Alarms, LossSpike, NarrowDraw, Repeats
from aced.training.sketch import signs


def losses(count, seed=0):
  """Losses about 2 with a spread of 5%."""
  return 2 + 0.1 * np.random.default_rng(seed).standard_normal(count)


def told(alarm, values, first=1):
  """`{step: message}` of an alarm that sees values from a step on."""
  found = {k: alarm.see(k, float(v)) for k, v in enumerate(values, first)}
  return {step: text for step, text in found.items() if text is not None}


def test_a_loss_spike_is_told_with_what_is_needed():
  alarm = LossSpike(2.0)
  assert not told(alarm, losses(50))
  message = alarm.see(51, 9.0)
  assert "step 51: the loss is 9, 4.48 times" in message
  assert "median of the 50 steps before, 2.0" in message
  assert "config.optimizer.learning_rate" in message
  assert alarm.see(52, 9.0) is None


def test_a_loss_is_judged_by_factor_medians_exactly():
  for last, want in ((6.0, set()), (6.01, {21})):
    assert set(told(LossSpike(3.0), [2.0] * 20 + [last])) == want


def test_spikes_are_told_anew_once_they_have_cleared():
  alarm = LossSpike(2.0, calm=5)
  values = losses(100)
  values[[40, 42, 44, 80]] = 50.0
  assert set(told(alarm, values)) == {41, 81}


def test_a_loss_that_stays_high_is_the_new_normal_after_half_a_window():
  alarm = LossSpike(2.0, window=40, calm=1)
  assert set(told(alarm, [2.0] * 40 + [8.0] * 60)) == {41}
  # The median is that of 8 by now: 8 is no spike, and 17 is.
  assert not told(alarm, [8.0], first=101)
  assert told(alarm, [17.0], first=102)


@pytest.mark.parametrize("count", [0, 19])
def test_no_loss_is_judged_before_enough_were_seen(count):
  assert not told(LossSpike(2.0, least=20), [2.0] * count + [99.0])
  assert told(LossSpike(2.0, least=max(count, 1)), [2.0] * 20 + [99.0])


def test_losses_that_are_not_finite_are_passed_over():
  alarm = LossSpike(2.0)
  assert not told(alarm, [2.0] * 30 + [np.nan, np.inf, -np.inf, 2.0])
  assert "median of the 31 steps" in alarm.see(40, 5.0)


def test_spikes_over_a_median_of_zero_or_less_are_not_judged():
  assert not told(LossSpike(2.0), [-1.0] * 30 + [5.0])
  assert not told(LossSpike(2.0), [0.0] * 30 + [5.0])


def test_a_factor_of_zero_is_off():
  assert not told(LossSpike(0), [2.0] * 30 + [1e9])
  assert not told(NarrowDraw(0), [0.0] * 100)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: LossSpike(1.0), r"factor=1.0 of LossSpike must be above 1"),
    (lambda: LossSpike(float("nan")), "factor=nan"),
    (lambda: LossSpike(2, window=5, least=6), r"least=6 .* in 1\.\.5"),
    (lambda: NarrowDraw(-1), "least=-1 of NarrowDraw"),
    (lambda: NarrowDraw(2, patience=0), "patience=0"),
    (
      lambda: Repeats(records=9, super_batch=2, batch_size=3),
      "3 chosen out of 2",
    ),
    (
      lambda: Repeats(records=9, super_batch=3, batch_size=2, factor=1.0),
      r"factor=1.0 of Repeats must be in \[0, 1\)",
    ),
  ],
)
def test_arguments_out_of_range_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_narrow_draw_is_told_after_its_patience():
  alarm = NarrowDraw(4.0, patience=3)
  values = [9, 3, 3, 9, 3, 3, 1.5, 1, 1, 9, 3, 9, 9, 9, 4, 3, 3, 3]
  found = told(alarm, values)
  assert set(found) == {7, 18}  # 4 is not below 4.
  assert "step 7: selection has collapsed" in found[7]
  assert "is 1.5, and was below 4 for 3 steps" in found[7]
  assert "config.curation.gain" in found[7]
  assert "config.curation.temperature" in found[7]


# Repetition. A stream of epochs, of which each step offers a super-batch.
RECORDS, SUPER = 1200, 120


def choices(kind, seed, batch, epochs=8, junk=0.3):
  """The records that each step chooses, an array for each."""
  rng = np.random.default_rng(seed)
  quality = rng.permutation(RECORDS) / RECORDS
  steps = RECORDS // SUPER
  for _ in range(epochs):
    for offered in rng.permutation(RECORDS).reshape(steps, SUPER):
      if kind == "clean":  # Any but the junk.
        offered = offered[quality[offered] >= junk]
      elif kind == "best":  # The best of those that are there.
        offered = offered[np.argsort(-quality[offered])]
      elif kind == "same":  # Of a fixed set, all that are there.
        offered = offered[quality[offered] >= 1 - batch / SUPER]
        yield offered
        continue
      yield offered[:batch]


@pytest.fixture
def run(monkeypatch):
  """Returns a function that runs `Repeats`; every seed has other signs."""

  def run(kind, seed, batch=24, epochs=8, width=64, **options):
    own = jnp.arange(seed * RECORDS, (seed + 1) * RECORDS, dtype=jnp.int32)
    table = np.asarray(signs(own, width), np.float32)
    everything = table.sum(axis=0).astype(np.int64)
    monkeypatch.setattr(alarms, "sketch_of_all", lambda *_: everything)
    alarm = Repeats(
      records=RECORDS, super_batch=SUPER, batch_size=batch, **options
    )
    steps = enumerate(choices(kind, seed, batch, epochs), 1)
    said = {k: alarm.see(k, table[c].sum(axis=0), len(c)) for k, c in steps}
    return alarm, {k: text for k, text in said.items() if text is not None}

  return run


# `V / F1` of the three is 0.8, 1.4 and 6.4 at this ratio of 0.2, and `times`
# that and 1.6; the relative standard deviation of the estimate of V is 18%.
@pytest.mark.parametrize(
  ("kind", "want", "alarm"),
  [("uniform", 2.4, 0), ("clean", 3.0, 0), ("best", None, 1), ("same", 8, 1)],
)
def test_rates_of_alarms_over_200_windows(run, kind, want, alarm):
  times = []
  for seed in range(200):
    judge, said = run(kind, seed)
    assert len(said) == alarm, f"seed {seed}"
    times.append(judge.times)
  if want == 8:  # No estimate is above what was offered.
    assert max(times) == 8
    assert np.median(times) == pytest.approx(8, rel=0.05)
  elif want:
    excess = want - 1.6
    error = excess * (2 / 64 / 200) ** 0.5
    # Windows that fall within epochs aside, 1% is what the draws vary by.
    assert np.mean(times) == pytest.approx(want, abs=4 * error + 0.01 * want)
    assert np.std(times) == pytest.approx(excess * (2 / 64) ** 0.5, rel=0.3)


@pytest.mark.parametrize("batch", [12, 40])  # Ratios of 0.1 and of a third.
def test_other_ratios_are_told_apart_too(run, batch):
  for seed in range(20):
    assert not run("uniform", seed, batch)[1]
    assert not run("clean", seed, batch)[1]
    assert run("best", seed, batch)[1]


def test_the_message_of_repetition(run):
  judge, said = run("same", 0)
  (step,) = said
  assert step == judge.steps == 80  # 40 parts of 2 steps.
  for text in (
    "step 80: the records chosen in the last 80 steps were chosen",
    f"chosen {judge.times:.1f} times each on average; each was offered 8.0",
    "chance would choose one 2.4 times",
    "config.curation.temperature",
    "config.curation.filter_ratio",
  ):
    assert text in said[step]


def test_repetition_that_lasts_is_told_once_and_again_once_it_has_cleared(
  run, monkeypatch
):
  _, said = run("same", 1, epochs=20)
  assert list(said) == [80]
  table = np.asarray(signs(jnp.arange(RECORDS), 64), np.float32)
  monkeypatch.undo()
  alarm = Repeats(records=RECORDS, super_batch=SUPER, batch_size=24)
  kinds = ("same", "uniform", "same")
  chosen = [c for kind in kinds for c in choices(kind, 0, 24, epochs=10)]
  said = [
    k
    for k, c in enumerate(chosen, 1)
    if alarm.see(k, table[c].sum(axis=0), len(c))
  ]
  assert len(said) == 2 and said[0] == 80 and 200 < said[1] <= 280


def test_a_part_of_the_window_moves_on_without_a_trace(run):
  judge, _ = run("uniform", 3, epochs=40)
  whole = list(choices("uniform", 3, 24, epochs=40))
  steps = len(whole) // 2 * 2  # The last part that is whole.
  counts = np.zeros(RECORDS, np.int64)
  for chosen in whole[steps - judge.steps : steps]:
    counts[chosen] += 1
  assert judge._window[-1] == counts.sum()
  table = np.asarray(
    signs(jnp.arange(3 * RECORDS, 4 * RECORDS, dtype=jnp.int32), 64)
  )
  np.testing.assert_array_equal(judge._window[:-1], counts @ table)
  f2 = np.square(counts).sum() / counts.sum()
  assert judge.times == pytest.approx(f2, rel=0.2)


def test_nothing_is_judged_before_the_window_is_full(run):
  judge, said = run("same", 0, epochs=7)
  assert not said and judge.times is None


@pytest.mark.parametrize(
  ("options", "why"),
  [
    ({"window_epochs": 3}, "too few offers"),
    ({"factor": 0}, "off"),
    ({"batch": 60}, "half is chosen: clean data look the same"),
    ({"batch": 120}, "all are chosen"),
    ({"width": 16}, "sketches too narrow"),
  ],
)
def test_what_cannot_be_judged_is_not(run, options, why):
  judge, said = run("same", 0, **options)
  assert not said and judge.times is None, why


def test_steps_that_choose_nothing_are_no_error():
  alarm = Repeats(records=100, super_batch=100, batch_size=10)
  assert not any(alarm.see(k, np.zeros(64), 0) for k in range(20))


@pytest.mark.parametrize("records", [1, 700, 6399, 10**6 + 7, 10**9])
def test_a_window_of_many_steps_is_kept_in_few_parts(records):
  alarm = Repeats(records=records, super_batch=1000, batch_size=100)
  wanted = -(-8 * records // 1000)
  assert wanted * 31 / 32 <= alarm.steps <= wanted
  assert alarm.offers == alarm.steps * 1000 / records
  assert alarm._most_blocks * alarm._block_steps == alarm.steps
  assert alarm._most_blocks < 64


def make(**options):
  given = {"records": 100, "super_batch": 50, "batch_size": 10}
  return Alarms(
    **given | {"loss_factor": 2.0, "least_effective": 3.0} | options
  )


def test_all_alarms_are_counted_and_always_in_the_metrics():
  found = make(patience=2)
  none = {f"alarm/{k}": 0.0 for k in ("loss_spike", "narrow_draw", "repeats")}
  assert found.metrics() == none
  key = "curation/effective_sample_size_least"
  for step in range(1, 31):
    assert not found.see(step, {"loss": 1.0, key: 9.0})
  assert not found.see(31, {"loss": 1.0, key: 1.0})
  messages = found.see(32, {"loss": 5.0, key: 1.0})
  assert len(messages) == 2
  assert "the loss is 5" in messages[0] and "collapsed" in messages[1]
  assert found.counts == {"loss_spike": 1, "narrow_draw": 1}
  assert found.metrics() == none | {
    "alarm/loss_spike": 1.0,
    "alarm/narrow_draw": 1.0,
  }
  assert all(isinstance(v, float) for v in found.metrics().values())


def test_repetition_is_seen_among_all_alarms():
  found = make()
  same = np.asarray(signs(jnp.arange(10), 64), np.float32).sum(axis=0)
  messages = []
  for step in range(1, 33):  # The same ten, in each of sixteen epochs.
    messages += found.see(step, {}, same * (step % 2))
  assert len(messages) == 1 and "chosen" in messages[0]
  assert found.counts["repeats"] == 1


def test_rows_that_do_not_count_are_not_chosen():
  found = make()
  for step in range(1, 17):
    found.see(step, {"data/masked_trained": 0.3}, np.zeros(64))
  assert found.repeats._window[-1] == 16 * 7


def test_metrics_that_are_not_there_are_no_error():
  assert make().see(1, {}) == []
  assert make().see(1, {"loss": 1.0}, None) == []
