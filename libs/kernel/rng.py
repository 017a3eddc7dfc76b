"""A tree of named, seeded random streams.

Adding a stream never shifts another, because each child's seed is a digest of its parent's seed
and its name. Python's hash() is salted per process and is not used.
"""

import hashlib
import random


class Rng(random.Random):
    """A seeded stream; `child(name)` derives an independent one, the same in every process."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.seed_value = seed

    def child(self, name: str) -> "Rng":
        """Derive the stream of this name; equal names give equal streams."""
        digest = hashlib.blake2b(f"{self.seed_value}/{name}".encode(), digest_size=8).digest()
        return Rng(int.from_bytes(digest, "big"))
