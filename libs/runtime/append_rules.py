"""What both buses agree on before a message leaves: its headers, its weight, a purge's limits."""

from collections.abc import Mapping
from typing import Final

from libs.kernel.errors import ContractViolation
from libs.runtime.bus import PayloadTooLarge

MESSAGE_ID_HEADER: Final = "Nats-Msg-Id"
EXPECTED_SEQUENCE_HEADER: Final = "Nats-Expected-Last-Subject-Sequence"
HEADER_LINE_BYTES: Final = len(b"NATS/1.0\r\n") + len(b"\r\n")
HEADER_ENTRY_BYTES: Final = len(b": \r\n")


def append_headers(
    headers: Mapping[str, str],
    *,
    message_id: str | None,
    expected_last_subject_sequence: int | None,
) -> Mapping[str, str]:
    """Return the headers with those that make an append idempotent and fenced."""
    if message_id is None and expected_last_subject_sequence is None:
        return headers
    whole = dict(headers)
    if message_id is not None:
        whole[MESSAGE_ID_HEADER] = message_id
    if expected_last_subject_sequence is not None:
        whole[EXPECTED_SEQUENCE_HEADER] = str(expected_last_subject_sequence)
    return whole


def headers_bytes(headers: Mapping[str, str]) -> int:
    """Return what the headers weigh on the wire; nothing if there are none."""
    if not headers:
        return 0
    return HEADER_LINE_BYTES + sum(
        len(key.encode()) + len(value.encode()) + HEADER_ENTRY_BYTES
        for key, value in headers.items()
    )


def require_payload_fits(
    payload: bytes, headers: Mapping[str, str], *, payload_bytes_max: int
) -> None:
    """Raise PayloadTooLarge unless payload and headers fit; servers hang up on what does not."""
    size_bytes = len(payload) + headers_bytes(headers)
    if size_bytes > payload_bytes_max:
        raise PayloadTooLarge(f"message of {size_bytes} bytes, {payload_bytes_max} are allowed")


def require_one_limit(*, before_sequence: int | None, keep: int | None) -> None:
    """Raise ContractViolation if both limits of a purge are given."""
    if before_sequence is not None and keep is not None:
        raise ContractViolation("a purge takes before_sequence or keep, not both")
