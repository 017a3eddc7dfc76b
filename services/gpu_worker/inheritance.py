"""Which replica inherits each session of a source that is shared out among several.

An assignment is kept for as long as its target is among the targets, so that what was copied in one
round is of use in the next. New sessions go where the fewest tokens are so far: of higher priority
first, so that what a deadline cuts off is the KV of offline work, and then the longest first.
"""

from collections.abc import Sequence

from libs.contracts.handover import ReplicaRoster
from libs.contracts.sessions import RefuseReason
from services.gpu_worker.positions import WorkerPosition
from services.gpu_worker.sessions import HeldSession
from services.gpu_worker.state import WorkerState


def assign_targets(
    position: WorkerPosition, sessions: Sequence[HeldSession], targets: Sequence[ReplicaRoster]
) -> dict[str, list[HeldSession]]:
    """Share the sessions out; return those of each target replica, first to leave first.

    What was noted of targets that are no longer among them is forgotten; without any, nothing is:
    what was copied before stays of use.
    """
    if not targets:
        return {}
    outgoing = position.outgoing
    outgoing.lead_by_target = {
        target.replica_id: target.lead.worker_id for target in targets if target.lead is not None
    }
    before = outgoing.target_by_sequence
    first_to_leave = sorted(sessions, key=HeldSession.leaving_order)
    shares: dict[str, list[HeldSession]] = {target.replica_id: [] for target in targets}
    outgoing.hashes_held = {name: outgoing.hashes_held.get(name, set()) for name in shares}
    for session in first_to_leave:
        if before.get(session.sequence_id, "") in shares:
            shares[before[session.sequence_id]].append(session)
    for session in first_to_leave:
        if before.get(session.sequence_id, "") not in shares:
            lightest = min(shares, key=lambda name: (_tokens(shares[name]), name))
            shares[lightest].append(session)
    outgoing.target_by_sequence = {
        session.sequence_id: name for name, share in shares.items() for session in share
    }
    return {name: sorted(share, key=HeldSession.leaving_order) for name, share in shares.items()}


def release_sessions(
    state: WorkerState,
    position: WorkerPosition,
    message: str,
    *,
    worker_ids: Sequence[str] | None = None,
) -> int:
    """Send the sessions of a position on to these workers; return how many there were.

    Where nobody says which, to those that their KV was copied to: a router goes there if it serves
    already, and chooses for itself if not.
    """
    sessions = state.sessions_at(position)
    known = sorted(set(position.outgoing.lead_by_target.values()))
    leads = leads_for(position, sessions, known if worker_ids is None else worker_ids)
    for session in sessions:
        lead = leads[session.sequence_id]
        state.send_away(session, RefuseReason.MOVED, message, target_worker_id=lead)
    state.counters.sessions_released += len(sessions)
    return len(sessions)


def leads_for(
    position: WorkerPosition, sessions: Sequence[HeldSession], worker_ids: Sequence[str]
) -> dict[str, str]:
    """Say at which of these workers each session goes on: where its copy is, else spread evenly.

    Without workers each goes to "": its router chooses.
    """
    outgoing = position.outgoing
    leads: dict[str, str] = {}
    uncopied = 0
    for session in sessions:
        target = outgoing.target_by_sequence.get(session.sequence_id, "")
        lead = outgoing.lead_by_target.get(target, "")
        if lead not in worker_ids:
            lead = worker_ids[uncopied % len(worker_ids)] if worker_ids else ""
            uncopied += 1
        leads[session.sequence_id] = lead
    return leads


def _tokens(sessions: Sequence[HeldSession]) -> int:
    return sum(session.tokens_known for session in sessions)
