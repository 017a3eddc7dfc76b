"""What holds for every test."""

import logging
from collections.abc import Iterator

import pytest
import structlog


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here, because pytest knows the options of this folder alone whatever part of it is run.
    parser.addoption(
        "--exactness-yields",
        type=int,
        default=200,
        help="steps given up in the test of exactness; 2000 is the whole run",
    )


@pytest.fixture(autouse=True)
def _logs_are_nobodys() -> Iterator[None]:
    """Undo a test's log set-up, whose stream may be closed by the time the next one logs."""
    handlers = logging.getLogger().handlers[:]
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.getLogger().handlers = handlers
