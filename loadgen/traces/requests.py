"""What every trace of requests says about one of them."""

from dataclasses import dataclass

from loadgen.lengths import Lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One recorded request; `arrival_ns` counts from the first request of the trace."""

    arrival_ns: int
    lengths: Lengths
    block_ids: tuple[int, ...] = ()
    """Equal ids at the start of two requests mean equal prompts that far; see prompts.py."""
