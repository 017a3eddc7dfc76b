"""A desk at which a router's core is told events and its commands are read."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from libs.contracts.journal import JournalRecord
from libs.contracts.online import FinishReason, SamplingParameters, SubmitRequest, TokenLogprobs
from libs.contracts.reports import RouterReport, WorkerReport
from libs.contracts.token_step import SessionTokens, TokenStep
from libs.contracts.wire import Encoding
from libs.kernel.core import TimerFired
from libs.kernel.units import NS_PER_MS
from services.online_router.commands import (
    AppendJournal,
    ClaimRequest,
    Reply,
    RouterCommand,
    SendToWorker,
    Tokenize,
)
from services.online_router.core import RouterCore
from services.online_router.events import (
    ClaimMade,
    JournalAppended,
    PromptTokenized,
    RouterEvent,
    RouterReported,
    SubmissionReceived,
    TokensReceived,
    WorkerReported,
)
from services.online_router.options import RouterOptions

CommandT = TypeVar("CommandT")
BEAT_NS = 200 * NS_PER_MS


@dataclass
class Desk:
    """One router core; every event is followed by a check of its invariants."""

    core: RouterCore
    now_ns: int = 0
    sequence: int = 0
    beat: int = 0
    commands: list[RouterCommand] = field(default_factory=list)
    """What the last event brought forth."""

    def tell(self, event: RouterEvent) -> list[RouterCommand]:
        self.commands = list(self.core.handle(event, now_ns=self.now_ns))
        self.core.check_invariants()
        return self.commands

    def only(self, kind: type[CommandT]) -> CommandT:
        """Return the one command of this kind that the last event brought forth."""
        found = self.all(kind)
        assert len(found) == 1, self.commands
        return found[0]

    def all(self, kind: type[CommandT]) -> list[CommandT]:
        return [command for command in self.commands if isinstance(command, kind)]

    def replies(self) -> list[object]:
        return [command.message for command in self.all(Reply)]

    # Usual events.

    def worker_reports(self, worker_id: str, **changes: object) -> None:
        self.beat += 1
        self.tell(WorkerReported(report=a_report(worker_id, self.beat, **changes), cause_id="t"))

    def hear_router(self, router_id: str) -> None:
        """Another router reports once; its journal is `<router_id>-1`."""
        report = RouterReport(
            router_id=router_id,
            beat=1,
            journal_id=f"{router_id}-1",
            process_id=2,
            sessions_open=0,
            sessions_accepted=0,
        )
        self.tell(RouterReported(report=report, cause_id="t"))

    def echo(self, count: int = 1) -> None:
        for _ in range(count):
            self.beat += 1
            self.now_ns += BEAT_NS
            report = RouterReport(
                router_id=self.core.state.options.router_id,
                beat=self.beat,
                journal_id=self.core.state.writer.journal_id,
                process_id=0,
                sessions_open=0,
                sessions_accepted=0,
            )
            self.tell(RouterReported(report=report, cause_id="t"))

    def sweep(self, after_ns: int = 100 * NS_PER_MS) -> None:
        self.now_ns += after_ns
        self.tell(TimerFired(key="sweep", cause_id="t"))

    def submit(self, request_id: str = "r1", *, alias: str = "tiny", **fields: object) -> None:
        self.tell(
            SubmissionReceived(
                submission=a_submission(request_id, **fields),
                alias=alias,
                reply_to=f"inbox.{request_id}",
                encoding=Encoding.MSGPACK,
                received_at_unix_ns=10**18,
                cause_id=request_id,
            )
        )

    def tokenize(self) -> None:
        command = self.only(Tokenize)
        ids = command.submission.prompt_token_ids
        assert ids is not None
        self.tell(PromptTokenized(op_id=command.op_id, prompt_token_ids=ids, cause_id="t"))

    def make_claim(self) -> None:
        self.tell(ClaimMade(op_id=self.only(ClaimRequest).op_id, cause_id="t"))

    def commit(self) -> tuple[JournalRecord, ...]:
        """Store the batch that the last event started; return its records."""
        append = self.only(AppendJournal)
        self.sequence += 1
        self.tell(JournalAppended(op_id=append.op_id, sequence=self.sequence, cause_id="t"))
        return append.records

    def accept(self, request_id: str = "r1", **fields: object) -> None:
        """Take a request all the way to its dispatch."""
        self.submit(request_id, **fields)
        self.tokenize()
        self.make_claim()
        self.commit()

    def tokens(
        self,
        first_index: int,
        count: int = 1,
        *,
        request_id: str = "r1",
        session_epoch: int = 1,
        worker_id: str = "w1",
        finish_reason: FinishReason | None = None,
        logprobs: tuple[TokenLogprobs, ...] = (),
    ) -> None:
        indices = range(first_index, first_index + count)
        entry = SessionTokens(
            request_id=request_id,
            session_epoch=session_epoch,
            first_index=first_index,
            token_ids=tuple(100 + index for index in indices),
            texts=tuple(f"t{index}" for index in indices),
            finish_reason=finish_reason,
            logprobs=logprobs,
        )
        step = TokenStep(worker_id=worker_id, step_id=1, entries=(entry,))
        self.tell(TokensReceived(step=step, cause_id="t"))

    def sent_to(self, worker_id: str) -> Sequence[object]:
        return [c.message for c in self.all(SendToWorker) if c.worker_id == worker_id]


def a_report(worker_id: str, beat: int, **changes: object) -> WorkerReport:
    fields: dict[str, object] = {
        "worker_id": worker_id,
        "beat": beat,
        "alias": "tiny",
        "process_id": 1,
        "context_tokens_max": 256,
        "vocabulary_size": 1000,
        "block_tokens": 16,
        "blocks_total": 100,
        "blocks_free": 100,
        "sessions_running": 0,
        "sessions_waiting": 0,
        "tokens_waiting": 0,
        "tokens_generated": 0,
        "steps": 0,
        "step_ms_recent": 0.0,
    }
    return WorkerReport.model_validate({**fields, **changes})


def a_submission(request_id: str, **fields: object) -> SubmitRequest:
    base: dict[str, object] = {
        "request_id": request_id,
        "prompt_token_ids": (1, 2, 3),
        "max_tokens": 8,
        "sampling": SamplingParameters(temperature=0.0),
    }
    return SubmitRequest.model_validate({**base, **fields})


@pytest.fixture
def a_desk() -> Iterator[Callable[..., Desk]]:
    """Builds a desk with the named workers alive."""

    def build(*worker_ids: str, router_id: str = "router-a", **options: object) -> Desk:
        core = RouterCore(
            RouterOptions(router_id=router_id, aliases=("tiny",), **options)  # type: ignore[arg-type]
        )
        desk = Desk(core)
        for worker_id in worker_ids:
            desk.worker_reports(worker_id)
        return desk

    return build
