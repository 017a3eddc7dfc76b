"""Lines of a trace file with their numbers, and errors that name both file and line."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from libs.kernel.errors import ConfigError
from libs.kernel.units import MIB, NS_PER_MS, NS_PER_S
from loadgen.lengths import TOKENS_MAX

LINE_BYTES_MAX: Final = 8 * MIB
"""A line longer than this is no trace; a year of SkyPilot's ticks in one line fits."""
EXCERPT_CHARACTERS: Final = 60
COUNT_MAX: Final = 2**64 - 1
COUNT_DIGITS_MAX: Final = 20
INSTANT_NS_MAX: Final = 10**20
"""Three thousand years."""


class TraceError(ConfigError):
    """A file is no trace of the format it was taken for; the message begins `file:line:`."""

    def __init__(self, path: Path, line_number: int, explanation: str) -> None:
        super().__init__(f"{path}:{line_number}: {explanation}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLine:
    """One line that is not blank, without its end and without a byte order mark."""

    path: Path
    number: int
    text: str

    def error(self, explanation: str) -> TraceError:
        """Return an error that points at this line and shows its beginning."""
        excerpt = self.text[:EXCERPT_CHARACTERS]
        return TraceError(self.path, self.number, f"{explanation}; the line begins {excerpt!r}")

    def fields(self) -> list[str]:
        """Return the comma-separated fields, stripped; quotes are understood."""
        try:
            return [field.strip() for field in next(csv.reader([self.text], strict=True), [])]
        except csv.Error as error:
            raise self.error(f"not comma-separated values ({error})") from None

    def fields_of(self, names: list[str]) -> dict[str, str]:
        """Return the fields under the names of the header. Raises: TraceError on another count."""
        fields = self.fields()
        if len(fields) != len(names):
            raise self.error(f"{len(fields)} fields where the header names {len(names)}")
        return dict(zip(names, fields, strict=True))

    def count(self, value: object, *, name: str, most: int = COUNT_MAX) -> int:
        """Return a whole number from 0 to `most`, which `12.0` is too; large ones stay exact."""
        if isinstance(value, str) and value.isascii() and value.isdecimal():
            number = int(value[:COUNT_DIGITS_MAX])
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        else:
            measured = self.number_of(value, name=name)
            if not measured.is_integer():
                raise self.error(f"{name} is not a whole number")
            number = int(measured)
        if not 0 <= number <= most:
            raise self.error(f"{name} is not between 0 and {most}")
        return number

    def tokens(self, value: object, *, name: str) -> int:
        """Return a number of tokens that a prompt or an answer can have."""
        return self.count(value, name=name, most=TOKENS_MAX)

    def number_of(self, value: object, *, name: str) -> float:
        """Return a finite number of 0 or more."""
        try:
            number = float(value) if isinstance(value, str | int | float) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if isinstance(value, bool) or not 0 <= number < math.inf:
            raise self.error(f"{name} is not a number of 0 or more")
        return number

    def milliseconds_ns(self, value: object, *, name: str) -> int:
        """Return an instant or duration given in milliseconds, in ns."""
        return self._ns(value, NS_PER_MS, name=name)

    def seconds_ns(self, value: object, *, name: str) -> int:
        """Return an instant or duration given in seconds, in ns."""
        return self._ns(value, NS_PER_S, name=name)

    def _ns(self, value: object, unit_ns: int, *, name: str) -> int:
        scaled = self.number_of(value, name=name) * unit_ns
        if scaled > INSTANT_NS_MAX:
            raise self.error(f"{name} is further away than any trace is long")
        return round(scaled)


def read_lines(path: Path) -> Iterator[TraceLine]:
    """Yield the lines of a file, one at a time, whatever their ends are.

    Raises: ConfigError if the file cannot be read; TraceError for a line too long or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            yield from _decoded(path, iter(lambda: file.readline(LINE_BYTES_MAX + 1), b""))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def first_line(path: Path) -> TraceLine:
    """Return the first line that is not blank. Raises: TraceError if there is none."""
    for line in read_lines(path):
        return line
    raise TraceError(path, 1, "the file is empty")


class InOrder:
    """Refuses an instant before the one of the line above."""

    def __init__(self) -> None:
        self._latest_ns: int | None = None

    def check(self, at_ns: int, line: TraceLine) -> int:
        """Return the instant. Raises: TraceError if it goes back in time."""
        if self._latest_ns is not None and at_ns < self._latest_ns:
            raise line.error("this line is earlier than the one before it")
        self._latest_ns = at_ns
        return at_ns


def _decoded(path: Path, raw_lines: Iterator[bytes]) -> Iterator[TraceLine]:
    for number, raw in enumerate(raw_lines, start=1):
        if len(raw) > LINE_BYTES_MAX:
            raise TraceError(path, number, f"a line of more than {LINE_BYTES_MAX} bytes")
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise TraceError(path, number, "not UTF-8 text") from None
        if text:
            yield TraceLine(path=path, number=number, text=text)
