"""Both tides on one engine in virtual time: the live worker core on a simulated device."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from benchmarks.coserve_rows import Slos, row_of
from benchmarks.coserve_simulated import slice_of
from libs.engine.scheduler import SchedulerOptions
from libs.engine.scheduling.coserve import Coserve, CoserveOptions
from libs.kernel.errors import EXIT_CONFIG_ERROR, InvariantViolation
from libs.kernel.units import NS_PER_MS, NS_PER_S, NS_PER_US
from libs.policy.kv_return import HostLink
from libs.policy.latency_model import LatencyModel
from services.gpu_worker.checkpoint_options import CheckpointOptions, CheckpointPolicy, HostRoom
from services.launcher.main import run as run_command
from services.simulator.coserve.device import Device
from services.simulator.coserve.requests import CoserveRequest
from services.simulator.coserve.run import CoserveOutcome, CoserveRunOptions, run_coserve

STEPS = LatencyModel(
    step_ns=5 * NS_PER_MS,
    row_ns=100 * NS_PER_US,
    pair_prefilled_ns=10,
    token_attended_ns=200,
    sequence_ns=20 * NS_PER_US,
)
SLOS = Slos(ttft_ns=200 * NS_PER_MS, tbt_ns=40 * NS_PER_MS)
FAST_LINK = HostLink(copy_ns=100 * NS_PER_US, bytes_per_s=10 * 10**9)
BLOCK_BYTES = 1 << 16


def requests(name: str) -> Iterator[CoserveRequest]:
    """Prompts of 100 to 250 tokens, answers of 8 to 28."""
    for index in count():
        prompt = (len(name), index, *range(100 + 37 * index % 150))
        yield CoserveRequest(
            request_id=f"{name}-{index}", prompt=prompt, output_tokens=8 + 7 * index % 21
        )


def online_every(gap_ms: int, *, number: int = 16) -> tuple[CoserveRequest, ...]:
    """Two at a time, so that each second one has to wait."""
    return tuple(
        replace(request, arrival_ns=(index // 2) * 2 * gap_ms * NS_PER_MS)
        for index, request in zip(range(number), requests("online"), strict=False)
    )


def options(
    policy: Coserve = Coserve.TIDESERVE,
    *,
    blocks: int = 120,
    checkpoints: CheckpointPolicy = "eager",
    link: HostLink = FAST_LINK,
) -> CoserveRunOptions:
    engine = SchedulerOptions(
        step_tokens_max=256,
        sequences_max=16,
        block_tokens=16,
        blocks_total=blocks,
        context_tokens_max=512,
        eos_token_ids=frozenset(),
        layers=8,
        coserve=CoserveOptions(
            policy=policy, ttft_slo_ns=SLOS.ttft_ns, tbt_slo_ns=SLOS.tbt_ns, latency=STEPS
        ),
    )
    return CoserveRunOptions(
        seed=1,
        engine=engine,
        checkpoints=CheckpointOptions(
            policy=checkpoints,
            room=HostRoom(blocks=4 * blocks, block_bytes=BLOCK_BYTES),
            copy_share_max=0.5,
            link_assumed=link,
        ),
        vocabulary_size=1000,
        device=Device(times=STEPS, layers=8, link=link, deviation=0.02),
        online=online_every(100),
        duration_ns=2 * NS_PER_S,
        settle_ns=NS_PER_S,
        offline_open_max=24,
    )


def outcome(chosen: CoserveRunOptions) -> CoserveOutcome:
    return run_coserve(chosen, backlog=requests("offline"))


def test_under_every_policy_each_online_request_gets_all_its_tokens_once() -> None:
    for policy in Coserve:
        chosen = replace(options(policy), checks_invariants=True)
        served = outcome(chosen).served
        wanted = [request.output_tokens for request in chosen.online]
        assert [len(request.token_at_ns) for request in served] == wanted, policy
        assert all(r.arrival_ns < r.token_at_ns[0] for r in served), policy


def test_offline_work_takes_what_online_work_leaves_and_delays_it_little() -> None:
    found = {
        policy: row_of(policy.value, [slice_of(outcome(options(policy)))], slos=SLOS)
        for policy in (Coserve.TIDESERVE, Coserve.ONLINE_ONLY, Coserve.NON_PREEMPTIVE)
    }
    ours, alone = found[Coserve.TIDESERVE], found[Coserve.ONLINE_ONLY]
    assert alone.offline_tok_s == 0
    assert ours.total_tok_s > 2 * alone.total_tok_s
    assert ours.online_ttft_p99_ms < SLOS.ttft_ns / NS_PER_MS
    assert found[Coserve.NON_PREEMPTIVE].online_ttft_p99_ms > 3 * ours.online_ttft_p99_ms


def test_a_step_is_given_up_for_an_arrival_that_would_be_late() -> None:
    urgent = options(Coserve.CONSERVE)
    coserve = replace(urgent.engine.coserve, ttft_slo_ns=35 * NS_PER_MS, yield_ns_max=NS_PER_MS)
    urgent = replace(urgent, engine=replace(urgent.engine, coserve=coserve))
    assert outcome(urgent).tally.steps_yielded > 0
    patient = replace(coserve, ttft_slo_ns=10 * NS_PER_S)
    calm = replace(urgent, engine=replace(urgent.engine, coserve=patient))
    assert outcome(calm).tally.steps_yielded == 0


def test_what_is_copied_to_the_host_comes_back_if_the_link_is_fast_enough() -> None:
    slow = HostLink(copy_ns=NS_PER_S, bytes_per_s=10**6)
    fast = outcome(options(blocks=60)).checkpoints
    assert fast.blocks_stored > 0
    assert fast.blocks_loaded > 0
    assert outcome(options(blocks=60, link=slow)).checkpoints.blocks_loaded == 0
    assert outcome(options(blocks=60, checkpoints="off")).checkpoints.blocks_stored == 0


def test_copies_wait_for_one_another_so_the_link_is_never_busier_than_always() -> None:
    narrow = HostLink(copy_ns=NS_PER_MS, bytes_per_s=10**8)
    found = outcome(options(blocks=60, link=narrow))
    assert found.checkpoints.blocks_stored > 0
    assert found.copying_share < 1


def test_one_seed_is_one_history_whatever_the_hash_seed() -> None:
    code = "from tests.sim.test_coserve import options, outcome\nprint(outcome(options()).digest)"
    digests = set()
    for hash_seed in ("0", "77"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert digests == {outcome(options()).digest}
    assert outcome(replace(options(), seed=2)).digest not in digests


def test_a_request_that_can_never_run_is_an_error_and_no_silence() -> None:
    too_long = CoserveRequest(request_id="long", prompt=(1,) * 600, output_tokens=1)
    with pytest.raises(InvariantViolation, match="long was refused: 600 tokens leave no room"):
        outcome(replace(options(), online=(too_long,)))


def refusal(*arguments: str, capfd: pytest.CaptureFixture[str]) -> str:
    assert run_command(["bench", "conserve", *arguments]) == EXIT_CONFIG_ERROR
    error = capfd.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_wrong_input_is_refused_in_one_line_that_names_file_and_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "'gpt-9' is none of llama-2-7b" in refusal("--model", "gpt-9", capfd=capfd)
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319600,many,8\n"
    )
    given = ("--trace", str(trace), "--model", "llama-2-7b")
    assert f"{trace}:3" in refusal(*given, "--requests", "2", capfd=capfd)
    trace.write_text("\n".join(trace.read_text().splitlines()[:2]))
    assert "the trace has 1" in refusal(*given, "--requests", "2", capfd=capfd)
    record = tmp_path / "live.json"
    record.write_text('{"rows": [], "capacity_tok_s": 5}')
    assert f"{record}: no record" in refusal("--replay", str(record), capfd=capfd)
    assert "calibration" in refusal("--replay", str(record), capfd=capfd)
