"""The scripted worker notices what no migrator may ask: without that, no test here could fail."""

from libs.contracts.handover import (
    ActivateReplica,
    DropReplica,
    FormReplica,
    LoadWeights,
    PlacedWorker,
    ReleaseSessions,
    ReplicaRoster,
    StagePosition,
    StopReplica,
    ToShape,
)
from libs.kernel.units import NS_PER_S
from tests.scripted_worker import ScriptedWorker


def roster(name: str) -> ReplicaRoster:
    worker = PlacedWorker(worker_id="worker-a", peer_address="worker-a:1", stage=0, shard=0)
    return ReplicaRoster(replica_id=name, replica_epoch=1, stages=1, shards=1, workers=(worker,))


class Teller:
    """Tells one worker one command after the other."""

    def __init__(self) -> None:
        self.worker = ScriptedWorker(
            worker_id="worker-a",
            peers=lambda: [self.worker],
            may_lose_weights=lambda: False,
        )
        self.now_ns = 0
        self.told = 0

    def tell(self, kind: type[ToShape], **fields: object) -> None:
        self.told += 1
        message = kind(
            handover_id="handover-1",
            handover_epoch=1,
            migrator_id="migrator-1",
            op_id=f"op-{self.told}",
            plan_revision=1,
            **fields,  # type: ignore[arg-type]
        )
        self.worker.receive(message, now_ns=self.now_ns)
        self.now_ns += NS_PER_S
        self.worker.tick(now_ns=self.now_ns)

    def ready(self, name: str) -> None:
        self.tell(StagePosition, replica=roster(name))
        self.tell(LoadWeights, replica_id=name)
        self.tell(FormReplica, replica_id=name, rendezvous="worker-a:2", kv_blocks=1)

    def serving(self, name: str) -> None:
        self.ready(name)
        self.tell(ActivateReplica, replica_id=name)


def test_the_right_order_is_no_violation() -> None:
    teller = Teller()
    teller.serving("replica-1")
    teller.ready("replica-2")
    teller.tell(StopReplica, source=roster("replica-1"))
    teller.tell(ActivateReplica, replica_id="replica-2")
    teller.tell(ReleaseSessions, replica_id="replica-1")
    teller.tell(DropReplica, replica_id="replica-1")
    assert not teller.worker.violations


def test_activation_before_the_source_stands_still_is_one() -> None:
    teller = Teller()
    teller.serving("replica-1")
    teller.ready("replica-2")
    teller.tell(ActivateReplica, replica_id="replica-2")
    assert teller.worker.violations == ["worker-a: activation beside what serves"]


def test_activation_of_what_has_no_weights_is_one() -> None:
    teller = Teller()
    teller.tell(StagePosition, replica=roster("replica-1"))
    teller.tell(ActivateReplica, replica_id="replica-1")
    assert teller.worker.violations == [
        "worker-a: activation of what is not loaded and formed",
    ]


def test_drop_before_release_is_one() -> None:
    teller = Teller()
    teller.serving("replica-1")
    teller.ready("replica-2")
    teller.tell(StopReplica, source=roster("replica-1"))
    teller.tell(DropReplica, replica_id="replica-1")
    assert teller.worker.violations == ["worker-a: drop of replica-1 unreleased"]


def test_drop_of_the_last_copy_is_one() -> None:
    teller = Teller()
    teller.serving("replica-1")
    teller.tell(StopReplica, source=roster("replica-1"))
    teller.tell(ReleaseSessions, replica_id="replica-1")
    teller.tell(DropReplica, replica_id="replica-1")
    assert teller.worker.violations == ["worker-a: drop of the last copy of some weights"]
