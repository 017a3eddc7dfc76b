"""Whether the services of a fleet hold on to memory: resident size over many short requests.

    python -m benchmarks.soak --json FILE

A fleet of one router, one gateway and one worker answers short requests, half over NATS and half
over HTTP, at a steady rate: a router remembers what ended for half a minute, so a change of rate
would change its size. What is resident after the first fifth is compared with the end: by then
every pool, cache and table is warm, so that what still grows grows with the requests. Then a
thousand streams are opened at once, and the router is measured while it holds them.

oneDNN keeps a plan, half a megabyte, for each number of rows that a step may have. So the worker's
steps are kept small, and each number comes once before anything is counted.
"""

import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.provenance import provenance, record_parser, write_record
from libs.client.client import TideClient
from libs.kernel.errors import ConfigError
from libs.kernel.units import KIB, MIB
from libs.runtime.clock import SystemClock
from loadgen.clients.over_http import HttpSender
from loadgen.clients.over_nats import NatsSender
from loadgen.options import RunOptions
from loadgen.plan import planned
from loadgen.records import Outcome, RequestRecord, RunResult
from loadgen.run import LoadRun
from services.launcher.child_process import ChildProcess
from services.launcher.fleet import Fleet
from services.launcher.model_source import bundled_model
from services.launcher.recipes import FleetOptions

GROWTH_BYTES_PER_REQUEST_MAX: Final = 1 * KIB
ROUTER_BYTES_MAX: Final = 150 * MIB
"""With all streams open."""
WARM_UP_SHARE: Final = 5
"""One in so many requests is warm-up: 2,000 of 10,000."""
SEQUENCES_MAX: Final = 16
STEP_TOKENS_MAX: Final = 64
WORKER_SETTINGS: Final = {
    "kv_bytes": str(32 * MIB),
    "sequences_max": str(SEQUENCES_MAX),
    "step_tokens_max": str(STEP_TOKENS_MAX),
}
OPEN_MAX: Final = 500
LOOKS: Final = 30
LOOK_INTERVAL_S: Final = 0.1
"""So often the router is looked at while the streams are open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakOptions:
    """How much to send."""

    requests: int = 10_000
    rate: float = 40.0
    """Per second."""
    prompt_tokens: int = 16
    output_tokens: int = 4
    streams: int = 1000
    """Held open at once at the end."""
    seed: int = 7

    def __post_init__(self) -> None:
        if self.requests < 2 * WARM_UP_SHARE:
            raise ConfigError(f"--requests: must be at least {2 * WARM_UP_SHARE}")

    @property
    def warm_up_requests(self) -> int:
        """After so many the growth counts."""
        return self.requests // WARM_UP_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentSizes:
    """What one process held."""

    process: str
    after_warm_up_bytes: int
    at_end_bytes: int
    growth_bytes_per_request: float


async def measure(options: SoakOptions, *, say: Callable[[str], None]) -> dict[str, object]:
    """Run a fleet of its own and return what is written as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(
            FleetOptions(
                model=bundled_model(),
                data_folder=Path(folder),
                workers=1,
                http_port=0,
                worker_settings=WORKER_SETTINGS,
                is_restarting=False,
            ),
            say=say,
        )
        try:
            await fleet.start()
            await _visit_row_counts(fleet)
            sizes = await _soak(fleet, options, say=say)
            router_bytes = await _open_streams(fleet, options, say=say)
        finally:
            await fleet.stop()
    return {
        "rows": [_row(size, options) for size in sizes],
        f"router_rss_{options.streams}_streams_bytes": router_bytes,
        "is_ok": is_within_limits(sizes, router_bytes=router_bytes),
    }


def is_within_limits(sizes: Sequence[ResidentSizes], *, router_bytes: int) -> bool:
    """Whether nothing grows with the requests and the router is small."""
    growth = max(size.growth_bytes_per_request for size in sizes)
    return growth < GROWTH_BYTES_PER_REQUEST_MAX and router_bytes < ROUTER_BYTES_MAX


def _row(size: ResidentSizes, options: SoakOptions) -> dict[str, object]:
    return {
        "process": size.process,
        f"rss_at_{options.warm_up_requests}_bytes": size.after_warm_up_bytes,
        "rss_at_end_bytes": size.at_end_bytes,
        "growth_bytes_per_request": size.growth_bytes_per_request,
    }


async def _visit_row_counts(fleet: Fleet) -> None:
    """Have steps of every number of rows: a prompt alone is a step of its length."""
    async with await TideClient.connect(fleet.nats_url, name="soak") as client:

        async def answer(*, prompt_tokens: int) -> None:
            prompt = [20 + prompt_tokens] * prompt_tokens
            await client.complete(
                model=fleet.alias, prompt_token_ids=prompt, max_tokens=4, ignore_eos=True
            )

        for rows in range(1, STEP_TOKENS_MAX + 1):
            await answer(prompt_tokens=rows)
        for rows in range(1, SEQUENCES_MAX + 1):
            await asyncio.gather(*(answer(prompt_tokens=1) for _ in range(rows)))


async def _soak(
    fleet: Fleet, options: SoakOptions, *, say: Callable[[str], None]
) -> list[ResidentSizes]:
    """Send the requests. Raises: ConfigError if one of them went wrong."""
    warm: dict[str, int] = {}
    ended = 0

    def count(_: RequestRecord) -> None:
        nonlocal ended
        ended += 1
        if ended == options.warm_up_requests:
            warm.update(_resident_bytes(fleet.children))
        if ended % max(1, options.requests // 10) == 0:
            say(f"{ended} requests: {_told(_resident_bytes(fleet.children))}")

    results = await _send(fleet, options, on_ended=count)
    unsent = sum(result.requests_unsent for result in results)
    if unsent:
        raise ConfigError(
            f"{unsent} requests were not sent: the fleet does not keep up; lower --rate"
        )
    wrong = [r for result in results for r in result.records if r.ending.outcome is not Outcome.OK]
    if wrong:
        raise ConfigError(f"{len(wrong)} requests went wrong, the first: {wrong[0].ending}")
    at_end = _resident_bytes(fleet.children)
    measured = options.requests - options.warm_up_requests
    return [
        ResidentSizes(
            process=name,
            after_warm_up_bytes=warm[name],
            at_end_bytes=at_end[name],
            growth_bytes_per_request=round((at_end[name] - warm[name]) / measured, 1),
        )
        for name in sorted(at_end)
    ]


async def _send(
    fleet: Fleet, options: SoakOptions, *, on_ended: Callable[[RequestRecord], None]
) -> list[RunResult]:
    clock = SystemClock()
    half = options.requests // 2
    over_nats = _run_options(options, requests=half, seed=options.seed)
    over_http = _run_options(options, requests=options.requests - half, seed=options.seed + 1)
    assert fleet.http_url is not None
    async with AsyncExitStack() as stack:
        nats = await NatsSender.connect(
            fleet.nats_url,
            model=fleet.alias,
            run_name="soak",
            sampling=over_nats.sampling(),
            streams_open_max=OPEN_MAX,
            clock=clock,
        )
        http = HttpSender(
            fleet.http_url,
            model=fleet.alias,
            endpoint=over_http.endpoint,
            sampling=over_http.sampling(),
            streams_open_max=OPEN_MAX,
            clock=clock,
        )
        runs = []
        for sender, told in ((nats, over_nats), (http, over_http)):
            await stack.enter_async_context(sender)
            run = LoadRun(sender, limits=told.run_limits(), clock=clock, on_ended=on_ended)
            runs.append(run.open_loop(planned(told).requests))
        return list(await asyncio.gather(*runs))


def _run_options(options: SoakOptions, *, requests: int, seed: int) -> RunOptions:
    return RunOptions(
        rate=options.rate / 2,
        cv=0,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        requests=requests,
        seed=seed,
    )


async def _open_streams(fleet: Fleet, options: SoakOptions, *, say: Callable[[str], None]) -> int:
    """Hold the streams open and return the most that the router held meanwhile."""
    say(f"opening {options.streams} streams")
    router = [child for child in fleet.children if child.options.service == "online_router"]
    async with await TideClient.connect(fleet.nats_url, name="soak") as client:
        streams = [
            client.stream(
                model=fleet.alias,
                prompt_token_ids=[16 + number % 1000, 16 + number // 1000, 300, 301],
                max_tokens=1500,
                ignore_eos=True,
            )
            for number in range(options.streams)
        ]
        await asyncio.gather(*(stream.accepted() for stream in streams))
        most = 0
        for _ in range(LOOKS):
            most = max(most, *_resident_bytes(router).values())
            await asyncio.sleep(LOOK_INTERVAL_S)
        if any(stream.is_ended for stream in streams):
            raise ConfigError("a stream ended while it was to be held open")
    say(f"router with {options.streams} streams: {most / MIB:.1f} MiB")
    return most


def _resident_bytes(children: Sequence[ChildProcess]) -> dict[str, int]:
    """Return the resident size of each process. Raises: ConfigError without Linux's /proc."""
    sizes = {}
    for child in children:
        try:
            status = Path(f"/proc/{child.process_id}/status").read_text(encoding="ascii")
        except OSError as error:
            raise ConfigError(f"{child.name}: no resident size: {error.strerror}") from None
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        sizes[child.name] = int(line.split()[1]) * KIB
    return sizes


def _told(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in sorted(sizes.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, tell the progress on stderr, write the JSON; 1 where a limit is broken."""
    parser = record_parser(__doc__)
    parser.add_argument("--requests", type=int, default=SoakOptions().requests)
    parser.add_argument("--rate", type=float, default=SoakOptions().rate)
    parser.add_argument("--streams", type=int, default=SoakOptions().streams)
    parser.add_argument("--seed", type=int, default=SoakOptions().seed)
    given = parser.parse_args(arguments)
    options = SoakOptions(
        requests=given.requests, rate=given.rate, streams=given.streams, seed=given.seed
    )
    result = asyncio.run(measure(options, say=lambda line: print(line, file=sys.stderr)))
    result["record"] = {**provenance("benchmarks.soak"), "options": asdict(options)}
    write_record(result, given.json)
    return 0 if result["is_ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
