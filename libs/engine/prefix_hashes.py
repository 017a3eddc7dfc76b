"""Names a prefix of tokens by a chained hash per full KV block, the same in every process.

The router computes the hashes of a prompt with this module and compares them with those a worker
reports as cached; it needs no torch for it.
"""

import hashlib
from array import array
from collections.abc import Sequence

HASH_BYTES = 8
"""64 bits: sharing by accident among a million blocks has a chance of about 3e-8; the salt of a
tenant is part of every hash, so that nobody reads another's prefix by finding a collision of
their own tokens without knowing the salt."""


def prefix_block_hashes(token_ids: Sequence[int], *, block_tokens: int, salt: str) -> list[int]:
    """Return one hash for each full block of the tokens, each naming the whole prefix up to it."""
    hashes: list[int] = []
    parent = root_hash(salt)
    for end in range(block_tokens, len(token_ids) + 1, block_tokens):
        parent = child_hash(parent, token_ids[end - block_tokens : end])
        hashes.append(parent)
    return hashes


def root_hash(salt: str) -> int:
    """Return the parent of every first block under this salt."""
    return _hash(b"tideserve prefix " + salt.encode())


def child_hash(parent: int, block_token_ids: Sequence[int]) -> int:
    """Return the hash of the block with these tokens after the prefix that `parent` names."""
    return _hash(parent.to_bytes(HASH_BYTES, "big") + array("I", block_token_ids).tobytes())


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=HASH_BYTES).digest(), "big")
