"""What a worker core is told at the start: who it is, what its engine can do, and its bounds."""

from dataclasses import dataclass, field, replace

from libs.contracts.reports import Market, MemoryRule
from libs.engine.scheduler import SchedulerOptions
from libs.kernel.units import KIB, NS_PER_MS, NS_PER_S
from services.gpu_worker.checkpoint_options import CheckpointOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Identity, engine shape and bounds. Every bound's docstring says what happens at it."""

    worker_id: str
    """Unique per process start, so that no message for an earlier process reaches this one."""
    alias: str
    process_id: int
    vocabulary_size: int
    engine: SchedulerOptions
    """Of a worker that serves the whole model; of a planned one, what every position has in common:
    its KV has as many blocks as fit there."""
    can_hold_to_schema: bool = True
    """Whether a session may have an answer_schema."""
    is_planned: bool = False
    """Computes what the placement says, instead of the whole model from the start."""
    node_id: str | None = None
    zone: str | None = None
    market: Market = Market.ON_DEMAND
    peer_address: str = ""
    """Where other workers reach this one."""
    memory_bytes: int = 0
    """For weights and KV."""
    memory_rule: MemoryRule | None = None
    """How its engine holds weights, for the planner."""
    weights_bytes: int = 0
    """Held at the start."""
    sessions_max: int = 1024
    """Sessions held, running, waiting or unacknowledged; one more is refused as full."""
    ended_epochs_max: int = 16_384
    """Ended sessions whose epoch is remembered; past it the oldest could be revived by a message
    that was under way all that time, and its router would end it again."""
    report_interval_ns: int = 200 * NS_PER_MS
    resend_after_ns: int = 500 * NS_PER_MS
    """Tokens unacknowledged for this long are sent again; doubles with every repetition."""
    resend_after_ns_max: int = 2 * NS_PER_S
    resend_tokens_max: int = 1024
    """Tokens of one session in one repetition; the rest follows when these are acknowledged."""
    message_bytes_max: int = 256 * KIB
    """A token message past this estimate is split; well below the broker's bound of 1 MiB."""
    unacknowledged_finished_ns_max: int = 60 * NS_PER_S
    """A finished session that nobody acknowledges for this long is dropped and counted."""
    drain_ns_max: int = 5 * NS_PER_S
    """Running sessions may finish for this long while draining; then they are refused."""

    grace_reserve_ns: int = 300 * NS_PER_MS
    """So long before its node ends, a worker sends away what is still here: routers then need not
    wait until they miss its reports."""
    shape_answers_max: int = 256
    """Answers to the migrator that are remembered; a command repeated after so many others would be
    carried out again, which its position's state makes harmless."""

    guard_bytes_per_s: int = 0
    """KV of running sessions that is copied to a replica on other nodes, on average; what does not
    fit is computed again if this one dies. 0: none is."""
    guard_silence_ns_max: int = 2 * NS_PER_S
    """A worker that was not heard for so long guards nobody."""
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)
    """Of offline KV in host memory."""

    def engine_of(self, *, kv_blocks: int, batch_sequences_max: int) -> SchedulerOptions:
        """Say how a replica with KV of so many blocks is scheduled."""
        return replace(
            self.engine,
            blocks_total=kv_blocks,
            sequences_max=min(self.engine.sequences_max, batch_sequences_max),
        )

    @property
    def resend_check_ns(self) -> int:
        """How often unacknowledged sessions are looked through, while there are any."""
        return max(1, self.resend_after_ns // 4)
