"""What becomes of each session of a node that leaves: copy its KV, replay its tokens, or finish.

SpotServe moves all or nothing. Here each session takes what loses least time, within what one link
can carry before the deadline. Re-prefill measured on L40S: 2K tokens of an 8B model in 84 ms
(ShuntServe, 2026), so that short sessions replay faster than their KV travels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from libs.kernel.units import NS_PER_S


class SessionChoice(StrEnum):
    """How one session gets past the loss of its node."""

    FINISH = "finish"
    """It ends here before the node does."""
    COPY = "copy"
    """Its KV is sent to the heir."""
    REPLAY = "replay"
    """Its tokens are computed again elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeavingSession:
    """A session on a node that leaves."""

    session_id: str
    tokens: int
    """Whose KV is there, of prompt and output."""
    tokens_left_max: int
    """It may end earlier, never later."""
    prompt_tokens_left: int = 0
    """To be computed before the first of those."""
    bytes_uncopied: int
    """KV that the heir lacks."""
    is_online: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LeavingRates:
    """What was measured: the node's own speed, its link, and its heir's prefill."""

    step_ns: int
    link_bytes_per_s: int
    prefill_tokens_per_s: int
    finish_within_ns: int
    """Who ends by then may stay; 0: nobody."""
    copy_within_ns: int | None
    """Until the node ends, less a reserve for what goes wrong; None: it stays."""
    copy_setup_ns: int = 0
    """Per session, before its first byte."""


def choose_for_sessions(
    sessions: Sequence[LeavingSession], rates: LeavingRates
) -> dict[str, SessionChoice]:
    """Decide for all sessions of one node, which share its link.

    Who ends in time stays. Of the others, online ones come first, then those that save most time
    per byte; each is copied if that is faster than replaying and still fits before the deadline.
    """
    choices: dict[str, SessionChoice] = {}
    moving = []
    for session in sessions:
        if finish_ns(session, rates) < rates.finish_within_ns:
            choices[session.session_id] = SessionChoice.FINISH
        else:
            moving.append(session)
    link_busy_ns = 0
    for session in sorted(moving, key=lambda s: _urgency(s, rates)):
        copy_ns = _copy_ns(session, rates)
        if (
            copy_ns is not None
            and copy_ns < replay_ns(session, rates)
            and _fits(link_busy_ns + copy_ns, rates)
        ):
            choices[session.session_id] = SessionChoice.COPY
            link_busy_ns += copy_ns
        else:
            choices[session.session_id] = SessionChoice.REPLAY
    return choices


def finish_ns(session: LeavingSession, rates: LeavingRates) -> int:
    """Time until the session ends where it is, at the latest."""
    prefill_ns = session.prompt_tokens_left * NS_PER_S // max(1, rates.prefill_tokens_per_s)
    return prefill_ns + session.tokens_left_max * rates.step_ns


def replay_ns(session: LeavingSession, rates: LeavingRates) -> int:
    """Time to compute the session's tokens again at the heir."""
    return session.tokens * NS_PER_S // max(1, rates.prefill_tokens_per_s)


def _fits(link_busy_ns: int, rates: LeavingRates) -> bool:
    return rates.copy_within_ns is None or link_busy_ns <= rates.copy_within_ns


def _copy_ns(session: LeavingSession, rates: LeavingRates) -> int | None:
    if rates.link_bytes_per_s <= 0:
        return None
    return rates.copy_setup_ns + session.bytes_uncopied * NS_PER_S // rates.link_bytes_per_s


def _urgency(session: LeavingSession, rates: LeavingRates) -> tuple[bool, float, str]:
    saved_per_byte = replay_ns(session, rates) / max(1, session.bytes_uncopied)
    return (not session.is_online, -saved_per_byte, session.session_id)
