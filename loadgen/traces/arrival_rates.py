"""Tables of arrival rates, such as the 19 minutes of SpotServe's Figure 8.

One line of comma-separated requests per second, or one number per line; each holds for a minute.
Source: Hsword/SpotServe, derived from the Microsoft Azure Functions trace.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S
from loadgen.arrivals import RateSegment
from loadgen.traces.lines import read_lines

RATE_HOLDS_NS: Final = 60 * NS_PER_S


def read_arrival_rates(path: Path) -> Iterator[RateSegment]:
    """Yield the rates in order. Raises: TraceError that names the line."""
    for line in read_lines(path):
        fields = line.fields()
        if fields[-1] == "":
            fields.pop()  # A comma at the end of the line.
        for field in fields:
            rate_per_s = line.number_of(field, name="rate")
            try:
                segment = RateSegment(duration_ns=RATE_HOLDS_NS, rate_per_s=rate_per_s)
            except ConfigError as error:
                raise line.error(str(error)) from None
            yield segment
