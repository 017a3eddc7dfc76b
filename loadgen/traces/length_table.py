"""Tables of lengths without arrivals, such as ShareGPT's as published with Sarathi-Serve.

`num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio`; the last two follow from the
first two and are only checked. Source: microsoft/sarathi-serve.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from loadgen.lengths import Lengths
from loadgen.traces.lines import read_lines

PREFILL_TOKENS: Final = "num_prefill_tokens"
DECODE_TOKENS: Final = "num_decode_tokens"
TOTAL_TOKENS: Final = "num_total_tokens"


def read_length_table(path: Path) -> Iterator[Lengths]:
    """Yield the rows. Raises: TraceError that names the line."""
    lines = read_lines(path)
    header = next(lines).fields()
    for line in lines:
        fields = line.fields_of(header)
        lengths = Lengths(
            prompt_tokens=line.tokens(fields[PREFILL_TOKENS], name=PREFILL_TOKENS),
            output_tokens=line.tokens(fields[DECODE_TOKENS], name=DECODE_TOKENS),
        )
        total_tokens = lengths.prompt_tokens + lengths.output_tokens
        if TOTAL_TOKENS in fields and total_tokens != line.count(
            fields[TOTAL_TOKENS], name=TOTAL_TOKENS
        ):
            raise line.error(f"{TOTAL_TOKENS} is not the sum of the other two")
        yield lengths
