"""What the migrator's core may be told; the process's own config maps onto it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.contracts.handover_record import HandoverState
from libs.kernel.units import MIB, NS_PER_MS, NS_PER_S
from libs.policy.liveness import LivenessOptions
from libs.policy.model_profile import ModelBytes

ANSWER_LIMITS_NS: Mapping[HandoverState, int] = {
    HandoverState.LOADING: 900 * NS_PER_S,
    HandoverState.COPYING: 300 * NS_PER_S,
    HandoverState.STOPPING: 300 * NS_PER_S,
}
"""How long a living worker may take where bytes move: a large model from a slow disk takes minutes,
and the KV of a full GPU over a slow link does, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigratorOptions:
    """Limits and intervals of one migrator. Every limit has a rule for what happens at it."""

    migrator_id: str
    """Unique per process start; a subject token."""
    alias: str
    """The model whose fleet this migrator looks after."""
    process_id: int = 0
    """Shown in reports."""
    report_interval_ns: int = 200 * NS_PER_MS
    """Heartbeat; see LivenessOptions for how many may be missed."""
    sweep_interval_ns: int = 50 * NS_PER_MS
    """How often deadlines, unanswered commands and the placement are looked at again."""
    read_interval_ns: int = 1 * NS_PER_S
    """How often the committed placement and, on stand-by, the record are read; announcements and
    reports are faster, and may be lost."""
    repeat_ns: int = 300 * NS_PER_MS
    """A command is sent again if unanswered this long."""
    answer_limit_ns: int = 30 * NS_PER_S
    """A living worker that does not answer for so long has failed; see ANSWER_LIMITS_NS."""
    attempts_max: int = 3
    """A command that failed for a passing reason is given so often."""
    restart_after_ns: int = 1 * NS_PER_S
    """Pause after a hand-over that failed, before the same change is tried again; it doubles."""
    restart_after_max_ns: int = 30 * NS_PER_S
    """Bound of that pause."""
    echo_age_max_ns: int = 1 * NS_PER_S
    """Own reports not heard for so long: the record is read before anything more is said."""
    reports_settled: int = 2
    """Reports of a worker that must follow a change before it is believed to be complete."""
    echoes_settled: int = 4
    """Own echoes before anything is decided; by then every living worker has reported."""
    copy_interval_ns: int = 200 * NS_PER_MS
    """Between two rounds of copying where little was left."""
    copy_rounds_max: int = 16
    """Rounds of copying after the targets are ready; then the source is stopped all the same."""
    blocks_left_max: int = 8
    """So few full blocks left are small enough to be sent while nothing is computed."""
    finish_patience_ns: int = 1 * NS_PER_S
    """Sessions that end so soon after a hand-over began are left to end where they are (policy
    tideserve); longer, up to the end of the source's node, where no new replica waits for it."""
    grace_reserve_ns: int = 1 * NS_PER_S
    """Of a dying node's grace, kept for what goes wrong; its worker lets go of its sessions by
    itself when the last 300 ms begin."""
    activation_ns: int = 500 * NS_PER_MS
    """What forming, activating and releasing are expected to take."""
    link_bytes_per_s: int = 1024 * MIB
    """Assumed of a link that nobody has measured yet."""
    prefill_tokens_per_s: int = 5_000
    """Assumed speed of computing KV anew, where moving it is weighed against that."""
    load_buffer_bytes_max: int = 64 * MIB
    """Memory beyond its weights that a worker may use while it loads."""
    model_bytes: ModelBytes | None = None
    """The sizes of the model; None, where neither profile nor folder tells: layers move in
    ascending order, and KV counts as nothing when it is to be judged whether moving it is worth
    it."""
    liveness: LivenessOptions = field(default_factory=LivenessOptions)
    """When a silent worker or migrator counts as dead."""

    def __post_init__(self) -> None:
        assert self.attempts_max >= 1
        assert self.link_bytes_per_s > 0
        assert self.prefill_tokens_per_s > 0
