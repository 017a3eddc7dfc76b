"""One session: an accepted (or about to be accepted) request and everything known of it.

    TOKENIZING -> CLAIMING -> OPENING -> PLACED <-> WAITING
                                            \\        /
                                             ENDING -> ENDED

Before OPENING is durable the client has no promise and a refusal is a rejection; from then on the
session ends exactly once. PLACED: a worker is in charge under the current epoch (the dispatch may
still wait for its journal record). WAITING: no worker can take it now. ENDING: the end is decided
and on its way into the journal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from libs.contracts.journal import JournalRecord, SessionFailed, SessionOpened
from libs.contracts.online import FinishReason, SubmitRequest, TokenLogprobs
from libs.contracts.sessions import SessionSpec, StartSession, TokenReceipt
from libs.contracts.token_step import SessionTokens
from libs.contracts.wire import Encoding
from libs.kernel.core import present, require


class Phase(StrEnum):
    """Where a session stands."""

    TOKENIZING = "tokenizing"
    CLAIMING = "claiming"
    OPENING = "opening"
    PLACED = "placed"
    WAITING = "waiting"
    ENDING = "ending"
    ENDED = "ended"


TRANSITIONS: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.TOKENIZING: frozenset({Phase.CLAIMING}),
    Phase.CLAIMING: frozenset({Phase.OPENING}),
    Phase.OPENING: frozenset({Phase.PLACED, Phase.WAITING, Phase.ENDING, Phase.ENDED}),
    Phase.PLACED: frozenset({Phase.WAITING, Phase.ENDING}),
    Phase.WAITING: frozenset({Phase.PLACED, Phase.ENDING}),
    Phase.ENDING: frozenset({Phase.ENDED}),
    Phase.ENDED: frozenset(),
}

PROMISED: Final = frozenset({Phase.PLACED, Phase.WAITING, Phase.ENDING, Phase.ENDED})
"""Phases in which the client has, or may have, been told `accepted`."""


@dataclass(slots=True, kw_only=True)
class Session:
    """The mutable record that the router's core owns; changed only by the core."""

    request_id: str
    alias: str
    reply_to: str
    encoding: Encoding
    submission: SubmitRequest | None
    """Kept until accepted; None for an adopted session."""
    expires_at_ns: int | None
    expires_at_unix_ns: int | None
    phase: Phase = Phase.TOKENIZING
    spec: SessionSpec | None = None
    op_id: str = ""
    """The operation that the phases before OPENING wait for."""
    token_ids: list[int] = field(default_factory=list)
    """All tokens handed to the journal, committed or not."""
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """One per token where the request asked for them, else empty."""
    tokens_committed: int = 0
    tokens_relayed: int = 0
    finish_reason: FinishReason | None = None
    failure: SessionFailed | None = None
    session_epoch: int = 0
    epoch_committed: int = 0
    """The highest epoch that is in the journal; no dispatch happens above it."""
    worker_id: str = ""
    """In charge now or last; empty: nobody was yet."""
    avoided_worker_id: str = ""
    """While it waits: who lost or refused it."""
    is_started: bool = False
    """Whether the worker has shown that it holds the session under this epoch."""
    dispatched_at_ns: int = 0
    heard_at_ns: int = 0
    resend_asked_at_ns: int = 0
    tokens_at_dispatch: int = 0
    strikes: int = 0
    ended_at_ns: int = 0
    received_at_ns: int | None = None
    """None for an adopted session: nobody knows."""
    was_dispatched: bool = False
    first_token_at_ns: int | None = None
    last_token_at_ns: int | None = None
    is_adopted: bool = False

    def move(self, phase: Phase) -> None:
        """Go to the phase. Raises InvariantViolation if the table does not list the step."""
        require(
            phase in TRANSITIONS[self.phase],
            f"session {self.request_id}: {self.phase} -> {phase} is not a transition",
        )
        self.phase = phase

    @property
    def is_offline(self) -> bool:
        """Whether it is offline work, which yields to all else."""
        return self.spec is not None and self.spec.priority < 0

    @property
    def tokens_known(self) -> int:
        """Prompt, and the answer so far."""
        return len(self.known_spec().prompt_token_ids) + len(self.token_ids)

    def known_spec(self) -> SessionSpec:
        """Return the spec, which every session from OPENING on has."""
        spec = self.spec
        return present(spec, f"session {self.request_id} has no spec in {self.phase}")

    def start_message(self, *, router_id: str) -> StartSession:
        """What tells the worker to run the session from here."""
        return StartSession(
            router_id=router_id,
            session_epoch=self.session_epoch,
            spec=self.known_spec(),
            generated_token_ids=tuple(self.token_ids),
        )

    def opened_record(self) -> SessionOpened:
        """What lets another router rebuild the session as it is now."""
        return SessionOpened(
            spec=self.known_spec(),
            reply_to=self.reply_to,
            encoding=self.encoding,
            session_epoch=self.session_epoch,
            worker_id=self.worker_id,
            expires_at_unix_ns=self.expires_at_unix_ns,
            generated_token_ids=tuple(self.token_ids),
            generated_texts=tuple(self.texts),
            generated_logprobs=tuple(self.logprobs),
        )

    def end_record(self) -> JournalRecord | None:
        """The record that ends the session, if its end is decided."""
        if self.failure is not None:
            return self.failure
        if self.finish_reason is None:
            return None
        return SessionTokens(
            request_id=self.request_id,
            session_epoch=self.session_epoch,
            first_index=len(self.token_ids),
            token_ids=(),
            texts=(),
            finish_reason=self.finish_reason,
        )

    def receipt(self, *, is_resend_wanted: bool = False) -> TokenReceipt:
        """What tells the worker which tokens are durable."""
        return TokenReceipt(
            request_id=self.request_id,
            session_epoch=self.session_epoch,
            next_index=len(self.token_ids) if is_resend_wanted else self.tokens_committed,
            is_resend_wanted=is_resend_wanted,
        )

    def check_invariants(self) -> None:
        """What must hold between any two events."""
        require(
            self.tokens_relayed <= self.tokens_committed <= len(self.token_ids),
            f"session {self.request_id} relayed more than is durable",
        )
        require(len(self.token_ids) == len(self.texts), f"session {self.request_id}: texts")
        require(
            len(self.logprobs) in (0, len(self.token_ids)), f"session {self.request_id}: logprobs"
        )
        require(
            self.epoch_committed <= self.session_epoch, f"session {self.request_id}: epoch ahead"
        )
        is_over = self.failure is not None or self.finish_reason is not None
        if self.phase in (Phase.ENDING, Phase.ENDED):
            require(is_over, f"session {self.request_id} ended without an end")
