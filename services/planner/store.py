"""The committed placement in its key-value bucket, and each outcome as an event."""

from typing import Final

from libs.contracts import subjects
from libs.contracts.placement import PLACEMENTS, Placement
from libs.contracts.wire import encode
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import MIB
from libs.runtime.bus import (
    Bus,
    Entry,
    KeyValue,
    PayloadTooLarge,
    StreamFull,
    StreamMissing,
    WrongRevision,
)
from services.planner.commands import CommitPlacement, ReadPlacement
from services.planner.events import (
    PlacementCommitted,
    PlacementConflict,
    PlacementRead,
    StoreUnavailable,
)

BUCKET_BYTES_MAX: Final = 64 * MIB
"""A placement of 16 384 workers has below 1 MiB, and one is kept per model."""


class PlacementStore:
    """Carries out the commands that concern what is stored."""

    def __init__(self, bucket: KeyValue, *, alias: str) -> None:
        self._bucket = bucket
        self._key = subjects.placement_key(alias)

    async def read(self, command: ReadPlacement) -> PlacementRead | StoreUnavailable:
        """Read the placement from the leader of the store."""
        try:
            entry = await self._bucket.get(self._key)
        except (Unavailable, StreamMissing):
            return StoreUnavailable(op_id=command.op_id, cause_id=command.cause_id)
        return read_event(command, entry)

    async def commit(
        self, command: CommitPlacement
    ) -> PlacementCommitted | PlacementConflict | StoreUnavailable:
        """Write the placement unless somebody else has written since it was read."""
        value = encode(command.placement)
        try:
            if command.revision is None:
                revision = await self._bucket.create(self._key, value)
            else:
                revision = await self._bucket.update(self._key, value, revision=command.revision)
        except WrongRevision:
            return PlacementConflict(op_id=command.op_id, cause_id=command.cause_id)
        except (Unavailable, StreamFull, StreamMissing, PayloadTooLarge):
            return StoreUnavailable(op_id=command.op_id, cause_id=command.cause_id)
        return PlacementCommitted(op_id=command.op_id, revision=revision, cause_id=command.cause_id)


def read_event(command: ReadPlacement, entry: Entry | None) -> PlacementRead:
    """Return what the entry says; one that cannot be read still has its revision."""
    placement: Placement | None = None
    is_unreadable = False
    if entry is not None:
        try:
            message = PLACEMENTS.decode(entry.value)
            placement = message if isinstance(message, Placement) else None
        except ContractViolation:
            pass
        is_unreadable = placement is None
    return PlacementRead(
        op_id=command.op_id,
        placement=placement,
        revision=None if entry is None else entry.revision,
        is_unreadable=is_unreadable,
        cause_id=command.cause_id,
    )


async def open_placement_store(bus: Bus, *, alias: str) -> PlacementStore:
    """Create the bucket if need be. Raises: ConfigError."""
    bucket = await bus.ensure_bucket(subjects.PLACEMENT_BUCKET, bytes_max=BUCKET_BYTES_MAX)
    return PlacementStore(bucket, alias=alias)
