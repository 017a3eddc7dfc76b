"""The migrator's durable side over the live bus: the placement, the record, their outcomes.

Every function ends in exactly one outcome event of its command, also when the broker is away.
"""

from typing import Final

import structlog

from libs.contracts import subjects
from libs.contracts.handover_record import HANDOVER_RECORDS
from libs.contracts.placement import PLACEMENTS, Placement
from libs.contracts.wire import encode
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import MIB
from libs.runtime.bus import Bus, KeyValue, StreamFull, StreamMissing, WrongRevision
from services.migrator.commands import ReadPlacement, ReadRecord, StoreRecord
from services.migrator.events import (
    PlacementRead,
    PlacementUnavailable,
    RecordConflict,
    RecordRead,
    RecordStored,
    RecordUnavailable,
)

BUCKET_BYTES_MAX: Final = 64 * MIB
"""One value per alias; a record of a thousand workers takes a few hundred KiB."""

_log = structlog.get_logger(__name__)


class RecordPort:
    """Carries out the commands that concern what is stored."""

    def __init__(self, *, alias: str, placements: KeyValue, handovers: KeyValue) -> None:
        self._placement_key = subjects.placement_key(alias)
        self._handover_key = subjects.handover_key(alias)
        self._placements = placements
        self._handovers = handovers

    async def read_placement(self, command: ReadPlacement) -> PlacementRead | PlacementUnavailable:
        """Read what the planner committed last."""
        try:
            entry = await self._placements.get(self._placement_key)
            placement = None if entry is None else PLACEMENTS.decode(entry.value)
        except (Unavailable, StreamMissing):
            return PlacementUnavailable(op_id=command.op_id, cause_id=command.cause_id)
        except ContractViolation as violation:
            _log.warning("placement_unreadable", key=self._placement_key, reason=str(violation))
            return PlacementUnavailable(op_id=command.op_id, cause_id=command.cause_id)
        return PlacementRead(
            op_id=command.op_id,
            placement=placement if isinstance(placement, Placement) else None,
            cause_id=command.cause_id,
        )

    async def read_record(self, command: ReadRecord) -> RecordRead | RecordUnavailable:
        """Read the record; one that cannot be read is nobody's, and is replaced by the next."""
        try:
            entry = await self._handovers.get(self._handover_key)
        except (Unavailable, StreamMissing):
            return RecordUnavailable(op_id=command.op_id, cause_id=command.cause_id)
        record = None
        if entry is not None:
            try:
                record = HANDOVER_RECORDS.decode(entry.value)
            except ContractViolation as violation:
                _log.error("record_unreadable", key=self._handover_key, reason=str(violation))
        return RecordRead(
            op_id=command.op_id,
            record=record,
            revision=0 if entry is None else entry.revision,
            cause_id=command.cause_id,
        )

    async def store_record(
        self, command: StoreRecord
    ) -> RecordStored | RecordConflict | RecordUnavailable:
        """Write the record, if nobody has written since."""
        value = encode(command.record)
        try:
            if command.revision:
                revision = await self._handovers.update(
                    self._handover_key, value, revision=command.revision
                )
            else:
                revision = await self._handovers.create(self._handover_key, value)
        except WrongRevision:
            return RecordConflict(op_id=command.op_id, cause_id=command.cause_id)
        except (Unavailable, StreamFull, StreamMissing):
            return RecordUnavailable(op_id=command.op_id, cause_id=command.cause_id)
        return RecordStored(op_id=command.op_id, revision=revision, cause_id=command.cause_id)


async def open_record_port(bus: Bus, *, alias: str) -> RecordPort:
    """Create the buckets if need be. Raises: ConfigError."""
    return RecordPort(
        alias=alias,
        placements=await bus.ensure_bucket(subjects.PLACEMENT_BUCKET, bytes_max=BUCKET_BYTES_MAX),
        handovers=await bus.ensure_bucket(subjects.HANDOVER_BUCKET, bytes_max=BUCKET_BYTES_MAX),
    )
