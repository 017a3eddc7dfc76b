"""Integer units. Time is nanoseconds; float seconds exist only at library edges."""

from typing import Final

NS_PER_US: Final = 1_000
NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000

KIB: Final = 1024
MIB: Final = 1024 * KIB


def seconds(value_ns: int) -> float:
    """Return the duration as float seconds, for a library that wants them."""
    return value_ns / NS_PER_S


def milliseconds(value_ns: int) -> float:
    """Return the duration as float milliseconds, for people and reports."""
    return value_ns / NS_PER_MS
