"""JetStream streams through the JSON API: create and check, append, read, purge."""

from collections.abc import Mapping
from typing import Final, TypeAlias

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S
from libs.runtime.append_rules import append_headers, require_one_limit
from libs.runtime.bus import (
    BUS_TIMEOUT_NS,
    NO_HEADERS,
    Appended,
    StoredMessage,
    StreamOptions,
    StreamState,
)
from libs.runtime.nats_api import (
    MESSAGE_MISSING,
    SEQUENCE_MISSING,
    STREAM_NAME_IN_USE,
    ApiRefusal,
    Json,
    call,
    checked,
    stored_message,
)
from libs.runtime.nats_connection import NatsConnection
from libs.runtime.nats_pull import Pull

READ_BATCH: Final = 500
READER_INACTIVE_NS: Final = 30 * NS_PER_S
"""After this long without a request the server drops a reader that was not closed."""
SUBJECTS_PAGE: Final = 100_000
ALL: Final = -1

StreamField: TypeAlias = str | int | bool | list[str]


class NatsStreams:
    """What Bus says of streams, over one connection."""

    def __init__(self, connection: NatsConnection, *, replicas: int = 1) -> None:
        self._connection = connection
        self._replicas = replicas

    async def ensure_stream(self, options: StreamOptions, *, is_bucket: bool = False) -> None:
        """See Bus.ensure_stream; a bucket's stream also allows what key-value clients use."""
        wanted = stream_fields(options, is_bucket=is_bucket, replicas=self._replicas)
        try:
            answer = await self._call(f"STREAM.CREATE.{options.name}", wanted)
        except ApiRefusal as refusal:
            if refusal.code != STREAM_NAME_IN_USE:
                raise ConfigError(f"stream {options.name}: {refusal.description}") from None
            answer = await self._update(options.name, wanted)
        require_kept(f"stream {options.name}", wanted=wanted, kept=answer["config"])

    async def append(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str | None = None,
        expected_last_subject_sequence: int | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        timeout_ns: int = BUS_TIMEOUT_NS,
    ) -> Appended:
        """See Bus.append."""
        whole = append_headers(
            headers,
            message_id=message_id,
            expected_last_subject_sequence=expected_last_subject_sequence,
        )
        message = await self._connection.request(
            subject, payload, headers=whole, timeout_ns=timeout_ns
        )
        receipt = checked(message.data)
        return Appended(
            stream=receipt["stream"],
            sequence=receipt["seq"],
            is_duplicate=bool(receipt.get("duplicate", False)),
        )

    async def read_subject(
        self, stream: str, subject: str, *, from_sequence: int = 1
    ) -> list[StoredMessage]:
        """See Bus.read_subject."""
        answer = await self._call(f"STREAM.INFO.{stream}")
        last_sequence = int(answer["state"]["last_seq"])
        if last_sequence < from_sequence:
            return []
        if answer["config"]["retention"] == "workqueue":
            return await self._read_one_by_one(stream, subject, from_sequence, last_sequence)
        reader = StreamReader(self._connection, stream=stream)
        try:
            pending = await reader.open(subject, from_sequence=from_sequence)
            return await reader.read(pending=pending, last_sequence=last_sequence)
        finally:
            await reader.close()

    async def last_message(self, stream: str, subject: str) -> StoredMessage | None:
        """See Bus.last_message."""
        return await self._get(stream, {"last_by_subj": subject})

    async def stream_state(self, stream: str) -> StreamState:
        """See Bus.stream_state."""
        state = (await self._call(f"STREAM.INFO.{stream}"))["state"]
        last_sequence = int(state["last_seq"])
        return StreamState(
            messages=state["messages"],
            bytes=state["bytes"],
            first_sequence=state["first_seq"] if state["messages"] else last_sequence + 1,
            last_sequence=last_sequence,
        )

    async def subjects(self, stream: str, pattern: str = ">") -> dict[str, int]:
        """See Bus.subjects; read in pages, so that it may miss what changes meanwhile."""
        counts: dict[str, int] = {}
        while True:
            body = {"subjects_filter": pattern, "offset": len(counts)}
            answer = await self._call(f"STREAM.INFO.{stream}", body)
            page: dict[str, int] = answer["state"].get("subjects") or {}
            counts.update(page)
            if len(page) < SUBJECTS_PAGE:
                return dict(sorted(counts.items()))

    async def purge(
        self,
        stream: str,
        subject: str,
        *,
        before_sequence: int | None = None,
        keep: int | None = None,
    ) -> int:
        """See Bus.purge."""
        require_one_limit(before_sequence=before_sequence, keep=keep)
        body: dict[str, str | int] = {"filter": subject}
        if before_sequence is not None:
            if before_sequence <= 1:
                return 0  # The server takes sequence 0 for "no limit".
            body["seq"] = before_sequence
        if keep is not None:
            body["keep"] = keep
        answer = await self._call(f"STREAM.PURGE.{stream}", body)
        return int(answer["purged"])

    async def delete_message(self, stream: str, sequence: int) -> bool:
        """See Bus.delete_message."""
        body = {"seq": sequence, "no_erase": True}
        try:
            await self._call(f"STREAM.MSG.DELETE.{stream}", body)
        except ApiRefusal as refusal:
            if refusal.code in (SEQUENCE_MISSING, MESSAGE_MISSING):
                return False
            raise
        return True

    async def _update(self, name: str, wanted: Mapping[str, StreamField]) -> Json:
        try:
            return await self._call(f"STREAM.UPDATE.{name}", wanted)
        except ApiRefusal as refusal:
            raise ConfigError(f"stream {name}: {refusal.description}") from None

    async def _get(self, stream: str, which: Mapping[str, object]) -> StoredMessage | None:
        try:
            answer = await self._call(f"STREAM.MSG.GET.{stream}", which)
        except ApiRefusal as refusal:
            if refusal.code == MESSAGE_MISSING:
                return None
            raise
        return stored_message(answer["message"])

    async def _read_one_by_one(
        self, stream: str, subject: str, from_sequence: int, last_sequence: int
    ) -> list[StoredMessage]:
        """A work queue has no second consumer: ask for the next message after each."""
        messages: list[StoredMessage] = []
        sequence = from_sequence
        while sequence <= last_sequence:
            which = {"seq": sequence, "next_by_subj": subject}
            message = await self._get(stream, which)
            if message is None or message.sequence > last_sequence:
                break
            messages.append(message)
            sequence = message.sequence + 1
        return messages

    async def _call(self, endpoint: str, body: Mapping[str, object] | None = None) -> Json:
        return await call(self._connection, endpoint, body)


class StreamReader:
    """A consumer of our own for a while, that leases nothing and starts where it is told."""

    def __init__(self, connection: NatsConnection, *, stream: str) -> None:
        self._connection = connection
        self._stream = stream
        self._consumer: str | None = None
        self.pull: Pull | None = None

    async def open(
        self, subject: str, *, from_sequence: int | None, is_headers_only: bool = False
    ) -> int:
        """Start at a sequence, or, with None, with the newest message of each subject.

        Returns how many messages wait for it. Raises: StreamMissing, Unavailable.
        """
        configuration: dict[str, object] = {
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "replay_policy": "instant",
            "filter_subject": subject,
            "inactive_threshold": READER_INACTIVE_NS,
            "mem_storage": True,
            "num_replicas": 1,
        }
        if from_sequence is not None:
            configuration["deliver_policy"] = "by_start_sequence"
            configuration["opt_start_seq"] = max(1, from_sequence)
        if is_headers_only:
            configuration["headers_only"] = True
        body = {"stream_name": self._stream, "config": configuration}
        answer = await call(self._connection, f"CONSUMER.CREATE.{self._stream}", body)
        consumer = str(answer["name"])
        self._consumer = consumer
        self.pull = Pull(self._connection, stream=self._stream, consumer=consumer)
        await self.pull.open()
        return int(answer["num_pending"])

    async def read(self, *, pending: int, last_sequence: int) -> list[StoredMessage]:
        """Return what was waiting, up to a sequence."""
        assert self.pull is not None
        messages: list[StoredMessage] = []
        while pending > 0:
            batch = await self.pull.pull(min(READ_BATCH, pending), wait_ns=0)
            messages += [one.message for one in batch if one.message.sequence <= last_sequence]
            if not batch or batch[-1].message.sequence >= last_sequence:
                break
            pending = batch[-1].pending
        return messages

    async def close(self) -> None:
        """Tell the server that the consumer is not needed; it finds out by itself otherwise."""
        if self.pull is not None:
            await self.pull.close()
        if self._consumer is not None and self._connection.is_connected:
            endpoint = f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}"
            await self._connection.publish(endpoint, b"")
        self._consumer = None


def stream_fields(
    options: StreamOptions, *, is_bucket: bool, replicas: int
) -> dict[str, StreamField]:
    """Return the options as fields of the API's stream configuration."""
    per_subject = options.messages_per_subject_max
    fields: dict[str, StreamField] = {
        "name": options.name,
        "subjects": list(options.subjects),
        "retention": "workqueue" if options.retention == "work_queue" else "limits",
        "discard": options.discard,
        "max_msgs": options.messages_max,
        "max_bytes": options.bytes_max,
        "max_age": options.age_max_ns or 0,
        "max_msg_size": ALL if options.message_bytes_max is None else options.message_bytes_max,
        "max_msgs_per_subject": ALL if per_subject is None else per_subject,
        "duplicate_window": options.duplicate_window_ns,
        "storage": options.storage,
        "num_replicas": replicas,
        "max_consumers": ALL,
    }
    if is_bucket:
        fields |= {"allow_rollup_hdrs": True, "deny_delete": True, "allow_direct": True}
    return fields


def require_kept(what: str, *, wanted: Mapping[str, object], kept: Mapping[str, object]) -> None:
    """Raise ConfigError naming the first field that the server dropped or changed.

    Old servers ignore what they do not know without a word, so the answer is compared.
    """
    for name, value in wanted.items():
        if kept.get(name, False if isinstance(value, bool) else None) != value:
            raise ConfigError(
                f"{what}: the server made {name} {kept.get(name, 'nothing')!r} of {value!r}"
            )
