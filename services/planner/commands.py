"""What a planner's core asks of its shell. None of it is addressed to a worker."""

from dataclasses import dataclass
from typing import TypeAlias

from libs.contracts.placement import CapacityWanted, PinAnswer, Placement
from libs.contracts.reports import PlannerReport
from libs.contracts.wire import Encoding
from libs.kernel.core import SetTimer


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlacement:
    """Read the committed placement: ends in PlacementRead or StoreUnavailable."""

    op_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitPlacement:
    """Write the placement if the key still has this revision (None: does not exist).

    Ends in PlacementCommitted, PlacementConflict or StoreUnavailable.
    """

    op_id: str
    placement: Placement
    revision: int | None
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncePlacement:
    """Publish what was committed, for those who do not watch the store. May be lost."""

    placement: Placement
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishCapacity:
    """Say which nodes are wanted, and let the provisioner, if there is one, get them."""

    wanted: CapacityWanted
    spot_node_ids: tuple[str, ...]
    """Those that are there and stay."""
    on_demand_node_ids: tuple[str, ...]
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PingWorker:
    """Ask the broker whether anybody listens for the worker; nobody becomes WorkerUnreachable."""

    worker_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """Send the heartbeat. May be lost."""

    report: PlannerReport
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPin:
    """Tell an operator what became of a wish for a shape. May be lost."""

    reply_to: str
    encoding: Encoding
    answer: PinAnswer
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TellDecision:
    """One log line: what was decided and why; `story` finds it by the ids in its fields."""

    decision: str
    fields: tuple[tuple[str, str | int | float | tuple[str, ...]], ...]
    cause_id: str


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
