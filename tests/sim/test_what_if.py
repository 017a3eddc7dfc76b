"""Fleets past this machine: counted engines are exact, and cells answer for the whole."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from libs.kernel.errors import EXIT_CONFIG_ERROR
from services.launcher.main import run as run_command
from services.simulator.spot.options import EngineKind
from services.simulator.spot.run import run_spot
from services.simulator.spot.setting import PolicyName, Setting, run_options
from services.simulator.what_if.cell import Cell
from services.simulator.what_if.run import answer
from services.simulator.what_if.scenario import Buying, Scenario
from tests.sim.test_spot_fleet import churning
from tests.unit.simulator.test_counting_engine import MakeEngine, Seen, counted, history, live

SMALL = Scenario(gpus=96, cell_gpus=48, requests_per_day=8e4, hours=0.5, shortages_per_day=200)


def test_ten_thousand_requests_end_at_the_same_nanosecond_counted_and_step_by_step() -> None:
    def ten_thousand(make: MakeEngine) -> Seen:
        return history(
            make, seed=7, requests=10_000, gap_ms_max=400, prompt_tokens_max=40,
            output_tokens_max=4,
        )  # fmt: skip

    stepwise, told = ten_thousand(live), ten_thousand(counted)
    assert told.ended == stepwise.ended
    assert told.looks == stepwise.looks


@pytest.mark.parametrize("trace", ["A_S", "B_S"])
def test_a_whole_fleet_has_one_history_with_either_engine(trace: str) -> None:
    options = run_options(Setting(policy=PolicyName.TIDESERVE, spot_trace=trace))
    assert options.engine is EngineKind.CONTINUOUS
    counting = replace(options, engine=EngineKind.COUNTED)
    assert run_spot(counting).digest == run_spot(options).digest


@pytest.mark.parametrize("seed", range(3))
def test_nodes_that_come_and_go_as_they_please_change_nothing_of_it(seed: int) -> None:
    options = churning(PolicyName.TIDESERVE, seed=seed)
    counting = replace(options, engine=EngineKind.COUNTED)
    assert run_spot(counting).digest == run_spot(options).digest


def test_a_cell_under_its_cloud_has_one_history_with_either_engine() -> None:
    outcomes = [
        Cell(SMALL, number=0, buying=Buying.SPOT, engine=engine).run()
        for engine in (EngineKind.COUNTED, EngineKind.CONTINUOUS)
    ]
    told, taken = outcomes
    assert told.digests == taken.digests
    assert replace(taken, actions=told.actions) == told
    assert told.bill.nodes_preempted > 0


def test_every_request_is_answered_and_spot_costs_less() -> None:
    spot, on_demand = (answer(SMALL, buying=buying) for buying in Buying)
    assert spot.failed == on_demand.failed == 0
    assert spot.requests == on_demand.requests > 500
    assert spot.tokens == spot.requests * 640
    assert on_demand.nodes_preempted == 0 < spot.nodes_preempted
    assert on_demand.spot_share == 0
    assert spot.usd < on_demand.usd


def test_the_answer_does_not_depend_on_processes_or_hash_seeds() -> None:
    here = answer(SMALL, buying=Buying.SPOT, jobs=2)
    code = (
        "from tests.sim.test_what_if import SMALL, Buying, answer\n"
        "print(answer(SMALL, buying=Buying.SPOT).digest)"
    )
    for hash_seed in ("0", "77"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here.digest
    assert answer(replace(SMALL, seed=2), buying=Buying.SPOT).digest != here.digest


def test_the_command_answers_for_people_and_for_machines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["simulate", "what-if", "--gpus", "48", "--requests-per-day", "2e4", "--hours", "0.1"]
    assert run_command([*asked, "--jobs", "1"]) == 0
    assert "USD / 1M tokens" in capsys.readouterr().out
    assert run_command([*asked, "--jobs", "1", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [each["buying"] for each in answers] == ["spot", "on-demand"]


@pytest.mark.parametrize(
    "wrong", [["--gpus", "5"], ["--model", "gpt-9"], ["--peak", "9"], ["--hours", "nan"]]
)
def test_a_wrong_question_is_one_line_and_exit_code_64(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["simulate", "what-if", "--gpus", "96", "--requests-per-day", "1e4", *wrong]
    assert run_command(asked) == EXIT_CONFIG_ERROR
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
