"""What the router's core may be told; the process's own config maps onto it."""

from dataclasses import dataclass, field
from typing import Final

from libs.kernel.units import KIB, MIB, NS_PER_MS, NS_PER_S
from libs.policy.liveness import LivenessOptions

SCORED_TOKEN_JSON_BYTES: Final = 96
"""Of one ScoredToken in a message to a client, in the larger encoding; its text is short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What an online request should see. Both at once, or it counts as missed."""

    ttft_ns: int = 1_000 * NS_PER_MS
    """From the submission to the first token."""
    tpot_ns: int = 100 * NS_PER_MS
    """For each later token, on average over one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterOptions:
    """Limits and intervals of one router. Every limit has a rule for what happens at it."""

    router_id: str
    """Unique per process start; a subject token."""
    aliases: tuple[str, ...]
    """Models that this router can tokenise for; others are rejected as not found."""
    process_id: int = 0
    """Shown in reports."""
    sessions_max: int = 2048
    """Open sessions; at the bound a submission is rejected as overloaded."""
    sessions_ended_max: int = 4096
    """Ended sessions kept for clients that missed the end; past it the oldest are forgotten."""
    linger_ns: int = 30 * NS_PER_S
    """How long an ended session is kept for a client that missed the end."""
    sessions_ended_offline_max: int = 4096
    """Answered sessions of offline work kept likewise; the bound is their own, so that neither kind
    drives out the other."""
    linger_offline_ns: int = 3600 * NS_PER_S
    """How long those are kept unless their client says that it has the answer: a queue may be down
    for that long without any of its lines being computed twice."""
    report_interval_ns: int = 200 * NS_PER_MS
    """Heartbeat; see LivenessOptions for how many may be missed."""
    sweep_interval_ns: int = 100 * NS_PER_MS
    """How often everything that may have been lost is looked at again."""
    soon_ns: int = 500 * NS_PER_MS
    """A worker gets no more prompts than it computes within this time; the rest waits here. More
    than two worker reports, so that none is idle because the router has not heard of it."""
    start_repeat_ns: int = 400 * NS_PER_MS
    """StartSession is sent again if unanswered this long."""
    probe_after_ns: int = 1_000 * NS_PER_MS
    """A running session silent this long is asked for."""
    resend_ask_interval_ns: int = 100 * NS_PER_MS
    """A gap in the indices is asked about at most this often per session."""
    retry_after_ns: int = 300 * NS_PER_MS
    """What a client is told to wait where a shortage passes soon."""
    append_retry_ns: int = 250 * NS_PER_MS
    """Pause before a failed journal append or read is tried again."""
    strikes_max: int = 5
    """Workers lost in a row without one new token before the request counts as the poison."""
    batch_bytes_max: int = 512 * KIB
    """Estimated size of one journal append; must stay below the broker's max_payload."""
    record_bytes_max: int = 768 * KIB
    """A submission whose own record would exceed this is rejected as too large."""
    scores_bytes_max: int = 768 * KIB
    """Estimated log probabilities in one message to a client; must stay below the broker's
    max_payload. More of an answer's go into several messages; a prompt with more is rejected."""
    journal_bytes_max: int = 16 * MIB
    """Journal bytes behind the oldest open session before that session is written anew."""
    journals_list_interval_ns: int = 1 * NS_PER_S
    """How often the journals of dead routers are looked for."""
    relay_tokens_max: int = 4096
    """Tokens in one TokensGenerated message."""
    objective: Objective = field(default_factory=Objective)
    """Against which online requests are counted; nothing is decided by it here."""
    liveness: LivenessOptions = field(default_factory=LivenessOptions)
    """When a silent worker or router counts as dead."""

    def scored_places_max(self, best: int) -> int:
        """How many tokens, each with so many best ones, one message to a client can score."""
        return max(1, self.scores_bytes_max // (SCORED_TOKEN_JSON_BYTES * (1 + best)))

    def __post_init__(self) -> None:
        assert self.batch_bytes_max <= self.record_bytes_max
        assert self.sessions_max > 0
        assert self.strikes_max > 0
