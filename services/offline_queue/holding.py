"""Which parts and jobs a queue leases, how long it may believe that they are its own, and when it
is done with them.

    leased --> held --all lines stored, AcknowledgePart--> gone from the stream
                |
                +--not renewed within the lease--> lapsed: no line of it is begun
                                                     |--comes again--> held, less what others stored
                                                     +--nothing runs, DropPart--> forgotten here

Leases are at least once: while this process stands still, or the broker is away, a lease runs out
and another queue takes the part up. So time counts from when a lease was *asked* for, or its
renewal: never later than the broker's own clock began. What runs when a lease lapses goes on: the
other queue asks for the same request ids, which are the same sessions, and of two results the
broker keeps the first. Only a line that ended here between the other queue's look at what is stored
and its own turn at the line is computed twice.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from services.offline_queue.commands import (
    AcknowledgePart,
    DropPart,
    KeepPart,
    LeaseJobs,
    LeaseParts,
    QueueCommand,
)
from services.offline_queue.counters import QueueCounters
from services.offline_queue.events import (
    JobsLeased,
    LeasedJob,
    LeasedPart,
    PartAcknowledged,
    PartKept,
    PartsLeased,
)
from services.offline_queue.intake import HeldPart, Intake, Source
from services.offline_queue.options import QueueOptions
from services.offline_queue.surveying import Surveying

JOBS_AT_ONCE: Final = 4


class Holding:
    """The leases of one queue; mutable, owned by the core."""

    def __init__(
        self,
        options: QueueOptions,
        *,
        intake: Intake,
        surveying: Surveying,
        counters: QueueCounters,
    ) -> None:
        self._options = options
        self._intake = intake
        self._surveying = surveying
        self._counters = counters
        self._asked_at_ns: dict[str, int] = {}
        """By batch: since when parts of it are asked for."""
        self._jobs_asked_at_ns: int | None = None
        self._ask_again_at_ns: dict[str, int] = {}
        """By batch of which there was nothing to lease."""
        self._ask_jobs_again_at_ns = 0

    # ------------------------------------------------------------------ asking

    def lease(
        self,
        ranked: Sequence[Source],
        *,
        lines_wanted: Mapping[str, int],
        now_ns: int,
        cause_id: str,
    ) -> list[QueueCommand]:
        """Ask for parts of these sources, in order, as far as fewer lines wait of each than are
        wanted of its model; and for jobs."""
        commands: list[QueueCommand] = []
        for source in ranked:
            if len(self._intake.parts) + len(self._asked_at_ns) >= self._options.parts_held_max:
                return commands
            batch_id = source.source_id
            is_early = self._ask_again_at_ns.get(batch_id, 0) > now_ns
            if batch_id not in self._surveying or is_early or batch_id in self._asked_at_ns:
                continue
            if self._intake.waiting(batch_id) < lines_wanted[source.alias]:
                self._asked_at_ns[batch_id] = now_ns
                commands.append(LeaseParts(batch_id=batch_id, count=1, cause_id=cause_id))
        return commands + self._lease_jobs(now_ns=now_ns, cause_id=cause_id)

    def _lease_jobs(self, *, now_ns: int, cause_id: str) -> list[QueueCommand]:
        if self._jobs_asked_at_ns is not None or self._ask_jobs_again_at_ns > now_ns:
            return []
        held = sum(source_id not in self._surveying for source_id in self._intake.sources)
        count = min(JOBS_AT_ONCE, self._options.parts_held_max - held)
        if count <= 0:
            return []
        self._jobs_asked_at_ns = now_ns
        return [LeaseJobs(count=count, cause_id=cause_id)]

    # ------------------------------------------------------------------ holding

    def parts_leased(self, event: PartsLeased, *, now_ns: int) -> list[QueueCommand]:
        """Take what was asked for."""
        asked_at_ns = self._asked_at_ns.pop(event.source_id, now_ns)
        if not event.parts:
            self._ask_again_at_ns[event.source_id] = now_ns + self._options.lease_again_ns
        commands: list[QueueCommand] = []
        for leased in event.parts:
            if event.source_id in self._intake.sources:
                commands += self._hold(
                    leased, asked_at_ns=asked_at_ns, now_ns=now_ns, cause_id=event.cause_id
                )
            else:
                commands.append(DropPart(part_key=leased.part_key, cause_id=event.cause_id))
        return commands

    def jobs_leased(
        self, event: JobsLeased, *, now_ns: int, unix_ns_at_0: int
    ) -> list[QueueCommand]:
        """Likewise; each job is a source of its own."""
        asked_at_ns = now_ns if self._jobs_asked_at_ns is None else self._jobs_asked_at_ns
        self._jobs_asked_at_ns = None
        if not event.jobs:
            self._ask_jobs_again_at_ns = now_ns + self._options.lease_again_ns
        commands: list[QueueCommand] = []
        for job in event.jobs:
            self._intake.put_source(_source_of(job, now_ns=now_ns, unix_ns_at_0=unix_ns_at_0))
            commands += self._hold(
                job.part, asked_at_ns=asked_at_ns, now_ns=now_ns, cause_id=event.cause_id
            )
        return commands

    def _hold(
        self, leased: LeasedPart, *, asked_at_ns: int, now_ns: int, cause_id: str
    ) -> list[QueueCommand]:
        part = self._intake.hold(
            leased,
            kept_at_ns=asked_at_ns,
            now_ns=now_ns,
            deliveries_max=self._options.deliveries_max,
        )
        self._counters.parts_leased += 1
        self._counters.parts_leased_again += leased.delivery_count > 1
        self._counters.parts_given_up += part.is_given_up
        return self.acknowledge_if_done(part, cause_id=cause_id)

    def keep(self, *, now_ns: int, cause_id: str) -> list[QueueCommand]:
        """Renew the leases that are surely ours, and let go of the others when nothing runs."""
        commands: list[QueueCommand] = []
        for key in sorted(self._intake.parts):
            part = self._intake.parts[key]
            if not self._intake.is_lapsed(part, now_ns=now_ns):
                commands.append(KeepPart(part_key=key, asked_at_ns=now_ns, cause_id=cause_id))
            elif not any(line.is_running for line in part.lines.values()):
                self._forget(part)
                commands.append(DropPart(part_key=key, cause_id=cause_id))
        return commands

    def kept(self, event: PartKept) -> None:
        """The broker was told."""
        part = self._intake.parts.get(event.part_key)
        if part is not None:
            part.kept_at_ns = max(part.kept_at_ns, event.asked_at_ns)

    # ------------------------------------------------------------------ being done

    def acknowledge_if_done(self, part: HeldPart, *, cause_id: str) -> list[QueueCommand]:
        """Remove a part from the stream when all of its lines are stored, whosever it is by now."""
        if part.lines or part.is_acknowledging:
            return []
        part.is_acknowledging = True
        return [AcknowledgePart(part_key=part.part_key, cause_id=cause_id)]

    def acknowledged(self, event: PartAcknowledged) -> list[QueueCommand]:
        """Forget the part, or try again; have its batch looked at if that was the last one here."""
        part = self._intake.parts.get(event.part_key)
        if part is None:
            return []
        if not event.is_done:
            part.is_acknowledging = False
            return self.acknowledge_if_done(part, cause_id=event.cause_id)
        self._forget(part)
        is_batch = part.source_id in self._surveying
        if is_batch and not any(True for _ in self._intake.parts_of(part.source_id)):
            return self._surveying.survey_one(part.source_id, cause_id=event.cause_id)
        return []

    def drop(self, source_id: str, *, cause_id: str) -> list[QueueCommand]:
        """Nobody wants this source any more."""
        self._ask_again_at_ns.pop(source_id, None)
        keys = self._intake.drop_source(source_id)
        return [DropPart(part_key=key, cause_id=cause_id) for key in keys]

    def _forget(self, part: HeldPart) -> None:
        del self._intake.parts[part.part_key]
        if part.source_id not in self._surveying:  # a job's source is its own
            self._intake.drop_source(part.source_id)


def _source_of(job: LeasedJob, *, now_ns: int, unix_ns_at_0: int) -> Source:
    deadline_at_ns = job.deadline_at_unix_ns - unix_ns_at_0
    return Source(
        source_id=job.part.source_id,
        alias=job.alias,
        tenant=job.tenant,
        deadline_at_ns=deadline_at_ns,
        window_ns=max(1, deadline_at_ns - now_ns),
        is_open=True,
    )
