"""Real processes, real signals: what a client received equals an undisturbed run, token for token.

One fleet of three workers and two routers serves the whole file; what a test kills is replaced.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from services.launcher.fleet import Fleet


@pytest.fixture(scope="module")
def under_test(start_fleet: Callable[..., Any]) -> Any:
    return start_fleet(workers=3, routers=2)


async def until(condition: Callable[[], bool]) -> None:
    """Look at what the reports say, 100 times a second; the run around it bounds the time."""
    while not condition():
        await asyncio.sleep(0.01)


def busiest_worker(fleet: Fleet) -> int:
    """Process id of the worker with the most sessions."""
    workers = sorted(fleet.view.workers(), key=lambda r: (-r.sessions_running, r.worker_id))
    assert workers[0].sessions_running > 0
    return workers[0].process_id


def busiest_router(fleet: Fleet) -> int:
    """Process id of the router with the most open sessions."""
    routers = sorted(fleet.view.routers(), key=lambda r: (-r.sessions_open, r.router_id))
    assert routers[0].sessions_open > 0
    return routers[0].process_id


async def kill_worker(fleet: Fleet) -> None:
    os.kill(busiest_worker(fleet), signal.SIGKILL)


async def kill_router(fleet: Fleet) -> None:
    victim = busiest_router(fleet)
    adopted_before = _adopted_by_others(fleet, victim)
    os.kill(victim, signal.SIGKILL)
    await until(lambda: _adopted_by_others(fleet, victim) > adopted_before)


async def kill_worker_and_router(fleet: Fleet) -> None:
    os.kill(busiest_worker(fleet), signal.SIGKILL)
    await kill_router(fleet)


async def stop_router_and_wake_it_after_its_takeover(fleet: Fleet) -> None:
    victim = busiest_router(fleet)
    adopted_before = _adopted_by_others(fleet, victim)
    os.kill(victim, signal.SIGSTOP)
    try:
        await until(lambda: _adopted_by_others(fleet, victim) > adopted_before)
    finally:
        os.kill(victim, signal.SIGCONT)


def _adopted_by_others(fleet: Fleet, victim: int) -> int:
    """Sessions that the other routers took over; the victim's own count goes with its reports."""
    routers = [report for report in fleet.view.routers() if report.process_id != victim]
    return sum(report.sessions_adopted for report in routers)


def test_without_a_strike_two_runs_are_equal(under_test: Any) -> None:
    again = under_test.runner.run(under_test.run_streams(strike=None))
    assert [s.answer for s in again] == [s.answer for s in under_test.undisturbed]


def test_other_seeds_give_other_answers(under_test: Any) -> None:
    """The control: equality above is not the equality of constants."""
    greedy = [under_test.undisturbed[2 * n].answer for n in range(0, 20, 2)]
    seeded = [under_test.undisturbed[2 * n].answer for n in range(1, 20, 2)]
    assert len(set(seeded)) == len(seeded)
    assert not set(seeded) & set(greedy)


def test_every_stream_survives_a_killed_worker(under_test: Any) -> None:
    under_test.check(kill_worker)


def test_every_stream_survives_a_killed_router(under_test: Any) -> None:
    under_test.check(kill_router)


def test_every_stream_survives_a_worker_and_a_router_killed_at_once(
    under_test: Any,
) -> None:
    under_test.check(kill_worker_and_router)


def test_every_stream_survives_a_router_that_is_stopped_and_woken_after_its_takeover(
    under_test: Any,
) -> None:
    under_test.check(stop_router_and_wake_it_after_its_takeover)
