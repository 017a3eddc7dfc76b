"""Nearest ranks: which of ordered values a percentile is."""


def nearest_rank(share: float, *, count: int) -> int:
    """Return the index of the least of `count` ascending values that this share does not exceed.

    The share, in 0..1, counts to a thousandth: in integers, so that no rounding error moves a rank.
    """
    assert count > 0
    per_mille = round(share * 1000)
    return min(count, max(1, -(-per_mille * count // 1000))) - 1
