"""Workers and migrators die, plans change, messages get lost, doubled and late, at any moment.

Safety is checked by every scripted worker at every command that it obeys; liveness after the faults
have stopped: the fleet becomes what the last placement says.
"""

from typing import Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.contracts.placement import Policy, ReplicaPlacement
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_MS
from tests.scripted_fleet import Fleet

WORKER_IDS = ("worker-a", "worker-b", "worker-c", "worker-d", "worker-e", "worker-f")
SHAPES = ((1, 1), (1, 2), (2, 1), (2, 2))
HEAL_MS = 90_000

Action = tuple[
    Literal["plan", "kill", "start", "freeze", "thaw", "leave", "migrator", "stall"], int, int
]
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ("plan", "plan", "kill", "start", "freeze", "thaw", "leave", "migrator", "stall")
        ),
        st.integers(0, 1_500),
        st.integers(0, 5),
    ),
    max_size=10,
)


class Planner:
    """Places what lives into replicas of any shape, and leaves alone what can stay."""

    def __init__(self, fleet: Fleet, rng: Rng) -> None:
        self.fleet = fleet
        self.rng = rng

    def plan(self) -> None:
        fleet = self.fleet
        usable = [w for w in sorted(fleet.workers) if w not in fleet.frozen and not self._ends(w)]
        before = () if fleet.placement is None else fleet.placement.replicas
        kept = [r for r in before if self._can_stay(r, usable) and self.rng.random() < 0.7]
        free = [w for w in usable if not any(w in r.worker_ids for r in kept)]
        self.rng.shuffle(free)
        revision = 1 if fleet.placement is None else fleet.placement.plan_revision + 1
        stages, shards = self.rng.choice(SHAPES)
        ending = sorted(self._held() - {replica.replica_id for replica in kept})
        inherited = ending if fleet.policy in (Policy.SPOTSERVE, Policy.TIDESERVE) else []
        kept = [r.model_copy(update={"inherits": self._some(inherited)}) for r in kept]
        new = []
        while len(free) >= stages * shards:
            members, free = free[: stages * shards], free[stages * shards :]
            new.append(
                ReplicaPlacement(
                    replica_id=f"replica-{revision}-{len(new)}",
                    replica_epoch=revision,
                    stages=stages,
                    shards=shards,
                    worker_ids=tuple(members),
                    inherits=self._some(inherited),
                )
            )
        if kept or new:
            fleet.place(*kept, *new)

    def _some(self, replica_ids: list[str]) -> tuple[str, ...]:
        return tuple(e for e in replica_ids if self.rng.random() < 0.5)

    def is_outdated(self) -> bool:
        placement = self.fleet.placement
        usable = [w for w in sorted(self.fleet.workers) if not self._ends(w)]
        return placement is None or not all(self._can_stay(r, usable) for r in placement.replicas)

    def _can_stay(self, replica: ReplicaPlacement, usable: list[str]) -> bool:
        return all(w in usable and not self._is_broken(w, replica) for w in replica.worker_ids)

    def _is_broken(self, worker_id: str, replica: ReplicaPlacement) -> bool:
        held = self.fleet.workers[worker_id].serving
        return held is not None and held.is_broken and held.roster.replica_id == replica.replica_id

    def _held(self) -> set[str]:
        return {worker.serving_id for worker in self.fleet.workers.values() if worker.serving_id}

    def _ends(self, worker_id: str) -> bool:
        return self.fleet.workers[worker_id].grace_ends_at_ns is not None


def disturb(fleet: Fleet, planner: Planner, action: Action) -> None:
    kind, wait_ms, number = action
    worker_id = WORKER_IDS[number]
    match kind:
        case "plan":
            planner.plan()
        case "kill":
            if len(fleet.workers) > 2 and worker_id in fleet.workers:
                fleet.kill_worker(worker_id)
        case "start":
            if worker_id not in fleet.workers:
                fleet.add_worker(worker_id)
                fleet.frozen.discard(worker_id)
        case "freeze":
            fleet.freeze_worker(worker_id)
        case "thaw":
            fleet.frozen.discard(worker_id)
        case "leave":
            worker = fleet.workers.get(worker_id)
            if worker is not None and len(fleet.workers) > 2:
                worker.grace_ends_at_ns = fleet.now_ns + 2_000 * NS_PER_MS
                planner.plan()
        case "migrator":
            owner = fleet.owner
            if owner is not None and fleet.migrators[owner].is_alive:
                fleet.kill_migrator(owner)
                fleet.add_migrator(f"migrator-{len(fleet.migrators) + 1}")
        case "stall":
            owner = fleet.owner
            if owner is not None:
                fleet.freeze(owner)
    fleet.run(wait_ms)


def end_the_leaving(fleet: Fleet) -> None:
    for worker_id, worker in list(fleet.workers.items()):
        ends_at_ns = worker.grace_ends_at_ns
        if ends_at_ns is not None and fleet.now_ns >= ends_at_ns:
            fleet.kill_worker(worker_id)


@given(
    actions=ACTIONS,
    policy=st.sampled_from(tuple(Policy)),
    seed=st.integers(0, 2**20),
    faults=st.sampled_from((0.0, 0.05, 0.3)),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_fleet_is_never_harmed_and_reaches_the_last_placement(
    actions: list[Action], policy: Policy, seed: int, faults: float
) -> None:
    fleet = live_through(actions, policy=policy, seed=seed, faults=faults)
    assert fleet.is_reached(), fleet.record


def live_through(actions: list[Action], *, policy: Policy, seed: int, faults: float) -> Fleet:
    """Return the fleet after all that, and after it was left in peace."""
    fleet = Fleet(seed=seed, policy=policy)
    planner = Planner(fleet, Rng(seed).child("planner"))
    for worker_id in WORKER_IDS[:4]:
        fleet.add_worker(worker_id)
    fleet.add_migrator("migrator-1")
    fleet.add_migrator("migrator-2")
    fleet.run(1_000)
    planner.plan()
    fleet.run(1_500)
    network = fleet.network
    network.lost, network.doubled, network.delay_ns_max = faults, faults, int(faults * 10**9)
    for action in actions:
        disturb(fleet, planner, action)
        end_the_leaving(fleet)
        fleet.check()
    # Heal: whoever is there stays, and the planner plans until its plan can be had.
    network.lost = network.doubled = 0.0
    network.delay_ns_max = 0
    fleet.frozen.clear()
    for migrator_id in list(fleet.migrators):
        fleet.wake(migrator_id)
    for worker_id in [w for w in fleet.workers if fleet.workers[w].grace_ends_at_ns is not None]:
        fleet.kill_worker(worker_id)
    for worker_id in WORKER_IDS[:4]:
        if worker_id not in fleet.workers:
            fleet.add_worker(worker_id)
    for _ in range(HEAL_MS // 1_000):
        if planner.is_outdated():
            planner.plan()
        if fleet.run(1_000, until=fleet.is_reached):
            break
    fleet.check()
    return fleet
