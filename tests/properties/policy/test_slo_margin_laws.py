"""What the margin promises of any sequence of errors, and what it gives away when all is well."""

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.kernel.rng import Rng
from libs.policy.slo_margin import MarginOptions, SloMargin

SLO_NS = 50_000_000
OPTIONS = MarginOptions()

phases = st.lists(
    st.tuples(
        st.floats(min_value=0.3, max_value=2.5),
        st.floats(min_value=0.0, max_value=0.5),
        st.integers(min_value=1, max_value=400),
    ),
    min_size=1,
    max_size=6,
)
"""Of each stretch of time: how far off predictions are, how much they scatter, for how long."""


def run(margin: SloMargin, ratios: list[float]) -> int:
    """Fill every step to the budget, let it take `ratio` times that, and count what was missed."""
    missed = 0
    for ratio in ratios:
        predicted_ns = margin.budget_ns(SLO_NS)
        observed_ns = int(predicted_ns * ratio)
        is_met = observed_ns <= SLO_NS
        missed += not is_met
        margin.observe(predicted_ns=predicted_ns, observed_ns=observed_ns, is_slo_met=is_met)
    return missed


def ratios_of(given_phases: list[tuple[float, float, int]], *, seed: int) -> list[float]:
    rng = Rng(seed).child("ratios")
    return [
        min(OPTIONS.factor_max, max(0.1, centre * (1 + rng.gauss(0, scatter))))
        for centre, scatter, steps in given_phases
        for _ in range(steps)
    ]


@settings(max_examples=40, deadline=None)
@given(given_phases=phases, seed=st.integers(min_value=0, max_value=9))
def test_no_more_is_missed_than_promised_whatever_the_errors(
    given_phases: list[tuple[float, float, int]], seed: int
) -> None:
    ratios = ratios_of(given_phases, seed=seed)
    margin = SloMargin(OPTIONS)
    missed = run(margin, ratios)
    slack = (OPTIONS.missed_share_max + 2 * OPTIONS.gain) / OPTIONS.gain
    assert missed <= OPTIONS.missed_share_max * len(ratios) + slack
    assert (margin.steps_missed, margin.steps_judged) == (missed, len(ratios))


@settings(max_examples=40, deadline=None)
@given(given_phases=phases, seed=st.integers(min_value=0, max_value=9))
def test_the_factor_stays_within_its_bounds(
    given_phases: list[tuple[float, float, int]], seed: int
) -> None:
    margin = SloMargin(OPTIONS)
    for ratio in ratios_of(given_phases, seed=seed):
        run(margin, [ratio])
        assert OPTIONS.factor_min <= margin.factor <= OPTIONS.factor_max


def test_a_fixed_factor_would_break_the_promise() -> None:
    fixed = SloMargin(MarginOptions(factor_min=1.2, factor_first=1.2, factor_max=1.2))
    assert run(fixed, [1.3] * 1000) == 1000
    assert run(SloMargin(OPTIONS), [1.3] * 1000) <= 13


def test_good_predictions_cost_almost_no_margin() -> None:
    margin = SloMargin(OPTIONS)
    ratios = ratios_of([(0.97, 0.01, 2000)], seed=1)
    run(margin, ratios)
    assert margin.factor < 1.03


def test_what_the_slo_does_not_judge_moves_the_quantile_alone() -> None:
    margin = SloMargin(OPTIONS)
    for _ in range(OPTIONS.steps_min):
        margin.observe(predicted_ns=1000, observed_ns=1500)
    assert margin.factor == 1.5
    assert margin.steps_judged == 0


def test_the_window_forgets_an_error_that_has_passed() -> None:
    margin = SloMargin(OPTIONS)
    run(margin, [2.5] * 40 + [1.0] * OPTIONS.window_steps)
    assert margin.factor == 1.0
