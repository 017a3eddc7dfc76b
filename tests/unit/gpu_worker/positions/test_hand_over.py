"""From one shape to another: what is staged serves, what served is dropped, no token changes."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.handover import (
    ActivateReplica,
    CopyKv,
    DropReplica,
    FormReplica,
    LoadWeights,
    ReleaseSessions,
    ResumeReplica,
    ShapeFailReason,
    StagePosition,
    StopReplica,
)
from libs.contracts.sessions import RefuseReason
from libs.engine.simulated_runner import simulated_tokens
from services.gpu_worker.admission import sequence_of
from services.gpu_worker.events import PeerLost, PositionWorkFailed, StepFailed

A = Callable[..., Any]
BLOCK_TOKENS = 4


def undisturbed(start: Any) -> list[int]:
    request = sequence_of(start, sequence_id="reference")
    return list(
        simulated_tokens(
            request,
            vocabulary_size=1000,
            eos_token_ids=frozenset({0}),
            context_tokens_max=128,
        )
    )


def test_a_planned_worker_reports_itself_and_takes_no_session_before_it_has_a_position(
    a_planned_worker: A, a_start: A
) -> None:
    worker = a_planned_worker("w-1")
    report = worker.report
    assert (report.is_planned, report.is_serving, report.position) == (True, False, None)
    assert (report.blocks_total, report.context_tokens_max) == (0, 128)
    worker.start(a_start("r"))
    assert [(r.reason, r.target_worker_id) for r in worker.refusals] == [(RefuseReason.MOVED, "")]
    assert worker.core.sessions_held == 0


def test_a_position_serves_only_once_it_is_loaded_formed_and_activated(
    a_planned_worker: A, a_hand_over: A, a_roster: A
) -> None:
    worker = a_planned_worker("w-1")
    migrator, roster = a_hand_over(worker), a_roster("replica-1", "w-1")
    name = {"replica_id": "replica-1"}
    assert migrator.refused(worker, LoadWeights, **name) == "unknown_replica"
    staged = migrator.done(worker, StagePosition, replica=roster)
    assert (staged.rendezvous, staged.kv_blocks) == ("here", 64)
    assert migrator.refused(worker, ActivateReplica, **name) == "wrong_state"
    migrator.load(roster)
    assert migrator.refused(worker, ActivateReplica, **name) == "wrong_state"
    migrator.form(roster, kv_blocks=50)
    assert not worker.report.is_serving
    migrator.activate(roster)
    assert worker.report.is_serving
    assert (worker.report.blocks_total, worker.report.weights_bytes) == (50, 100)
    position = worker.report.position
    assert (position.replica_id, position.stage, position.shard) == ("replica-1", 0, 0)


@pytest.mark.parametrize(
    ("stages", "shards", "leads"), [(1, 2, [True, False]), (2, 1, [False, True])]
)
def test_only_the_lead_takes_sessions_and_members_compute_its_plans(
    a_planned_worker: A,
    a_hand_over: A,
    a_roster: A,
    a_start: A,
    bring_plan: A,
    stages: int,
    shards: int,
    leads: list[bool],
) -> None:
    workers = [a_planned_worker("w-1"), a_planned_worker("w-2")]
    migrator = a_hand_over(*workers)
    roster = a_roster("replica-1", "w-1", "w-2", stages=stages, shards=shards)
    lead = migrator.serve(roster)
    member = next(worker for worker in workers if worker is not lead)
    assert [worker.report.is_serving for worker in workers] == leads
    start = a_start("r", max_tokens=6)
    lead.start(start)
    while lead.steps:
        bring_plan(lead, member)
        assert member.steps[-1].plan == lead.steps[-1].plan
        member.finish_step()
        lead.finish_step()
    assert lead.tokens["r"] == undisturbed(start)
    assert member.tokens == {}


def test_a_member_told_to_compute_before_it_is_told_to_serve_computes(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A, bring_plan: A
) -> None:
    lead, member = a_planned_worker("w-1"), a_planned_worker("w-2")
    migrator = a_hand_over(lead, member)
    roster = a_roster("replica-1", "w-1", "w-2", shards=2)
    migrator.prepare(roster)
    migrator.done(lead, ActivateReplica, replica_id="replica-1")
    lead.start(a_start("r"))
    bring_plan(lead, member)
    assert len(member.steps) == 1
    migrator.done(member, ActivateReplica, replica_id="replica-1")


def test_sessions_go_on_at_the_target_with_the_same_tokens_and_compute_only_the_tail(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    source, target = a_planned_worker("w-1"), a_planned_worker("w-2")
    migrator = a_hand_over(source, target)
    before, after = a_roster("replica-1", "w-1"), a_roster("replica-2", "w-2", epoch=2)
    migrator.serve(before)
    starts = {
        name: a_start(name, max_tokens=60, prompt_token_ids=(7,) * n)
        for name, n in {"long": 40, "short": 9, "middle": 20}.items()
    }
    for start in starts.values():
        source.start(start)
    source.finish_steps(10)
    migrator.prepare(after)
    first = migrator.copy(before, after)
    assert first.blocks_moved > 0
    source.finish_steps(10)
    last = migrator.stop(before, after)
    assert 0 < last.blocks_moved < first.blocks_moved
    assert (last.sessions, last.blocks_left) == (3, 0)
    assert last.tokens_uncopied < 3 * BLOCK_TOKENS
    assert not source.steps
    assert not source.report.is_serving
    migrator.activate(after)
    assert migrator.release(before, after).sessions == 3
    assert {r.target_worker_id for r in source.refusals} == {"w-2"}
    assert source.core.sessions_held == 0
    migrator.drop(before)
    assert source.report.position is None
    for name, start in starts.items():
        moved = start.model_copy(
            update={"session_epoch": 2, "generated_token_ids": tuple(source.tokens[name])}
        )
        target.start(moved)
    while target.steps:
        target.finish_step()
    assert target.finished == set(starts)
    for name, start in starts.items():
        assert target.tokens[name] == undisturbed(start)
    target.advance(200)
    assert target.report.tokens_recomputed == last.tokens_uncopied


def test_without_a_copy_everything_is_computed_again_and_counted(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    source, target = a_planned_worker("w-1"), a_planned_worker("w-2")
    migrator = a_hand_over(source, target)
    before, after = a_roster("replica-1", "w-1"), a_roster("replica-2", "w-2", epoch=2)
    migrator.serve(before)
    start = a_start("r", max_tokens=60, prompt_token_ids=(7,) * 30)
    source.start(start)
    source.finish_steps(10)
    assert migrator.stop(before).tokens_uncopied == 30 + 11 - 1
    migrator.serve(after)
    migrator.release(before, after)
    moved = {"session_epoch": 2, "generated_token_ids": tuple(source.tokens["r"])}
    target.start(start.model_copy(update=moved))
    target.finish_step()
    target.advance(200)
    assert target.report.tokens_recomputed == 40


def test_a_worker_that_leads_source_and_target_hands_its_sessions_to_itself(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A, bring_plan: A
) -> None:
    first, second = a_planned_worker("w-1"), a_planned_worker("w-2")
    migrator = a_hand_over(first, second)
    before = a_roster("replica-1", "w-1")
    after = a_roster("replica-2", "w-1", "w-2", shards=2, epoch=2)
    migrator.serve(before)
    start = a_start("r", max_tokens=40)
    first.start(start)
    first.finish_steps(12)
    migrator.prepare(after)
    migrator.stop(before, after)
    migrator.activate(after)
    migrator.release(before, after)
    assert [r.target_worker_id for r in first.refusals] == ["w-1"]
    migrator.drop(before)
    moved = {"session_epoch": 2, "generated_token_ids": tuple(first.tokens["r"])}
    first.start(start.model_copy(update=moved))
    while first.steps:
        bring_plan(first, second)
        second.finish_step()
        first.finish_step()
    assert first.tokens["r"] == undisturbed(start)
    assert first.report.position.replica_id == "replica-2"


def test_each_block_is_sent_once_to_a_target_however_often_it_is_asked_for(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    source, target = a_planned_worker("w-1"), a_planned_worker("w-2")
    migrator = a_hand_over(source, target)
    before, after = a_roster("replica-1", "w-1"), a_roster("replica-2", "w-2", epoch=2)
    migrator.serve(before)
    prefix = tuple(range(1, 25))
    for name in ("a", "b"):  # 24 tokens in common: six blocks
        source.start(a_start(name, max_tokens=60, prompt_token_ids=(*prefix, ord(name))))
    source.finish_step()
    migrator.prepare(after)
    assert migrator.copy(before, after).blocks_moved == 6
    assert migrator.copy(before, after).blocks_moved == 0
    source.finish_steps(4)
    assert migrator.copy(before, after).blocks_moved == 2


def test_sessions_are_shared_out_by_tokens_and_stay_where_their_copy_is(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    source, left, right = (a_planned_worker(f"w-{n}") for n in (1, 2, 3))
    migrator = a_hand_over(source, left, right)
    before = a_roster("replica-1", "w-1")
    after = [a_roster("replica-2", "w-2", epoch=2), a_roster("replica-3", "w-3", epoch=2)]
    migrator.serve(before)
    for name, tokens in {"big": 60, "mid": 30, "low": 20, "tiny": 6}.items():
        source.start(a_start(name, max_tokens=60, prompt_token_ids=(ord(name[0]),) * tokens))
    source.finish_steps(3)
    for roster in after:
        migrator.prepare(roster)
    migrator.copy(before, *after)
    source.start(a_start("late", max_tokens=60, prompt_token_ids=(5,) * 40))
    source.finish_steps(2)
    migrator.stop(before, *after)
    for roster in after:
        migrator.activate(roster)
    migrator.release(before, *after)
    leads = {r.request_id: r.target_worker_id for r in source.refusals}
    assert leads["big"] != leads["mid"] == leads["low"] == leads["tiny"]
    assert set(leads) == {"big", "mid", "low", "tiny", "late"}


def test_sessions_without_a_target_are_left_to_their_routers(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    source = a_planned_worker("w-1")
    migrator, before = a_hand_over(source), a_roster("replica-1", "w-1")
    migrator.serve(before)
    source.start(a_start("r"))
    assert migrator.refused(source, ReleaseSessions, replica_id="replica-1") == "wrong_state"
    migrator.stop(before)
    assert migrator.release(before).sessions == 1
    assert [(r.reason, r.target_worker_id) for r in source.refusals] == [(RefuseReason.MOVED, "")]


def test_a_finished_session_is_still_delivered_after_its_replica_was_dropped(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    source = a_planned_worker("w-1")
    migrator, before = a_hand_over(source), a_roster("replica-1", "w-1")
    migrator.serve(before)
    source.start(a_start("r", max_tokens=1))
    source.is_acknowledging = False
    source.finish_step()
    assert source.core.sessions_held == 1
    migrator.stop(before)
    assert migrator.release(before).sessions == 0
    migrator.drop(before)
    source.tokens["r"].clear()
    source.advance(1000)
    assert len(source.tokens["r"]) == 1


def test_a_stop_lets_the_step_in_flight_end_and_plans_no_other(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    source = a_planned_worker("w-1")
    migrator, before = a_hand_over(source), a_roster("replica-1", "w-1")
    migrator.serve(before)
    source.start(a_start("r", max_tokens=20))
    assert migrator.ask(source, StopReplica, source=before, targets=()) is None
    source.finish_step()
    assert len(source.tokens["r"]) == 1
    assert source.answers[-1].sessions == 1
    assert not source.steps
    source.start(a_start("late"))
    assert source.refusals[-1].reason is RefuseReason.MOVED


def test_an_abandoned_hand_over_leaves_everything_as_it_was(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    source, target = a_planned_worker("w-1"), a_planned_worker("w-2")
    migrator = a_hand_over(source, target)
    before, after = a_roster("replica-1", "w-1"), a_roster("replica-2", "w-2", epoch=2)
    migrator.serve(before)
    start = a_start("r", max_tokens=30)
    source.start(start)
    source.finish_steps(5)
    migrator.prepare(after)
    migrator.stop(before, after)
    migrator.done(source, ResumeReplica, replica_id="replica-1")
    migrator.drop(after)
    while source.steps:
        source.finish_step()
    assert source.tokens["r"] == undisturbed(start)
    assert source.refusals == []
    assert target.report.position is None


def test_a_copy_that_fails_fails_the_command_and_a_stop_that_fails_stops_nothing(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    source, target = a_planned_worker("w-1"), a_planned_worker("w-2")
    migrator = a_hand_over(source, target)
    before, after = a_roster("replica-1", "w-1"), a_roster("replica-2", "w-2", epoch=2)
    migrator.serve(before)
    source.start(a_start("r", max_tokens=30))
    source.finish_steps(5)
    migrator.prepare(after)
    for kind in (CopyKv, StopReplica):
        assert migrator.ask(source, kind, source=before, targets=(after,)) is None
        if kind is StopReplica:
            source.finish_step()
        copy = source.copies.pop()
        failed = PositionWorkFailed(
            op_id=copy.op_id, reason=ShapeFailReason.PEER_LOST, message="gone", cause_id="c"
        )
        source.handle(failed)
        assert source.answers[-1].reason is ShapeFailReason.PEER_LOST
        assert len(source.steps) == 1
        assert source.report.is_serving


def test_a_second_stop_that_fails_does_not_start_what_the_first_has_stopped(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    source, target = a_planned_worker("w-1"), a_planned_worker("w-2")
    migrator = a_hand_over(source, target)
    before, after = a_roster("replica-1", "w-1"), a_roster("replica-2", "w-2", epoch=2)
    migrator.serve(before)
    source.start(a_start("r", max_tokens=30))
    source.finish_steps(5)
    migrator.stop(before)
    migrator.prepare(after)
    assert migrator.ask(source, StopReplica, source=before, targets=(after,)) is None
    failed = PositionWorkFailed(
        op_id=source.copies.pop().op_id,
        reason=ShapeFailReason.PEER_LOST,
        message="gone",
        cause_id="c",
    )
    source.handle(failed)
    assert source.answers[-1].reason is ShapeFailReason.PEER_LOST
    assert source.steps == []
    assert not source.report.is_serving


def test_blocks_under_way_keep_their_content_though_their_session_ends(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    source, target = a_planned_worker("w-1", kv_blocks=32), a_planned_worker("w-2")
    migrator = a_hand_over(source, target)
    before, after = a_roster("replica-1", "w-1"), a_roster("replica-2", "w-2", epoch=2)
    migrator.serve(before)
    source.start(a_start("r", max_tokens=3, prompt_token_ids=(7,) * 40))
    source.finish_step()
    migrator.prepare(after)
    migrator.ask(source, CopyKv, source=before, targets=(after,))
    source.finish_steps(2)
    assert source.finished == {"r"}
    source.start(a_start("next", max_tokens=3, prompt_token_ids=(8,) * 100))
    assert not source.steps, "25 blocks are needed, and 22 are not being copied"
    copy = source.copies.pop()
    assert len(copy.blocks) == 10
    assert len(migrator.carry(copy)) == 10
    source.handle(migrator.copied(copy, blocks_moved=10))
    assert len(source.steps) == 1


def test_an_outcome_for_a_position_that_was_dropped_meanwhile_changes_nothing(
    a_planned_worker: A, a_hand_over: A, a_roster: A
) -> None:
    worker = a_planned_worker("w-1")
    migrator = a_hand_over(worker)
    migrator.stage(a_roster("replica-1", "w-1"))
    worker.is_holding_up = True
    assert migrator.ask(worker, LoadWeights, replica_id="replica-1") is None
    load = worker.held_up.pop()
    assert migrator.ask(worker, DropReplica, replica_id="replica-1") is None
    worker.is_holding_up = False
    worker.do(worker.held_up.pop())
    worker.do(load)
    assert worker.answers[-1].reason is ShapeFailReason.UNKNOWN_REPLICA
    migrator.stage(a_roster("replica-1", "w-1", epoch=2))
    assert migrator.refused(worker, ActivateReplica, replica_id="replica-1") == "wrong_state"


def test_a_replica_that_loses_a_peer_is_broken_and_its_sessions_go_elsewhere_but_it_lives(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    lead, member = a_planned_worker("w-1"), a_planned_worker("w-2")
    migrator = a_hand_over(lead, member)
    roster = a_roster("replica-1", "w-1", "w-2", shards=2)
    migrator.serve(roster)
    lead.start(a_start("r"))
    step = lead.steps.pop()
    lead.handle(
        PeerLost(
            replica_id="replica-1", replica_epoch=1, worker_id="w-2", reason="gone", cause_id="x"
        )
    )
    assert [(r.reason, r.target_worker_id) for r in lead.refusals] == [(RefuseReason.MOVED, "")]
    assert lead.report.position.is_broken
    assert not lead.report.is_serving
    assert lead.broken == ["replica-1"]
    lead.handle(
        StepFailed(op_id=step.op_id, replica_id="replica-1", reason="aborted", cause_id="s")
    )
    assert lead.stopped is None
    assert migrator.refused(lead, StopReplica, source=roster) == "broken"
    migrator.drop(roster)
    migrator.serve(a_roster("replica-2", "w-1", epoch=2))
    lead.start(a_start("r", epoch=2))
    assert len(lead.steps) == 1


def test_a_member_whose_step_fails_reports_it_and_lives(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A, bring_plan: A
) -> None:
    lead, member = a_planned_worker("w-1"), a_planned_worker("w-2")
    migrator = a_hand_over(lead, member)
    migrator.serve(a_roster("replica-1", "w-1", "w-2", shards=2))
    lead.start(a_start("r"))
    bring_plan(lead, member)
    step = member.steps.pop()
    member.handle(StepFailed(op_id=step.op_id, replica_id="replica-1", reason="peer", cause_id="s"))
    assert member.report.position.is_broken
    assert member.stopped is None


def test_a_replica_of_one_whose_engine_fails_ends_the_process(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    worker = a_planned_worker("w-1")
    migrator = a_hand_over(worker)
    migrator.serve(a_roster("replica-1", "w-1"))
    worker.start(a_start("r"))
    step = worker.steps.pop()
    worker.handle(StepFailed(op_id=step.op_id, replica_id="replica-1", reason="b", cause_id="s"))
    assert worker.stopped is not None
    assert worker.stopped.exit_code == 71


def test_a_failed_form_leaves_the_staged_position_to_be_formed_again(
    a_planned_worker: A, a_hand_over: A, a_roster: A
) -> None:
    worker = a_planned_worker("w-1")
    migrator, roster = a_hand_over(worker), a_roster("replica-1", "w-1")
    migrator.stage(roster)
    worker.is_holding_up = True
    form = {"replica_id": "replica-1", "rendezvous": "r", "kv_blocks": 64}
    assert migrator.ask(worker, FormReplica, **form) is None
    failed = PositionWorkFailed(
        op_id=worker.held_up.pop().op_id,
        reason=ShapeFailReason.TIMED_OUT,
        message="nobody came",
        cause_id="w",
    )
    worker.handle(failed)
    assert worker.answers[-1].reason is ShapeFailReason.TIMED_OUT
    worker.is_holding_up = False
    assert migrator.done(worker, FormReplica, **form).kv_blocks == 64
    assert migrator.refused(worker, FormReplica, **{**form, "replica_id": "x"}) == "unknown_replica"
