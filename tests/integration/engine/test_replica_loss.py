"""A lost member is an error on every survivor in bounded time, and they go on without it."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from libs.engine.parallel.group import Rendezvous, ReplicaBroken, ReplicaGroup
from libs.engine.parallel.position import Position
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.kernel.units import NS_PER_MS, NS_PER_S
from tests.integration.engine.replica_fleet import Fleet, Replica, form_replica

PROMPT = tuple(range(5, 45))
TOKENS_BEFORE = 21
TIMEOUT_S = 5.0
"""Of the group, where a member freezes; elsewhere 30 s."""
NOTICED_S = 5.0
"""Of a death. Some 60 ms on a machine that does nothing else; far below the group's time-out."""


def a_request(generated: tuple[int, ...] = ()) -> SequenceRequest:
    return SequenceRequest(
        sequence_id="s",
        prompt_token_ids=PROMPT,
        generated_token_ids=generated,
        sampling=SamplingOptions(temperature=0.7, seed=3),
        stop=StopOptions(max_tokens=45, ignore_eos=True),
    )


def tokens_before_the_loss(replica: Replica) -> list[int]:
    replica.scheduler.add(a_request(), now_ns=0)
    tokens: list[int] = []
    while len(tokens) < TOKENS_BEFORE:
        tokens += [token.token_id for token in replica.step()]
    return tokens


def seconds_until_broken(replica: Replica) -> float:
    """Run a step that cannot end; return when it failed, on the clock of `time.monotonic`."""
    with pytest.raises(ReplicaBroken):
        replica.lead.runner.run(replica.send())
    return time.monotonic()


@pytest.mark.parametrize(
    ("before", "after"), [((3, 1), (2, 1)), ((2, 2), (3, 1)), ((1, 2), (1, 1))]
)
def test_survivors_of_a_killed_member_fail_at_once_and_form_anew_in_place(
    fleet: Fleet, llama_folder: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    whole = form_replica(fleet, llama_folder, stages=1, shards=1).run([a_request()])["s"]
    replica = form_replica(fleet, llama_folder, stages=before[0], shards=before[1])
    tokens = tokens_before_the_loss(replica)
    victim, *survivors = replica.members
    # Frozen first, so that the step is surely in the middle when it is killed.
    os.kill(victim.pid, signal.SIGSTOP)
    killed_at = []

    def kill() -> None:
        killed_at.append(time.monotonic())
        os.kill(victim.pid, signal.SIGKILL)

    threading.Timer(0.3, kill).start()
    broken_at = seconds_until_broken(replica)
    assert 0 < broken_at - killed_at[0] < NOTICED_S
    for survivor in survivors:
        assert survivor.answer(seconds_max=NOTICED_S)["answer"] == "broken"
    fleet.lose(victim)
    again = form_replica(fleet, llama_folder, stages=after[0], shards=after[1])
    assert again.members == survivors
    assert tokens + again.run([a_request(tuple(tokens))])["s"] == whole


@pytest.mark.parametrize("before", [(3, 1), (2, 2)])
def test_a_frozen_member_is_an_error_when_the_time_is_out_and_can_join_again_when_it_wakes(
    fleet: Fleet, llama_folder: Path, before: tuple[int, int]
) -> None:
    stages, shards = before
    whole = form_replica(fleet, llama_folder, stages=1, shards=1).run([a_request()])["s"]
    replica = form_replica(
        fleet, llama_folder, stages=stages, shards=shards, timeout_ns=int(TIMEOUT_S * NS_PER_S)
    )
    tokens = tokens_before_the_loss(replica)
    frozen, *survivors = replica.members
    os.kill(frozen.pid, signal.SIGSTOP)
    started_at = time.monotonic()
    assert seconds_until_broken(replica) - started_at < TIMEOUT_S + NOTICED_S
    for survivor in survivors:
        assert survivor.answer(seconds_max=NOTICED_S)["answer"] == "broken"
    os.kill(frozen.pid, signal.SIGCONT)
    assert frozen.answer(seconds_max=TIMEOUT_S + NOTICED_S)["answer"] == "broken"
    again = form_replica(fleet, llama_folder, stages=stages, shards=shards)
    assert tokens + again.run([a_request(tuple(tokens))])["s"] == whole


def test_a_rank_that_never_comes_is_an_error_for_the_one_that_waits() -> None:
    rendezvous = Rendezvous()
    position = Position(stages=1, shards=2, stage=0, shard=0, layer_start=0, layer_stop=3)
    started_at = time.monotonic()
    with pytest.raises(ReplicaBroken, match="alone"):
        ReplicaGroup(
            position, rendezvous=rendezvous.address, name="alone", timeout_ns=300 * NS_PER_MS
        )
    assert time.monotonic() - started_at < 3.0


def test_a_group_that_was_given_up_refuses_at_once(fleet: Fleet, llama_folder: Path) -> None:
    replica = form_replica(fleet, llama_folder, stages=2, shards=1)
    replica.scheduler.add(a_request(), now_ns=0)
    replica.step()
    assert replica.lead.forward.group is not None
    replica.lead.forward.group.abort()
    started_at = time.monotonic()
    seconds_until_broken(replica)
    assert time.monotonic() - started_at < NOTICED_S
    assert replica.members[0].answer(seconds_max=NOTICED_S)["answer"] == "broken"
