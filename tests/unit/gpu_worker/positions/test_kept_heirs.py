"""KV of a replica that ends comes into one that serves, between its steps."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.engine.simulated_runner import simulated_tokens
from services.gpu_worker.admission import sequence_of

A = Callable[..., Any]


def undisturbed(start: Any) -> list[int]:
    request = sequence_of(start, sequence_id="reference")
    tokens = simulated_tokens(
        request, vocabulary_size=1000, eos_token_ids=frozenset({0}), context_tokens_max=128
    )
    return list(tokens)


@pytest.fixture
def a_pair(a_planned_worker: A, a_hand_over: A, a_roster: A) -> A:
    """A source and an heir that serve both, each its own replica."""

    def build(*, heir_blocks: int = 64) -> Any:
        source, heir = a_planned_worker("w-1"), a_planned_worker("w-2", kv_blocks=heir_blocks)
        migrator = a_hand_over(source, heir)
        rosters = a_roster("replica-1", "w-1"), a_roster("replica-2", "w-2")
        for roster in rosters:
            migrator.serve(roster)
        return migrator, source, heir, *rosters

    return build


def moved(source: Any, start: Any) -> Any:
    tokens = tuple(source.tokens["leaving"])
    return start.model_copy(update={"session_epoch": 2, "generated_token_ids": tokens})


def test_a_replica_that_serves_takes_kv_in_while_a_step_of_its_own_is_in_flight(
    a_pair: A, a_start: A
) -> None:
    migrator, source, heir, ends, stays = a_pair()
    leaving = a_start("leaving", max_tokens=60, prompt_token_ids=(7,) * 30)
    own = a_start("own", max_tokens=80, prompt_token_ids=(9,) * 30)
    source.start(leaving)
    heir.start(own)
    source.finish_steps(10)
    heir.finish_steps(5)
    assert heir.steps, "a step is in flight"
    assert migrator.copy(ends, stays).blocks_moved > 0
    source.finish_steps(10)
    heir.finish_steps(5)
    stop = migrator.stop(ends, stays)
    assert stop.blocks_left == 0
    assert migrator.release(ends, stays).sessions == 1
    assert [r.target_worker_id for r in source.refusals] == ["w-2"]
    heir.start(moved(source, leaving))
    while heir.steps:
        heir.finish_step()
    for name, start in {"leaving": leaving, "own": own}.items():
        assert heir.tokens[name] == undisturbed(start)
    heir.advance(200)
    assert heir.report.tokens_recomputed == stop.tokens_uncopied


def test_what_does_not_fit_beside_the_running_sessions_is_left_behind(
    a_pair: A, a_start: A
) -> None:
    migrator, source, heir, ends, stays = a_pair(heir_blocks=48)
    starts = {
        name: a_start(name, max_tokens=20, prompt_token_ids=(ord(name),) * 44) for name in "abc"
    }
    for start in starts.values():
        heir.start(start)
    heir.finish_steps(6)
    leaving = a_start("leaving", max_tokens=20, prompt_token_ids=(7,) * 90)
    source.start(leaving)
    source.finish_steps(6)
    blocks_moved = migrator.stop(ends, stays).blocks_moved
    assert 0 < blocks_moved < 90 // 4
    migrator.release(ends, stays)
    heir.finish_steps(1)
    assert len(heir.steps[-1].plan.entries) == 3, "nobody made room for what comes"
    heir.start(moved(source, leaving))
    while heir.steps:
        heir.finish_step()
    for name, start in {"leaving": leaving, **starts}.items():
        assert heir.tokens[name] == undisturbed(start)
