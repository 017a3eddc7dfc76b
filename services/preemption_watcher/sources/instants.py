"""The clouds' ways to write an instant, as nanoseconds since 1970."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from libs.kernel.errors import ContractViolation

NS_PER_MICROSECOND: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339_unix_ns(text: str) -> int:
    """Read `2017-09-18T08:22:00Z`. Raises: ContractViolation."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ContractViolation(f"not an instant: {text[:60]!r}") from None
    return _unix_ns(instant, text)


def http_date_unix_ns(text: str) -> int:
    """Read `Mon, 19 Sep 2016 18:29:47 GMT`. Raises: ContractViolation."""
    try:
        instant = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        raise ContractViolation(f"not an instant: {text[:60]!r}") from None
    return _unix_ns(instant, text)


def _unix_ns(instant: datetime, text: str) -> int:
    if instant.tzinfo is None:
        raise ContractViolation(f"an instant without a time zone: {text[:60]!r}")
    delta = instant - _EPOCH
    whole_seconds = delta.days * 86_400 + delta.seconds
    return (whole_seconds * 1_000_000 + delta.microseconds) * NS_PER_MICROSECOND
