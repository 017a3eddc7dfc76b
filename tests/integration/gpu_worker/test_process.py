"""A real worker process with the bundled model on a real nats-server; the test is its router."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from libs.contracts.online import SamplingParameters
from libs.contracts.sessions import RefuseReason, SessionRefused, SessionStarted
from libs.kernel.errors import EXIT_CONFIG_ERROR, ConfigError
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server import NatsServer, ServerOptions
from libs.runtime.nats_server_search import find_nats_server
from libs.runtime.process import die_with_parent

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "models" / "tide-tiny"
EXIT_WAIT_S = 60
LONG = 250
"""Tokens; long enough that there is a middle to disturb."""
SEEDED = SamplingParameters(temperature=0.8, top_k=50, top_p=0.95, seed=7)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    try:
        program = find_nats_server(environment=dict(os.environ), may_fetch=False)
    except ConfigError as error:
        pytest.skip(str(error))
    options = ServerOptions(data_folder=tmp_path_factory.mktemp("nats"))
    server = NatsServer(options, program=program)
    server.start()
    yield server
    server.stop()


def start_worker(server_url: str, **settings: str) -> subprocess.Popen[str]:
    fields = {"MODEL": str(MODEL), "NATS_URL": server_url, **settings}
    return subprocess.Popen(
        [sys.executable, "-m", "services.gpu_worker"],
        cwd=ROOT,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            **{f"GPU_WORKER__{name}": value for name, value in fields.items()},
        },
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )


@pytest.fixture(scope="module")
def worker(server: NatsServer) -> Iterator[subprocess.Popen[str]]:
    """One worker for all tests that leave it as they found it."""
    process = start_worker(server.url, BLOCKS_TOTAL="256", SESSIONS_MAX="8", ALIAS="tide")
    yield process
    process.kill()
    process.communicate()


@asynccontextmanager
async def a_router(
    router_end: Callable[..., Any],
    server: NatsServer,
    *,
    router_id: str = "router-a",
    alias: str = "tide",
) -> AsyncIterator[Any]:
    bus = await NatsBus.connect(server.url, name=router_id)
    try:
        async with router_end(bus, router_id=router_id, alias=alias).listening() as router:
            await router.announced()
            yield router
    finally:
        await bus.close()


async def finished_tokens(router: Any, request_id: str, **spec: Any) -> list[int]:
    """Run a session to its end."""
    await router.start(request_id, **spec)
    tokens: list[int] = await router.until_finished(request_id)
    return tokens


@pytest.mark.usefixtures("worker")
async def test_a_session_streams_the_text_of_its_tokens(
    router_end: Callable[..., Any], server: NatsServer
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What does str.split do?"}], add_generation_prompt=True
    )["input_ids"]
    async with a_router(router_end, server) as router:
        tokens = await finished_tokens(
            router, "chat", prompt_token_ids=tuple(prompt), max_tokens=100, ignore_eos=False
        )
        text = "".join(router.texts["chat", 1])
        assert text == tokenizer.decode(tokens, skip_special_tokens=True)
        assert text.strip()
        assert isinstance(await router.until_answer("chat"), SessionStarted)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("sampling", [SamplingParameters(temperature=0.0), SEEDED])
async def test_a_session_resumed_from_some_tokens_goes_on_with_the_same_tokens_and_text(
    router_end: Callable[..., Any], server: NatsServer, sampling: SamplingParameters
) -> None:
    name = f"resume-{sampling.seed}"
    async with a_router(router_end, server) as router:
        spec = {"sampling": sampling, "max_tokens": 60}
        tokens = await finished_tokens(router, f"{name}-a", **spec)
        texts = router.texts[f"{name}-a", 1]
        await router.start(f"{name}-b", epoch=3, generated=tuple(tokens[:25]), **spec)
        resumed = await router.until_finished(f"{name}-b", epoch=3)
        assert resumed[25:] == tokens[25:]
        assert router.texts[f"{name}-b", 3][25:] == texts[25:]


@pytest.mark.usefixtures("worker")
async def test_unacknowledged_tokens_come_again_until_they_are_acknowledged(
    router_end: Callable[..., Any], server: NatsServer
) -> None:
    async with a_router(router_end, server) as router:
        router.is_acknowledging = False
        await finished_tokens(router, "again")
        steps = len(router.steps)
        await router.until(lambda: len(router.steps) >= steps + 2)
        again = router.steps[-1].entries[0]
        assert (again.first_index, list(again.token_ids)) == (0, router.tokens["again", 1])
        await router.acknowledge(16, "again", is_resend_wanted=False)
        await router.acknowledge(16, "again", is_resend_wanted=True)
        await router.until(lambda: any(isinstance(a, SessionRefused) for a in router.answers))


@pytest.mark.usefixtures("worker")
async def test_a_wanted_repetition_comes_at_once(
    router_end: Callable[..., Any], server: NatsServer
) -> None:
    async with a_router(router_end, server) as router:
        router.is_acknowledging = False
        await finished_tokens(router, "wanted")
        await router.acknowledge(10, "wanted", is_resend_wanted=True)
        await router.until(lambda: router.steps[-1].entries[0].first_index == 10)
        assert list(router.steps[-1].entries[0].token_ids) == router.tokens["wanted", 1][10:]
        await router.end("wanted")


@pytest.mark.usefixtures("worker")
async def test_an_ended_session_frees_every_block(
    router_end: Callable[..., Any], server: NatsServer
) -> None:
    async with a_router(router_end, server) as router:
        await router.until_report(lambda report: report.blocks_free == report.blocks_total)
        for number in range(3):
            await router.start(f"cancelled-{number}", max_tokens=2_000)
        await router.until_report(lambda report: report.blocks_free < report.blocks_total)
        await router.until_tokens(20, "cancelled-2")
        for number in range(3):
            await router.end(f"cancelled-{number}")
        report = await router.until_report(lambda report: report.blocks_free == report.blocks_total)
        assert (report.sessions_running, report.sessions_waiting) == (0, 0)


@pytest.mark.usefixtures("worker")
async def test_another_router_takes_a_session_over_without_a_token_lost_or_changed(
    router_end: Callable[..., Any], server: NatsServer
) -> None:
    async with a_router(router_end, server) as router:
        spec = {"sampling": SEEDED, "max_tokens": LONG}
        undisturbed = await finished_tokens(router, "undisturbed", **spec)
        async with a_router(router_end, server, router_id="router-b") as heir:
            await router.start("heired", **spec)
            journaled = tuple((await router.until_tokens(50, "heired"))[:40])
            await heir.start("heired", epoch=2, generated=journaled, **spec)
            tokens = await heir.until_finished("heired", epoch=2)
        assert [*journaled, *tokens[40:]] == undisturbed


async def test_a_paused_process_goes_on_where_it_was(
    router_end: Callable[..., Any], server: NatsServer, worker: subprocess.Popen[str]
) -> None:
    async with a_router(router_end, server) as router:
        undisturbed = await finished_tokens(router, "flowing", max_tokens=LONG)
        await router.start("paused", max_tokens=LONG)
        await router.until_tokens(50, "paused")
        worker.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(1.5)
        finally:
            worker.send_signal(signal.SIGCONT)
        assert await router.until_finished("paused") == undisturbed


@pytest.mark.usefixtures("worker")
async def test_malformed_messages_harm_nobody(
    router_end: Callable[..., Any], server: NatsServer
) -> None:
    async with a_router(router_end, server) as router:
        for payload in (b"", b"\xc1", b"[[[", b'{"type": "start_session.v1"}', os.urandom(512)):
            await router.send_bytes(payload)
        assert len(await finished_tokens(router, "after-malformed")) == 16


@pytest.mark.usefixtures("worker")
async def test_what_cannot_run_is_refused_with_its_reason(
    router_end: Callable[..., Any], server: NatsServer
) -> None:
    async with a_router(router_end, server) as router:
        refused: list[tuple[str, dict[str, Any], RefuseReason]] = [
            ("alias", {"alias": "other"}, RefuseReason.WRONG_MODEL),
            ("empty", {"prompt_token_ids": ()}, RefuseReason.INVALID),
            ("foreign", {"prompt_token_ids": (2**30,)}, RefuseReason.INVALID),
            ("long", {"prompt_token_ids": (5,) * 3_000}, RefuseReason.INVALID),
            ("noise", {"sampling": SamplingParameters(temperature=1.0)}, RefuseReason.INVALID),
        ]
        for request_id, spec, reason in refused:
            await router.start(request_id, **spec)
            answer = await router.until_answer(request_id)
            assert (type(answer), answer.reason) == (SessionRefused, reason), request_id
        await router.start("later", epoch=2, max_tokens=2_000)
        await router.start("later", epoch=1)
        answer = await router.until_answer("later", epoch=1)
        assert answer.reason is RefuseReason.STALE_EPOCH
        for number in range(8):
            await router.start(f"many-{number}", max_tokens=2_000)
        answer = await router.until_answer("many-7")
        assert answer.reason is RefuseReason.FULL
        await router.end("later", epoch=2)
        for number in range(7):
            await router.end(f"many-{number}")


@pytest.mark.usefixtures("worker")
async def test_a_broker_that_restarts_costs_no_token(
    router_end: Callable[..., Any], server: NatsServer
) -> None:
    async with a_router(router_end, server) as router:
        undisturbed = await finished_tokens(router, "calm", max_tokens=LONG)
        router.is_acknowledging = False  # an acknowledgement cannot be sent into an outage
        await router.start("stormy", max_tokens=LONG)
        await router.until_tokens(50, "stormy")
        server.stop()
        server.start()
        assert await router.until_finished("stormy") == undisturbed
        await router.end("stormy")


async def test_a_worker_told_to_stop_drains_and_then_sends_its_sessions_elsewhere(
    router_end: Callable[..., Any], server: NatsServer
) -> None:
    process = start_worker(server.url, ALIAS="stopping", DRAIN_MS="700", WORKER_ID="spot")
    try:
        async with a_router(router_end, server, alias="stopping") as router:
            assert router.worker_id.startswith("spot-")
            await router.start("endless", max_tokens=2_000)
            await router.start("short", max_tokens=20)
            await router.until_tokens(1, "endless")
            process.send_signal(signal.SIGTERM)
            await router.until_report(lambda report: report.is_draining)
            await router.start("late")
            late = await router.until_answer("late")
            assert late.reason is RefuseReason.DRAINING
            assert len(await router.until_finished("short")) == 20
            sent_away = await router.until_answer("endless")
            assert sent_away.reason is RefuseReason.DRAINING
        assert await asyncio.to_thread(process.wait, EXIT_WAIT_S) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_model_that_is_not_there_is_one_line_and_exit_code_64(server: NatsServer) -> None:
    process = start_worker(server.url, MODEL="/no/such/model")
    _, errors = process.communicate(timeout=EXIT_WAIT_S)
    assert process.returncode == EXIT_CONFIG_ERROR
    assert errors.splitlines()[-1] == "gpu_worker: /no/such/model: no such folder"
    assert "Traceback" not in errors


def test_a_wrong_setting_is_one_line_that_names_the_field_and_exit_code_64() -> None:
    process = start_worker("nats://127.0.0.1:4222", THREADS="0")
    _, errors = process.communicate(timeout=EXIT_WAIT_S)
    assert process.returncode == EXIT_CONFIG_ERROR
    assert errors.splitlines() == ["gpu_worker: threads: must be at least 1"]


async def test_evicted_offline_sessions_go_on_from_host_memory_with_the_same_tokens(
    router_end: Callable[..., Any], server: NatsServer, worker: subprocess.Popen[str]
) -> None:
    del worker  # runs, and answers the same sessions with room for all of them
    offline = {
        f"off-{index}": {"prompt_token_ids": tuple(range(40 * index, 40 * index + 90))}
        for index in range(1, 4)
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    small = start_worker(
        server.url,
        ALIAS="small",
        BLOCKS_TOTAL="24",
        CONTEXT_TOKENS_MAX="320",
        METRICS_PORT=str(port),
    )
    try:
        async with (
            a_router(router_end, server) as roomy,
            a_router(router_end, server, router_id="router-b", alias="small") as router,
        ):
            for name, spec in offline.items():
                await router.start(name, priority=-1, max_tokens=LONG // 2, **spec)
            for index in range(6):
                await router.until_tokens(10 + 15 * index, "off-1")
                prompt = tuple(range(300 + index, 600 + index))
                await finished_tokens(router, f"on-{index}", prompt_token_ids=prompt, max_tokens=4)
            for name, spec in offline.items():
                expected = await finished_tokens(roomy, name, max_tokens=LONG // 2, **spec)
                assert await router.until_finished(name) == expected
            shown = metrics_of(port)
            assert shown["checkpoint_blocks_stored_total"] > 10
            assert shown["checkpoint_blocks_loaded_total"] > 5
            assert shown["checkpoint_blocks_corrupt_total"] == 0
            assert shown["checkpoint_copies_failed_total"] == 0
    finally:
        small.kill()
        small.communicate()


def metrics_of(port: int) -> dict[str, float]:
    """Read a worker's metrics, by name without their prefix."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {name.removeprefix("tideserve_worker_"): float(value) for name, value in lines}
