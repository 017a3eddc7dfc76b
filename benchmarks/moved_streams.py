"""How long a stream pauses when its node is taken away, beside a re-prefill of its context.

    python -m benchmarks.moved_streams --json FILE

Real processes, a random llama of 100M parameters, one worker a node. Streams with contexts of 1,000
tokens run on the only node; a second node comes, then the first one gets a notice, so that every
stream moves. `gap_p50_ms` and `gap_p99_ms` are over the streams' longest pauses between two tokens
from the notice on; `prefill_ms` is the time to the first token of a prompt as long as the moved
contexts on the then idle second node, in the same run: what a stream would wait if it was computed
anew and alone.
"""

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from benchmarks.engine import VOCABULARY, save_random_llama
from benchmarks.live_fleet import ALIAS, LiveFleet, live_fleet
from benchmarks.provenance import provenance, record_parser, write_record
from libs.client.client import TideClient
from libs.contracts.placement import PinnedShape, Policy
from libs.kernel.rng import Rng
from libs.kernel.units import milliseconds
from libs.runtime.clock import Clock, SystemClock
from loadgen.report import percentile

SHAPE: Final = PinnedShape(stages=1, shards=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedStreamsOptions:
    """What to measure."""

    policies: tuple[Policy, ...] = tuple(Policy)
    turns: int = 3
    seed: int = 7
    streams: int = 4
    context_tokens: int = 1_000
    output_tokens: int = 1_000
    """Enough that no stream ends before its node does."""
    grace_ms: int = 6_000
    tokens_before_notice: int = 8
    """Of every stream, so that none is in its prefill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One policy in one turn."""

    policy: Policy
    turn: int
    gaps_ns: tuple[int, ...]
    """The longest pause of each stream."""
    prefill_ns: int
    tokens_recomputed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy over all turns."""

    policy: str
    gap_p50_ms: float
    gap_p99_ms: float
    prefill_ms: float
    ratio_p50_to_prefill: float
    ratio_p99_to_prefill: float
    tokens_recomputed: int


def measure(options: MovedStreamsOptions, *, report: Callable[[str], None]) -> dict[str, object]:
    """Run the benchmark; returns what is written as JSON."""
    turns: list[Turn] = []
    with tempfile.TemporaryDirectory(prefix="tideserve-moved-streams-") as folder:
        model_folder = Path(folder) / "model"
        save_random_llama(model_folder, seed=options.seed)
        for number in range(options.turns):
            first = number % len(options.policies)
            for policy in options.policies[first:] + options.policies[:first]:
                data_folder = Path(folder) / f"{number}-{policy.value}"
                turn = asyncio.run(_turn(options, policy, number, model_folder, data_folder))
                turns.append(turn)
                gaps = ", ".join(f"{milliseconds(gap_ns):.0f}" for gap_ns in turn.gaps_ns)
                report(
                    f"turn {number + 1}, {policy.value}: pauses of {gaps} ms,"
                    f" a prefill takes {milliseconds(turn.prefill_ns):.0f}"
                )
    rows = [_row(policy, turns) for policy in options.policies]
    return {
        "rows": [asdict(row) for row in rows],
        "turns": [asdict(turn) for turn in turns],
        "record": {**provenance("benchmarks.moved_streams"), "options": asdict(options)},
    }


async def _turn(
    options: MovedStreamsOptions, policy: Policy, number: int, model_folder: Path, data_folder: Path
) -> Turn:
    clock = SystemClock()
    rng = Rng(options.seed).child(f"turn/{number}")
    async with (
        live_fleet(model_folder, data_folder, policy=policy, nodes=1, pinned=SHAPE) as live,
        await TideClient.connect(live.fleet.nats_url) as client,
    ):
        streams = [
            _Stream(client, clock, _prompt(rng, options.context_tokens))
            for _ in range(options.streams)
        ]
        reading = [asyncio.create_task(one.read(options.output_tokens)) for one in streams]
        await _until_all_have(streams, tokens=options.tokens_before_notice)
        await live.add_node()
        await live.wait_for_replicas(2)
        notice_at_ns = clock.now_ns()
        await live.preempt_oldest(grace_ms=options.grace_ms)
        await asyncio.gather(*reading)
        moved_tokens = options.context_tokens + statistics.median(
            stream.tokens_at(notice_at_ns) for stream in streams
        )
        probe = _Stream(client, clock, _prompt(rng, round(moved_tokens)))
        sent_at_ns = clock.now_ns()
        await probe.read(1)
        recomputed = _tokens_recomputed(live)
    return Turn(
        policy=policy,
        turn=number,
        gaps_ns=tuple(stream.gap_ns_after(notice_at_ns) for stream in streams),
        prefill_ns=probe.token_at_ns[0] - sent_at_ns,
        tokens_recomputed=recomputed,
    )


class _Stream:
    """One request, and when each of its tokens came."""

    def __init__(self, client: TideClient, clock: Clock, prompt: tuple[int, ...]) -> None:
        self._client = client
        self._clock = clock
        self._prompt = prompt
        self.token_at_ns: list[int] = []

    async def read(self, tokens: int) -> None:
        stream = self._client.stream(
            model=ALIAS,
            prompt_token_ids=self._prompt,
            max_tokens=tokens,
            temperature=0.0,
            ignore_eos=True,
        )
        async for _ in stream:
            self.token_at_ns.append(self._clock.now_ns())

    def tokens_at(self, at_ns: int) -> int:
        return sum(1 for token_at_ns in self.token_at_ns if token_at_ns <= at_ns)

    def gap_ns_after(self, at_ns: int) -> int:
        """The longest pause that ended after this instant."""
        first = max(0, self.tokens_at(at_ns) - 1)
        return max(
            (after - before for before, after in pairwise(self.token_at_ns[first:])), default=0
        )


async def _until_all_have(streams: Sequence[_Stream], *, tokens: int) -> None:
    async with asyncio.timeout(120):
        while any(len(stream.token_at_ns) < tokens for stream in streams):
            await asyncio.sleep(0.05)


def _prompt(rng: Rng, tokens: int) -> tuple[int, ...]:
    return tuple(rng.randrange(1, VOCABULARY) for _ in range(tokens))


def _tokens_recomputed(live: LiveFleet) -> int:
    return sum(report.tokens_recomputed for report in live.fleet.view.workers())


def _row(policy: Policy, turns: Sequence[Turn]) -> Row:
    own = [turn for turn in turns if turn.policy is policy]
    gaps_ns = sorted(gap_ns for turn in own for gap_ns in turn.gaps_ns)
    prefill_ns = statistics.median(turn.prefill_ns for turn in own)
    p50_ns, p99_ns = percentile(gaps_ns, 50), percentile(gaps_ns, 99)
    return Row(
        policy=policy.value,
        gap_p50_ms=round(milliseconds(p50_ns), 1),
        gap_p99_ms=round(milliseconds(p99_ns), 1),
        prefill_ms=round(milliseconds(round(prefill_ns)), 1),
        ratio_p50_to_prefill=round(p50_ns / prefill_ns, 3),
        ratio_p99_to_prefill=round(p99_ns / prefill_ns, 3),
        tokens_recomputed=round(statistics.median(turn.tokens_recomputed for turn in own)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print each turn to stderr, and write the JSON record."""
    defaults = MovedStreamsOptions()
    parser = record_parser(__doc__)
    parser.add_argument("--turns", type=int, default=defaults.turns)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--streams", type=int, default=defaults.streams)
    parser.add_argument("--policy", choices=[policy.value for policy in Policy], action="append")
    given = parser.parse_args(arguments)
    options = MovedStreamsOptions(
        policies=tuple(Policy(name) for name in given.policy or [*Policy]),
        turns=given.turns,
        seed=given.seed,
        streams=given.streams,
    )
    record = measure(options, report=lambda line: print(line, file=sys.stderr, flush=True))
    write_record(record, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
