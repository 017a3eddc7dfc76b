"""Both tides on one engine: what holds whatever comes, whatever yields, whatever is evicted."""

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import SchedulerOptions
from libs.engine.scheduling.coserve import POLICIES, Coserve, CoserveOptions
from libs.engine.scheduling.fair_shares import cost_of
from libs.engine.steps import StepPlan
from tests.properties.engine.coserving import (
    EOS,
    LATENCY,
    Engine,
    engines,
    is_servable,
    requests,
    work_of,
)

ONLINE_FIRST = tuple(name for name, policy in POLICIES.items() if policy.is_online_first)
BY_SLACK = (Coserve.TIDESERVE, Coserve.CONSERVE)
EVENTS = ("add", "add", "add", "step", "step", "step", "yield", "abort", "hold", "let go", "copy")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_sequence_ends_once_with_the_tokens_of_an_undisturbed_run(
    data: st.DataObject,
) -> None:
    engine = data.draw(engines())
    stored = data.draw(st.booleans())
    for number in range(data.draw(st.integers(1, 25))):
        disturb(engine, data, number=number)
        engine.scheduler.check_invariants()
        if stored:
            engine.scheduler.set_stored(frozenset(engine.scheduler.prefix_hashes(3)))
    engine.scheduler.release_blocks("copy")
    engine.run_until_idle()
    is_served = engine.options.coserve.policy is not Coserve.ONLINE_ONLY
    engine.check_answers(is_offline_served=is_served)
    if is_served:
        load = engine.scheduler.load()
        assert (load.sequences_running, load.sequences_waiting) == (0, 0)
        assert load.blocks_free == load.blocks_total


def disturb(engine: Engine, data: st.DataObject, *, number: int) -> None:
    """Let one thing happen."""
    scheduler = engine.scheduler
    known = sorted(name for name in engine.requests if scheduler.knows(name))
    event = data.draw(st.sampled_from(EVENTS))
    if event == "add":
        engine.add(data.draw(requests(sequence_id=f"s{number}")))
    elif event in ("step", "yield"):
        if (plan := engine.plan()) is None:
            return
        if event == "yield":
            engine.runner.request_yield(plan.step_id)
            if known and data.draw(st.booleans()):
                engine.abort(data.draw(st.sampled_from(known)))
        result = engine.finish(plan, slowness=data.draw(st.sampled_from((0.5, 1.0, 3.0))))
        assert not (result.is_yielded and plan.layers_between_safepoints is None)
    elif event == "copy":
        if scheduler.is_copying:
            scheduler.commit_imports("copy", [number])
            scheduler.release_blocks("copy")
        else:
            scheduler.reserve_imports("copy", [number, number + 1000])
    elif known:
        name = data.draw(st.sampled_from(known))
        if event == "abort":
            engine.abort(name)
        elif event == "hold" and scheduler.hold_back(name):
            engine.held.add(name)
        elif event == "let go":
            scheduler.let_go(name)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_online_work_is_served_as_if_there_were_no_offline_work(data: st.DataObject) -> None:
    """Step for step, the online entries are those of an engine that was never given anything
    offline. Steps without online work are beside the point, and so is what is cached."""
    makes_room = tuple(name for name in ONLINE_FIRST if POLICIES[name].makes_room)
    engine = data.draw(engines(policies=makes_room, has_prefix_cache=False))
    alone = Engine(options=engine.options)
    for number in range(data.draw(st.integers(1, 25))):
        if data.draw(st.booleans()):
            request = data.draw(requests(sequence_id=f"s{number}"))
            engine.add(request)
            if not request.is_offline:
                alone.add(request)
        else:
            step_beside(engine, alone)
    while step_beside(engine, alone):
        pass
    engine.check_answers()


def step_beside(engine: Engine, alone: Engine) -> bool:
    """Step both; say whether there was anything to do."""
    plan, lonely_plan = engine.plan(), alone.plan()
    assert online_shares(engine, plan) == online_shares(alone, lonely_plan)
    if lonely_plan is not None:
        alone.finish(lonely_plan)
    if plan is not None:
        engine.finish(plan)
    return plan is not None


def online_shares(engine: Engine, plan: StepPlan | None) -> list[tuple[str, int, int]]:
    entries = () if plan is None else plan.entries
    return [
        (entry.sequence_id, entry.start_position, len(entry.token_ids))
        for entry in entries
        if not engine.requests[entry.sequence_id].is_offline
    ]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_offline_work_joins_only_within_the_slack_of_the_tightest_slo(data: st.DataObject) -> None:
    engine = data.draw(engines(policies=BY_SLACK))
    for number in range(data.draw(st.integers(1, 25))):
        if data.draw(st.booleans()):
            engine.add(data.draw(requests(sequence_id=f"s{number}")))
        elif (plan := engine.plan()) is not None:
            check_bounds(engine, plan)
            engine.finish(plan, slowness=data.draw(st.sampled_from((0.7, 1.0, 1.5))))


def check_bounds(engine: Engine, plan: StepPlan) -> None:
    timing, coserve = engine.scheduler.timing, engine.options.coserve
    predicted_ns = timing.predict_ns(work_of(plan)) * timing.margin
    offline = [engine.requests[entry.sequence_id].is_offline for entry in plan.entries]
    if all(offline):
        layers, spacing = engine.options.layers, plan.layers_between_safepoints
        is_floor = work_of(plan).rows <= engine.options.block_tokens
        if coserve.policy is Coserve.TIDESERVE and layers is not None and spacing is not None:
            group_ns = predicted_ns * spacing / layers
            assert spacing == 1 or group_ns <= coserve.offline_hold_ns_max * 1.001 + 1
        elif layers is None and not is_floor:
            assert predicted_ns <= coserve.offline_hold_ns_max * 1.001 + 1
    elif any(offline):
        for entry, is_offline in zip(plan.entries, offline, strict=True):
            if is_offline or not entry.is_sampling:
                continue
            has_token = bool(engine.emitted[entry.sequence_id])
            slo_ns = coserve.tbt_slo_ns if has_token else coserve.ttft_slo_ns
            due_ns = engine.due_from_ns[entry.sequence_id] + slo_ns
            assert engine.now_ns + predicted_ns <= due_ns * 1.001 + 2


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_step_that_yields_leaves_everything_as_it_was(data: st.DataObject) -> None:
    engine = data.draw(engines(policies=BY_SLACK))
    for number in range(data.draw(st.integers(2, 12))):
        engine.add(data.draw(requests(sequence_id=f"s{number}", priorities=(-10, -3))))
    for _ in range(data.draw(st.integers(1, 12))):
        plan = engine.plan()
        if plan is None or plan.layers_between_safepoints is None:
            if plan is not None:
                engine.finish(plan)
            continue
        before = snapshot(engine)
        engine.runner.request_yield(plan.step_id)
        assert engine.finish(plan).is_yielded
        assert snapshot(engine) == before
        engine.step()
    engine.run_until_idle()
    engine.check_answers()


def snapshot(engine: Engine) -> object:
    """All that a step can change, as far as anybody can see it."""
    scheduler = engine.scheduler
    tally = scheduler.tally
    return (
        {name: scheduler.tokens_computed(name) for name in scheduler.sequence_ids},
        {name: scheduler.full_blocks(name) for name in scheduler.sequence_ids},
        scheduler.prefix_hashes(100),
        sorted(scheduler.waiting_offline_ids()),
        scheduler.load(),
        (tally.tokens_offline, tally.tokens_repeated, tally.steps_offline),
        [len(tokens) for tokens in engine.emitted.values()],
    )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_step_is_asked_to_yield_once_and_only_for_one_who_can_be_admitted(
    data: st.DataObject,
) -> None:
    engine = data.draw(engines(policies=BY_SLACK))
    for number in range(data.draw(st.integers(1, 12))):
        engine.add(data.draw(requests(sequence_id=f"s{number}")))
        plan = engine.plan()
        if plan is None:
            continue
        newcomer = data.draw(requests(sequence_id=f"late{number}", priorities=(0,)))
        if data.draw(st.booleans()):
            engine.add(newcomer)
        step_id = engine.scheduler.step_to_yield(now_ns=engine.now_ns)
        assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) is None
        if step_id is not None:
            assert step_id == plan.step_id
            assert all(engine.requests[e.sequence_id].is_offline for e in plan.entries)
            engine.runner.request_yield(step_id)
        is_yielded = engine.finish(plan).is_yielded
        assert is_yielded == (step_id is not None)
        if is_yielded:
            following = engine.plan()
            assert following is not None
            assert online_shares(engine, following), "it yielded for nobody"
            engine.finish(following)
    engine.run_until_idle()
    engine.check_answers()


def served_by_tenant(engine: Engine) -> dict[str, int]:
    served: dict[str, int] = {}
    for request in engine.requests.values():
        name = request.sequence_id
        tokens = request.tokens_known + len(engine.emitted[name])
        if engine.scheduler.knows(name):
            tokens = engine.scheduler.tokens_computed(name)
        cost = cost_of(prompt_tokens=request.tokens_known, first=0, end=tokens)
        served[request.tenant] = served.get(request.tenant, 0) + cost
    return served


def greedy_and_modest(policy: Coserve, *, greedy_tokens: int) -> tuple[Engine, int]:
    """One tenant has asked for a lot before another asks for a little; return the bound, too."""
    engine = Engine(
        options=SchedulerOptions(
            step_tokens_max=16,
            sequences_max=4,
            block_tokens=4,
            blocks_total=200,
            context_tokens_max=200,
            eos_token_ids=EOS,
            coserve=CoserveOptions(policy=policy, latency=LATENCY),
        )
    )
    for number in range(60):
        tenant = "greedy" if number < 40 else "modest"
        tokens = greedy_tokens if tenant == "greedy" else 6
        engine.add(
            SequenceRequest(
                sequence_id=f"{tenant}{number}",
                prompt_token_ids=(3, 4, number // 10, number % 10),
                sampling=SamplingOptions(),
                stop=StopOptions(max_tokens=tokens, ignore_eos=True),
                priority=-10,
                tenant=tenant,
            )
        )
    cost_max = cost_of(prompt_tokens=4, first=0, end=4 + greedy_tokens)
    return engine, 2 * engine.options.sequences_max * cost_max


@settings(max_examples=20, deadline=None)
@given(greedy_tokens=st.integers(2, 60), steps=st.integers(5, 40))
def test_tenants_with_work_are_served_alike_within_what_runs(
    greedy_tokens: int, steps: int
) -> None:
    engine, bound = greedy_and_modest(Coserve.TIDESERVE, greedy_tokens=greedy_tokens)
    for _ in range(steps):
        engine.step()
        has_both = {
            request.tenant
            for name, request in engine.requests.items()
            if name in engine.scheduler.waiting_offline_ids()
        }
        if len(has_both) < 2:
            return
        served = served_by_tenant(engine)
        assert abs(served["greedy"] - served["modest"]) <= bound


def test_by_arrival_alone_the_first_tenant_is_served_alone() -> None:
    """The control: without fair shares the same load breaks the bound."""
    engine, bound = greedy_and_modest(Coserve.CONSERVE, greedy_tokens=20)
    for _ in range(80):
        engine.step()
    served = served_by_tenant(engine)
    assert served["greedy"] - served["modest"] > bound


def test_what_is_drawn_is_mostly_servable() -> None:
    """The laws above would hold for an engine that refuses all."""
    engine, _ = greedy_and_modest(Coserve.TIDESERVE, greedy_tokens=6)
    assert all(is_servable(request, engine.options) for request in engine.requests.values())
    assert len(engine.requests) == 60
