"""Whatever happens in whatever order: safety at every commit, and peace once it is over."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.contracts.placement import Placement, Policy
from tests.planner_world import PlannerWorld

NAMES = [f"w{number}" for number in range(8)]

EVENTS = st.one_of(
    st.tuples(st.just("join"), st.sampled_from(NAMES)),
    st.tuples(st.just("kill"), st.sampled_from(NAMES)),
    st.tuples(st.just("notice"), st.sampled_from(NAMES)),
    st.tuples(st.just("withdraw"), st.sampled_from(NAMES)),
    st.tuples(st.just("migrate"), st.just("")),
    st.tuples(st.just("load"), st.just("")),
    st.tuples(st.just("planner dies"), st.just("")),
    st.tuples(st.just("planner freezes"), st.just("")),
    st.tuples(st.just("planners wake"), st.just("")),
    st.tuples(st.just("store away"), st.just("")),
    st.tuples(st.just("broker away"), st.just("")),
    st.tuples(st.just("all back"), st.just("")),
    st.tuples(st.just("receipt lost"), st.just("")),
    st.tuples(st.just("wait"), st.sampled_from(["0.05", "0.3", "2", "6"])),
)


class Story:
    """Applies events to a world, and keeps what they make true."""

    def __init__(self, policy: Policy) -> None:
        self.world = PlannerWorld()
        self.policy = policy
        self.noticed: set[str] = set()
        self.planners = 0
        self.add_planner()
        self.add_planner()

    def add_planner(self) -> None:
        self.planners += 1
        self.world.add_planner(f"p{self.planners}", policy=self.policy)

    def happen(self, event: tuple[str, str]) -> None:
        world = self.world
        match event:
            case ("join", name):
                if name not in world.workers:
                    world.add_worker(name)
            case ("kill", name):
                world.workers.pop(name, None)
            case ("notice", name):
                self.noticed.add(name)
                world.notice(f"node-{name}", grace_s=3_600)
            case ("withdraw", name):
                self.noticed.discard(name)
                world.withdraw(f"node-{name}")
            case ("migrate", _):
                if isinstance(world.stored, Placement):
                    world.migrate()
            case ("load", _):
                world.sessions_accepted += 200
            case ("planner dies", _):
                world.kill_planner(next(iter(world.planners)))
                self.add_planner()
            case ("planner freezes", _):
                world.freeze(next(iter(world.planners)))
            case ("planners wake", _):
                self.wake_all()
            case ("store away", _):
                world.is_store_away = True
            case ("broker away", _):
                world.is_broker_away = True
            case ("all back", _):
                world.is_store_away = world.is_broker_away = False
            case ("receipt lost", _):
                world.loses_next_receipt = True
            case ("wait", duration):
                world.run(seconds=float(duration))

    def wake_all(self) -> None:
        for planner_id in list(self.world.planners):
            if self.world.planners[planner_id].is_frozen:
                self.world.wake(planner_id)

    def heal(self) -> None:
        """End every fault, say again what holds, and let the fleet come to rest."""
        world = self.world
        world.is_store_away = world.is_broker_away = False
        self.wake_all()
        for _ in range(3):
            for name in NAMES:
                if name in self.noticed:
                    world.notice(f"node-{name}", grace_s=3_600)
                else:
                    world.withdraw(f"node-{name}")
            world.run(seconds=8)
            world.migrate()


def check_history(history: list[Placement]) -> None:
    """Every placement ever committed is sound; pydantic has refused a worker placed twice."""
    revisions = [placement.plan_revision for placement in history]
    assert revisions == sorted(revisions)
    for before, after in pairwise(history):
        epochs = {r.replica_id: r for r in before.replicas}
        placed = {r.replica_id for r in after.replicas}
        for replica in after.replicas:
            known = epochs.get(replica.replica_id)
            if known is None:
                assert replica.replica_epoch > before.plan_revision
                continue
            heir = known.model_copy(update={"inherits": replica.inherits})
            assert heir == replica, "a replica changed under its own id"
            assert not set(replica.inherits) & placed, "what is placed is inherited by another"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(Policy)), st.lists(EVENTS, max_size=25))
def test_any_order_of_events_leads_to_one_sound_and_stable_placement(
    policy: Policy, events: list[tuple[str, str]]
) -> None:
    story = Story(policy)
    for event in events:
        story.happen(event)
    story.heal()
    world = story.world
    check_history(world.history)

    # One leads, and its placement is the one that the living workers deserve.
    assert len(world.leaders) == 1
    staying = set(world.workers) - story.noticed
    placed = {worker_id for ids in world.shapes().values() for worker_id in ids}
    if len(staying) >= 2:
        assert placed <= staying
        assert len(placed) == len(staying) // 2 * 2

    # With nothing happening, nothing is committed.
    committed = len(world.history)
    world.run(seconds=40)
    assert len(world.history) == committed
