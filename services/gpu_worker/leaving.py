"""What becomes of each session of a source: by the migrator's terms and this worker's own steps."""

from collections.abc import Sequence

from libs.contracts.handover import MovingTerms
from libs.kernel.units import NS_PER_MS
from libs.policy.session_choice import (
    LeavingRates,
    LeavingSession,
    SessionChoice,
    choose_for_sessions,
)
from services.gpu_worker.positions import WorkerPosition
from services.gpu_worker.sessions import HeldSession
from services.gpu_worker.state import WorkerState


def choices_for(
    state: WorkerState,
    position: WorkerPosition,
    sessions: Sequence[HeldSession],
    terms: MovingTerms | None,
) -> dict[str, SessionChoice]:
    """Choose for every session, by its sequence id; without terms all are copied."""
    if terms is None:
        return {session.sequence_id: SessionChoice.COPY for session in sessions}
    step_ns = state.reporting.step_ns_recent
    within_ms = terms.copy_within_ms
    rates = LeavingRates(
        step_ns=step_ns,
        link_bytes_per_s=terms.link_bytes_per_s,
        prefill_tokens_per_s=terms.prefill_tokens_per_s,
        # Before the first step nobody knows when anything ends.
        finish_within_ns=terms.finish_within_ms * NS_PER_MS if step_ns else 0,
        copy_within_ns=None if within_ms is None else within_ms * NS_PER_MS,
    )
    leaving = [_leaving(state, position, session, terms) for session in sessions]
    return choose_for_sessions(leaving, rates)


def _leaving(
    state: WorkerState, position: WorkerPosition, session: HeldSession, terms: MovingTerms
) -> LeavingSession:
    scheduler, outgoing = position.scheduler, position.outgoing
    assert scheduler is not None
    computed = scheduler.tokens_computed(session.sequence_id)
    target = outgoing.target_by_sequence.get(session.sequence_id, "")
    held = outgoing.hashes_held.get(target, set())
    hashes = (block_hash for block_hash, _ in scheduler.full_blocks(session.sequence_id))
    there = sum(block_hash in held for block_hash in hashes) * state.options.engine.block_tokens
    return LeavingSession(
        session_id=session.sequence_id,
        tokens=computed,
        tokens_left_max=session.spec.max_tokens - len(session.token_ids),
        # The last known token is computed by the step that samples the next.
        prompt_tokens_left=max(0, session.tokens_known - 1 - computed),
        bytes_uncopied=max(0, computed - there) * terms.kv_bytes_per_token,
        is_online=not session.is_offline,
    )
