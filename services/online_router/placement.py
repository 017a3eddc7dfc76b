"""Which worker runs a session: the one predicted to reach its first token soonest.

Cost of a worker, in prompt tokens: what waits there by its report, what we sent since, what of this
prompt it has not cached, and a fixed charge per session held, which every further session slows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from libs.contracts.reports import WorkerReport

TOKENS_PER_SESSION = 32
"""What a decoding session costs a newcomer, in prompt tokens: one row in each coming step."""


@dataclass(slots=True, kw_only=True)
class WorkerView:
    """A worker as this router sees it: its last report, and what was sent since."""

    report: WorkerReport
    prefix_hashes: frozenset[int]
    sessions_placed: int = 0
    """Sessions of this router that are placed there now."""
    tokens_sent_since_report: int = 0

    @property
    def is_taking(self) -> bool:
        """Whether new sessions may go there."""
        return self.report.is_serving and not self.report.is_draining

    @property
    def capacity_tokens(self) -> int:
        """Prompt and answer of one session together, at most."""
        report = self.report
        if report.is_planned and not report.is_serving:
            return report.context_tokens_max  # it has no KV of its own yet, or is no lead
        return min(report.context_tokens_max, report.blocks_total * report.block_tokens)


def view_of(report: WorkerReport, *, sessions_placed: int) -> WorkerView:
    """Start a view from a report, which replaces all that was guessed since the one before."""
    return WorkerView(
        report=report,
        prefix_hashes=frozenset(report.prefix_hashes),
        sessions_placed=sessions_placed,
    )


def cached_blocks(view: WorkerView, prompt_hashes: Sequence[int]) -> int:
    """Count the leading blocks of the prompt that the worker has cached."""
    for index, block_hash in enumerate(prompt_hashes):
        if block_hash not in view.prefix_hashes:
            return index
    return len(prompt_hashes)


def placement_cost(view: WorkerView, *, prompt_tokens: int, prompt_hashes: Sequence[int]) -> int:
    """Return the cost described at the head of this file."""
    report = view.report
    cached_tokens = cached_blocks(view, prompt_hashes) * report.block_tokens
    sessions = max(view.sessions_placed, report.sessions_running + report.sessions_waiting)
    return (
        report.tokens_waiting
        + view.tokens_sent_since_report
        + max(0, prompt_tokens - cached_tokens)
        + TOKENS_PER_SESSION * sessions
    )


def choose_worker(
    views: Sequence[WorkerView],
    *,
    prompt_tokens: int,
    prompt_hashes: Sequence[int],
    avoided_worker_id: str = "",
) -> WorkerView | None:
    """Return the cheapest worker; ties go to the lower id. None if there is no worker at all.

    One that takes nothing new is never chosen; the one to avoid only when nobody else is there.
    """
    willing = [view for view in views if view.is_taking]
    others = [view for view in willing if view.report.worker_id != avoided_worker_id]
    return min(
        others or willing,
        key=lambda view: (
            placement_cost(view, prompt_tokens=prompt_tokens, prompt_hashes=prompt_hashes),
            view.report.worker_id,
        ),
        default=None,
    )
