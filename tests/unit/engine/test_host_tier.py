"""Which blocks lie in host memory, and which make room."""

from random import Random

import pytest

from libs.engine.host_tier import ChainLink, HostTier
from libs.kernel.errors import InvariantViolation


def chain(*hashes: int) -> list[ChainLink]:
    parents = (None, *hashes)
    return [
        ChainLink(block_hash=block_hash, parent_hash=parent)
        for block_hash, parent in zip(hashes, parents, strict=False)
    ]


def a_tier(slots: int, *chains: tuple[int, ...]) -> HostTier:
    """A tier that holds these chains, stored one after another."""
    tier = HostTier(slots_total=slots)
    for hashes in chains:
        tier.commit(tier.reserve(chain(*hashes)))
    tier.check_invariants()
    return tier


def held(tier: HostTier, *hashes: int) -> list[int]:
    return [block_hash for block_hash in hashes if block_hash in tier]


def test_a_block_is_found_only_once_it_is_committed() -> None:
    tier = HostTier(slots_total=4)
    slots = tier.reserve(chain(1, 2))
    assert len(set(slots.values())) == 2
    assert held(tier, 1, 2) == []
    assert tier.held_prefix([1, 2]) == ()
    tier.commit([1])
    assert tier.held_prefix([1, 2]) == ((1, slots[1]),)


def test_what_is_known_or_on_its_way_is_not_stored_again() -> None:
    tier = a_tier(8, (1, 2))
    assert list(tier.reserve(chain(1, 2, 3))) == [3]
    assert tier.reserve(chain(1, 2, 3)) == {}


def test_two_chains_share_their_common_blocks() -> None:
    tier = a_tier(8, (1, 2, 3), (1, 2, 4))
    assert tier.blocks_held == 4


def test_room_is_made_from_the_end_of_the_chain_that_was_used_longest_ago() -> None:
    tier = a_tier(6, (1, 2, 3), (11, 12, 13))
    tier.held_prefix([1, 2, 3])
    tier.commit(tier.reserve(chain(21, 22)))
    assert held(tier, 1, 2, 3, 11, 12, 13, 21, 22) == [1, 2, 3, 11, 21, 22]


def test_a_whole_chain_goes_before_the_next_one_is_touched() -> None:
    tier = a_tier(6, (1, 2, 3), (11, 12, 13))
    tier.commit(tier.reserve(chain(21, 22, 23)))
    assert held(tier, 1, 2, 3, 11, 12, 13) == [11, 12, 13]


def test_what_a_waiting_sequence_wants_is_not_evicted() -> None:
    tier = a_tier(4, (1, 2), (11, 12))
    tier.reserve(chain(21, 22, 23), wanted={1, 2})
    assert held(tier, 1, 2, 11, 12) == [1, 2]
    assert tier.counters.blocks_refused == 1


def test_a_shared_beginning_stays_as_long_as_any_chain_goes_on_from_it() -> None:
    tier = a_tier(4, (1, 2), (1, 3), (11,))
    tier.commit(tier.reserve(chain(21, 22)))
    assert held(tier, 1, 2, 3, 11) == [1, 11]


def test_a_block_makes_no_room_for_its_own_child() -> None:
    tier = a_tier(2, (1, 2))
    assert tier.reserve(chain(1, 2, 3)) == {}
    assert held(tier, 1, 2) == [1, 2]


def test_a_block_whose_parent_is_not_here_is_left_out() -> None:
    tier = HostTier(slots_total=4)
    assert tier.reserve([ChainLink(block_hash=2, parent_hash=1)]) == {}


def test_a_pinned_block_is_not_evicted() -> None:
    tier = a_tier(2, (1,), (11,))
    tier.pin([1])
    tier.commit(tier.reserve(chain(21)))
    assert held(tier, 1, 11, 21) == [1, 21]
    tier.unpin([1])
    tier.check_invariants()


def test_what_did_not_arrive_is_gone_and_its_slots_are_free() -> None:
    tier = a_tier(4, (1,))
    tier.abandon(tier.reserve(chain(1, 2, 3)))
    assert tier.slots_free == 3
    tier.check_invariants()


def test_what_cannot_be_read_takes_all_that_hangs_on_it_along() -> None:
    tier = a_tier(8, (1, 2, 3), (1, 4))
    tier.drop([2])
    assert held(tier, 1, 2, 3, 4) == [1, 4]
    tier.check_invariants()


def test_only_what_is_held_can_be_pinned() -> None:
    with pytest.raises(InvariantViolation):
        HostTier(slots_total=1).pin([1])


@pytest.mark.parametrize("seed", range(6))
def test_chains_never_have_holes_whatever_is_stored_read_and_dropped(seed: int) -> None:
    rng, tier = Random(seed), HostTier(slots_total=12)
    chains = [tuple(100 * n + i for i in range(rng.randrange(1, 8))) for n in range(1, 7)]
    pinned: list[int] = []
    for _ in range(200):
        hashes = rng.choice(chains)
        match rng.choice(["store", "store", "fail", "read", "pin", "unpin", "drop"]):
            case "store":
                tier.commit(tier.reserve(chain(*hashes), wanted=set(rng.choice(chains))))
            case "fail":
                tier.abandon(tier.reserve(chain(*hashes)))
            case "read":
                tier.held_prefix(hashes)
            case "pin" if not pinned:
                pinned = [block_hash for block_hash, _ in tier.held_prefix(hashes)]
                tier.pin(pinned)
            case "unpin":
                tier.unpin(pinned)
                pinned = []
            case "drop" if not pinned:
                tier.drop([rng.choice(hashes)])
        tier.check_invariants()
        for each in chains:
            is_held = [block_hash in tier for block_hash in each]
            assert is_held == sorted(is_held, reverse=True), "a chain has a hole"
