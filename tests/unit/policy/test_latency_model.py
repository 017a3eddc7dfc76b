"""Predicting step times: the model, its fit, and how it follows a machine that changes."""

import pytest

from libs.kernel.rng import Rng
from libs.policy.latency_fit import (
    Prior,
    StepSample,
    fit_at_knee,
    fit_latency_model,
    mean_relative_error,
)
from libs.policy.latency_model import Communication, LatencyModel, StepWork
from libs.policy.latency_tracker import DriftChange, LatencyTracker, TrackerOptions

TRUE = LatencyModel(
    step_ns=20e6, row_ns=1.1e6, pair_prefilled_ns=2e3, token_attended_ns=1.5e3, sequence_ns=0.4e6
)
WITH_KNEE = LatencyModel(
    step_ns=8e6,
    row_ns=0.0,
    pair_prefilled_ns=20.0,
    token_attended_ns=15.0,
    sequence_ns=1e4,
    row_past_knee_ns=3e4,
    knee_rows=128,
)


def decodes(sequences: int, *, tokens_before: int) -> StepWork:
    work = StepWork()
    for _ in range(sequences):
        work = work.with_decode(tokens_before=tokens_before)
    return work


def mixed_works(rng: Rng, count: int) -> list[StepWork]:
    works = []
    for _ in range(count):
        work = decodes(rng.randrange(0, 48), tokens_before=rng.randrange(1, 1500))
        for _ in range(rng.randrange(0 if work.rows else 1, 3)):
            work = work.with_prefill(
                tokens=rng.randrange(1, 400), tokens_before=rng.randrange(0, 1000)
            )
        works.append(work)
    return works


def samples_of(
    model: LatencyModel, works: list[StepWork], *, noise: float = 0.0
) -> list[StepSample]:
    rng = Rng(11).child("noise")
    return [
        StepSample(work=work, duration_ns=round(model.predict_ns(work) * (1 + rng.gauss(0, noise))))
        for work in works
    ]


def test_work_grows_entry_by_entry() -> None:
    work = decodes(2, tokens_before=100).with_prefill(tokens=10, tokens_before=40)
    assert work == StepWork(rows=12, pairs_prefilled=10 * 45, tokens_attended=240, sequences=3)


@pytest.mark.parametrize("true", [TRUE, WITH_KNEE], ids=["without a knee", "with a knee"])
def test_a_model_is_found_again_from_its_own_steps(true: LatencyModel) -> None:
    found = fit_latency_model(samples_of(true, mixed_works(Rng(1), 120)))
    assert mean_relative_error(found, samples_of(true, mixed_works(Rng(2), 60))) < 1e-3
    assert found.knee_rows == true.knee_rows


def test_noise_of_three_percent_stays_below_the_promised_error() -> None:
    found = fit_latency_model(samples_of(TRUE, mixed_works(Rng(1), 120), noise=0.03))
    held_out = samples_of(TRUE, mixed_works(Rng(2), 60))
    assert mean_relative_error(found, held_out) < 0.02


def test_steps_that_the_system_interrupted_do_not_bend_the_fit() -> None:
    samples = samples_of(TRUE, mixed_works(Rng(1), 120))
    disturbed = [
        StepSample(work=s.work, duration_ns=s.duration_ns * (10 if index % 10 == 0 else 1))
        for index, s in enumerate(samples)
    ]
    assert mean_relative_error(fit_latency_model(disturbed), samples) < 0.01


def test_no_coefficient_is_ever_negative_so_that_more_work_never_seems_faster() -> None:
    # Times that fall with the rows: the best line would have a negative slope.
    samples = [
        StepSample(work=StepWork(rows=rows, sequences=1), duration_ns=10**7 - rows * 1000)
        for rows in range(1, 300, 10)
    ]
    found = fit_latency_model(samples)
    assert min(found.step_ns, found.row_ns, found.row_past_knee_ns, found.sequence_ns) >= 0
    assert found.predict_ns(StepWork(rows=2)) >= found.predict_ns(StepWork(rows=1))


def test_what_never_occurred_keeps_its_coefficient() -> None:
    samples = samples_of(TRUE, [decodes(n, tokens_before=64 * n) for n in range(1, 40)])
    found = fit_at_knee(samples, knee_rows=0, prior=Prior(model=TRUE.times(1.5), samples=8))
    assert found.pair_prefilled_ns == pytest.approx(1.5 * TRUE.pair_prefilled_ns)
    assert mean_relative_error(found, samples) < 0.05


def test_shards_divide_the_work_and_add_communication() -> None:
    work = StepWork(rows=100, sequences=10)
    cut = TRUE.cut(shards=2, communication=Communication(step_ns=5e6, row_ns=1e4))
    assert cut.predict_ns(work) == pytest.approx(TRUE.predict_ns(work) / 2 + 5e6 + 100 * 1e4)


def test_a_tracker_predicts_what_was_profiled_until_it_has_seen_enough() -> None:
    tracker = LatencyTracker(TRUE, TrackerOptions(refit_steps=8, window_steps=16))
    for work in mixed_works(Rng(3), 7):
        tracker.observe(work, 3 * TRUE.predict_ns(work))
    assert tracker.model is TRUE
    tracker.observe(StepWork(rows=1, sequences=1), 3 * TRUE.predict_ns(StepWork(rows=1)))
    assert tracker.model is not TRUE


def test_steps_under_a_clock_that_stands_still_tell_nothing() -> None:
    tracker = LatencyTracker(TRUE)
    for work in mixed_works(Rng(3), 100):
        assert tracker.observe(work, 0) is None
    assert (tracker.model, tracker.error) == (TRUE, 0.0)


def test_a_tracker_follows_a_machine_that_becomes_slower_and_recovers() -> None:
    tracker = LatencyTracker(TRUE)
    changes = []
    for slowdown in (1.0, 1.6, 1.0):
        for work in mixed_works(Rng(4).child(str(slowdown)), 320):
            changes.append(tracker.observe(work, round(slowdown * TRUE.predict_ns(work))))
        probe = StepWork().with_prefill(tokens=200, tokens_before=50)
        assert tracker.predict_ns(probe) == pytest.approx(
            slowdown * TRUE.predict_ns(probe), rel=0.05
        )
    assert [change for change in changes if change] == [DriftChange.DRIFTED, DriftChange.SETTLED]
    assert not tracker.is_drifting


def test_the_error_of_predictions_heals_while_the_profiles_does_not() -> None:
    tracker = LatencyTracker(TRUE)
    for work in mixed_works(Rng(5), 600):
        tracker.observe(work, 2 * TRUE.predict_ns(work))
    assert tracker.error < 0.05
    assert tracker.profile_error == pytest.approx(0.5, abs=0.01)
    assert tracker.is_drifting


def test_decodes_alone_raise_the_predicted_time_of_prefills_but_never_lower_it() -> None:
    prefill = StepWork().with_prefill(tokens=300, tokens_before=0)
    for slowdown, expected in ((2.0, 2.0), (0.5, 1.0)):
        tracker = LatencyTracker(TRUE)
        for index in range(300):
            work = decodes(1 + index % 32, tokens_before=50 * (index % 13))
            tracker.observe(work, round(slowdown * TRUE.predict_ns(work)))
        ratio = tracker.model.pair_prefilled_ns / TRUE.pair_prefilled_ns
        assert ratio == pytest.approx(expected, rel=0.01)
        if slowdown > 1:
            assert tracker.predict_ns(prefill) > 1.5 * TRUE.predict_ns(prefill)


def test_an_error_between_the_thresholds_changes_nothing() -> None:
    tracker = LatencyTracker(TRUE)
    # 1 - 1/1.25: the profile is 20 % off, between "settled" at 15 and "drifted" at 25.
    changes = {
        tracker.observe(work, round(1.25 * TRUE.predict_ns(work)))
        for work in mixed_works(Rng(6), 300)
    }
    assert changes == {None}
