"""The router's and the worker's cores, unchanged, under everything that can go wrong."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest

from libs.engine.requests import SequenceRequest
from libs.engine.simulated_runner import SimulatedRunner
from libs.engine.steps import SampledToken
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.sim.broker import NetworkOptions
from services.online_router.dispatch import Dispatch
from services.simulator.run import simulate
from services.simulator.scenario import FaultOptions, ScenarioOptions, swarm_scenario

SEEDS = 200
SEEDS_PER_TEST = 20

HARSH = ScenarioOptions(
    seed=7,
    requests=1_000,
    arrival_window_ns=60 * NS_PER_S,
    routers=3,
    workers=4,
    output_tokens_max=24,
    prompt_tokens_max=100,
    network=NetworkOptions(
        spike_probability=0.01,
        loss_probability=0.02,
        double_probability=0.02,
        call_loss_probability=0.02,
    ),
    faults=FaultOptions(
        worker_kill_ns=3 * NS_PER_S,
        worker_pause_ns=8 * NS_PER_S,
        router_kill_ns=6 * NS_PER_S,
        router_pause_ns=8 * NS_PER_S,
        broker_outage_ns=25 * NS_PER_S,
        replace_after_ns=500 * NS_PER_MS,
    ),
)


def test_a_quiet_fleet_answers_everything_without_one_repetition() -> None:
    verdict = simulate(ScenarioOptions(seed=1, requests=60, cancel_probability=0.0))
    assert verdict.is_ok, verdict.line()
    assert verdict.finished == 60
    assert verdict.resubmissions == 0


def test_a_thousand_requests_survive_deaths_pauses_outages_loss_and_doubling() -> None:
    verdict = simulate(HARSH)
    assert verdict.is_ok, verdict.line()
    assert verdict.finished + verdict.cancelled == 1_000
    # The run must have been as bad as it claims.
    assert verdict.kills > 10
    assert verdict.pauses > 5
    assert verdict.outages > 0
    assert verdict.resubmissions > 100


@pytest.fixture(scope="module")
def cores() -> Iterator[Executor]:
    """A process for each core; one run knows nothing of another."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as executor:
        yield executor


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_no_seed_loses_doubles_changes_or_leaks_anything(first: int, cores: Executor) -> None:
    seeds = range(first, first + SEEDS_PER_TEST)
    scenarios = [swarm_scenario(seed=seed, requests=30) for seed in seeds]
    for verdict in cores.map(simulate, scenarios):
        assert verdict.is_ok, verdict.line()


def test_one_seed_is_one_history_whatever_the_hash_seed() -> None:
    command = [sys.executable, "-m", "services.simulator", "--seeds", "3:6", "--requests", "30"]
    outputs = {
        subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("0", "1", "4711")
    }
    assert len(outputs) == 1


def test_other_seeds_are_other_histories() -> None:
    digests = {simulate(swarm_scenario(seed=seed, requests=10)).digest for seed in range(3)}
    assert len(digests) == 3


# Negative controls: each breaks one promise on purpose, and the verdict must notice.

LOSSY = replace(HARSH, requests=120, arrival_window_ns=10 * NS_PER_S)


def test_an_engine_whose_tokens_depend_on_the_placement_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample = SimulatedRunner._sample

    def sample_by_placement(
        self: SimulatedRunner, request: SequenceRequest, index: int
    ) -> SampledToken:
        # A resumed sequence draws other noise, as one would whose position started anew.
        shifted = index + 1 if request.generated_token_ids else index
        return sample(self, request, shifted)

    monkeypatch.setattr(SimulatedRunner, "_sample", sample_by_placement)
    assert simulate(LOSSY).tokens_wrong


def test_a_router_that_does_not_resume_what_a_dead_worker_held_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_forget(self: Dispatch, worker_id: str) -> None:
        self._state.workers.pop(worker_id, None)

    monkeypatch.setattr(Dispatch, "_lose_worker", only_forget)
    verdict = simulate(replace(LOSSY, settle_ns_max=60 * NS_PER_S))
    assert verdict.lost
