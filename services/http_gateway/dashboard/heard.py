"""What the dashboard has heard: the newest report of each process, notices, placements, batches.

A process counts as gone after four own reports of the gateway came back without one of its. Echoes
are counted instead of seconds, so that a broker that is away silences nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from libs.contracts.batches import BatchRecord
from libs.contracts.handover_record import HandoverRecord
from libs.contracts.placement import Placement
from libs.contracts.preemption import Notice, NoticeWithdrawn, PreemptionNotice
from libs.contracts.reports import (
    GatewayReport,
    MigratorReport,
    OfflineQueueReport,
    PlannerReport,
    Report,
    ReportT,
    RouterReport,
    WorkerReport,
    sender_id,
)
from libs.kernel.bounded import RecentMap
from libs.kernel.units import NS_PER_S

ECHOES_MISSED_MAX: Final = 4
PROCESSES_MAX: Final = 8192
NOTICES_MAX: Final = 1024
NOTICE_SILENCE_NS_MAX: Final = 60 * NS_PER_S
"""Watchers repeat a notice every few seconds; one not heard for so long went with its node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeardNotice:
    """A notice and when, by our clock, it was heard last."""

    notice: PreemptionNotice
    heard_at_ns: int

    def left_ns(self, *, now_ns: int) -> int | None:
        """What is left of the grace; negative: it is over."""
        grace_ns = self.notice.grace_ns
        return None if grace_ns is None else self.heard_at_ns + grace_ns - now_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeardReport:
    report: Report
    echo: int
    """How many echoes had been heard by then."""


class Heard:
    """Everything that snapshots are made of; replaced piece by piece as messages come."""

    def __init__(self, *, gateway_id: str) -> None:
        self.placements: tuple[Placement, ...] = ()
        self.handovers: tuple[HandoverRecord, ...] = ()
        self.batches: tuple[BatchRecord, ...] = ()
        """The newest first."""
        self.echo_at_ns: int | None = None
        """When our own report was last heard to come back."""
        self._gateway_id = gateway_id
        self._echoes = 0
        self._reports: RecentMap[str, _HeardReport] = RecentMap(entries_max=PROCESSES_MAX)
        self._notices: RecentMap[tuple[str, str, str], HeardNotice] = RecentMap(
            entries_max=NOTICES_MAX
        )

    def take_report(self, report: Report, *, now_ns: int) -> None:
        """Replace what this process said before; our own counts as the echo."""
        if isinstance(report, GatewayReport) and report.gateway_id == self._gateway_id:
            self._echoes += 1
            self.echo_at_ns = now_ns
        key = f"{report.type}/{sender_id(report)}"
        self._reports.put(key, _HeardReport(report=report, echo=self._echoes))

    def take_notice(self, notice: Notice, *, now_ns: int) -> None:
        """Note a notice, or that it is withdrawn."""
        key = (notice.node_id, notice.kind, notice.notice_id)
        if isinstance(notice, NoticeWithdrawn):
            self._notices.pop(key)
        else:
            self._notices.put(key, HeardNotice(notice=notice, heard_at_ns=now_ns))

    def notices(self, *, now_ns: int) -> list[HeardNotice]:
        """Return the notices that hold, the most urgent first; unknown deadlines come last."""
        holding = [
            heard
            for heard in self._notices.values()
            if now_ns - heard.heard_at_ns <= NOTICE_SILENCE_NS_MAX
        ]
        return sorted(holding, key=lambda heard: _urgency(heard, now_ns))

    def workers(self) -> Sequence[WorkerReport]:
        """Living workers, by id."""
        return self._living(WorkerReport)

    def routers(self) -> Sequence[RouterReport]:
        """Living routers, by id."""
        return self._living(RouterReport)

    def gateways(self) -> Sequence[GatewayReport]:
        """Living gateways, by id."""
        return self._living(GatewayReport)

    def planners(self) -> Sequence[PlannerReport]:
        """Living planners, by id."""
        return self._living(PlannerReport)

    def migrators(self) -> Sequence[MigratorReport]:
        """Living migrators, by id."""
        return self._living(MigratorReport)

    def offline_queues(self) -> Sequence[OfflineQueueReport]:
        """Living offline queues, by id."""
        return self._living(OfflineQueueReport)

    def _living(self, kind: type[ReportT]) -> list[ReportT]:
        living = [
            heard.report
            for heard in self._reports.values()
            if isinstance(heard.report, kind) and self._echoes - heard.echo < ECHOES_MISSED_MAX
        ]
        return sorted(living, key=sender_id)


def _urgency(heard: HeardNotice, now_ns: int) -> tuple[bool, int, str]:
    left_ns = heard.left_ns(now_ns=now_ns)
    return left_ns is None, left_ns or 0, heard.notice.node_id
