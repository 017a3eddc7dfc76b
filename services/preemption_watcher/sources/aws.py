"""Amazon EC2: the instance metadata service, version 2, of the node itself.

`spot/instance-action` answers 404 until the interruption is decided, about two minutes before it,
and `events/recommendations/rebalance` until the instance is at an elevated risk. Both need a token
that a PUT gives for up to six hours; 401 says that it is no longer good. EC2 has no id for a
notice, so a digest of what it says is one.
Source: the EC2 user guide, "Spot Instance interruption notices" and "Use IMDSv2".
"""

from typing import Final

from libs.contracts.preemption import NoticeKind
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.clock import Clock
from services.preemption_watcher.options import SourceOptions
from services.preemption_watcher.readings import Observation, Reading, notice_id_of
from services.preemption_watcher.sources.http_client import (
    RETRY_AFTER_NS,
    HttpAnswer,
    HttpClient,
    json_object,
    text_field,
    unexpected,
)
from services.preemption_watcher.sources.instants import rfc3339_unix_ns

NAME: Final = "aws"
TOKEN_PATH: Final = "/latest/api/token"
ACTION_PATH: Final = "/latest/meta-data/spot/instance-action"
REBALANCE_PATH: Final = "/latest/meta-data/events/recommendations/rebalance"
TOKEN_TTL_HEADER: Final = "x-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER: Final = "x-aws-ec2-metadata-token"
TOKEN_TTL_S: Final = 21_600
"""The longest that the service gives."""
TOKEN_RENEWAL_S: Final = 60
"""A token is renewed so long before its end, or at half of its life if that is shorter."""
ACTIONS: Final = frozenset({"terminate", "stop", "hibernate"})


class AwsSource:
    """Polls both documents of one instance."""

    def __init__(
        self,
        client: HttpClient,
        *,
        clock: Clock,
        poll_interval_ns: int,
        is_rebalance_heard: bool,
    ) -> None:
        self._client = client
        self._clock = clock
        self._is_rebalance_heard = is_rebalance_heard
        self._token = ""
        self._token_until_ns = 0
        self.options = SourceOptions(name=NAME, poll_interval_ns=poll_interval_ns)

    async def poll(self) -> Observation:
        """See NoticeSource.poll."""
        documents = [(ACTION_PATH, action_reading)]
        if self._is_rebalance_heard:
            documents.append((REBALANCE_PATH, rebalance_reading))
        readings: list[Reading] = []
        unreadable: list[str] = []
        for path, read in documents:
            try:
                answer = await self._get(path)
                if answer is not None:
                    readings.append(read(answer.body))
            except ContractViolation as violation:
                unreadable.append(f"{path}: {violation}")
            except Unavailable as error:
                if not readings:
                    raise
                # The interruption was read; it does not wait for a mere recommendation.
                unreadable.append(f"{path}: {error}")
        return Observation(
            readings=tuple(readings), unreadable=tuple(unreadable), is_whole=not unreadable
        )

    async def confirm(self, notice_id: str) -> None:
        """EC2 does not want to know."""

    async def close(self) -> None:
        """See NoticeSource.close."""
        await self._client.close()

    async def _get(self, path: str) -> HttpAnswer | None:
        """Return the document, or None if there is none."""
        answer = await self._get_with_token(path)
        if answer.status == 401:
            self._token_until_ns = 0
            answer = await self._get_with_token(path)
        match answer.status:
            case 200:
                return answer
            case 404:
                return None
            case _:
                raise unexpected(answer)

    async def _get_with_token(self, path: str) -> HttpAnswer:
        if self._clock.now_ns() >= self._token_until_ns:
            await self._renew_token()
        return await self._client.send("GET", path, headers={TOKEN_HEADER: self._token})

    async def _renew_token(self) -> None:
        asked_at_ns = self._clock.now_ns()
        answer = await self._client.send(
            "PUT", TOKEN_PATH, headers={TOKEN_TTL_HEADER: str(TOKEN_TTL_S)}
        )
        if answer.status != 200:
            raise unexpected(answer)
        token = answer.text().strip()
        if not token or not token.isprintable() or not token.isascii():
            raise Unavailable("the token is empty or garbled", retry_after_ns=RETRY_AFTER_NS)
        ttl_text = answer.headers.get(TOKEN_TTL_HEADER, "")
        ttl_s = int(ttl_text) if ttl_text.isdecimal() else TOKEN_TTL_S
        usable_s = max(ttl_s - TOKEN_RENEWAL_S, ttl_s // 2)
        self._token = token
        self._token_until_ns = asked_at_ns + usable_s * NS_PER_S


def action_reading(body: bytes) -> Reading:
    """Read `{"action": "terminate", "time": "2017-09-18T08:22:00Z"}`. Raises: ContractViolation."""
    document = json_object(body)
    action = text_field(document, "action")
    if action not in ACTIONS:
        raise ContractViolation(f"action: unknown: {action[:60]!r}")
    time = text_field(document, "time")
    return Reading(
        notice_id=notice_id_of(NAME, action, time),
        kind=NoticeKind.PREEMPTION,
        deadline_at_unix_ns=rfc3339_unix_ns(time),
        detail=f"EC2 will {action} the instance at {time}",
    )


def rebalance_reading(body: bytes) -> Reading:
    """Read `{"noticeTime": "2020-10-27T08:22:00Z"}`. Raises: ContractViolation."""
    time = text_field(json_object(body), "noticeTime")
    rfc3339_unix_ns(time)
    return Reading(
        notice_id=notice_id_of(NAME, "rebalance", time),
        kind=NoticeKind.REBALANCE,
        detail=f"EC2 recommends to rebalance since {time}",
    )
