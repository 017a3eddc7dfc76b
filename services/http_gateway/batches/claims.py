"""Makes the repeat of a POST the same batch as the first.

A caller that names its request by `Idempotency-Key` gets one batch for that name, for a day.
OpenAI's client names none, but says that an attempt is not its first: such an attempt is the
repeat of what the same tenant asked a short while ago in the same words.
"""

import hashlib
from typing import Final

from starlette.datastructures import Headers

from libs.client.batch_ids import batch_created_at_unix_ms
from libs.client.records import BUCKET_BYTES_MAX
from libs.contracts import subjects
from libs.contracts.batches import BATCH_QUESTIONS, SubmitBatch
from libs.contracts.wire import encode
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.openai_api.errors import invalid
from libs.runtime.bus import Bus, KeyExists, KeyValue
from libs.runtime.clock import Clock

KEY_HEADER: Final = "idempotency-key"
ATTEMPT_HEADER: Final = "x-stainless-retry-count"
KEY_CHARACTERS_MAX: Final = 256
CLAIM_AGE_NS: Final = 24 * 3600 * NS_PER_S
REPEAT_WINDOW_MS: Final = 15 * 60 * 1000
"""Longer than the ten minutes for which OpenAI's client waits for an answer."""


class BatchClaims:
    """Remembers in a bucket what was asked first. Every method may raise Unavailable."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock

    async def first(self, question: SubmitBatch, headers: Headers) -> SubmitBatch:
        """Return the question that this request was first turned into; this one if it is new.

        Raises: ApiError if its key stands for another request.
        """
        bucket = await self._bus.ensure_bucket(
            subjects.BATCH_CLAIM_BUCKET, bytes_max=BUCKET_BYTES_MAX, age_max_ns=CLAIM_AGE_NS
        )
        named = headers.get(KEY_HEADER)
        if named is not None:
            return await self._named(bucket, named, question)
        key = f"content.{_content_digest(question)}"
        if is_repeat(headers):
            earlier = await _claim(bucket, key)
            if earlier is not None and self._is_recent(earlier):
                return earlier
        await bucket.put(key, encode(question))
        return question

    async def _named(self, bucket: KeyValue, name: str, question: SubmitBatch) -> SubmitBatch:
        if len(name) > KEY_CHARACTERS_MAX:
            message = f"{KEY_HEADER}: at most {KEY_CHARACTERS_MAX} characters"
            raise invalid(message, parameter=KEY_HEADER)
        digest = hashlib.sha256(f"{question.tenant}\n{name}".encode()).hexdigest()
        key = f"key.{digest}"
        try:
            await bucket.create(key, encode(question))
        except KeyExists:
            earlier = await _claim(bucket, key)
            if earlier is None:
                return question  # It died of age at this moment.
            if _content_digest(earlier) != _content_digest(question):
                message = f"this {KEY_HEADER} stands for another request"
                raise invalid(message, parameter=KEY_HEADER) from None
            return earlier
        return question

    def _is_recent(self, question: SubmitBatch) -> bool:
        age_ms = self._clock.now_unix_ns() // NS_PER_MS
        age_ms -= batch_created_at_unix_ms(question.batch_id)
        return age_ms <= REPEAT_WINDOW_MS


def is_repeat(headers: Headers) -> bool:
    """Tell whether the caller says that it has tried this before."""
    return headers.get(ATTEMPT_HEADER, "0") != "0"


async def _claim(bucket: KeyValue, key: str) -> SubmitBatch | None:
    entry = await bucket.get(key)
    if entry is None:
        return None
    question = BATCH_QUESTIONS.decode(entry.value)
    assert isinstance(question, SubmitBatch)
    return question


def _content_digest(question: SubmitBatch) -> str:
    """Name what is asked, whatever id it was given; the tenant is part of it."""
    content = question.model_dump_json(exclude={"batch_id"})
    return hashlib.sha256(content.encode()).hexdigest()
