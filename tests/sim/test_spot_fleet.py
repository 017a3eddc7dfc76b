"""Whole fleets under spot traces: the deciding cores, unchanged, in virtual time."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.spotserve_published import ON_DEMAND_SECONDS, PUBLISHED
from libs.kernel.errors import EXIT_CONFIG_ERROR
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from services.launcher.main import run as run_command
from services.planner.options import CapacityOptions
from services.simulator.spot.control import PaceOptions
from services.simulator.spot.options import SpotRunOptions
from services.simulator.spot.outcome import SpotOutcome, cost_usd, outcome_of
from services.simulator.spot.run import SpotRun, run_spot
from services.simulator.spot.setting import PolicyName, Setting, run_options
from services.simulator.spot.trace import NodeSpan, NodeTrace
from tests.unit.simulator.test_continuous_engine import endings


def outcome(policy: PolicyName, *, trace: str = "A_S", model: str = "gpt-20b") -> SpotOutcome:
    setting = Setting(policy=policy, spot_trace=trace, model=model)
    return outcome_of(run_spot(run_options(setting)), policy=policy.value)


def short(policy: PolicyName, *, gone_at_s: int = 60, grace_s: int = 30) -> SpotRunOptions:
    """Four minutes on five nodes, of which one that serves goes."""
    options = run_options(Setting(policy=policy))
    spans = [NodeSpan(node_id=f"node-{number}", usable_at_ns=0) for number in range(5)]
    spans[1] = replace(spans[1], gone_at_ns=gone_at_s * NS_PER_S)
    return replace(
        options,
        trace=NodeTrace(name="short", spans=tuple(spans), end_at_ns=240 * NS_PER_S),
        arrivals=tuple(a for a in options.arrivals if a.at_ns < 200 * NS_PER_S),
        grace_ns=grace_s * NS_PER_S,
    )


def states(run: SpotRun) -> list[tuple[str, str]]:
    return [(h.entity, h.what) for h in run.fleet.log if h.entity.startswith("handover")]


def assert_all_were_answered_once(run: SpotRun) -> None:
    names = [request.request_id for request in run.fleet.finished]
    assert sorted(names) == sorted(request.request_id for request in run.requests)
    assert all(request.tokens_done == request.output_tokens for request in run.requests)


@pytest.mark.parametrize("policy", list(PolicyName))
def test_no_request_is_lost_when_a_node_goes(policy: PolicyName) -> None:
    assert_all_were_answered_once(run_spot(short(policy)))


@pytest.mark.parametrize("policy", [PolicyName.SPOTSERVE, PolicyName.TIDESERVE])
def test_no_request_is_lost_when_a_node_goes_without_notice(policy: PolicyName) -> None:
    run = run_spot(short(policy, grace_s=0))
    assert_all_were_answered_once(run)
    assert any(h.what == "breaks" for h in run.fleet.log)


def churning(policy: PolicyName, *, seed: int) -> SpotRunOptions:
    """Four nodes, and eight that come and go at odd moments, with any notice or none."""
    options, rng = run_options(Setting(policy=policy)), Rng(seed).child("churn")
    spans = [NodeSpan(node_id=f"node-{number}", usable_at_ns=0) for number in range(4)]
    for number in range(4, 12):
        usable_at_ns = rng.choice((0, rng.randrange(150 * NS_PER_S)))
        gone_at_ns = rng.choice((None, usable_at_ns + rng.randint(5, 120) * NS_PER_S))
        spans.append(
            NodeSpan(node_id=f"node-{number}", usable_at_ns=usable_at_ns, gone_at_ns=gone_at_ns)
        )
    return replace(
        options,
        trace=NodeTrace(name="churn", spans=tuple(spans), end_at_ns=240 * NS_PER_S),
        arrivals=tuple(a for a in options.arrivals if a.at_ns < 200 * NS_PER_S),
        grace_ns=rng.choice((0, 1, 5, 30)) * NS_PER_S,
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("policy", [PolicyName.SPOTSERVE, PolicyName.TIDESERVE])
def test_no_request_is_lost_while_nodes_come_and_go_as_they_please(
    policy: PolicyName, seed: int
) -> None:
    run = run_spot(churning(policy, seed=seed))
    assert_all_were_answered_once(run)
    assert max(r.latency_ns or 0 for r in run.requests) < 240 * NS_PER_S


def test_a_fleet_that_buys_its_nodes_answers_all_and_pays_for_what_it_needs() -> None:
    offered = short(PolicyName.TIDESERVE)
    more = tuple(NodeSpan(node_id=f"more-{number}", usable_at_ns=0) for number in range(7))
    trace = replace(offered.trace, spans=(*offered.trace.spans, *more))
    capacity = CapacityOptions(nodes_max=12, nodes_extra=0, workers_per_node=4)
    held = run_spot(replace(offered, trace=trace))
    bought = run_spot(replace(offered, trace=trace, capacity=capacity))
    assert_all_were_answered_once(bought)
    # Two replicas of three nodes, while twelve are offered.
    node_usd = 1.9046 * 240 / 3_600
    assert cost_usd(bought) == pytest.approx(6 * node_usd)
    assert cost_usd(held) > 11 * node_usd


def test_ten_thousand_requests_end_alike_in_stretches_and_in_single_steps() -> None:
    stretched, few = endings(is_stepwise=False, requests=10_000, prompt_tokens=16)
    stepwise, many = endings(is_stepwise=True, requests=10_000, prompt_tokens=16)
    assert stretched == stepwise
    assert few < many


def test_with_notice_nothing_is_computed_again_and_without_it_is() -> None:
    warned, struck = (run_spot(short(PolicyName.TIDESERVE, grace_s=g)) for g in (30, 0))
    assert sum(request.tokens_recomputed for request in warned.requests) < 64
    assert sum(request.tokens_recomputed for request in struck.requests) > 512


def test_spotserve_computes_until_it_must_move_and_tideserve_copies_at_once() -> None:
    def still_at_s(policy: PolicyName) -> float:
        run = run_spot(short(policy))
        stops = [h.at_ns for h in run.fleet.log if h.what == "stands still"]
        return (stops[-1] - run.begins_at_ns) / NS_PER_S

    assert 45 < still_at_s(PolicyName.SPOTSERVE) < 60
    assert 30 < still_at_s(PolicyName.TIDESERVE) < 45


def test_a_fleet_that_never_rests_decides_the_same() -> None:
    options = short(PolicyName.TIDESERVE)
    busy = replace(options, pace=PaceOptions(rest_ns=PaceOptions().busy_ns))
    resting, restless = run_spot(options), run_spot(busy)
    assert states(resting) == states(restless)
    assert resting.actions < restless.actions


def test_one_seed_is_one_history_whatever_the_hash_seed() -> None:
    code = (
        "from tests.sim.test_spot_fleet import short, PolicyName, run_spot\n"
        "print(run_spot(short(PolicyName.TIDESERVE)).digest)"
    )
    digests = set()
    for hash_seed in ("0", "1", "77"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1
    other = replace(short(PolicyName.TIDESERVE), arrivals=short(PolicyName.TIDESERVE).arrivals[1:])
    assert run_spot(other).digest not in digests


@pytest.mark.parametrize("nodes", [4, 6, 8])
def test_a_fleet_of_constant_size_is_as_fast_as_the_published_one(nodes: int) -> None:
    """The artifact ran it beside B_S, for 1,020 s."""
    options = run_options(Setting(policy=PolicyName.SPOTSERVE, spot_trace="B_S"))
    spans = tuple(NodeSpan(node_id=f"node-{n}", usable_at_ns=0) for n in range(nodes))
    constant = replace(options.trace, name="constant", spans=spans)
    found = outcome_of(run_spot(replace(options, trace=constant)), policy="spotserve")
    avg_s, p99_s = ON_DEMAND_SECONDS[nodes]
    assert found.avg_s == pytest.approx(avg_s, rel=0.1)
    assert found.p99_s == pytest.approx(p99_s, rel=0.15)


def test_on_the_first_trace_the_policies_are_within_a_quarter_of_the_paper() -> None:
    for policy, (avg_s, p99_s) in PUBLISHED["gpt-20b", "A_S"].seconds.items():
        found = outcome(policy)
        assert found.avg_s == pytest.approx(avg_s, rel=0.25), policy
        assert found.p99_s == pytest.approx(p99_s, rel=0.25), policy
        assert found.failed == 0


def test_tideserve_is_ahead_of_the_better_baseline() -> None:
    found = {policy: outcome(policy, trace="B_S+O").p99_s for policy in PolicyName}
    baselines = (PolicyName.REROUTE, PolicyName.REPARALLELIZE, PolicyName.SPOTSERVE)
    assert found[PolicyName.TIDESERVE] < min(found[policy] for policy in baselines)


def test_the_command_writes_what_happened_and_how_it_looks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "nodes.csv"
    trace.write_text("".join(f"0,add,{name}\n" for name in "abcdef") + "60000,remove,b\n")
    out = tmp_path / "out"
    arguments = ["simulate", "--policy", "spotserve", "--policy", "tideserve", "--json"]
    assert run_command([*arguments, "--spot-trace", str(trace), "--out", str(out)]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told == json.loads((out / "outcomes.json").read_text())
    assert [run["policy"] for run in told["runs"]] == ["spotserve", "tideserve"]
    lines = (out / "tideserve-events.jsonl").read_text().splitlines()
    assert any(json.loads(line)["what"] == "placement_committed" for line in lines)
    events = json.loads((out / "tideserve-chrome-trace.json").read_text())["traceEvents"]
    assert {"node", "replica", "handover", "request"} <= {e.get("cat") for e in events}
    for name in ("spotserve-timeline", "tideserve-timeline", "latencies", "cost"):
        ElementTree.fromstring((out / f"{name}.svg").read_text())


def test_the_command_tells_the_story_of_one_entity(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["simulate", "--policy", "reroute", "--story", "node-3"]) == 0
    told = capfd.readouterr().out
    assert "node-3  has notice" in told
    assert "node-4  comes" not in told


def test_the_command_refuses_wrong_input_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["simulate", "--model", "gpt-9"]) == EXIT_CONFIG_ERROR
    error = capfd.readouterr().err
    assert "no 'gpt-9'; there are opt-6.7b" in error
    assert error.count("\n") == 1
