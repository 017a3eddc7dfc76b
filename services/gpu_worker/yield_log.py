"""One log line for each step that was given up."""

import structlog

from libs.engine.safepoints import StepYield

_log = structlog.get_logger(__name__)


def log_yield(event: StepYield) -> None:
    """Say where a step stopped, and how long after it was asked to."""
    _log.info(
        "step_yielded",
        step_id=event.step_id,
        layer=event.layer,
        requested_at_ns=event.requested_at_ns,
        checked_at_ns=event.checked_at_ns,
        stopped_at_ns=event.stopped_at_ns,
    )
