"""Whatever bytes a peer sends: a value or a ContractViolation, never another exception."""

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.contracts import (
    batches,
    handover_record,
    journal,
    online,
    peers,
    preemption,
    reports,
    sessions,
    token_step,
    transfers,
)
from libs.contracts.wire import Encoding, Message, encode
from libs.kernel.errors import ContractViolation

DECODERS: dict[str, Callable[[bytes], Any]] = {
    "submissions": online.SUBMISSIONS.decode,
    "cancellations": online.CANCELLATIONS.decode,
    "answers": online.ANSWERS.decode,
    "worker control": sessions.WORKER_CONTROL.decode,
    "router control": sessions.ROUTER_CONTROL.decode,
    "notices": preemption.NOTICES.decode,
    "notice requests": preemption.NOTICE_REQUESTS.decode,
    "notice answers": preemption.NOTICE_ANSWERS.decode,
    "reports": reports.REPORTS.decode,
    "transfer requests": transfers.TRANSFER_REQUESTS.decode,
    "transfer answers": transfers.TRANSFER_ANSWERS.decode,
    "handover records": handover_record.HANDOVER_RECORDS.decode,
    "step link": peers.STEP_LINK.decode,
    "peer questions": peers.PEER_QUESTIONS.decode,
    "peer answers": peers.PEER_ANSWERS.decode,
    "batch questions": batches.BATCH_QUESTIONS.decode,
    "batch records": batches.BATCH_RECORDS.decode,
    "batch tasks": batches.BATCH_TASKS.decode,
    "batch parts": batches.BATCH_PARTS.decode,
    "ended lines": batches.BATCH_LINES.decode,
    "jobs": batches.JOBS.decode,
    "token step": token_step.unpack_step,
    "journal batch": journal.unpack_batch,
}
FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=8) | st.dictionaries(st.text() | st.binary(), inner, max_size=8)
    ),
    max_leaves=25,
)


def decode_or_refuse(decode: Callable[[bytes], Any], payload: bytes) -> Any:
    try:
        return decode(payload)
    except ContractViolation:
        return None


@pytest.mark.parametrize("name", DECODERS)
@FUZZ
@given(payload=st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(name: str, payload: bytes) -> None:
    decode_or_refuse(DECODERS[name], payload)


@pytest.mark.parametrize("name", DECODERS)
@FUZZ
@given(value=VALUES)
def test_arbitrary_msgpack_is_read_or_refused(name: str, value: Any) -> None:
    decode_or_refuse(DECODERS[name], msgpack.packb(value))


@FUZZ
@given(value=VALUES, step_id=st.integers(0, 2**40))
def test_arbitrary_entries_of_a_token_step_are_read_or_refused(value: Any, step_id: int) -> None:
    packed = msgpack.packb((token_step.TAG, "w", step_id, [value]))
    decode_or_refuse(token_step.unpack_step, packed)


RECORD_CODES = st.sampled_from(["t", "o", "d", "f", "x", "c", "?"])


@FUZZ
@given(code=RECORD_CODES, fields=st.lists(VALUES, max_size=9))
def test_arbitrary_journal_records_are_read_or_refused(code: str, fields: list[Any]) -> None:
    packed = msgpack.packb((journal.TAG, [[code, *fields]]))
    decode_or_refuse(journal.unpack_batch, packed)


@FUZZ
@given(data=st.data())
def test_a_damaged_message_is_read_or_refused(
    data: st.DataObject,
    messages: tuple[Message, ...],
    step: token_step.TokenStep,
    batch: tuple[journal.JournalRecord, ...],
) -> None:
    whole = [encode(m, encoding=e) for m in messages for e in Encoding]
    whole += [token_step.pack_step(step), journal.pack_batch(batch)]
    payload = bytearray(data.draw(st.sampled_from(whole)))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for decode in DECODERS.values():
        decode_or_refuse(decode, bytes(payload))
        decode_or_refuse(decode, bytes(payload[:cut]))


@pytest.mark.parametrize("depth", [10, 600, 100_000])
@pytest.mark.parametrize("name", DECODERS)
def test_deep_nesting_is_refused(name: str, depth: int) -> None:
    for payload in (b"\x91" * depth, b"[" * depth, b'{"a":' * depth, b"\x81\xa1a" * depth):
        assert decode_or_refuse(DECODERS[name], payload) is None


def damaged_opening(field: int, value: Any) -> bytes:
    spec = sessions.SessionSpec(
        request_id="a",
        alias="m",
        prompt_token_ids=(1,),
        max_tokens=1,
        sampling=online.SamplingParameters(),
    )
    record = journal.SessionOpened(
        spec=spec,
        reply_to="r",
        encoding=Encoding.JSON,
        session_epoch=1,
        worker_id="w",
        expires_at_unix_ns=None,
    )
    unpacked = msgpack.unpackb(journal.pack_batch([record]))
    unpacked[1][0][field] = value
    packed: bytes = msgpack.packb(unpacked)
    return packed


@pytest.mark.parametrize(
    ("field", "value"),
    [(7, ["x"]), (7, [-1]), (8, [3]), (7, [1]), (4, -1), (3, "xml"), (6, "soon")],
)
def test_a_wrong_field_of_an_opening_is_refused(field: int, value: Any) -> None:
    with pytest.raises(ContractViolation):
        journal.unpack_batch(damaged_opening(field, value))


@pytest.mark.parametrize("epoch", [-1, True])
def test_a_wrong_epoch_of_a_token_step_is_refused(epoch: int) -> None:
    packed = msgpack.packb((token_step.TAG, "w", 1, [("a", epoch, 0, [1], ["x"], None)]))
    with pytest.raises(ContractViolation):
        token_step.unpack_step(packed)
