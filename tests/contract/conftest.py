"""One example of every message that crosses a process, as it was when its tag was released."""

from typing import Any

import pytest

from libs.contracts.token_step import TokenStep
from libs.contracts.wire import Message
from tests.contract.examples_of_batches import BATCHES
from tests.contract.examples_of_fleets import (
    HANDOVER,
    LOCAL_CLOUD,
    PLACEMENT,
    PREEMPTION,
    RECORDS,
    REPORTS,
    TRANSFERS,
)
from tests.contract.examples_of_peers import PEERS
from tests.contract.examples_of_requests import (
    BATCH,
    ONLINE,
    SESSIONS,
    STEP,
    TEXT,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write golden files that lack")


@pytest.fixture(scope="session")
def messages() -> tuple[Message, ...]:
    """An example of each tagged message."""
    return (
        *ONLINE,
        *TEXT,
        *SESSIONS,
        *PREEMPTION,
        *REPORTS,
        *PLACEMENT,
        *HANDOVER,
        *RECORDS,
        *LOCAL_CLOUD,
        *TRANSFERS,
        *PEERS,
        *BATCHES,
    )


@pytest.fixture(scope="session")
def step() -> TokenStep:
    return STEP


@pytest.fixture(scope="session")
def batch() -> tuple[Any, ...]:
    return BATCH
