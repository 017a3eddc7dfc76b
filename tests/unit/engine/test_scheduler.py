"""The scheduler's decisions, one at a time."""

from collections.abc import Callable

import pytest

from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.steps import SampledToken, StepPlan, StepResult, TokenEmitted
from libs.kernel.errors import InvariantViolation

RequestBuilder = Callable[..., SequenceRequest]


def a_scheduler(**changes: object) -> Scheduler:
    options: dict[str, object] = {
        "step_tokens_max": 16,
        "sequences_max": 4,
        "block_tokens": 4,
        "blocks_total": 16,
        "context_tokens_max": 64,
        "eos_token_ids": frozenset({9}),
    }
    return Scheduler(SchedulerOptions(**(options | changes)))  # type: ignore[arg-type]


def result_of(plan: StepPlan, *, token_id: int = 1, stop_matched: bool = False) -> StepResult:
    return StepResult(
        step_id=plan.step_id,
        sampled=tuple(
            SampledToken(
                sequence_id=entry.sequence_id,
                token_id=token_id,
                text="certain",
                text_if_last="flushed",
                is_stop_matched=stop_matched,
            )
            for entry in plan.entries
            if entry.is_sampling
        ),
    )


def planned(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule(now_ns=0)
    assert plan is not None
    return plan


def step(scheduler: Scheduler, *, token_id: int = 1) -> tuple[TokenEmitted, ...]:
    emitted = scheduler.account(result_of(planned(scheduler), token_id=token_id), now_ns=0)
    scheduler.check_invariants()
    return emitted


def test_nothing_to_do_is_no_plan() -> None:
    assert a_scheduler().schedule(now_ns=0) is None


def test_a_prompt_is_computed_in_one_step_and_sampled(a_request: RequestBuilder) -> None:
    scheduler = a_scheduler()
    request = a_request("s", (1, 2, 3, 4, 5))
    scheduler.add(request, now_ns=0)
    plan = planned(scheduler)
    assert plan.opened == (request,)
    (entry,) = plan.entries
    assert (entry.token_ids, entry.start_position) == ((1, 2, 3, 4, 5), 0)
    assert (entry.is_sampling, entry.output_index, len(entry.block_table)) == (True, 0, 2)


def test_a_long_prompt_is_chunked_beside_the_decodes(a_request: RequestBuilder) -> None:
    scheduler = a_scheduler(step_tokens_max=6)
    scheduler.add(a_request("short", (1, 2), max_tokens=20), now_ns=0)
    step(scheduler)
    scheduler.add(a_request("long", tuple(range(20, 32))), now_ns=0)
    plan = planned(scheduler)
    assert [(e.sequence_id, len(e.token_ids)) for e in plan.entries] == [("short", 1), ("long", 5)]
    assert [entry.is_sampling for entry in plan.entries] == [True, False]
    emitted = scheduler.account(result_of(plan), now_ns=0)
    assert [token.sequence_id for token in emitted] == ["short"]


def test_a_scored_prompt_is_scored_once_and_up_to_its_last_token(
    a_request: RequestBuilder,
) -> None:
    scheduler = a_scheduler(step_tokens_max=6)
    scored = SamplingOptions(logprobs=0, prompt_logprobs=True)
    scheduler.add(a_request("s", tuple(range(20, 32)), sampling=scored), now_ns=0)
    entries = []
    for _ in range(4):
        plan = planned(scheduler)
        entries += plan.entries
        scheduler.account(result_of(plan), now_ns=0)
    assert [list(entry.scored_positions) for entry in entries] == [
        [1, 2, 3, 4, 5, 6],
        [7, 8, 9, 10, 11],
        [],
        [],
    ]
    assert [entry.logit_rows for entry in entries] == [6, 6, 1, 1]


def test_a_scored_prompt_takes_no_cached_prefix(a_request: RequestBuilder) -> None:
    scheduler = a_scheduler()
    prompt = tuple(range(20, 32))
    scored = SamplingOptions(logprobs=0, prompt_logprobs=True)
    scheduler.add(a_request("first", prompt, max_tokens=1), now_ns=0)
    step(scheduler)
    scheduler.add(a_request("plain", prompt, max_tokens=1), now_ns=0)
    scheduler.add(a_request("scored", prompt, max_tokens=1, sampling=scored), now_ns=0)
    entries = planned(scheduler).entries
    assert [(e.start_position, e.tokens_scored) for e in entries] == [(8, 0), (0, 11)]


@pytest.mark.parametrize(
    ("stop", "token_id", "reason", "text"),
    [
        (StopOptions(max_tokens=5), 1, None, "certain"),
        (StopOptions(max_tokens=1), 1, "length", "flushed"),
        (StopOptions(max_tokens=5), 9, "stop", "flushed"),
        (StopOptions(max_tokens=1), 9, "stop", "flushed"),
        (StopOptions(max_tokens=5, ignore_eos=True), 9, None, "certain"),
        (StopOptions(max_tokens=5, stop_token_ids=frozenset({1})), 1, "stop", "flushed"),
    ],
)
def test_a_sequence_ends_for_its_reason_with_its_flushed_text(
    a_request: RequestBuilder, stop: StopOptions, token_id: int, reason: str | None, text: str
) -> None:
    scheduler = a_scheduler()
    scheduler.add(a_request(stop=stop), now_ns=0)
    (token,) = step(scheduler, token_id=token_id)
    assert (token.finish_reason, token.text, token.index) == (reason, text, 0)
    assert scheduler.knows("s") == (reason is None)


def test_a_matched_stop_string_ends_the_sequence(a_request: RequestBuilder) -> None:
    scheduler = a_scheduler()
    scheduler.add(a_request(), now_ns=0)
    (token,) = scheduler.account(result_of(planned(scheduler), stop_matched=True), now_ns=0)
    assert token.finish_reason == "stop"


def test_the_context_ends_a_sequence_as_length(a_request: RequestBuilder) -> None:
    scheduler = a_scheduler(context_tokens_max=5)
    scheduler.add(a_request(max_tokens=50), now_ns=0)
    assert [step(scheduler)[0].finish_reason for _ in range(2)] == [None, "length"]


def test_a_resumed_sequence_counts_on_and_never_repeats(a_request: RequestBuilder) -> None:
    scheduler = a_scheduler()
    scheduler.add(a_request("s", (1, 2, 3), generated_token_ids=(4, 5), max_tokens=4), now_ns=0)
    tokens = [step(scheduler)[0] for _ in range(2)]
    assert [(token.index, token.finish_reason) for token in tokens] == [(2, None), (3, "length")]


def test_an_abort_in_a_running_step_takes_effect_at_account(a_request: RequestBuilder) -> None:
    scheduler = a_scheduler()
    scheduler.add(a_request(), now_ns=0)
    plan = planned(scheduler)
    assert scheduler.abort("s")
    assert not scheduler.abort("s")
    assert scheduler.load().blocks_free == 15
    assert scheduler.account(result_of(plan), now_ns=0) == ()
    assert scheduler.load().blocks_free == 16
    assert not scheduler.knows("s")


def test_the_end_of_an_opened_sequence_is_told_to_the_runner_once(
    a_request: RequestBuilder,
) -> None:
    scheduler = a_scheduler()
    scheduler.add(a_request("first", max_tokens=1), now_ns=0)
    step(scheduler)
    scheduler.add(a_request("never_run"), now_ns=0)
    scheduler.abort("never_run")
    scheduler.add(a_request("first"), now_ns=0)
    plan = planned(scheduler)
    assert plan.closed == ("first",)
    assert [request.sequence_id for request in plan.opened] == ["first"]


def test_the_youngest_is_preempted_and_goes_on_without_repeating(
    a_request: RequestBuilder,
) -> None:
    scheduler = a_scheduler(blocks_total=6, context_tokens_max=20, enable_prefix_cache=False)
    scheduler.add(a_request("old", (1, 2, 3), max_tokens=12), now_ns=0)
    scheduler.add(a_request("young", (4, 5, 6), max_tokens=12), now_ns=0)
    indices: dict[str, list[int]] = {"old": [], "young": []}
    widths = []
    while (plan := scheduler.schedule(now_ns=0)) is not None:
        widths.append(len(plan.entries))
        for token in scheduler.account(result_of(plan), now_ns=0):
            indices[token.sequence_id].append(token.index)
        scheduler.check_invariants()
    assert indices == {"old": list(range(12)), "young": list(range(12))}
    assert 1 in widths[:-2], "nothing was preempted"


def test_a_higher_priority_is_admitted_first_and_preempted_last(
    a_request: RequestBuilder,
) -> None:
    scheduler = a_scheduler(sequences_max=1)
    scheduler.add(a_request("low", max_tokens=1), now_ns=0)
    scheduler.add(a_request("high", max_tokens=1, priority=1), now_ns=0)
    assert [step(scheduler)[0].sequence_id for _ in range(2)] == ["high", "low"]


def test_equal_prefixes_share_blocks_and_different_salts_do_not(
    a_request: RequestBuilder,
) -> None:
    scheduler = a_scheduler()
    prompt = tuple(range(10, 19))
    scheduler.add(a_request("first", prompt, max_tokens=1), now_ns=0)
    step(scheduler)
    scheduler.add(a_request("second", prompt, max_tokens=1), now_ns=0)
    scheduler.add(a_request("stranger", prompt, max_tokens=1, cache_salt="other"), now_ns=0)
    plan = planned(scheduler)
    assert [entry.start_position for entry in plan.entries] == [8, 0]
    assert not set(plan.entries[0].block_table) & set(plan.entries[1].block_table)


def test_a_whole_number_of_cached_blocks_leaves_the_last_token_to_compute(
    a_request: RequestBuilder,
) -> None:
    scheduler = a_scheduler()
    prompt = tuple(range(10, 18))
    for _ in range(2):
        scheduler.add(a_request("s", prompt, max_tokens=1), now_ns=0)
        plan = planned(scheduler)
        scheduler.account(result_of(plan), now_ns=0)
    assert plan.entries[0].start_position == 4
    assert plan.entries[0].token_ids == (14, 15, 16, 17)


def test_reported_prefixes_are_those_that_a_router_computes(a_request: RequestBuilder) -> None:
    from libs.engine.prefix_hashes import prefix_block_hashes

    scheduler = a_scheduler()
    prompt = tuple(range(10, 19))
    scheduler.add(a_request("s", prompt, max_tokens=1, cache_salt="tenant"), now_ns=0)
    step(scheduler)
    expected = prefix_block_hashes(prompt, block_tokens=4, salt="tenant")
    assert scheduler.prefix_hashes(10) == tuple(reversed(expected))
    assert scheduler.prefix_hashes(1) == (expected[1],)


def test_load_counts_what_waits_and_what_runs(a_request: RequestBuilder) -> None:
    scheduler = a_scheduler(sequences_max=1, step_tokens_max=4)
    scheduler.add(a_request("running", tuple(range(6))), now_ns=0)
    scheduler.add(a_request("waiting", (1, 2, 3)), now_ns=0)
    step(scheduler)
    load = scheduler.load()
    assert (load.sequences_running, load.sequences_waiting) == (1, 1)
    assert load.tokens_waiting == 2 + 3
    assert (load.blocks_total, load.blocks_free) == (16, 14)


def test_misuse_is_our_own_bug_and_says_so(a_request: RequestBuilder) -> None:
    scheduler = a_scheduler()
    scheduler.add(a_request(), now_ns=0)
    with pytest.raises(InvariantViolation, match="s is known already"):
        scheduler.add(a_request(), now_ns=0)
    plan = planned(scheduler)
    with pytest.raises(InvariantViolation, match="a step is in flight"):
        scheduler.schedule(now_ns=0)
    with pytest.raises(InvariantViolation, match="tokens are amiss"):
        scheduler.account(StepResult(step_id=plan.step_id, sampled=()), now_ns=0)
    with pytest.raises(InvariantViolation, match="step 7 is not in flight"):
        scheduler.account(StepResult(step_id=7, sampled=()), now_ns=0)


@pytest.mark.parametrize(
    "changes",
    [{"sequences_max": 0}, {"step_tokens_max": 3}, {"context_tokens_max": 65}],
)
def test_options_that_break_liveness_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvariantViolation):
        a_scheduler(**changes)
