"""Ids of files and batches: nobody else has them, and they sort by time, to the millisecond."""

import secrets
from typing import Final

from libs.kernel.units import NS_PER_MS

TIME_DIGITS: Final = 12
"""Hexadecimal, of milliseconds since 1970, at the start of an id."""
RANDOM_BYTES: Final = 10


def new_file_id(*, now_unix_ns: int) -> str:
    """Return the id of a new file."""
    return f"file-{_id_suffix(now_unix_ns)}"


def new_batch_id(*, now_unix_ns: int) -> str:
    """Return the id of a new batch."""
    return f"batch_{_id_suffix(now_unix_ns)}"


def batch_created_at_unix_ms(batch_id: str) -> int:
    """Return when this id was made."""
    return int(batch_id.removeprefix("batch_")[:TIME_DIGITS], 16)


def _id_suffix(now_unix_ns: int) -> str:
    return f"{now_unix_ns // NS_PER_MS:0{TIME_DIGITS}x}{secrets.token_hex(RANDOM_BYTES)}"
