"""What made the slowest online requests slow, and whose the engine's time was."""

from dataclasses import replace

import pytest

from benchmarks.coserve_causes import slowest_waits, time_shares
from libs.engine.scheduling.tally import CoserveTally
from services.gpu_worker.checkpoint_options import CheckpointCounters
from services.simulator.coserve.router import ServedRequest
from services.simulator.coserve.run import CoserveOutcome
from services.simulator.coserve.worker import StepSpan


def step(began: int, ended: int, *, online: int) -> StepSpan:
    return StepSpan(began_at_ns=began, ended_at_ns=ended, online_ns=online)


def a_run(*first_tokens: tuple[int, int], steps: tuple[StepSpan, ...] = ()) -> CoserveOutcome:
    """(arrival, first token) of each request, between 100 and 200."""
    return CoserveOutcome(
        served=tuple(
            ServedRequest(arrival_ns=at, output_tokens=1, token_at_ns=[first])
            for at, first in first_tokens
        ),
        elapsed_ns=100,
        ended_at_ns=200,
        tally=CoserveTally(),
        checkpoints=CheckpointCounters(),
        steps=steps,
        busy_share=0.0,
        copying_share=0.0,
        digest="",
    )


def test_the_waits_of_the_slowest_request_add_up_to_its_ttft() -> None:
    steps = (
        step(100, 118, online=0),  # it came in the middle of this one
        step(118, 130, online=9),
        step(130, 140, online=10),
        step(140, 160, online=0),  # it had its token by then
    )
    found = slowest_waits(
        a_run((112, 140), (150, 155), steps=steps), alone=a_run((112, 130), (0, 9))
    )
    assert (found.ttft_ns, found.alone_ns) == (28, 18)
    assert (found.offline_steps_ns, found.mixed_steps_ns, found.rest_ns) == (6, 3, 1)


def test_who_comes_during_a_mixed_step_waits_for_offline_work_no_longer_than_it_waits() -> None:
    steps = (step(100, 120, online=5), step(120, 130, online=10))
    found = slowest_waits(a_run((116, 130), steps=steps), alone=a_run((116, 126)))
    assert (found.mixed_steps_ns, found.rest_ns) == (4, 0)


def test_a_request_without_any_token_has_waited_until_the_end() -> None:
    run = a_run((150, 0))
    unanswered = replace(run, served=(ServedRequest(arrival_ns=150, output_tokens=1),))
    assert slowest_waits(unanswered, alone=a_run((150, 160))).ttft_ns == 50


def test_the_time_that_was_measured_is_shared_out_completely() -> None:
    steps = (
        step(80, 110, online=0),  # ten of it were measured
        step(110, 130, online=15),
        step(130, 140, online=10),
        step(190, 210, online=0),
    )
    found = time_shares(a_run(steps=steps))
    assert found.online == pytest.approx(0.25)
    assert found.offline_beside == pytest.approx(0.05)
    assert found.offline_alone == pytest.approx(0.2)
    assert found.idle == pytest.approx(0.5)
