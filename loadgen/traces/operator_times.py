"""Operator times of a model on a device, as Vidur publishes them: points to fit a cost model to.

CSV with a column `time_stats.OPERATOR.median` per operator, in ms, and one row per batch size and
degree of tensor parallelism. Source: microsoft/vidur, `data/profiling/compute`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadgen.traces.lines import read_lines

TOKENS: Final = "num_tokens"
TENSOR_PARALLEL: Final = "num_tensor_parallel_workers"
PREFIX: Final = "time_stats."
SUFFIX: Final = ".median"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTimes:
    """The median times of the operators of one layer for one batch."""

    tokens: int
    tensor_parallel: int
    median_ns: Mapping[str, int]
    """By operator, e.g. `mlp_up_proj`."""


def read_operator_times(path: Path) -> Iterator[OperatorTimes]:
    """Yield the rows. Raises: TraceError that names the line."""
    lines = read_lines(path)
    header = next(lines).fields()
    operators = [
        name.removeprefix(PREFIX).removesuffix(SUFFIX)
        for name in header
        if name.startswith(PREFIX) and name.endswith(SUFFIX)
    ]
    for line in lines:
        fields = line.fields_of(header)
        yield OperatorTimes(
            tokens=line.count(fields[TOKENS], name=TOKENS),
            tensor_parallel=line.count(fields[TENSOR_PARALLEL], name=TENSOR_PARALLEL),
            median_ns={
                name: line.milliseconds_ns(fields[f"{PREFIX}{name}{SUFFIX}"], name=name)
                for name in operators
            },
        )
