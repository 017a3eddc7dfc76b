"""JSON of traces: parsed strictly, with errors that name the line."""

import json
from typing import NoReturn, TypeAlias

from loadgen.traces.lines import TraceLine

JsonValue: TypeAlias = bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"] | None


def parse_json(line: TraceLine) -> JsonValue:
    """Return the value of a line. Raises: TraceError if it is not JSON."""
    try:
        value: JsonValue = json.loads(line.text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise line.error(f"not JSON ({error})") from None
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
