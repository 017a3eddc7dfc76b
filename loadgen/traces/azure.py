"""Azure LLM inference traces, 2023 and 2024, code and conversation.

`TIMESTAMP,ContextTokens,GeneratedTokens`, one request per line; time stamps are dates with up to
nine decimals of a second, in 2024 with an offset from UTC. Source: Azure/AzurePublicDataset.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from libs.kernel.units import NS_PER_S
from loadgen.lengths import Lengths
from loadgen.traces.lines import InOrder, TraceLine, read_lines
from loadgen.traces.requests import TraceRequest

COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
TIMESTAMP: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?"
)


def read_azure(path: Path) -> Iterator[TraceRequest]:
    """Yield the requests in order. Raises: TraceError that names the line."""
    lines = read_lines(path)
    header = next(lines).fields()
    in_order = InOrder()
    start_ns: int | None = None
    for line in lines:
        fields = line.fields_of(header)
        at_ns = in_order.check(_unix_ns(fields[COLUMNS[0]], line), line)
        start_ns = at_ns if start_ns is None else start_ns
        lengths = Lengths(
            prompt_tokens=line.tokens(fields[COLUMNS[1]], name=COLUMNS[1]),
            output_tokens=line.tokens(fields[COLUMNS[2]], name=COLUMNS[2]),
        )
        yield TraceRequest(arrival_ns=at_ns - start_ns, lengths=lengths)


def _unix_ns(text: str, line: TraceLine) -> int:
    """Return the instant; a float would lose the decimals."""
    match = TIMESTAMP.fullmatch(text)
    if match is None:
        raise line.error("TIMESTAMP is not a date with a time")
    date, time_of_day, decimals, offset = match.groups()
    try:
        instant = datetime.fromisoformat(f"{date}T{time_of_day}{offset or '+00:00'}")
    except ValueError as error:
        raise line.error(f"TIMESTAMP is not a date with a time ({error})") from None
    since_1970 = instant - datetime(1970, 1, 1, tzinfo=UTC)
    whole_s = since_1970 // timedelta(seconds=1)
    return whole_s * NS_PER_S + int((decimals or "0").ljust(9, "0"))
