"""Mooncake traces: arrivals, lengths, and which prefix blocks requests share.

JSON lines `{"timestamp": ms, "input_length", "output_length", "hash_ids": [...]}`; each hash id
stands for a block of 512 tokens together with everything before it, the last block may be partial.
Source: kvcache-ai/Mooncake, FAST25 release.
"""

from collections.abc import Iterator
from pathlib import Path

from loadgen.lengths import Lengths
from loadgen.prompts import MOONCAKE_BLOCK_TOKENS
from loadgen.traces.json_lines import JsonValue, parse_json
from loadgen.traces.lines import InOrder, TraceLine, read_lines
from loadgen.traces.requests import TraceRequest


def read_mooncake(path: Path) -> Iterator[TraceRequest]:
    """Yield the requests in order. Raises: TraceError that names the line."""
    in_order = InOrder()
    start_ns: int | None = None
    for line in read_lines(path):
        row = parse_json(line)
        if not isinstance(row, dict):
            raise line.error("not a JSON object")
        at_ns = line.milliseconds_ns(row.get("timestamp"), name="timestamp")
        in_order.check(at_ns, line)
        start_ns = at_ns if start_ns is None else start_ns
        lengths = Lengths(
            prompt_tokens=line.tokens(row.get("input_length"), name="input_length"),
            output_tokens=line.tokens(row.get("output_length"), name="output_length"),
        )
        block_ids = _block_ids(row.get("hash_ids"), lengths, line)
        yield TraceRequest(arrival_ns=at_ns - start_ns, lengths=lengths, block_ids=block_ids)


def _block_ids(value: JsonValue, lengths: Lengths, line: TraceLine) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise line.error("hash_ids is not a list")
    block_ids = tuple(line.count(part, name="hash_ids") for part in value)
    if len(block_ids) > -(-lengths.prompt_tokens // MOONCAKE_BLOCK_TOKENS):
        raise line.error("hash_ids has more blocks than input_length holds")
    return block_ids
