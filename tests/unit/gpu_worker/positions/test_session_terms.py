"""Copied, replayed or left to finish: each session of a source by the migrator's terms."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.handover import MovingTerms

A = Callable[..., Any]
TOKENS = 21
"""Computed of every session when the terms come: a prompt of 20, and the first token's."""
LINK_BYTES_PER_S = 1_000_000
TERMS = MovingTerms(
    kv_bytes_per_token=1_000,  # 21 ms for one of the sessions over this link
    link_bytes_per_s=LINK_BYTES_PER_S,
    prefill_tokens_per_s=100,
    finish_within_ms=10,
    copy_within_ms=30,
)
"""Steps take 1 ms here: 10 tokens in time, one copy within the deadline."""


@pytest.fixture
def a_source(a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A) -> Any:
    """Three sessions on w-1, the first of which ends after a few tokens; w-2 is to take them in."""
    workers = [a_planned_worker("w-1"), a_planned_worker("w-2")]
    migrator = a_hand_over(*workers)
    source, target = a_roster("replica-1", "w-1"), a_roster("replica-2", "w-2")
    lead = migrator.serve(source)
    migrator.prepare(target)
    for name, max_tokens in (("a", 8), ("b", 60), ("c", 60)):
        prompt = tuple(range(ord(name), ord(name) + TOKENS - 1))
        lead.start(a_start(name, prompt_token_ids=prompt, max_tokens=max_tokens))
    while len(lead.tokens["c"]) < 2:
        lead.finish_step()
    return migrator, source, target


def test_one_finishes_one_is_copied_and_one_is_replayed(a_source: Any) -> None:
    migrator, source, target = a_source
    answer = migrator.copy(source, target, terms=TERMS)
    assert answer.sessions_finishing == 1
    assert answer.blocks_moved == TOKENS // 4  # of one session
    assert answer.blocks_left == 0


def test_without_terms_all_are_copied(a_source: Any) -> None:
    migrator, source, target = a_source
    answer = migrator.copy(source, target)
    assert answer.sessions_finishing == 0
    assert answer.blocks_moved == 3 * (TOKENS // 4)


def test_a_link_slower_than_computing_copies_nothing(a_source: Any) -> None:
    migrator, source, target = a_source
    terms = TERMS.model_copy(update={"prefill_tokens_per_s": 2_000, "finish_within_ms": 0})
    answer = migrator.copy(source, target, terms=terms)
    assert (answer.blocks_moved, answer.sessions_finishing) == (0, 0)


def test_who_was_left_to_finish_is_copied_at_the_stop(a_source: Any) -> None:
    migrator, source, target = a_source
    migrator.copy(source, target, terms=TERMS)
    at_stop = TERMS.model_copy(update={"finish_within_ms": 0, "copy_within_ms": None})
    answer = migrator.stop(source, target, terms=at_stop)
    assert answer.blocks_moved == 2 * (TOKENS // 4)  # of those that stayed behind before


def test_who_finishes_ends_where_it_is_and_what_is_replayed_loses_no_token(
    a_source: Any, a_start: A
) -> None:
    migrator, source, target = a_source
    lead = migrator.lead_of(source)
    while not lead.finished:
        lead.finish_step()
    assert lead.finished == {"a"}
    answer = migrator.stop(source, target, terms=TERMS.model_copy(update={"finish_within_ms": 0}))
    assert answer.sessions == 2
    assert answer.tokens_uncopied > TOKENS
    heir = migrator.lead_of(target)
    migrator.activate(target)
    migrator.release(source, target)
    for name in ("b", "c"):
        prompt = tuple(range(ord(name), ord(name) + TOKENS - 1))
        heir.start(
            a_start(
                name,
                prompt_token_ids=prompt,
                max_tokens=60,
                generated=tuple(lead.tokens[name]),
                epoch=2,
            )
        )
    while heir.steps:
        heir.finish_step()
    assert heir.finished == {"b", "c"}
    assert [len(heir.tokens[name]) for name in ("b", "c")] == [60, 60]
