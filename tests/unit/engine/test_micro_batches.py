"""Micro-batches hold every row of a step once and in order, whatever the step is."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from libs.engine.parallel.micro_batches import micro_batches
from libs.engine.steps import PlanEntry

BLOCK_TOKENS = 4


def an_entry(name: str, tokens: int, *, start: int = 0, is_sampling: bool = True) -> PlanEntry:
    blocks = -(-(start + tokens) // BLOCK_TOKENS)
    return PlanEntry(
        sequence_id=name,
        token_ids=tuple(range(tokens)),
        start_position=start,
        block_table=tuple(range(100, 100 + blocks)),
        is_sampling=is_sampling,
        output_index=0,
    )


def cut(*entries: PlanEntry, batches_max: int = 2, tokens_min: int = 4) -> list[list[PlanEntry]]:
    batches = micro_batches(
        entries, batches_max=batches_max, tokens_min=tokens_min, block_tokens=BLOCK_TOKENS
    )
    return [list(batch) for batch in batches]


def test_a_small_step_is_not_cut() -> None:
    entries = [an_entry("a", 1, start=9), an_entry("b", 6)]
    assert cut(*entries) == [entries]


def test_decodes_are_shared_out_evenly() -> None:
    entries = [an_entry(str(number), 1, start=number) for number in range(9)]
    assert [len(batch) for batch in cut(*entries)] == [4, 5]


def test_one_long_prefill_goes_on_in_the_next_part() -> None:
    first, second = cut(an_entry("a", 11, start=5))
    assert first == [
        PlanEntry(
            sequence_id="a",
            token_ids=(0, 1, 2, 3, 4),
            start_position=5,
            block_table=(100, 101, 102),
            is_sampling=False,
            output_index=0,
        )
    ]
    assert second[0].token_ids == (5, 6, 7, 8, 9, 10)
    assert second[0].start_position == 10
    assert second[0].block_table == (100, 101, 102, 103)
    assert second[0].is_sampling


def test_each_part_of_a_prefill_scores_its_share_of_the_prompt() -> None:
    whole = replace(an_entry("a", 12), tokens_scored=11)
    assert [part.tokens_scored for [part] in cut(whole)] == [6, 5]
    few = replace(an_entry("a", 12), tokens_scored=3)
    assert [part.tokens_scored for [part] in cut(few)] == [3, 0]


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    batches_max=st.integers(1, 5),
    tokens_min=st.integers(1, 10),
)
def test_every_row_is_computed_once_and_in_order(
    sizes: list[int], batches_max: int, tokens_min: int
) -> None:
    entries = [an_entry(str(index), size) for index, size in enumerate(sorted(sizes))]
    batches = cut(*entries, batches_max=batches_max, tokens_min=tokens_min)
    assert len(batches) <= batches_max
    rows = [
        (entry.sequence_id, entry.start_position + offset)
        for batch in batches
        for entry in batch
        for offset in range(len(entry.token_ids))
    ]
    assert rows == [(e.sequence_id, offset) for e in entries for offset in range(len(e.token_ids))]
    sampling = [entry.sequence_id for batch in batches for entry in batch if entry.is_sampling]
    assert sampling == [entry.sequence_id for entry in entries]
    for batch in batches:
        assert len(batches) == 1 or sum(len(entry.token_ids) for entry in batch) >= tokens_min
        for entry in batch:
            end = entry.start_position + len(entry.token_ids)
            assert len(entry.block_table) == -(-end // BLOCK_TOKENS)
