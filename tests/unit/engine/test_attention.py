"""Paged attention equals dense attention, for every way it batches."""

from dataclasses import dataclass
from random import Random

import pytest
import torch

from libs.engine.attention import (
    GATHER_TOKENS_MAX,
    PLAIN_RULE,
    AttentionRule,
    KvShape,
    PagedAttention,
)
from libs.engine.steps import PlanEntry

HEADS, HEAD_SIZE, BLOCK_TOKENS = 4, 8, 4
WINDOWS = {5, 12}
RULES = [
    PLAIN_RULE,
    AttentionRule(window_tokens=5),
    AttentionRule(window_tokens=12, scale=0.5),
    AttentionRule(softcap=1.5),
    AttentionRule(softcap=2.0, window_tokens=12, scale=1.0),
]


@dataclass
class Sequence:
    """One sequence's whole query, keys and values, and its scattered blocks."""

    query_NHD: torch.Tensor
    kv_N2KD: torch.Tensor
    blocks: list[int]
    done: int = 0

    def entry(self, tokens: int) -> PlanEntry:
        end = self.done + tokens
        return PlanEntry(
            sequence_id="s",
            token_ids=(0,) * tokens,
            start_position=self.done,
            block_table=tuple(self.blocks[: -(-end // BLOCK_TOKENS)]),
            is_sampling=False,
            output_index=0,
        )

    def expected(self, tokens: int, *, kv_heads: int, rule: AttentionRule) -> torch.Tensor:
        """Dense attention in float64 for the next tokens."""
        end = self.done + tokens
        group = HEADS // kv_heads
        key = self.kv_N2KD[:end, :kv_heads].repeat_interleave(group, 1).double()
        value = self.kv_N2KD[:end, kv_heads:].repeat_interleave(group, 1).double()
        query = self.query_NHD[self.done : end].double()
        scores = torch.einsum("nhd,phd->hnp", query, key) * (rule.scale or HEAD_SIZE**-0.5)
        if rule.softcap is not None:
            scores = rule.softcap * (scores / rule.softcap).tanh()
        behind = torch.arange(self.done, end)[:, None] - torch.arange(end)
        visible = (behind >= 0) & (behind < (rule.window_tokens or end))
        scores = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return torch.einsum("hnp,phd->nhd", scores, value).reshape(tokens, -1)


def sequences(lengths: list[int], *, kv_heads: int) -> tuple[list[Sequence], PagedAttention]:
    tables = [-(-length // BLOCK_TOKENS) for length in lengths]
    blocks = list(range(sum(tables) + 3))
    Random(1).shuffle(blocks)
    torch.manual_seed(2)
    attention = PagedAttention(
        KvShape(
            layers=1,
            blocks=len(blocks),
            block_tokens=BLOCK_TOKENS,
            kv_heads=kv_heads,
            head_size=HEAD_SIZE,
        ),
        heads=HEADS,
        windows=WINDOWS,
        context_tokens_max=64,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    made = [
        Sequence(
            query_NHD=torch.randn(length, HEADS, HEAD_SIZE),
            kv_N2KD=torch.randn(length, 2 * kv_heads, HEAD_SIZE),
            blocks=[blocks.pop() for _ in range(table)],
        )
        for length, table in zip(lengths, tables, strict=True)
    ]
    return made, attention


def check_step(
    attention: PagedAttention,
    work: list[tuple[Sequence, int]],
    *,
    kv_heads: int,
    rule: AttentionRule = PLAIN_RULE,
) -> None:
    step = attention.prepare([sequence.entry(tokens) for sequence, tokens in work])
    rows = [slice(sequence.done, sequence.done + tokens) for sequence, tokens in work]
    got = attention.attend(
        step,
        layer=0,
        query_NHD=torch.cat([s.query_NHD[r] for (s, _), r in zip(work, rows, strict=True)]),
        kv_N2KD=torch.cat([s.kv_N2KD[r] for (s, _), r in zip(work, rows, strict=True)]),
        rule=rule,
    )
    expected = torch.cat([s.expected(tokens, kv_heads=kv_heads, rule=rule) for s, tokens in work])
    assert torch.allclose(got.double(), expected, atol=1e-5)
    for sequence, tokens in work:
        sequence.done += tokens


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_prefills_chunks_and_decodes_of_one_step(kv_heads: int, rule: AttentionRule) -> None:
    (a, b, c, d), attention = sequences([30, 21, 9, 17], kv_heads=kv_heads)

    def check(*work: tuple[Sequence, int]) -> None:
        check_step(attention, list(work), kv_heads=kv_heads, rule=rule)

    check((a, 20), (b, 3))
    check((a, 1), (b, 7), (c, 5))
    check((a, 1), (c, 1), (b, 9), (d, 1))
    check((a, 1), (b, 1), (c, 1), (d, 1))
    check((d, 14))


def test_decodes_of_equal_length_need_no_mask() -> None:
    made, attention = sequences([10] * 5, kv_heads=2)
    for sequence in made:
        check_step(attention, [(sequence, 9)], kv_heads=2)
    step = attention.prepare([sequence.entry(1) for sequence in made])
    assert step.decode_batch is not None
    assert step.decode_batch.masks_S11P[None] is None
    assert step.decode_batch.masks_S11P[12] is None
    assert step.decode_batch.masks_S11P[5] is not None
    check_step(attention, [(sequence, 1) for sequence in made], kv_heads=2)


@pytest.mark.parametrize("rule", RULES)
def test_decodes_beyond_the_scratch_go_one_by_one(rule: AttentionRule) -> None:
    length = 60
    count = GATHER_TOKENS_MAX // length + 1
    made, attention = sequences([length, 7] + [length] * count, kv_heads=2)
    for sequence in made:
        check_step(attention, [(sequence, sequence.query_NHD.shape[0] - 1)], kv_heads=2)
    step = attention.prepare([sequence.entry(1) for sequence in made])
    assert len(step.decodes) == len(made)
    check_step(attention, [(sequence, 1) for sequence in made], kv_heads=2, rule=rule)
