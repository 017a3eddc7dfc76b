"""Full blocks of offline sequences that host memory lacks: what there is to checkpoint."""

from collections.abc import Iterable

from libs.engine.host_tier import ChainLink, HostTier
from libs.engine.scheduler import Scheduler


class UncopiedBlocks:
    """Notes blocks when they are full, so that they can be asked for when their sequence has lost
    them: the device keeps their content until it is overwritten."""

    def __init__(self, scheduler: Scheduler, tier: HostTier) -> None:
        self._scheduler = scheduler
        self._tier = tier
        self._noted: dict[str, int] = {}
        """Blocks of each sequence, from the first, that were looked at."""
        self._links: dict[str, list[ChainLink]] = {}

    def note(self, sequence_ids: Iterable[str]) -> None:
        """Look at what these offline sequences have filled; forget those that have ended."""
        known = dict.fromkeys(sequence_ids)
        for sequence_id in [each for each in self._noted if each not in known]:
            del self._noted[sequence_id]
            self._links.pop(sequence_id, None)
        size = self._scheduler.options.block_tokens
        for sequence_id in known:
            blocks = self._scheduler.tokens_computed(sequence_id) // size
            if blocks > self._noted.get(sequence_id, 0):
                self._note_new(sequence_id, blocks)

    def of(self, sequence_id: str) -> list[ChainLink]:
        """Return what host memory lacks of a sequence, first to last."""
        links = [
            link
            for link in self._links.get(sequence_id, ())
            if not self._tier.knows(link.block_hash)
        ]
        if sequence_id in self._links:
            self._links[sequence_id] = links
        return links

    def look_again(self, sequence_id: str) -> None:
        """Look at all blocks of the sequence anew: some were not taken, or are gone again."""
        self._noted[sequence_id] = 0

    def give_up(self, sequence_id: str) -> None:
        """Let what is lacking of this sequence be computed again."""
        self._links.pop(sequence_id, None)

    def _note_new(self, sequence_id: str, blocks: int) -> None:
        first = self._noted.get(sequence_id, 0)
        hashes = [block_hash for block_hash, _ in self._scheduler.full_blocks(sequence_id)]
        links = self._links.get(sequence_id, []) if first else []
        for index in range(first, blocks):
            if not self._tier.knows(hashes[index]):
                parent = hashes[index - 1] if index else None
                links.append(ChainLink(block_hash=hashes[index], parent_hash=parent))
        self._links[sequence_id] = links
        self._noted[sequence_id] = blocks
