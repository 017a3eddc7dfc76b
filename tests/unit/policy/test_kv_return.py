"""When KV comes back by a copy and when by computing, and how much may be copied at all."""

import pytest

from libs.kernel.units import MIB, NS_PER_MS, NS_PER_S, NS_PER_US
from libs.policy.copy_pace import CREDIT_NS_MAX, CopyPace
from libs.policy.kv_return import HostLink, flushing_pays, loading_pays
from libs.policy.latency_model import LatencyModel

H100_LINK = HostLink(copy_ns=500 * NS_PER_US, bytes_per_s=37_000_000_000)
"""Gather and transfer of ConServe's table of overheads."""
LLAMA_8B_KV_BYTES = 128 * 1024
"""Of one token."""
LLAMA_8B = LatencyModel(
    step_ns=8e6, row_ns=25e3, pair_prefilled_ns=0.9, token_attended_ns=1.0, sequence_ns=0.0
)
"""2,048 tokens in 51 ms, as in ConServe's motivation; 40k tokens per second."""


def bytes_of(tokens: int) -> int:
    return tokens * LLAMA_8B_KV_BYTES


@pytest.mark.parametrize(
    ("tokens", "load", "flush"),
    [
        # tokens, copying back pays, copying out and back pays
        (1, False, False),
        (16, False, False),
        (32, True, False),
        (64, True, True),
        (2048, True, True),
        (16384, True, True),
    ],
)
def test_the_choice_by_length_on_fast_hardware(tokens: int, load: bool, flush: bool) -> None:
    work = {"bytes_": bytes_of(tokens), "tokens": tokens, "tokens_before": 0}
    assert loading_pays(H100_LINK, LLAMA_8B, **work) == load
    assert flushing_pays(H100_LINK, LLAMA_8B, **work) == flush


def test_a_slow_link_never_pays_where_computing_is_fast() -> None:
    slow = HostLink(copy_ns=0, bytes_per_s=500 * MIB)
    assert not loading_pays(slow, LLAMA_8B, bytes_=bytes_of(256), tokens=256, tokens_before=0)


def test_a_copy_pays_sooner_behind_a_long_context_which_computing_attends_to() -> None:
    work = {"bytes_": bytes_of(16), "tokens": 16}
    assert not loading_pays(H100_LINK, LLAMA_8B, tokens_before=0, **work)
    assert loading_pays(H100_LINK, LLAMA_8B, tokens_before=40_000, **work)


def test_the_link_is_believed_as_it_is_measured() -> None:
    link = HostLink(copy_ns=NS_PER_MS, bytes_per_s=1000 * MIB)
    for _ in range(50):
        link = link.after(bytes_=100 * MIB, duration_ns=NS_PER_S + NS_PER_MS)
    assert link.bytes_per_s == pytest.approx(100 * MIB, rel=0.01)


def test_a_copy_that_took_no_time_is_no_division_by_zero() -> None:
    assert HostLink(copy_ns=5, bytes_per_s=1).after(bytes_=1, duration_ns=0).bytes_per_s > 0


def test_copies_earn_a_share_of_the_steps_and_no_more() -> None:
    pace = CopyPace(share_max=0.03)
    copied_ns = 0
    for _ in range(10_000):
        pace.step_ended(10 * NS_PER_MS)
        items = pace.items_allowed(item_ns=NS_PER_MS, copy_ns=0)
        pace.copy_ended(items * NS_PER_MS)
        copied_ns += items * NS_PER_MS
    share = (copied_ns - CREDIT_NS_MAX) / pace.stepping_ns
    assert 0.029 < share <= 0.03
    assert pace.copying_ns == copied_ns


def test_a_copy_that_took_too_long_is_paid_off_first() -> None:
    pace = CopyPace(share_max=0.5)
    pace.copy_ended(CREDIT_NS_MAX + 10 * NS_PER_MS)
    pace.step_ended(10 * NS_PER_MS)
    assert pace.items_allowed(item_ns=1, copy_ns=0) == 0
    pace.step_ended(20 * NS_PER_MS)
    assert pace.items_allowed(item_ns=1, copy_ns=0) > 0
