"""The sources that ask nobody: a trace that is replayed, and the signals of a job."""

import asyncio
from pathlib import Path

from libs.contracts.preemption import NoticeKind
from libs.kernel.units import NS_PER_S
from services.preemption_watcher.readings import Observation, Reading
from services.preemption_watcher.sources.signals import SignalSource
from services.preemption_watcher.sources.trace import TraceSource, read_trace

START_UNIX_NS = 1_800_000_000 * NS_PER_S


class SteppedClock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.since_start_s = 0.0

    def now_ns(self) -> int:
        return round(self.since_start_s * NS_PER_S)

    def now_unix_ns(self) -> int:
        return START_UNIX_NS + self.now_ns()


def polled(source: TraceSource | SignalSource) -> Observation:
    async def poll() -> Observation:
        async with asyncio.timeout(10):
            return await source.poll()

    return asyncio.run(poll())


def a_trace(folder: Path, clock: SteppedClock, *, node_id: str = "a") -> TraceSource:
    file = folder / "trace.jsonl"
    file.write_text(
        '{"at_s": 10, "node_id": "a", "action": "preempt", "grace_s": 30}\n'
        '{"at_s": 12, "node_id": "b", "action": "preempt"}\n'
        '{"at_s": 20, "node_id": "a", "action": "withdraw"}\n'
        '{"at_s": 30, "node_id": "a", "action": "preempt", "grace_s": 5}\n'
    )
    return TraceSource(
        read_trace(file), node_id=node_id, start_at_unix_ns=START_UNIX_NS, clock=clock
    )


def readings_at(source: TraceSource, clock: SteppedClock, at_s: float) -> tuple[Reading, ...]:
    clock.since_start_s = at_s
    observation = polled(source)
    assert observation.is_whole
    return observation.readings


def test_a_trace_gives_each_notice_at_its_time_and_takes_it_back(tmp_path: Path) -> None:
    clock = SteppedClock()
    source = a_trace(tmp_path, clock)
    assert readings_at(source, clock, 9.99) == ()
    [first] = readings_at(source, clock, 10)
    assert readings_at(source, clock, 19.99) == (first,)
    assert first.deadline_at_unix_ns == START_UNIX_NS + 40 * NS_PER_S
    assert readings_at(source, clock, 20) == ()
    [second] = readings_at(source, clock, 1_000)
    assert second.deadline_at_unix_ns == START_UNIX_NS + 35 * NS_PER_S
    assert second.notice_id != first.notice_id


def test_a_trace_of_other_nodes_is_silent_and_one_without_grace_names_no_end(
    tmp_path: Path,
) -> None:
    clock = SteppedClock()
    assert readings_at(a_trace(tmp_path, clock, node_id="c"), clock, 1_000) == ()
    [reading] = readings_at(a_trace(tmp_path, clock, node_id="b"), clock, 1_000)
    assert reading.deadline_at_unix_ns is None


def test_each_signal_leaves_what_is_configured_for_it() -> None:
    source = SignalSource(
        {"SIGTERM": 30 * NS_PER_S, "SIGUSR1": 50 * NS_PER_S}, node_id="a", clock=SteppedClock()
    )
    source.hear("SIGUSR1")
    source.hear("SIGWINCH")
    source.hear("SIGTERM")
    [early], [late] = polled(source).readings, polled(source).readings
    assert (early.grace_ns, late.grace_ns) == (50 * NS_PER_S, 30 * NS_PER_S)
    assert early.kind is NoticeKind.PREEMPTION
    assert early.notice_id != late.notice_id


def test_a_signal_again_within_a_second_is_the_same_notice_and_later_another() -> None:
    clock = SteppedClock()
    source = SignalSource({"SIGTERM": NS_PER_S}, node_id="a", clock=clock)
    ids = []
    for at_s in (1, 1.5, 600):
        clock.since_start_s = at_s
        source.hear("SIGTERM")
        ids.append(polled(source).readings[0].notice_id)
    assert ids[0] == ids[1] != ids[2]
