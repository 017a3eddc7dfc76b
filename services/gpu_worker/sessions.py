"""The sessions that a worker holds: their tokens until journaled, their epochs even longer.

A session is held from StartSession until its last token is acknowledged, or until it is ended.
All its tokens are kept while it is held, so that a router that took it over can go on from any
index without a step being computed again.
"""

from collections.abc import Iterator

from libs.contracts.online import FinishReason, TokenLogprobs
from libs.contracts.sessions import SessionSpec, StartSession
from libs.contracts.token_step import SessionTokens
from libs.engine.scheduler import Scheduler
from libs.engine.steps import TokenEmitted
from libs.kernel.bounded import RecentMap
from libs.kernel.core import present, require


class HeldSession:
    """One session and what its router still has to journal."""

    __slots__ = (
        "acknowledged_index",
        "base_index",
        "finish_reason",
        "finished_at_ns",
        "logprobs",
        "resend_at_ns",
        "resend_delay_ns",
        "router_id",
        "scheduler",
        "sequence_id",
        "session_epoch",
        "spec",
        "texts",
        "token_ids",
    )

    def __init__(self, start: StartSession, *, scheduler: Scheduler, resend_delay_ns: int) -> None:
        self.spec: SessionSpec = start.spec
        self.scheduler = scheduler
        """Of the position that runs it, for as long as it is not finished."""
        self.sequence_id = f"{start.spec.request_id}#{start.session_epoch}"
        """The engine's name of it; a later epoch that takes the session over keeps it."""
        self.router_id = start.router_id
        self.session_epoch = start.session_epoch
        self.token_ids = list(start.generated_token_ids)
        self.texts: list[str] = []
        """texts[i] belongs to token `base_index + i`; texts before are known to the router only."""
        self.logprobs: list[TokenLogprobs] = []
        """As texts are, where the request asks for log probabilities; else empty."""
        self.base_index = len(start.generated_token_ids)
        self.acknowledged_index = self.base_index
        """The router has journaled every token below this index."""
        self.finish_reason: FinishReason | None = None
        self.finished_at_ns: int | None = None
        self.resend_delay_ns = resend_delay_ns
        self.resend_at_ns: int | None = None
        """When the unacknowledged tokens are sent again; None if there are none."""

    @property
    def request_id(self) -> str:
        """The id that clients and routers know the session by."""
        return self.spec.request_id

    @property
    def tokens_known(self) -> int:
        """Prompt and generated tokens."""
        return len(self.spec.prompt_token_ids) + len(self.token_ids)

    def leaving_order(self) -> tuple[int, int, str]:
        """Sort key of whose KV leaves first: by priority, then who has most of it to lose."""
        return (-self.spec.priority, -self.tokens_known, self.sequence_id)

    @property
    def is_offline(self) -> bool:
        """Whether it yields to all that is not."""
        return self.spec.priority < 0

    @property
    def is_unacknowledged(self) -> bool:
        """Whether the router lacks tokens or the end. Once it lacks nothing of a finished session,
        the session is no longer held."""
        return self.finish_reason is not None or self.acknowledged_index < len(self.token_ids)

    def append(self, token: TokenEmitted) -> None:
        """Take in the token that the engine generated next."""
        require(token.index == len(self.token_ids), f"{self.sequence_id} skips an index")
        require(self.finish_reason is None, f"{self.sequence_id} goes on after its end")
        self.token_ids.append(token.token_id)
        self.texts.append(token.text)
        if self.spec.sampling.logprobs is not None:
            missing = f"{self.sequence_id} lacks log probabilities"
            self.logprobs.append(present(token.logprobs, missing))
        if token.finish_reason is not None:
            self.finish_reason = FinishReason(token.finish_reason)

    def can_rebind(self, start: StartSession) -> bool:
        """Whether this very run can go on for the owner of a later epoch: what is held extends
        what that owner has journaled, and the texts of the rest are known."""
        journaled = len(start.generated_token_ids)
        return (
            start.session_epoch > self.session_epoch
            and start.spec == self.spec
            and self.base_index <= journaled <= len(self.token_ids)
            and list(start.generated_token_ids) == self.token_ids[:journaled]
        )

    def rebind(self, start: StartSession, *, resend_delay_ns: int) -> None:
        """Go on under the later epoch; the receipts of the earlier one count no more."""
        require(self.can_rebind(start), f"{self.sequence_id} cannot be taken over")
        self.router_id = start.router_id
        self.session_epoch = start.session_epoch
        self.acknowledged_index = len(start.generated_token_ids)
        self.resend_delay_ns = resend_delay_ns
        self.resend_at_ns = None

    def text_at(self, index: int) -> str:
        """Return the text of the token at this index, which was generated here."""
        return self.texts[index - self.base_index]

    def logprobs_at(self, index: int) -> tuple[TokenLogprobs, ...]:
        """Return the log probabilities of that token, if the request asks for them."""
        return tuple(self.logprobs[index - self.base_index : index - self.base_index + 1])

    def tokens_between(self, first_index: int, end_index: int) -> SessionTokens:
        """Return these tokens as they go on the wire; the end goes with the last of all."""
        require(self.base_index <= first_index, f"{self.sequence_id} has no such text")
        is_last = end_index == len(self.token_ids)
        held = slice(first_index - self.base_index, end_index - self.base_index)
        return SessionTokens(
            request_id=self.request_id,
            session_epoch=self.session_epoch,
            first_index=first_index,
            token_ids=tuple(self.token_ids[first_index:end_index]),
            texts=tuple(self.texts[held]),
            finish_reason=self.finish_reason if is_last else None,
            logprobs=tuple(self.logprobs[held]),
        )

    def check_invariants(self) -> None:
        """Raise InvariantViolation if indices, texts and the end contradict one another."""
        name = self.sequence_id
        require(
            self.base_index <= self.acknowledged_index <= len(self.token_ids),
            f"{name} is acknowledged beyond its tokens",
        )
        require(
            len(self.texts) == len(self.token_ids) - self.base_index,
            f"{name} has not one text per token",
        )
        require(
            len(self.logprobs) == (0 if self.spec.sampling.logprobs is None else len(self.texts)),
            f"{name} has not one log probability per token, or some that nobody asked for",
        )
        require(
            (self.finish_reason is None) == (self.finished_at_ns is None),
            f"{name} has an end without a time",
        )
        require(
            (self.resend_at_ns is not None) == self.is_unacknowledged,
            f"{name} has unacknowledged tokens that nobody would send again, or the reverse",
        )


class SessionTable:
    """The held sessions by both names, and the epochs of those that ended."""

    def __init__(self, *, ended_epochs_max: int) -> None:
        self._by_request: dict[str, HeldSession] = {}
        self._by_sequence: dict[str, HeldSession] = {}
        self._ended_epochs: RecentMap[str, int] = RecentMap(entries_max=ended_epochs_max)

    def __len__(self) -> int:
        return len(self._by_request)

    def __iter__(self) -> Iterator[HeldSession]:
        """In the order in which they were started."""
        return iter(list(self._by_request.values()))

    def find(self, request_id: str) -> HeldSession | None:
        """Return the held session of this request."""
        return self._by_request.get(request_id)

    def of_sequence(self, sequence_id: str) -> HeldSession | None:
        """Return the held session that the engine knows by this name."""
        return self._by_sequence.get(sequence_id)

    def is_ended(self, request_id: str, session_epoch: int) -> bool:
        """Whether the session has ended here in this epoch or a later one."""
        ended_epoch = self._ended_epochs.get(request_id)
        return ended_epoch is not None and session_epoch <= ended_epoch

    def add(self, session: HeldSession) -> None:
        """Hold a session that is not held and has not ended in its epoch."""
        require(session.request_id not in self._by_request, f"{session.request_id} is held twice")
        require(
            not self.is_ended(session.request_id, session.session_epoch),
            f"{session.request_id} is revived",
        )
        self._by_request[session.request_id] = session
        self._by_sequence[session.sequence_id] = session

    def forget(self, session: HeldSession) -> None:
        """Hold it no more; its epoch is remembered."""
        del self._by_request[session.request_id]
        del self._by_sequence[session.sequence_id]
        self.remember_end(session.request_id, session.session_epoch)

    def remember_end(self, request_id: str, session_epoch: int) -> None:
        """Let no message of this epoch or an earlier one start the session again."""
        if not self.is_ended(request_id, session_epoch):
            self._ended_epochs.put(request_id, session_epoch)

    def check_invariants(self) -> None:
        """Raise InvariantViolation if the two names or the epochs contradict one another."""
        require(len(self._by_request) == len(self._by_sequence), "a session has lost a name")
        for session in self._by_request.values():
            require(
                self._by_sequence.get(session.sequence_id) is session,
                f"{session.sequence_id} is not the session's sequence",
            )
            require(
                not self.is_ended(session.request_id, session.session_epoch),
                f"{session.request_id} is held though its epoch has ended",
            )
            session.check_invariants()
