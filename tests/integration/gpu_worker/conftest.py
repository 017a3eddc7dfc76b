"""The test as a router: it starts sessions on a worker, and journals and acknowledges tokens."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from libs.contracts import subjects
from libs.contracts.online import SamplingParameters
from libs.contracts.reports import REPORTS, WorkerReport
from libs.contracts.sessions import (
    ROUTER_CONTROL,
    AcknowledgeTokens,
    EndSession,
    SessionSpec,
    StartSession,
    TokenReceipt,
    ToRouter,
    ToWorker,
)
from libs.contracts.token_step import SessionTokens, TokenStep, unpack_step
from libs.contracts.wire import encode
from libs.runtime.bus import BusMessage, CoreBus, Subscription

WAIT_S = 20.0
"""Nothing here takes a second; a busy machine may."""


class RouterEnd:
    """Hears everything a worker says to one router."""

    def __init__(self, bus: CoreBus, *, router_id: str, alias: str) -> None:
        self.bus = bus
        self.router_id = router_id
        self.alias = alias
        self.worker_id = ""
        self.reports: list[WorkerReport] = []
        self.steps: list[TokenStep] = []
        self.answers: list[ToRouter] = []
        self.is_acknowledging = True
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.texts: dict[tuple[str, int], list[str]] = {}
        self.finished: dict[tuple[str, int], str] = {}
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["RouterEnd"]:
        """Subscribe, and wait until a worker of our alias has reported."""
        heard = {
            subjects.router_tokens(self.router_id): self._on_tokens,
            subjects.router_control(self.router_id): self._on_answer,
            subjects.WORKER_REPORTS: self._on_report,
        }
        subscriptions = [await self.bus.subscribe(subject) for subject in heard]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._read(subscription, handler))
                for subscription, handler in zip(subscriptions, heard.values(), strict=True)
            ]
            try:
                yield self
            finally:
                for task in tasks:
                    task.cancel()
        for subscription in subscriptions:
            await subscription.close()

    async def until(self, is_reached: Callable[[], bool], *, wait_s: float = WAIT_S) -> None:
        """Wait for something that this router is told."""
        async with asyncio.timeout(wait_s), self._changed:
            await self._changed.wait_for(is_reached)

    async def until_report(
        self, is_meant: Callable[[WorkerReport], bool], *, wait_s: float = WAIT_S
    ) -> WorkerReport:
        """Wait for a new report that looks so."""
        known = len(self.reports)
        await self.until(lambda: any(map(is_meant, self.reports[known:])), wait_s=wait_s)
        return next(filter(is_meant, self.reports[known:]))

    async def announced(self) -> WorkerReport:
        """Wait for the worker's first report and address it from now on."""
        await self.until(lambda: bool(self.reports), wait_s=90)
        self.worker_id = self.reports[-1].worker_id
        return self.reports[-1]

    async def until_finished(self, request_id: str = "r", *, epoch: int = 1) -> list[int]:
        """Wait for the end of a session; return its tokens as far as they came here."""
        await self.until(lambda: (request_id, epoch) in self.finished)
        return self.tokens[request_id, epoch]

    async def until_tokens(self, count: int, request_id: str = "r", *, epoch: int = 1) -> list[int]:
        """Wait for so many tokens of a session."""
        await self.until(lambda: len(self.tokens.get((request_id, epoch), ())) >= count)
        return self.tokens[request_id, epoch]

    async def until_answer(self, request_id: str = "r", *, epoch: int = 1) -> ToRouter:
        """Wait for the newest answer about a session, and forget the answers so far."""

        def meant() -> list[ToRouter]:
            name = (request_id, epoch)
            return [a for a in self.answers if (a.request_id, a.session_epoch) == name]

        await self.until(lambda: bool(meant()))
        answer = meant()[-1]
        self.answers.clear()
        return answer

    async def send(self, message: ToWorker) -> None:
        """Tell the worker."""
        await self.send_bytes(encode(message))

    async def send_bytes(self, payload: bytes) -> None:
        """Tell the worker something, whatever it is."""
        await self.bus.publish(subjects.worker_control(self.worker_id), payload)

    async def start(
        self, request_id: str = "r", *, epoch: int = 1, generated: tuple[int, ...] = (), **spec: Any
    ) -> None:
        """Ask for a session."""
        fields = {
            "alias": self.alias,
            "prompt_token_ids": (3, 14, 15, 92, 65),
            "max_tokens": 16,
            "sampling": SamplingParameters(temperature=0.0),
            "ignore_eos": True,
        }
        await self.send(
            StartSession(
                router_id=self.router_id,
                session_epoch=epoch,
                spec=SessionSpec.model_validate({"request_id": request_id, **fields, **spec}),
                generated_token_ids=generated,
            )
        )

    async def acknowledge(
        self, next_index: int, request_id: str = "r", *, epoch: int = 1, is_resend_wanted: bool
    ) -> None:
        """Send one receipt."""
        receipt = TokenReceipt(
            request_id=request_id,
            session_epoch=epoch,
            next_index=next_index,
            is_resend_wanted=is_resend_wanted,
        )
        await self.send(AcknowledgeTokens(router_id=self.router_id, receipts=(receipt,)))

    async def end(self, request_id: str = "r", *, epoch: int = 1) -> None:
        """End a session."""
        await self.send(EndSession(request_id=request_id, session_epoch=epoch))

    async def _read(self, subscription: Subscription, handler: Callable[[bytes], Any]) -> None:
        message: BusMessage
        async for message in subscription:
            receipts = handler(message.payload)
            async with self._changed:
                self._changed.notify_all()
            if receipts and self.is_acknowledging:
                await self.send(AcknowledgeTokens(router_id=self.router_id, receipts=receipts))

    def _on_report(self, payload: bytes) -> None:
        report = REPORTS.decode(payload)
        if isinstance(report, WorkerReport) and report.alias == self.alias:
            self.reports.append(report)

    def _on_answer(self, payload: bytes) -> None:
        self.answers.append(ROUTER_CONTROL.decode(payload))

    def _on_tokens(self, payload: bytes) -> tuple[TokenReceipt, ...]:
        step = unpack_step(payload)
        self.steps.append(step)
        return tuple(self._take(entry) for entry in step.entries)

    def _take(self, entry: SessionTokens) -> TokenReceipt:
        name = (entry.request_id, entry.session_epoch)
        tokens = self.tokens.setdefault(name, [0] * entry.first_index)
        texts = self.texts.setdefault(name, [""] * entry.first_index)
        fresh = len(tokens) - entry.first_index
        if 0 <= fresh <= len(entry.token_ids):
            tokens += entry.token_ids[fresh:]
            texts += entry.texts[fresh:]
            if entry.finish_reason is not None:
                self.finished[name] = entry.finish_reason
        return TokenReceipt(
            request_id=entry.request_id, session_epoch=entry.session_epoch, next_index=len(tokens)
        )


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def router_end() -> Callable[..., RouterEnd]:
    """Build the test's router over a bus."""
    return RouterEnd
