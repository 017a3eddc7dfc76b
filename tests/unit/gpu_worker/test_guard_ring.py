"""Who guards a replica of several workers."""

from libs.contracts.handover import PlacedWorker, ReplicaRoster
from libs.kernel.units import NS_PER_S
from services.gpu_worker.guard_ring import GuardRing
from services.gpu_worker.options import WorkerOptions
from tests.unit.gpu_worker.test_guarding import ENGINE, a_position, a_report

OPTIONS = WorkerOptions(
    worker_id="worker-b",
    alias="tide",
    process_id=7,
    vocabulary_size=1000,
    engine=ENGINE,
    node_id="node-b",
)
PAIR = ReplicaRoster(
    replica_id="pair",
    replica_epoch=1,
    stages=2,
    shards=1,
    workers=(
        PlacedWorker(worker_id="worker-a", peer_address="", stage=0, shard=0),
        PlacedWorker(worker_id="worker-b", peer_address="", stage=1, shard=0),
    ),
)
OWN = {"position": a_position(0, 0, stages=2, shards=1, replica_id="pair"), "is_serving": False}


def guard_of_pair(ring: GuardRing, *, now_ns: int = 0) -> str | None:
    guard = ring.choose(PAIR, now_ns=now_ns)
    return None if guard is None else guard.replica_id


def test_a_pair_is_guarded_by_whom_neither_of_its_nodes_takes_along() -> None:
    ring = GuardRing(OPTIONS)
    ring.hear(a_report("worker-a", **OWN), now_ns=0)
    ring.hear(a_report("worker-c", node_id="node-of-worker-a"), now_ns=0)
    assert guard_of_pair(ring) is None
    ring.hear(a_report("worker-d"), now_ns=0)
    assert guard_of_pair(ring) == "replica-of-worker-d"


def test_while_the_node_of_an_own_member_is_unknown_nobody_guards() -> None:
    ring = GuardRing(OPTIONS)
    ring.hear(a_report("worker-d"), now_ns=0)
    assert guard_of_pair(ring) is None
    ring.hear(a_report("worker-a", **OWN), now_ns=0)
    assert guard_of_pair(ring) == "replica-of-worker-d"


def test_a_replica_with_one_silent_worker_guards_no_more() -> None:
    ring = GuardRing(OPTIONS)
    ring.hear(a_report("worker-a", **OWN), now_ns=0)
    for at_s in range(4):
        ring.hear(
            a_report("worker-d", position=a_position(1, 0, stages=2, shards=1)),
            now_ns=at_s * NS_PER_S,
        )
    member = a_report("worker-c", position=a_position(0, 0, stages=2, shards=1), is_serving=False)
    ring.hear(member, now_ns=NS_PER_S)
    assert guard_of_pair(ring, now_ns=2 * NS_PER_S) == "wide"
    assert guard_of_pair(ring, now_ns=4 * NS_PER_S) is None


def test_the_ring_goes_by_leads() -> None:
    ring = GuardRing(OPTIONS)
    ring.hear(a_report("worker-a", **OWN), now_ns=0)
    for lead in ("worker-z", "worker-0", "worker-k"):
        ring.hear(a_report(lead), now_ns=0)
    assert guard_of_pair(ring) == "replica-of-worker-k"
