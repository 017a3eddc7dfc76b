"""Fleets in virtual time, at the moment before something happens."""

from collections.abc import Callable

import pytest

from libs.contracts.placement import Policy
from tests.scripted_fleet import Fleet, a_replica


def _a_fleet(policy: Policy = Policy.TIDESERVE, **options: object) -> Fleet:
    """Four workers, two migrators; the first two workers serve replica-1 together."""
    fleet = Fleet(policy=policy)
    for worker_id in ("worker-a", "worker-b", "worker-c", "worker-d"):
        fleet.add_worker(worker_id)
    fleet.add_migrator("migrator-1", **options)
    fleet.run(300)
    fleet.add_migrator("migrator-2", **options)
    fleet.place(a_replica("replica-1", "worker-a", "worker-b"))
    assert fleet.run(5_000, until=fleet.is_reached)
    fleet.run(1_000)
    return fleet


@pytest.fixture
def a_fleet() -> Callable[..., Fleet]:
    return _a_fleet
