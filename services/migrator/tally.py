"""What a hand-over costs, added up from the workers' answers."""

from libs.contracts.handover import (
    CopyKv,
    LoadWeights,
    ReleaseSessions,
    ShapeDone,
    StopReplica,
    ToShape,
)
from libs.contracts.handover_record import HandoverTotals


def add_answer(totals: HandoverTotals, message: ToShape, answer: ShapeDone) -> HandoverTotals:
    """Return the totals with what this command did."""
    match message:
        case LoadWeights():
            return totals.model_copy(
                update={
                    "weight_bytes_planned": totals.weight_bytes_planned + answer.bytes_planned,
                    "weight_bytes_from_peers": totals.weight_bytes_from_peers
                    + answer.bytes_from_peers,
                    "weight_bytes_from_disk": totals.weight_bytes_from_disk
                    + answer.bytes_from_disk,
                    "weight_bytes_kept": totals.weight_bytes_kept + answer.bytes_kept,
                }
            )
        case CopyKv() | StopReplica():
            return totals.model_copy(
                update={
                    "kv_bytes_planned": totals.kv_bytes_planned + answer.bytes_planned,
                    "kv_bytes_moved": totals.kv_bytes_moved + answer.bytes_moved,
                    "kv_bytes_copied_here": totals.kv_bytes_copied_here + answer.bytes_copied_here,
                    "kv_blocks_moved": totals.kv_blocks_moved + answer.blocks_moved,
                    "tokens_uncopied": totals.tokens_uncopied + answer.tokens_uncopied,
                }
            )
        case ReleaseSessions():
            released = totals.sessions_released + answer.sessions
            return totals.model_copy(update={"sessions_released": released})
        case _:
            return totals


def add_failure(totals: HandoverTotals) -> HandoverTotals:
    """Return the totals with one more command that failed."""
    return totals.model_copy(update={"commands_failed": totals.commands_failed + 1})
