"""BurstGPT: requests to ChatGPT and GPT-4 of a university over months.

`Timestamp,[Session ID,Elapsed time,]Model,Request tokens,Response tokens,Total tokens,Log Type`;
`Timestamp` is in seconds since the start, and a request that failed has 0 response tokens.
Source: HPMLL/BurstGPT.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from loadgen.lengths import Lengths
from loadgen.traces.lines import InOrder, read_lines
from loadgen.traces.requests import TraceRequest

TIMESTAMP: Final = "Timestamp"
REQUEST_TOKENS: Final = "Request tokens"
RESPONSE_TOKENS: Final = "Response tokens"


def read_burstgpt(path: Path) -> Iterator[TraceRequest]:
    """Yield the requests in order, failed ones too. Raises: TraceError that names the line."""
    lines = read_lines(path)
    header = next(lines).fields()
    in_order = InOrder()
    start_ns: int | None = None
    for line in lines:
        fields = line.fields_of(header)
        at_ns = in_order.check(line.seconds_ns(fields[TIMESTAMP], name=TIMESTAMP), line)
        start_ns = at_ns if start_ns is None else start_ns
        lengths = Lengths(
            prompt_tokens=line.tokens(fields[REQUEST_TOKENS], name=REQUEST_TOKENS),
            output_tokens=line.tokens(fields[RESPONSE_TOKENS], name=RESPONSE_TOKENS),
        )
        yield TraceRequest(arrival_ns=at_ns - start_ns, lengths=lengths)
