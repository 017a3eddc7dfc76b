"""What made the slowest online requests slow, and whose the engine's time was; pure.

TTFT = as long as alone + waited for offline steps + added by offline work to online steps
     + the rest: more online work before it than alone, since that was held, too; and chance
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

from services.simulator.coserve.router import ServedRequest
from services.simulator.coserve.run import CoserveOutcome
from services.simulator.coserve.worker import StepSpan

SLOWEST_SHARE: Final = 0.02
"""Of the requests: those around the P99."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowestWaits:
    """Means over the slowest requests; the last four add up to the first."""

    ttft_ns: int
    alone_ns: int
    """The same requests without offline work."""
    offline_steps_ns: int
    """For the end of steps without online work, or for their next safepoint."""
    mixed_steps_ns: int
    """What offline work added to steps with online work, their own and those before."""
    rest_ns: int
    """Negative where steps were shared that alone were not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeShares:
    """Shares of what was measured; they add up to 1."""

    online: float
    """What online work takes by itself, in steps of its own or mixed ones."""
    offline_beside: float
    """What offline work adds to mixed steps."""
    offline_alone: float
    """Steps without online work, those that yielded included."""
    idle: float


def slowest_waits(outcome: CoserveOutcome, *, alone: CoserveOutcome) -> SlowestWaits:
    """Compare the slowest requests with what they were in the run without offline work."""
    pairs = [
        (_ttft_ns(request, outcome), request, _ttft_ns(undisturbed, alone))
        for request, undisturbed in zip(outcome.served, alone.served, strict=True)
    ]
    pairs.sort(key=lambda pair: -pair[0])
    slowest = pairs[: ceil(SLOWEST_SHARE * len(pairs))]
    ttft_ns = alone_ns = offline_ns = mixed_ns = 0
    for waited_ns, request, undisturbed_ns in slowest:
        began, ended = request.arrival_ns, request.arrival_ns + waited_ns
        steps = [s for s in outcome.steps if s.ended_at_ns > began and s.began_at_ns < ended]
        ttft_ns += waited_ns
        alone_ns += undisturbed_ns
        offline_ns += sum(_overlap_ns(s, began, ended) for s in steps if not s.online_ns)
        # Who comes during a mixed step would have waited for its online part anyway, at most.
        mixed_ns += sum(
            min(s.offline_ns, _overlap_ns(s, began, ended)) for s in steps if s.online_ns
        )
    count = max(1, len(slowest))
    return SlowestWaits(
        ttft_ns=ttft_ns // count,
        alone_ns=alone_ns // count,
        offline_steps_ns=offline_ns // count,
        mixed_steps_ns=mixed_ns // count,
        rest_ns=(ttft_ns - alone_ns - offline_ns - mixed_ns) // count,
    )


def time_shares(outcome: CoserveOutcome) -> TimeShares:
    """Share out the time that was measured."""
    began, ended = outcome.ended_at_ns - outcome.elapsed_ns, outcome.ended_at_ns
    online = beside = alone = 0.0
    for step in outcome.steps:
        inside_ns = _overlap_ns(step, began, ended)
        if inside_ns <= 0:
            continue
        online_ns = inside_ns * step.online_ns / (step.ended_at_ns - step.began_at_ns)
        online += online_ns
        if step.online_ns:
            beside += inside_ns - online_ns
        else:
            alone += inside_ns
    elapsed_ns = max(1, outcome.elapsed_ns)
    return TimeShares(
        online=online / elapsed_ns,
        offline_beside=beside / elapsed_ns,
        offline_alone=alone / elapsed_ns,
        idle=1 - (online + beside + alone) / elapsed_ns,
    )


def _ttft_ns(request: ServedRequest, outcome: CoserveOutcome) -> int:
    first_at_ns = request.token_at_ns[0] if request.token_at_ns else outcome.ended_at_ns
    return first_at_ns - request.arrival_ns


def _overlap_ns(step: StepSpan, began_at_ns: int, ended_at_ns: int) -> int:
    return min(step.ended_at_ns, ended_at_ns) - max(step.began_at_ns, began_at_ns)
