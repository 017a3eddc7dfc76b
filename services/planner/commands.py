"""What a planner's core asks of its shell. None of it is addressed to a worker."""

from dataclasses import dataclass
from typing import TypeAlias

from libs.contracts.placement import CapacityWanted, PinAnswer, Placement
from libs.contracts.reports import PlannerReport
from libs.contracts.wire import Encoding
from libs.kernel.core import Caused, Operation, SetTimer


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlacement(Operation):
    """Read the committed placement: ends in PlacementRead or StoreUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitPlacement(Operation):
    """Write the placement if the key still has this revision (None: does not exist).

    Ends in PlacementCommitted, PlacementConflict or StoreUnavailable.
    """

    placement: Placement
    revision: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncePlacement(Caused):
    """Publish what was committed, for those who do not watch the store. May be lost."""

    placement: Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishCapacity(Caused):
    """Say which nodes are wanted, and let the provisioner, if there is one, get them."""

    wanted: CapacityWanted
    spot_node_ids: tuple[str, ...]
    """Those that are there and stay."""
    on_demand_node_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PingWorker(Caused):
    """Ask the broker whether anybody listens for the worker; nobody becomes WorkerUnreachable."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport(Caused):
    """Send the heartbeat. May be lost."""

    report: PlannerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPin(Caused):
    """Tell an operator what became of a wish for a shape. May be lost."""

    reply_to: str
    encoding: Encoding
    answer: PinAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class TellDecision(Caused):
    """One log line: what was decided and why; `story` finds it by the ids in its fields."""

    decision: str
    fields: tuple[tuple[str, str | int | float | tuple[str, ...]], ...]


PlannerCommand: TypeAlias = (
    ReadPlacement
    | CommitPlacement
    | AnnouncePlacement
    | PublishCapacity
    | PingWorker
    | PublishReport
    | AnswerPin
    | TellDecision
    | SetTimer
)
