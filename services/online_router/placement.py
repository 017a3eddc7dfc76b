"""Which worker runs a session: of those with room, the one that reaches its first token soonest.

A session is bound late. A worker gets what it can start soon; the rest waits at the router, in one
line, and whoever serves next, or is done first, finds its share there (`has_room`).

Cost of a worker, in prompt tokens: what waits there by its report, what we sent since, what of this
prompt it has not cached, and a fixed charge per session held, which every further session slows.

An online session passes the offline ones and takes their room, so for it they cost nothing. An
offline one waits behind all of them, and for blocks: it goes where most is left over.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from libs.contracts.reports import WorkerReport
from libs.kernel.units import NS_PER_S

TOKENS_PER_SESSION = 32
"""What a decoding session costs a newcomer, in prompt tokens: one row in each coming step."""
RUNNING_PER_WAITING = 4
"""For so many sessions that can run, one more may wait at the worker: these take the places of
those that end before the router has heard of it. With 16, bursts of requests took longer."""


@dataclass(slots=True, kw_only=True)
class SinceReport:
    """What this router knows of one kind of session that the worker's last report cannot show."""

    sessions_sent: int = 0
    tokens_sent: int = 0
    """Of their prompts, and of the answers they go on with."""
    sessions_left: int = 0
    """Ended or went elsewhere, of those reported and those sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """All that a session of one kind finds before it at a worker."""

    sessions_held: int
    sessions_queued: int
    """Of these, not admitted to the batch."""
    tokens_waiting: int
    tokens_free: int
    """Of KV."""


@dataclass(slots=True, kw_only=True)
class WorkerView:
    """A worker as this router sees it: its last report, and what was sent since."""

    report: WorkerReport
    prefix_hashes: frozenset[int]
    online: SinceReport = field(default_factory=SinceReport)
    offline: SinceReport = field(default_factory=SinceReport)
    has_refused: bool = False
    """It took no session although it seemed to have room; holds until it is heard again."""

    @property
    def is_taking(self) -> bool:
        """Whether new sessions may go there."""
        return self.report.is_serving and not self.report.is_draining

    def since_report(self, *, is_offline: bool) -> SinceReport:
        """Return what has happened there to sessions of this kind."""
        return self.offline if is_offline else self.online

    def note_sent(self, *, tokens: int, is_offline: bool) -> None:
        """A session is on its way there, with so many tokens to compute at most."""
        since = self.since_report(is_offline=is_offline)
        since.sessions_sent += 1
        since.tokens_sent += tokens

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


def has_room(view: WorkerView, *, is_offline: bool, soon_ns: int) -> bool:
    """Return whether a session that is sent there now starts soon.

    One may always wait, so that the worker has something to go on with. Any other must not find
    more prompt tokens before it than the worker computes within `soon_ns`, and needs a place in the
    batch and blocks, or to be of the few that wait for those. What no report says bounds nothing.
    """
    if not view.is_taking or view.has_refused:
        return False
    report = view.report
    load = _load(view, is_offline=is_offline)
    if load.sessions_queued == 0:
        return True
    running_max = report.sessions_running_max
    tokens_soon = report.prefill_tokens_per_s * soon_ns // NS_PER_S
    if tokens_soon and load.tokens_waiting >= tokens_soon:
        return False
    is_place_free = not running_max or load.sessions_held < running_max
    is_of_the_few = load.sessions_queued <= running_max // RUNNING_PER_WAITING
    return is_of_the_few or (is_place_free and load.tokens_waiting < load.tokens_free)


def _load(view: WorkerView, *, is_offline: bool) -> _Load:
    """Return what an online session finds besides online work, or an offline one besides all."""
    report, online = view.report, view.online
    waiting = report.sessions_waiting - report.offline_waiting
    changed = online.sessions_sent - online.sessions_left
    running = report.sessions_running - report.offline_running
    tokens = report.tokens_waiting - report.offline_tokens_waiting + online.tokens_sent
    blocks = report.blocks_free + report.blocks_offline
    if is_offline:
        offline = view.offline
        waiting += report.offline_waiting
        changed += offline.sessions_sent - offline.sessions_left
        running += report.offline_running
        tokens += report.offline_tokens_waiting + offline.tokens_sent
        blocks = report.blocks_free - report.blocks_reserved_for_online
    return _Load(
        sessions_held=max(0, running + waiting + changed),
        sessions_queued=max(0, waiting + changed),
        tokens_waiting=tokens,
        tokens_free=max(0, blocks) * report.block_tokens,
    )


def placement_cost(view: WorkerView, wanted: Wanted) -> int:
    """Return the cost described at the head of this file."""
    load = _load(view, is_offline=wanted.is_offline)
    cached_tokens = cached_blocks(view, wanted.prompt_hashes) * view.report.block_tokens
    cost = (
        load.tokens_waiting
        + max(0, wanted.prompt_tokens - cached_tokens)
        + TOKENS_PER_SESSION * load.sessions_held
    )
    # An offline session has to wait for blocks, which nobody gives up for it.
    return cost + max(0, wanted.tokens_max - load.tokens_free) if wanted.is_offline else cost


def choose_worker(
    views: Sequence[WorkerView], *, wanted: Wanted, soon_ns: int, avoided_worker_id: str = ""
) -> WorkerView | None:
    """Return the cheapest worker with room; ties go to the lower id. None: the session waits.

    One that takes nothing new is never chosen; the one to avoid only when nobody else is there.
    """
    willing = [view for view in views if view.is_taking]
    others = [view for view in willing if view.report.worker_id != avoided_worker_id]
    roomy = [
        view
        for view in others or willing
        if has_room(view, is_offline=wanted.is_offline, soon_ns=soon_ns)
    ]
    return min(
        roomy,
        key=lambda view: (placement_cost(view, wanted), view.report.worker_id),
        default=None,
    )
