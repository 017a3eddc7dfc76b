"""What only a real server can show: restarts, freezes, and a client that outlives them."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from libs.kernel.errors import ConfigError, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.bus import ConsumerOptions, InitialStateComplete, KeyUpdated, StreamOptions
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server import NatsServer, ServerOptions

LONG_NS = 5 * NS_PER_S


def a_journal(name: str) -> StreamOptions:
    return StreamOptions(
        name=name,
        subjects=(f"{name}.>",),
        messages_max=1000,
        bytes_max=1_000_000,
        age_max_ns=None,
    )


async def connected(bus: NatsBus, *, is_connected: bool = True) -> None:
    async with asyncio.timeout(20):
        while bus.is_connected != is_connected:
            await asyncio.sleep(0.01)


async def test_after_a_killed_server_returns_everything_works_again(nats_world):
    server = nats_world.server
    async with nats_world.bus() as bus:
        name = nats_world.name("restart")
        await bus.ensure_stream(a_journal(name))
        subscription = await bus.subscribe(f"{name}.a")
        consumer = await bus.lease_consumer(
            ConsumerOptions(
                stream=name,
                durable="workers",
                filter_subject=f"{name}.b",
                ack_wait_ns=NS_PER_S,
                deliveries_max=9,
                leases_max=9,
            )
        )
        for number in range(50):
            await bus.append(f"{name}.a", b"%d" % number)
        server.kill()
        await connected(bus, is_connected=False)
        assert bus.disconnects == 1
        with pytest.raises(Unavailable):
            await bus.publish(f"{name}.a", b"lost")
        with pytest.raises(Unavailable):
            await bus.append(f"{name}.a", b"lost")
        server.start()
        await connected(bus)
        assert len(await bus.read_subject(name, f"{name}.a")) == 50
        await bus.append(f"{name}.a", b"50")
        await bus.append(f"{name}.b", b"job")
        [lease] = await consumer.fetch(5, timeout_ns=LONG_NS)
        await lease.ack()
        got = [await anext(subscription) for _ in range(51)]
        assert [message.payload for message in got] == [b"%d" % n for n in range(51)]


async def test_a_request_under_way_fails_at_once_when_the_connection_is_lost(nats_world):
    async with nats_world.bus() as bus, nats_world.bus() as other:
        subject = nats_world.name("silent")
        await other.subscribe(subject)
        request = asyncio.create_task(bus.request(subject, b"", timeout_ns=60 * NS_PER_S))
        await other.flush()
        await asyncio.sleep(0.05)
        started_at = time.monotonic()
        nats_world.server.kill()
        with pytest.raises(Unavailable):
            await request
        assert time.monotonic() - started_at < 5
        nats_world.server.start()


async def test_a_fetch_under_way_fails_at_once_when_the_connection_is_lost(nats_world):
    async with nats_world.bus() as bus:
        name = nats_world.name("fetching")
        await bus.ensure_stream(a_journal(name))
        consumer = await bus.lease_consumer(
            ConsumerOptions(
                stream=name,
                durable="workers",
                filter_subject=f"{name}.>",
                ack_wait_ns=NS_PER_S,
                deliveries_max=9,
                leases_max=9,
            )
        )
        fetch = asyncio.create_task(consumer.fetch(5, timeout_ns=60 * NS_PER_S))
        await asyncio.sleep(0.1)
        nats_world.server.kill()
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                await fetch
        nats_world.server.start()
        await connected(bus)
        await bus.append(f"{name}.a", b"1")
        assert len(await consumer.fetch(5, timeout_ns=LONG_NS)) == 1


async def test_a_watch_goes_on_over_a_restart_without_gap_or_repetition(nats_world):
    async with nats_world.bus() as bus:
        keys = await bus.ensure_bucket(nats_world.name("watched"), bytes_max=100_000)
        await keys.put("a", b"1")
        watch = await keys.watch()
        assert isinstance(await anext(watch), KeyUpdated)
        assert await anext(watch) == InitialStateComplete()
        nats_world.server.kill()
        await connected(bus, is_connected=False)
        nats_world.server.start()
        await connected(bus)
        for number in range(5):
            await keys.put(f"b.{number}", b"2")
        async with asyncio.timeout(20):
            seen = [(await anext(watch)).key for _ in range(5)]
        assert seen == [f"b.{number}" for number in range(5)]
        await watch.close()


async def test_a_watch_of_a_bucket_that_a_restart_wiped_out_ends_with_an_error(nats_world):
    async with nats_world.bus() as bus:
        bucket = nats_world.name("wiped")
        keys = await bus.ensure_bucket(bucket, bytes_max=100_000, storage="memory")
        watch = await keys.watch()
        assert await anext(watch) == InitialStateComplete()
        nats_world.server.kill()
        nats_world.server.start()
        with pytest.raises(Exception, match="stream not found"):
            async with asyncio.timeout(20):
                await anext(watch)
        await watch.close()


async def test_a_frozen_server_costs_time_and_nothing_else(nats_world):
    async with nats_world.bus() as bus:
        name = nats_world.name("frozen")
        await bus.ensure_stream(a_journal(name))
        await bus.append(f"{name}.a", b"1", message_id="1")
        nats_world.server.pause()
        append = asyncio.create_task(
            bus.append(f"{name}.a", b"2", message_id="2", timeout_ns=20 * NS_PER_S)
        )
        try:
            with pytest.raises(Unavailable):
                await bus.append(f"{name}.a", b"3", message_id="3", timeout_ns=200 * NS_PER_MS)
        finally:
            nats_world.server.resume()
        assert not (await append).is_duplicate
        # "Unavailable" meant "not known": it was stored, and repeating it is harmless.
        assert (await bus.append(f"{name}.a", b"3", message_id="3")).is_duplicate
        assert bus.disconnects == 0


async def test_a_client_closed_for_good_by_the_server_is_replaced(nats_world):
    """nats-py gives up on most errors of the server; such as a payload over its maximum."""
    async with nats_world.bus() as bus, nats_world.bus() as other:
        subject = nats_world.name("replaced")
        subscription = await bus.subscribe(subject)
        client = bus._connection._client
        too_long = bus.payload_bytes_max + 1
        await client._send_command(b"PUB x %d\r\n%s\r\n" % (too_long, b"x" * too_long))
        await client._flush_pending()
        await connected(bus, is_connected=False)
        await connected(bus)
        assert bus._connection._client is not client
        await bus.flush()
        await other.publish(subject, b"still here")
        async with asyncio.timeout(5):
            assert (await anext(subscription)).payload == b"still here"
        assert (await asyncio.gather(*(_echo(bus, other, n) for n in range(3)))) == [
            b"0",
            b"1",
            b"2",
        ]


async def _echo(bus: NatsBus, other: NatsBus, number: int) -> bytes:
    subject = bus.new_inbox()
    service = await other.subscribe(subject)
    request = asyncio.create_task(bus.request(subject, b"%d" % number))
    message = await anext(service)
    await other.publish(message.reply_to, message.payload)
    return (await request).payload


async def test_connecting_waits_for_a_server_that_comes_later(nats_world):
    nats_world.server.kill()
    connecting = asyncio.create_task(NatsBus.connect(nats_world.server.url, name="early"))
    await asyncio.sleep(0.2)
    nats_world.server.start()
    bus = await connecting
    assert bus.is_connected
    await bus.close()


async def test_connecting_to_nothing_fails_in_time_and_names_the_url():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
            await NatsBus.connect(
                f"nats://user:secret@127.0.0.1:{port}", name="x", timeout_ns=300 * NS_PER_MS
            )


async def test_a_server_too_old_is_refused():
    async def greet(reader, writer):
        writer.write(b'INFO {"version":"2.8.4","max_payload":1048576,"headers":true}\r\n')
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match=r"2\.8\.4 is too old"):
            await NatsBus.connect(f"nats://127.0.0.1:{port}", name="x", timeout_ns=LONG_NS)


async def test_a_server_without_jetstream_is_named_as_such(tmp_path, nats_world):
    async with nats_world.bus() as bus:
        assert bus.is_connected
    binary = nats_world.server._program.binary
    port = _free_port()
    process = subprocess.Popen(
        [binary, "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        bus = await NatsBus.connect(f"nats://127.0.0.1:{port}", name="plain")
        with pytest.raises((ConfigError, Unavailable), match=r"[Jj]et[Ss]tream"):
            await bus.ensure_stream(a_journal("x"))
        await bus.close()
    finally:
        process.kill()
        process.wait()


def test_the_server_dies_with_the_process_that_started_it(tmp_path, nats_world):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from libs.runtime.nats_server import NatsServer, ServerOptions\n"
        "server = NatsServer(ServerOptions(data_folder=Path(sys.argv[1])))\n"
        "server.start()\n"
        "print(server.process_id, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = os.environ | {"TIDESERVE_NATS_SERVER": str(nats_world.server._program.binary)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=environment,
        cwd=Path(__file__).parents[3],
    )
    line = b""
    while not line.strip().isdigit():
        line = parent.stdout.readline()
        assert line, "the parent did not start a server"
    server_id = int(line)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _is_alive(server_id):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_cannot_start_says_why(tmp_path, nats_world):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = ServerOptions(data_folder=tmp_path, port=taken.getsockname()[1])
        server = NatsServer(options, program=nats_world.server._program)
        with pytest.raises(ConfigError, match="address already in use"):
            server.start()
    assert not server.is_running


def test_a_server_whose_store_cannot_be_used_says_why(tmp_path, nats_world):
    (tmp_path / "jetstream").write_text("in the way")
    server = NatsServer(ServerOptions(data_folder=tmp_path), program=nats_world.server._program)
    with pytest.raises(ConfigError, match=r"[Jj]et[Ss]tream"):
        server.start()
    assert not server.is_running


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _is_alive(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
