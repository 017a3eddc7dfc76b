"""Which replica gets how much of what waits."""

from collections.abc import Sequence

import pytest

from libs.contracts.handover import ReplicaRoster
from libs.sim.world import Action
from services.simulator.spot.engine import EngineReport
from services.simulator.spot.front_door import FifoDoor
from services.simulator.spot.replica import SimReplica
from services.simulator.spot.work import SimRequest, Work
from tests.unit.simulator.test_transfers import a_replica


class HoldingEngine:
    """Takes work and never does any."""

    def __init__(self) -> None:
        self.works: list[Work] = []

    @property
    def requests_held(self) -> int:
        return sum(len(work.requests) for work in self.works)

    def start(self) -> None: ...

    def stop(self, on_still: Action) -> None:
        on_still()

    def halt(self) -> None: ...

    def add(self, work: Work) -> None:
        self.works.append(work)

    def held(self) -> list[Work]:
        return self.works

    def take(self) -> list[Work]:
        works, self.works = self.works, []
        return works

    def report(self) -> EngineReport:
        return EngineReport(requests_waiting=self.requests_held)


def replicas(count: int) -> list[SimReplica]:
    placed = tuple(a_replica(stages=1, shards=4))
    return [
        SimReplica(
            roster=ReplicaRoster(
                replica_id=f"replica-{number}", replica_epoch=1, stages=1, shards=4, workers=()
            ),
            placed=placed,
            engine=HoldingEngine(),
            is_serving=True,
        )
        for number in range(count)
    ]


def a_request(number: int) -> SimRequest:
    return SimRequest(
        request_id=f"request-{number:03}", arrived_at_ns=number, prompt_tokens=8, output_tokens=8
    )


def sizes(serving: Sequence[SimReplica]) -> list[list[int]]:
    return [[len(work.requests) for work in replica.engine.held()] for replica in serving]


@pytest.mark.parametrize(("waiting", "sent"), [(1, 1), (2, 2), (3, 2), (4, 4), (9, 4)])
def test_an_idle_replica_gets_the_largest_power_of_two_that_waits(waiting: int, sent: int) -> None:
    serving: list[SimReplica] = []
    door = FifoDoor(lambda: serving, batch_max=4, batches_ahead=0)
    for number in range(waiting):
        door.arrive(a_request(number))
    serving += replicas(1)
    door.offer()
    assert sizes(serving) == [[sent]]
    assert door.requests_waiting == waiting - sent


def test_nothing_is_sent_ahead_under_the_new_batching() -> None:
    serving = replicas(1)
    door = FifoDoor(lambda: serving, batch_max=4, batches_ahead=0)
    for number in range(5):
        door.arrive(a_request(number))
    assert sizes(serving) == [[1]]
    assert door.requests_waiting == 4


@pytest.mark.parametrize(("batches_ahead", "held"), [(1, 4), (2, 8)])
def test_a_busy_replica_gets_more_until_it_holds_its_share(batches_ahead: int, held: int) -> None:
    serving = replicas(1)
    door = FifoDoor(lambda: serving, batch_max=4, batches_ahead=batches_ahead)
    for number in range(20):
        door.arrive(a_request(number))
    assert serving[0].engine.requests_held == held


def test_the_least_loaded_replica_is_chosen_and_ties_go_to_the_first() -> None:
    serving = replicas(3)
    door = FifoDoor(lambda: serving, batch_max=4, batches_ahead=1)
    for number in range(4):
        door.arrive(a_request(number))
    assert sizes(serving) == [[1, 1], [1], [1]]


def test_what_was_lost_goes_first_and_starts_over() -> None:
    serving: list[SimReplica] = []
    door = FifoDoor(lambda: serving, batch_max=4, batches_ahead=0)
    door.arrive(a_request(5))
    lost = a_request(1)
    lost.tokens_done = 3
    door.put_back([Work(requests=[lost], tokens_done=3)])
    serving += replicas(1)
    door.offer()
    (work,) = serving[0].engine.held()
    assert [request.request_id for request in work.requests] == ["request-001", "request-005"]
    assert lost.tokens_recomputed == 3
