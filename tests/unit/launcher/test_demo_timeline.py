"""What the demo says of the fleet's shape and of its hand-overs."""

from libs.contracts.reports import MigratorReport, ReportedPosition, WorkerReport
from services.launcher.demo_timeline import Timeline, shape_of
from services.launcher.fleet_view import FleetView


class SetClock:
    """A clock that stands where it is set."""

    def __init__(self) -> None:
        self.at_ns = 0

    def now_ns(self) -> int:
        return self.at_ns

    def now_unix_ns(self) -> int:
        return self.at_ns


def a_lead(worker_id: str, *, stages: int, shards: int, is_serving: bool = True) -> WorkerReport:
    position = ReportedPosition(
        replica_id=f"of-{worker_id}",
        replica_epoch=1,
        stages=stages,
        shards=shards,
        stage=stages - 1,
        shard=0,
    )
    return WorkerReport(
        worker_id=worker_id,
        beat=0,
        alias="tiny",
        process_id=1,
        context_tokens_max=16,
        vocabulary_size=8,
        block_tokens=4,
        blocks_total=4,
        blocks_free=4,
        sessions_running=0,
        sessions_waiting=0,
        tokens_waiting=0,
        tokens_generated=0,
        steps=0,
        step_ms_recent=0.0,
        is_planned=True,
        is_serving=is_serving,
        position=position,
    )


def a_migrator(*, done: int, kv_bytes: int) -> MigratorReport:
    return MigratorReport(
        migrator_id="migrator-1",
        beat=done,
        process_id=2,
        alias="tiny",
        handovers_done=done,
        kv_bytes_moved=kv_bytes,
        stall_ms_recent=4.0,
    )


def test_a_shape_counts_the_replicas_that_serve() -> None:
    workers = [
        a_lead("w1", stages=2, shards=1),
        a_lead("w2", stages=1, shards=2),
        a_lead("w3", stages=2, shards=1),
        a_lead("w4", stages=4, shards=1, is_serving=False),
    ]
    assert shape_of(workers) == "1 x (P1 M2) + 2 x (P2 M1)"
    assert shape_of([]) == ""


def test_only_a_change_of_shape_is_noted() -> None:
    clock = SetClock()
    view = FleetView(clock=clock)
    timeline = Timeline(view, clock=clock)
    view.take(a_lead("w1", stages=2, shards=1))
    timeline.look()
    timeline.look()
    clock.at_ns = 5
    view.take(a_lead("w1", stages=1, shards=2))
    timeline.look()
    assert [(seen.at_ns, seen.shape) for seen in timeline.shapes] == [
        (0, "1 x (P2 M1)"),
        (5, "1 x (P1 M2)"),
    ]


def test_a_hand_over_is_told_with_what_it_alone_moved() -> None:
    clock = SetClock()
    view = FleetView(clock=clock)
    timeline = Timeline(view, clock=clock)
    for done, kv_bytes in ((1, 100), (1, 120), (2, 150)):
        view.take(a_migrator(done=done, kv_bytes=kv_bytes))
        timeline.look()
    (seen,) = timeline.handovers
    assert seen.kv_bytes == 30
