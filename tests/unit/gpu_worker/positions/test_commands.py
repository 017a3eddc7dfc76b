"""Commands that come twice, late, from the wrong owner, or in the wrong state."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.handover import (
    ActivateReplica,
    CopyKv,
    DropReplica,
    FormReplica,
    LoadWeights,
    ResumeReplica,
    ShapeFailReason,
    StagePosition,
    StopReplica,
)
from services.gpu_worker.events import KvCommitted, KvOffered, PlanReceived, PositionWorkFailed

A = Callable[..., Any]


def test_a_repeated_command_is_answered_again_and_done_once(
    a_planned_worker: A, a_hand_over: A, a_roster: A
) -> None:
    worker = a_planned_worker("w-1")
    migrator, roster = a_hand_over(worker), a_roster("replica-1", "w-1")
    worker.is_holding_up = True
    for _ in range(3):
        assert migrator.ask_again(worker, StagePosition, op_id="op", replica=roster) is None
    assert len(worker.held_up) == 1
    worker.do(worker.held_up.pop())
    assert len(worker.answers) == 1
    again = migrator.ask_again(worker, StagePosition, op_id="op", replica=roster)
    assert again == worker.answers[0]
    assert worker.held_up == []


def test_a_failure_is_repeated_under_its_op_id_and_tried_anew_under_another(
    a_planned_worker: A, a_hand_over: A, a_roster: A
) -> None:
    worker = a_planned_worker("w-1")
    migrator, roster = a_hand_over(worker), a_roster("replica-1", "w-1")
    worker.is_holding_up = True
    migrator.ask_again(worker, StagePosition, op_id="op-1", replica=roster)
    failed = PositionWorkFailed(
        op_id=worker.held_up.pop().op_id,
        reason=ShapeFailReason.NO_MEMORY,
        message="too large",
        cause_id="w",
    )
    worker.handle(failed)
    again = migrator.ask_again(worker, StagePosition, op_id="op-1", replica=roster)
    assert again.reason is ShapeFailReason.NO_MEMORY
    assert worker.held_up == []
    migrator.ask_again(worker, StagePosition, op_id="op-2", replica=roster)
    assert len(worker.held_up) == 1


def test_the_same_work_under_another_op_id_is_not_done_twice_at_a_time(
    a_planned_worker: A, a_hand_over: A, a_roster: A
) -> None:
    worker = a_planned_worker("w-1")
    migrator, roster = a_hand_over(worker), a_roster("replica-1", "w-1")
    migrator.stage(roster)
    worker.is_holding_up = True
    load = {"replica_id": "replica-1"}
    assert migrator.ask_again(worker, LoadWeights, op_id="op-a", **load) is None
    assert migrator.ask_again(worker, LoadWeights, op_id="op-b", **load) is None
    assert len(worker.held_up) == 1
    worker.do(worker.held_up.pop())
    assert [a.op_id for a in worker.answers[-1:]] == ["op-a"]
    done = migrator.ask_again(worker, LoadWeights, op_id="op-b", **load)
    assert (done.op_id, done.bytes_from_disk) == ("op-b", 0)


@pytest.mark.parametrize(("epoch", "revision"), [(2, 5), (3, 4)])
def test_a_replaced_owner_and_an_older_plan_are_refused_as_stale(
    a_planned_worker: A, a_hand_over: A, a_roster: A, epoch: int, revision: int
) -> None:
    worker = a_planned_worker("w-1")
    roster = a_roster("replica-1", "w-1")
    a_hand_over(worker, epoch=3, revision=5).serve(roster)
    woken = a_hand_over(worker, epoch=epoch, revision=revision)
    for kind, fields in (
        (DropReplica, {"replica_id": "replica-1"}),
        (StopReplica, {"source": roster}),
        (StagePosition, {"replica": a_roster("replica-9", "w-1", epoch=9)}),
    ):
        assert woken.refused(worker, kind, **fields) == "stale"
    assert worker.report.is_serving


def test_a_successor_that_repeats_the_commands_of_its_predecessor_gets_their_answers(
    a_planned_worker: A, a_hand_over: A, a_roster: A
) -> None:
    worker = a_planned_worker("w-1")
    roster = a_roster("replica-1", "w-1")
    predecessor = a_hand_over(worker, epoch=1)
    predecessor.serve(roster)
    worker.is_holding_up = True
    successor = a_hand_over(worker, epoch=2)
    staged = successor.done(worker, StagePosition, replica=roster)
    assert (staged.rendezvous, staged.kv_blocks) == ("here", 64)
    for kind in (LoadWeights, ActivateReplica, ResumeReplica):
        successor.done(worker, kind, replica_id="replica-1")
    form = {"replica_id": "replica-1", "rendezvous": "r", "kv_blocks": 64}
    successor.done(worker, FormReplica, **form)
    assert worker.held_up == []


def test_a_command_under_way_is_answered_to_the_owner_that_asked_last(
    a_planned_worker: A, a_hand_over: A, a_roster: A
) -> None:
    worker = a_planned_worker("w-1")
    roster = a_roster("replica-1", "w-1")
    worker.is_holding_up = True
    a_hand_over(worker, epoch=1).ask_again(worker, StagePosition, op_id="op", replica=roster)
    a_hand_over(worker, epoch=2).ask_again(worker, StagePosition, op_id="op", replica=roster)
    worker.do(worker.held_up.pop())
    assert len(worker.answers) == 1


def test_a_third_position_makes_the_staged_one_go(
    a_planned_worker: A, a_hand_over: A, a_roster: A
) -> None:
    worker = a_planned_worker("w-1")
    migrator = a_hand_over(worker)
    migrator.serve(a_roster("replica-1", "w-1"))
    migrator.prepare(a_roster("replica-2", "w-1", epoch=2))
    migrator.stage(a_roster("replica-3", "w-1", epoch=3))
    assert migrator.refused(worker, LoadWeights, replica_id="replica-2") == "unknown_replica"
    assert worker.report.position.replica_id == "replica-1"
    assert worker.report.is_serving


def test_a_replica_of_another_epoch_replaces_the_staged_one_of_its_name(
    a_planned_worker: A, a_hand_over: A, a_roster: A
) -> None:
    worker = a_planned_worker("w-1")
    migrator = a_hand_over(worker)
    migrator.prepare(a_roster("replica-1", "w-1"))
    migrator.stage(a_roster("replica-1", "w-1", epoch=2))
    assert migrator.refused(worker, ActivateReplica, replica_id="replica-1") == "wrong_state"


def test_what_still_serves_is_neither_replaced_nor_dropped(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    worker = a_planned_worker("w-1")
    migrator = a_hand_over(worker)
    migrator.serve(a_roster("replica-1", "w-1"))
    migrator.prepare(a_roster("replica-2", "w-1", epoch=2))
    worker.start(a_start("r"))
    name = {"replica_id": "replica-2"}
    assert migrator.refused(worker, ActivateReplica, **name) == "wrong_state"
    assert migrator.refused(worker, DropReplica, replica_id="replica-1") == "wrong_state"
    assert migrator.ask(worker, StopReplica, source=a_roster("replica-1", "w-1")) is None
    assert migrator.refused(worker, ActivateReplica, **name) == "wrong_state", "a step is in flight"
    worker.finish_step()
    migrator.done(worker, ActivateReplica, **name)
    assert migrator.refused(worker, ResumeReplica, replica_id="replica-1") == "wrong_state"


def test_a_roster_without_this_worker_or_not_whole_is_refused(
    a_planned_worker: A, a_hand_over: A, a_roster: A
) -> None:
    worker = a_planned_worker("w-1")
    migrator = a_hand_over(worker)
    for roster in (a_roster("replica-1", "w-2"), a_roster("replica-1", "w-1", shards=2)):
        assert migrator.refused(worker, StagePosition, replica=roster) == "unknown_replica"
    assert migrator.refused(worker, CopyKv, source=roster, targets=()) == "unknown_replica"


def test_a_pool_too_small_for_one_session_is_refused(
    a_planned_worker: A, a_hand_over: A, a_roster: A
) -> None:
    worker = a_planned_worker("w-1")
    migrator = a_hand_over(worker)
    migrator.stage(a_roster("replica-1", "w-1"))
    form = {"replica_id": "replica-1", "rendezvous": "r"}
    assert migrator.refused(worker, FormReplica, kv_blocks=31, **form) == "no_memory"
    assert migrator.refused(worker, FormReplica, kv_blocks=65, **form) == "no_memory"
    migrator.done(worker, FormReplica, kv_blocks=32, **form)


def test_kv_and_plans_of_another_epoch_are_dropped(
    a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A, bring_plan: A
) -> None:
    lead, member = a_planned_worker("w-1"), a_planned_worker("w-2")
    migrator = a_hand_over(lead, member)
    migrator.serve(a_roster("replica-1", "w-1", "w-2", shards=2, epoch=4))
    offer = {"replica_id": "replica-1", "ticket_id": "t", "hashes": (1, 2), "cause_id": "c"}
    lead.handle(KvOffered(op_id="o", replica_epoch=3, **offer))
    assert lead.peer_answers.pop().blocks == ()
    lead.handle(KvCommitted(replica_epoch=3, **offer))
    lead.start(a_start("r"))
    plan = lead.steps[-1].plan
    member.handle(PlanReceived(replica_id="replica-1", replica_epoch=3, plan=plan, cause_id="late"))
    assert member.steps == []
    assert (lead.core.counters.stale_dropped, member.core.counters.stale_dropped) == (1, 1)
