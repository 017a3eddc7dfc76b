"""Answers a list of requests as one batch, with OpenAI's client: upload, create, poll, read."""

import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import openai

CHAT: Final = "/v1/chat/completions"
POLL_S: Final = 1.0
FINAL: Final = ("completed", "failed", "expired", "cancelled")

Body = Mapping[str, Any]


class BatchFailed(Exception):
    """The batch was not taken up at all; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswers:
    """What came of a batch, by custom id; every request is in exactly one of the two."""

    answered: Mapping[str, Body]
    """The body that a POST of the request would have returned."""
    failed: Mapping[str, str]
    """Why there is no answer: the line was wrong, failed, or was not done in time."""


def answers_of(
    client: openai.OpenAI, requests: Mapping[str, Body], *, window: str = "24h"
) -> BatchAnswers:
    """Answer chat requests, by custom id. Raises: BatchFailed, openai.APIError."""
    file = client.files.create(file=("requests.jsonl", _lines(requests)), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window=window,  # type: ignore[arg-type]  # OpenAI's own has "24h" only
    )
    while batch.status not in FINAL:
        time.sleep(POLL_S)
        batch = client.batches.retrieve(batch.id)
    if batch.status == "failed":
        reasons = [error.message or "" for error in (batch.errors and batch.errors.data) or ()]
        raise BatchFailed("; ".join(reasons) or "the batch failed")
    return BatchAnswers(
        answered={
            row["custom_id"]: row["response"]["body"] for row in _rows(client, batch.output_file_id)
        },
        failed={row["custom_id"]: _reason(row) for row in _rows(client, batch.error_file_id)},
    )


def text_of(body: Body) -> str:
    """Return the text of a chat completion."""
    text: str = body["choices"][0]["message"]["content"]
    return text


def _lines(requests: Mapping[str, Body]) -> io.BytesIO:
    lines = io.BytesIO()
    for custom_id, body in requests.items():
        line = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
        lines.write(json.dumps(line).encode() + b"\n")
    lines.seek(0)
    return lines


def _rows(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).iter_lines()]


def _reason(row: Mapping[str, Any]) -> str:
    error = row["error"] or row["response"]["body"]["error"]
    reason: str = error["message"]
    return reason
