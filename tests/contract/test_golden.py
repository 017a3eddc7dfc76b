"""Every tag ever released is decoded for ever, from the very bytes of its release."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libs.contracts import (
    batches,
    handover,
    handover_record,
    journal,
    local_cloud,
    online,
    peers,
    placement,
    preemption,
    reports,
    sessions,
    text,
    token_step,
    transfers,
)
from libs.contracts.wire import Codec, Encoding, Message, encode
from libs.kernel.errors import ContractViolation
from tools.document_messages import FAMILIES, messages_of, tag_of

GOLDEN = Path(__file__).parent / "golden"
CODECS: tuple[Codec[Any], ...] = (
    online.SUBMISSIONS,
    online.CANCELLATIONS,
    online.ANSWERS,
    text.TEXT_QUESTIONS,
    text.TEXT_ANSWERS,
    sessions.WORKER_CONTROL,
    sessions.ROUTER_CONTROL,
    preemption.NOTICES,
    preemption.NOTICE_REQUESTS,
    preemption.NOTICE_ANSWERS,
    reports.REPORTS,
    placement.PLACEMENTS,
    placement.PIN_REQUESTS,
    placement.PIN_ANSWERS,
    handover.WORKER_SHAPE,
    handover.MIGRATOR_CONTROL,
    handover_record.HANDOVER_RECORDS,
    local_cloud.CLOUD_REQUESTS,
    local_cloud.CLOUD_ANSWERS,
    transfers.TRANSFER_REQUESTS,
    transfers.TRANSFER_ANSWERS,
    peers.STEP_LINK,
    peers.PEER_QUESTIONS,
    peers.PEER_ANSWERS,
    batches.BATCH_QUESTIONS,
    batches.BATCH_ANSWERS,
    batches.BATCH_RECORDS,
    batches.FILE_RECORDS,
    batches.BATCH_TASKS,
    batches.BATCH_PARTS,
    batches.BATCH_LINES,
    batches.JOBS,
    batches.JOB_RESULTS,
)
TAGS = sorted(
    tag for _, module in FAMILIES for message in messages_of(module) if (tag := tag_of(message))
)


def codec_of(message: Message) -> Codec[Any]:
    for codec in CODECS:
        try:
            codec.decode(encode(message))
        except ContractViolation:
            continue
        return codec
    raise AssertionError(f"{type(message).__name__} is in no closed union")


def golden(tag: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDEN / f"{tag}.json").read_text(encoding="utf-8"))
    return loaded


def write_if_missing(tag: str, entry: dict[str, Any], config: pytest.Config) -> None:
    path = GOLDEN / f"{tag}.json"
    if config.getoption("--write-golden", default=False) and not path.exists():
        path.write_text(json.dumps(entry, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def test_every_tag_has_an_example_and_a_golden_file(
    messages: tuple[Message, ...],
    step: token_step.TokenStep,
    batch: tuple[journal.JournalRecord, ...],
    pytestconfig: pytest.Config,
) -> None:
    for message in messages:
        entry = {
            "tag": tag_of(type(message)),
            "example": message.model_dump(mode="json", exclude_none=True),
            "packed_hex": encode(message).hex(),
        }
        write_if_missing(str(entry["tag"]), entry, pytestconfig)
    for tag, value, packed in (
        (token_step.TAG, step, token_step.pack_step(step)),
        (journal.TAG, batch, journal.pack_batch(batch)),
    ):
        entry = {"tag": tag, "example": repr(value), "packed_hex": packed.hex()}
        write_if_missing(tag, entry, pytestconfig)
    assert sorted(str(tag_of(type(message))) for message in messages) == TAGS
    released = {path.stem for path in GOLDEN.glob("*.json")}
    missing = {*TAGS, token_step.TAG, journal.TAG} - released
    assert not missing, "pytest tests/contract --write-golden"


@pytest.mark.parametrize("tag", TAGS)
def test_the_released_bytes_of_a_message_still_mean_the_same(
    tag: str, messages: tuple[Message, ...]
) -> None:
    example = next(message for message in messages if tag_of(type(message)) == tag)
    entry = golden(tag)
    codec = codec_of(example)
    decoded = codec.decode(bytes.fromhex(entry["packed_hex"]))
    assert decoded == example
    assert codec.decode(json.dumps(entry["example"]).encode()) == example
    assert tag_of(type(decoded)) == tag


@pytest.mark.parametrize("encoding", list(Encoding))
def test_both_encodings_return_the_same_message(
    messages: tuple[Message, ...], encoding: Encoding
) -> None:
    for message in messages:
        assert codec_of(message).decode(encode(message, encoding=encoding)) == message


def test_the_released_bytes_of_a_token_step_still_mean_the_same(step: token_step.TokenStep) -> None:
    packed = bytes.fromhex(golden(token_step.TAG)["packed_hex"])
    assert token_step.unpack_step(packed) == step
    assert token_step.pack_step(step) == packed


def test_the_released_bytes_of_a_journal_batch_still_mean_the_same(
    batch: tuple[journal.JournalRecord, ...],
) -> None:
    packed = bytes.fromhex(golden(journal.TAG)["packed_hex"])
    assert journal.unpack_batch(packed) == batch


def test_the_estimate_of_a_record_is_never_below_its_packed_size(
    batch: tuple[journal.JournalRecord, ...],
) -> None:
    for record in batch:
        assert len(journal.pack_batch([record])) <= journal.record_bytes_estimate(record)


SCORED = online.ScoredToken(token_id=131_071, text="\N{REPLACEMENT CHARACTER}", logprob=-12.345678)
GIVEN = online.TokenLogprobs(chosen=SCORED)
SCORES = online.TokenLogprobs(chosen=SCORED, best=(SCORED,) * 20)


def test_what_only_some_requests_ask_for_survives_the_journal(
    batch: tuple[journal.JournalRecord, ...],
) -> None:
    first = SCORES.model_copy(update={"prompt": (GIVEN, *[SCORES] * 40)})
    opened = next(record for record in batch if isinstance(record, journal.SessionOpened))
    schema = '{"title":"' + "\N{BLACK CHESS KING}" * 500 + '"}'
    spec = opened.spec.model_copy(update={"answer_schema": schema})
    tokens = next(record for record in batch if isinstance(record, token_step.SessionTokens))
    records: list[journal.JournalRecord] = [
        replace(opened, spec=spec, generated_logprobs=(first,)),
        replace(tokens, logprobs=(first, SCORES)),
    ]
    for record in records:
        packed = journal.pack_batch([record])
        assert journal.unpack_batch(packed) == (record,)
        assert len(packed) <= journal.record_bytes_estimate(record)


def codecs_by_message() -> dict[str, Callable[[bytes], Any]]:
    return {
        "submissions": online.SUBMISSIONS.decode,
        "cancellations": online.CANCELLATIONS.decode,
        "answers": online.ANSWERS.decode,
        "text questions": text.TEXT_QUESTIONS.decode,
        "text answers": text.TEXT_ANSWERS.decode,
        "worker control": sessions.WORKER_CONTROL.decode,
        "router control": sessions.ROUTER_CONTROL.decode,
        "notices": preemption.NOTICES.decode,
        "notice requests": preemption.NOTICE_REQUESTS.decode,
        "notice answers": preemption.NOTICE_ANSWERS.decode,
        "reports": reports.REPORTS.decode,
        "batch questions": batches.BATCH_QUESTIONS.decode,
        "batch answers": batches.BATCH_ANSWERS.decode,
        "batch records": batches.BATCH_RECORDS.decode,
        "file records": batches.FILE_RECORDS.decode,
        "batch tasks": batches.BATCH_TASKS.decode,
        "batch parts": batches.BATCH_PARTS.decode,
        "ended lines": batches.BATCH_LINES.decode,
        "jobs": batches.JOBS.decode,
        "job results": batches.JOB_RESULTS.decode,
        "placements": placement.PLACEMENTS.decode,
        "pin requests": placement.PIN_REQUESTS.decode,
        "pin answers": placement.PIN_ANSWERS.decode,
        "worker shape": handover.WORKER_SHAPE.decode,
        "migrator control": handover.MIGRATOR_CONTROL.decode,
        "handover records": handover_record.HANDOVER_RECORDS.decode,
        "cloud requests": local_cloud.CLOUD_REQUESTS.decode,
        "cloud answers": local_cloud.CLOUD_ANSWERS.decode,
        "transfer requests": transfers.TRANSFER_REQUESTS.decode,
        "transfer answers": transfers.TRANSFER_ANSWERS.decode,
        "step link": peers.STEP_LINK.decode,
        "peer questions": peers.PEER_QUESTIONS.decode,
        "peer answers": peers.PEER_ANSWERS.decode,
    }


def test_a_message_of_another_union_is_refused(messages: tuple[Message, ...]) -> None:
    for message in messages:
        accepted = []
        for name, decode in codecs_by_message().items():
            try:
                decode(encode(message))
            except ContractViolation:
                continue
            accepted.append(name)
        assert len(accepted) == 1, f"{type(message).__name__} is accepted as {accepted}"
