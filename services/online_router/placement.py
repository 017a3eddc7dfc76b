"""Which worker runs a session: the one predicted to reach its first token soonest.

Cost of a worker, in prompt tokens: what waits there by its report, what we sent since, what of this
prompt it has not cached, and a fixed charge per session held, which every further session slows.

An online session passes the offline ones and takes their room, so for it they cost nothing. An
offline one waits behind all of them, and for blocks: it goes where most is left over.
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
    sessions_placed_offline: int = 0
    """Of these, offline ones."""
    tokens_sent_since_report: int = 0
    """Of online prompts."""
    offline_tokens_sent_since_report: int = 0

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a session asks of a worker."""

    prompt_tokens: int
    """Prompt, and the tokens generated so far."""
    prompt_hashes: Sequence[int]
    """Of their full blocks."""
    tokens_max: int
    """Prompt and answer at most."""
    is_offline: bool


def view_of(report: WorkerReport) -> WorkerView:
    """Start a view from a report, which replaces all that was guessed since the one before."""
    return WorkerView(report=report, prefix_hashes=frozenset(report.prefix_hashes))


def cached_blocks(view: WorkerView, prompt_hashes: Sequence[int]) -> int:
    """Count the leading blocks of the prompt that the worker has cached."""
    for index, block_hash in enumerate(prompt_hashes):
        if block_hash not in view.prefix_hashes:
            return index
    return len(prompt_hashes)


def placement_cost(view: WorkerView, wanted: Wanted) -> int:
    """Return the cost described at the head of this file."""
    report = view.report
    cached_tokens = cached_blocks(view, wanted.prompt_hashes) * report.block_tokens
    online_sessions = max(
        view.sessions_placed - view.sessions_placed_offline,
        report.sessions_running
        + report.sessions_waiting
        - report.offline_running
        - report.offline_waiting,
    )
    cost = (
        report.tokens_waiting
        - report.offline_tokens_waiting
        + view.tokens_sent_since_report
        + max(0, wanted.prompt_tokens - cached_tokens)
        + TOKENS_PER_SESSION * online_sessions
    )
    return cost + _offline_cost(view, wanted) if wanted.is_offline else cost


def _offline_cost(view: WorkerView, wanted: Wanted) -> int:
    """Return what an offline session waits for besides: the other ones, and room for itself."""
    report = view.report
    sessions = max(view.sessions_placed_offline, report.offline_running + report.offline_waiting)
    tokens_free = (report.blocks_free - report.blocks_reserved_for_online) * report.block_tokens
    return (
        report.offline_tokens_waiting
        + view.offline_tokens_sent_since_report
        + TOKENS_PER_SESSION * sessions
        + max(0, wanted.tokens_max - max(0, tokens_free))
    )


def choose_worker(
    views: Sequence[WorkerView],
    *,
    wanted: Wanted,
    avoided_worker_id: str = "",
) -> WorkerView | None:
    """Return the cheapest worker; ties go to the lower id. None if there is no worker at all.

    One that takes nothing new is never chosen; the one to avoid only when nobody else is there.
    """
    willing = [view for view in views if view.is_taking]
    others = [view for view in willing if view.report.worker_id != avoided_worker_id]
    return min(
        others or willing,
        key=lambda view: (placement_cost(view, wanted), view.report.worker_id),
        default=None,
    )
