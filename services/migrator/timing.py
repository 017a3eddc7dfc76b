"""When the sources of a hand-over have to stop: by what their nodes have left, and measured links.

A dying node's own clock counts. All of this only chooses a moment: a copy that is cut short costs
tokens that are computed again, never wrong text.
"""

from libs.contracts.handover import MovingTerms, ReplicaRoster, worker_ids_of
from libs.contracts.handover_record import Handover, HandoverSource
from libs.contracts.reports import WorkerReport
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.policy.arrangement import (
    AfterStop,
    Arrangement,
    Pace,
    arrange_for_loss,
    arrange_for_newcomer,
    migration_ns,
)
from services.migrator.fleet_view import FleetView
from services.migrator.options import MigratorOptions

STEPS_LEFT_MAX = 1_000_000
"""Nobody knows where a session ends; a source that has time goes on until it must stop."""


class Timing:
    """The deadlines of the fleet as they are at one moment."""

    def __init__(
        self, view: FleetView, options: MigratorOptions, *, now_ns: int, now_unix_ns: int
    ) -> None:
        self._view = view
        self._options = options
        self.now_ns = now_ns
        self.now_unix_ns = now_unix_ns

    def source_ends_at_ns(self, source: HandoverSource) -> int | None:
        """Return when the first worker of the source ends; None if all stay."""
        return self._view.first_end_at_ns(
            source.replica.workers, now_ns=self.now_ns, now_unix_ns=self.now_unix_ns
        )

    def copy_until_unix_ns(self, source: HandoverSource) -> int | None:
        """Return when copying from this source has to end, on the clock of the world."""
        ends_at_ns = self.source_ends_at_ns(source)
        if ends_at_ns is None:
            return None
        left_ns = ends_at_ns - self.now_ns - self._options.grace_reserve_ns
        return self.now_unix_ns + max(0, left_ns)

    def terms(self, source: HandoverSource, handover: Handover, *, may_finish: bool) -> MovingTerms:
        """Say by what each session of the source is copied, replayed, or left to finish."""
        copy_until_unix_ns = self.copy_until_unix_ns(source)
        copy_within_ms = None
        if copy_until_unix_ns is not None:
            copy_within_ms = (copy_until_unix_ns - self.now_unix_ns) // NS_PER_MS
        finish_within_ns = self._finish_until_unix_ns(source, handover) - self.now_unix_ns
        return MovingTerms(
            kv_bytes_per_token=self._kv_bytes_per_token(source.replica),
            link_bytes_per_s=self._link_bytes_per_s(handover),
            prefill_tokens_per_s=self._prefill_tokens_per_s(source.replica),
            finish_within_ms=max(0, finish_within_ns if may_finish else 0) // NS_PER_MS,
            copy_within_ms=copy_within_ms,
        )

    def _finish_until_unix_ns(self, source: HandoverSource, handover: Handover) -> int:
        """Return until when the stop may wait for sessions that end by themselves."""
        began_at_unix_ns = handover.story.moments[0].entered_at_unix_ns
        patience_ends = began_at_unix_ns + self._options.finish_patience_ns
        copy_until = self.copy_until_unix_ns(source)
        if copy_until is None:
            return patience_ends
        must_stop_at = copy_until - self._options.activation_ns
        if all(target.is_in_place for target in handover.targets):
            return must_stop_at
        return min(patience_ends, must_stop_at)

    def must_stop(self, handover: Handover, *, bytes_left: int) -> bool:
        """Whether what is left to copy would not fit any more if a source went on."""
        ends = [self.source_ends_at_ns(s) for s in handover.sources if not s.is_lost]
        first_end_at_ns = min((end for end in ends if end is not None), default=None)
        if first_end_at_ns is None:
            return False
        needed_ns = (
            self._options.grace_reserve_ns
            + self._options.activation_ns
            + bytes_left * NS_PER_S // self._link_bytes_per_s(handover)
        )
        return first_end_at_ns - self.now_ns <= needed_ns

    def is_time(self, handover: Handover) -> bool:
        """Whether the just-in-time stop of any source has come (SpotServe section 4.1)."""
        living = [s for s in handover.sources if not s.is_lost]
        return not living or any(self._arrange(s, handover).steps == 0 for s in living)

    def is_worth_moving(self, source: HandoverSource, handover: Handover) -> bool:
        """Whether moving this source's KV takes less time than computing it again.

        The paper's guard weighs all of T_mig; here only the KV, for weights move either way.
        """
        moving_ns = migration_ns(
            bytes_moved_max=self._kv_bytes(source.replica),
            link_bytes_per_s=self._link_bytes_per_s(handover),
            setup_ns=0,
        )
        return self._arrange_by(source, moving_ns).after is not AfterStop.RECOMPUTE

    def _arrange(self, source: HandoverSource, handover: Handover) -> Arrangement:
        moving_ns = migration_ns(
            bytes_moved_max=self._kv_bytes(source.replica) + self._weight_bytes(source.replica),
            link_bytes_per_s=self._link_bytes_per_s(handover),
            setup_ns=self._options.activation_ns,
        )
        return self._arrange_by(source, moving_ns)

    def _arrange_by(self, source: HandoverSource, moving_ns: int) -> Arrangement:
        pace = self._pace(source.replica)
        ends_at_ns = self.source_ends_at_ns(source)
        if ends_at_ns is None:
            return arrange_for_newcomer(pace, ready_after_ns=0, migration_ns=moving_ns)
        grace_ns = ends_at_ns - self.now_ns - self._options.grace_reserve_ns
        return arrange_for_loss(pace, grace_ns=grace_ns, migration_ns=moving_ns)

    def _pace(self, replica: ReplicaRoster) -> Pace:
        report = self._lead_report(replica)
        prefill_tokens_per_s = self._prefill_tokens_per_s(replica)
        tokens_waiting = 0 if report is None else report.tokens_waiting
        kv_tokens = 0 if report is None else report.kv_tokens
        step_ms = 0.0 if report is None else report.step_ms_recent
        return Pace(
            prefill_left_ns=tokens_waiting * NS_PER_S // prefill_tokens_per_s,
            step_ns=max(1, round(step_ms * NS_PER_MS)),
            steps_left=STEPS_LEFT_MAX,
            computed_ns=kv_tokens * NS_PER_S // prefill_tokens_per_s,
        )

    def _kv_bytes(self, replica: ReplicaRoster) -> int:
        """Weigh the KV that one worker of the source would send; 0 where sizes are not known."""
        report = self._lead_report(replica)
        kv_tokens = 0 if report is None else report.kv_tokens
        return kv_tokens * self._kv_bytes_per_token(replica)

    def _kv_bytes_per_token(self, replica: ReplicaRoster) -> int:
        """Weigh what one worker of the source holds of a token; 0 where sizes are not known."""
        size = self._options.model_bytes
        if size is None:
            return 0
        workers = replica.stages * replica.shards
        return size.kv_bytes_per_token_layer * size.layers // workers

    def _prefill_tokens_per_s(self, replica: ReplicaRoster) -> int:
        """Return what the source measured, or what is assumed."""
        report = self._lead_report(replica)
        measured = 0 if report is None else report.prefill_tokens_per_s
        return measured or self._options.prefill_tokens_per_s

    def _lead_report(self, replica: ReplicaRoster) -> WorkerReport | None:
        return None if replica.lead is None else self._view.report_of(replica.lead.worker_id)

    def _weight_bytes(self, replica: ReplicaRoster) -> int:
        report = self._lead_report(replica)
        return 0 if report is None else report.weights_bytes

    def _link_bytes_per_s(self, handover: Handover) -> int:
        """Return the slowest rate that a source measured lately, or what is assumed.

        Links to those that inherit count alone, once one of them has been measured.
        """
        heirs = worker_ids_of(target.replica for target in handover.targets)
        rates = [
            (rate.peer_worker_id in heirs, rate.bytes_per_s)
            for source in handover.sources
            for worker in source.replica.workers
            if (report := self._view.report_of(worker.worker_id)) is not None
            for rate in report.link_rates
            if rate.bytes_per_s > 0
        ]
        to_heirs = [bytes_per_s for is_heir, bytes_per_s in rates if is_heir]
        known = to_heirs or [bytes_per_s for _, bytes_per_s in rates]
        return min(known, default=self._options.link_bytes_per_s)
