"""What the table of the live comparison says of its runs."""

from benchmarks.live_spot_rows import Run, parts_of, row_of
from libs.contracts.handover_record import HandoverMoment, HandoverState, HandoverStory
from libs.contracts.placement import Policy
from libs.kernel.units import NS_PER_MS

S = HandoverState


def a_story(*moments: tuple[HandoverState, int]) -> HandoverStory:
    return HandoverStory(
        handover_id="handover-1",
        policy=Policy.TIDESERVE,
        plan_revision=1,
        moments=tuple(
            HandoverMoment(state=state, entered_at_unix_ns=at_ms * NS_PER_MS)
            for state, at_ms in moments
        ),
    )


def a_run(policy: Policy, *, pair: int = 0, latency_p99_ms: float, failed: int = 0) -> Run:
    return Run(
        policy=policy,
        pair=pair,
        requests=10,
        failed=failed,
        ttft_p99_ms=1.0,
        latency_p50_ms=1.0,
        latency_p99_ms=latency_p99_ms,
        gap_max_ms=1.0,
        tokens_recomputed=0,
        prefill_tokens_per_s=100.0,
        weight_bytes_from_peers=0,
        weight_bytes_from_disk=0,
        kv_bytes_moved=0,
        stall_ms_total=0.0,
        parts_ms={},
        parts_stalled_ms={},
        handovers=1,
        shapes=(),
        seen=(),
    )


def test_a_restart_stands_still_from_the_stop_until_its_targets_serve() -> None:
    story = a_story(
        (S.STOPPING, 0), (S.RELEASING, 10), (S.LOADING, 15), (S.ACTIVATING, 95), (S.DONE, 100)
    )
    parts = {
        "stop_and_send_kv": 10.0,
        "release_sessions": 5.0,
        "load_weights": 80.0,
        "activate": 5.0,
    }
    assert parts_of([story], is_stalled_only=False) == parts
    assert parts_of([story], is_stalled_only=True) == parts


def test_what_is_loaded_while_the_source_decodes_is_no_stall() -> None:
    story = a_story(
        (S.LOADING, 0),
        (S.STOPPING, 70),
        (S.ACTIVATING, 75),
        (S.RELEASING, 78),
        (S.DROPPING, 80),
        (S.DONE, 500),
    )
    assert parts_of([story], is_stalled_only=True) == {
        "stop_and_send_kv": 5.0,
        "activate": 3.0,
        "release_sessions": 2.0,
    }
    everything = parts_of([story, story], is_stalled_only=False)
    assert everything["load_weights"] == 140.0
    assert everything["drop_weights_and_kv"] == 840.0


def test_a_replica_that_only_begins_stalls_nobody() -> None:
    story = a_story((S.LOADING, 0), (S.ACTIVATING, 70), (S.DONE, 75))
    assert parts_of([story], is_stalled_only=True) == {}


def test_ratios_compare_runs_of_the_same_pair_and_failures_add_up() -> None:
    runs = [
        a_run(Policy.TIDESERVE, pair=0, latency_p99_ms=100.0),
        a_run(Policy.TIDESERVE, pair=1, latency_p99_ms=300.0),
        a_run(Policy.REROUTE, pair=0, latency_p99_ms=300.0, failed=1),
        a_run(Policy.REROUTE, pair=1, latency_p99_ms=300.0, failed=2),
    ]
    row = row_of(Policy.REROUTE, runs)
    assert row.latency_p99_ratio_to_tideserve == 2.0  # the median of 3 and 1
    assert row.latency_p99_ms_all == (300.0, 300.0)
    assert row.failed == 3
