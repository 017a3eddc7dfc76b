"""The gateway as a process of its own, started and stopped as in production."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import httpx

from libs.kernel.units import NS_PER_MS
from libs.runtime.nats_bus import NatsBus
from tests.scripted_router import Script, ScriptedRouter

COMMAND = (sys.executable, "-m", "services.http_gateway")


async def start(**settings: str) -> asyncio.subprocess.Process:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HTTP_GATEWAY__")}
    environment |= {f"HTTP_GATEWAY__{k.upper()}": v for k, v in settings.items()}
    return await asyncio.create_subprocess_exec(
        *COMMAND, env=environment, stderr=asyncio.subprocess.PIPE
    )


async def log_line(process: asyncio.subprocess.Process, event: str) -> dict[str, object]:
    """Return the first line of this event."""
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while True:
            line = await process.stderr.readline()
            assert line, "the process ended"
            entry = json.loads(line)
            if entry["event"] == event:
                return entry


async def test_it_serves_and_at_sigterm_finishes_its_stream_and_exits_zero(nats_url: str) -> None:
    bus = await NatsBus.connect(nats_url, name="router")
    script = Script(texts=("a",) * 60, pace_ns=20 * NS_PER_MS)
    async with ScriptedRouter(bus, script_of=lambda _: script).serving():
        process = await start(nats_url=nats_url, port="0", report_interval_s="0.1")
        listening = await log_line(process, "listening")
        async with httpx.AsyncClient(base_url=str(listening["http_url"])) as http:
            async with asyncio.timeout(10):
                while (await http.get("/health")).status_code != 200:
                    await asyncio.sleep(0.02)
                while not (await http.get("/v1/models")).json()["data"]:
                    await asyncio.sleep(0.02)
            body = {"model": "tide-tiny", "prompt": "go", "stream": True}
            async with http.stream("POST", "/v1/completions", json=body) as response:
                process.send_signal(signal.SIGTERM)
                lines = [line async for line in response.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert sum('"text":"a"' in line for line in lines) == 60
        _, rest = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0, rest
        assert b"Traceback" not in rest
    await bus.close()


async def test_a_mistaken_setting_is_one_line_and_exit_code_64() -> None:
    process = await start(prot="8000")
    _, said = await process.communicate()
    assert process.returncode == 64
    assert b"HTTP_GATEWAY__PROT: no such field" in said
    assert b"Traceback" not in said


async def test_a_port_that_is_taken_is_one_line_and_exit_code_64(nats_url: str) -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    process = await start(nats_url=nats_url, port=str(port))
    _, said = await process.communicate()
    server.close()
    assert process.returncode == 64
    assert b"cannot listen" in said
    assert b"Traceback" not in said


async def test_two_gateways_of_one_name_report_under_two_ids(nats_url: str) -> None:
    processes = [
        await start(nats_url=nats_url, port="0", report_interval_s="0.1") for _ in range(2)
    ]
    lines = [await log_line(process, "listening") for process in processes]
    gateway_ids = {line["gateway_id"] for line in lines}
    assert len(gateway_ids) == 2
    assert all(str(gateway_id).startswith("gateway-") for gateway_id in gateway_ids)
    for process in processes:
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 20)


def memory_peak_kib(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


async def test_a_file_passes_through_and_is_never_held_whole(nats_url: str, tmp_path: Path) -> None:
    size_bytes = 100_000_000
    (tmp_path / "large.jsonl").write_bytes(b'{"custom_id": "0123456789"}\n' * (size_bytes // 28))
    size_bytes = (tmp_path / "large.jsonl").stat().st_size
    process = await start(nats_url=nats_url, port="0", blob_store=f"folder:{tmp_path / 'blobs'}")
    url = str((await log_line(process, "listening"))["http_url"])
    before_kib = memory_peak_kib(process.pid)

    def upload_and_download() -> None:
        with (
            httpx.Client(base_url=url, timeout=60) as http,
            (tmp_path / "large.jsonl").open("rb") as file,
        ):
            uploaded = http.post("/v1/files", data={"purpose": "batch"}, files={"file": file})
            assert uploaded.json()["bytes"] == size_bytes
            path = f"/v1/files/{uploaded.json()['id']}/content"
            with http.stream("GET", path) as response:
                assert sum(len(chunk) for chunk in response.iter_bytes()) == size_bytes

    await asyncio.to_thread(upload_and_download)
    assert memory_peak_kib(process.pid) - before_kib < size_bytes // 1024 // 4
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_a_blob_store_that_cannot_be_is_one_line_and_exit_code_64(nats_url: str) -> None:
    process = await start(nats_url=nats_url, port="0", blob_store="nowhere")
    _, said = await process.communicate()
    assert process.returncode == 64
    assert b"blob_store" in said
    assert b"Traceback" not in said
