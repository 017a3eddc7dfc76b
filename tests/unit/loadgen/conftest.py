"""Coroutine tests, and records of requests made by hand."""

import asyncio
import inspect
from collections.abc import Callable, Sequence

import pytest

from libs.kernel.units import NS_PER_MS
from loadgen.records import Ending, Outcome, RequestRecord


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def a_record() -> Callable[..., RequestRecord]:
    """Builds records; times in milliseconds after the request was sent."""

    def build(
        index: int = 0,
        *,
        sent_at_ms: int = 0,
        late_ms: int = 0,
        tokens_at_ms: Sequence[int] = (10, 20, 30),
        ended_at_ms: int = 35,
        outcome: Outcome = Outcome.OK,
        reason: str = "",
    ) -> RequestRecord:
        return RequestRecord(
            index=index,
            planned_at_ns=(sent_at_ms - late_ms) * NS_PER_MS,
            sent_at_ns=sent_at_ms * NS_PER_MS,
            ended_at_ns=(sent_at_ms + ended_at_ms) * NS_PER_MS,
            token_at_ns=tuple((sent_at_ms + at_ms) * NS_PER_MS for at_ms in tokens_at_ms),
            prompt_tokens=5,
            output_tokens=len(tokens_at_ms),
            request_id=f"r-{index}",
            ending=Ending(outcome=outcome, reason=reason, explanation="as told"),
        )

    return build
