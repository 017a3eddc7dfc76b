"""Prompts of an exact number of tokens, and prompts that share prefixes as a trace says.

Token ids need no tokenizer and are exact by construction. Text is exact for the tokenizer that
counts it; what a server's chat template adds comes on top.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng

MOONCAKE_BLOCK_TOKENS: Final = 512
"""A `hash_id` of Mooncake's traces stands for this many tokens."""
FILLERS: Final = (" a", ".", " I", ",", " x", "!", "\n", "0")
"""Tried one after another where the next word would overshoot."""
# fmt: off
WORDS: Final = (
    "tide", "water", "moon", "harbour", "ship", "rope", "sand", "wave", "light", "north",
    "wind", "stone", "bridge", "river", "quiet", "hour", "morning", "letter", "number",
    "window", "garden", "paper", "train", "winter", "summer", "circle", "answer", "question",
)
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRange:
    """The token ids that prompts are made of, both ends included."""

    token_id_min: int
    token_id_max: int

    def __post_init__(self) -> None:
        if not 0 <= self.token_id_min < self.token_id_max:
            raise ConfigError("token ids: need 0 <= least < most")


class TokenPrompts:
    """Makes prompts of token ids; the same name and lengths give the same prompt."""

    def __init__(
        self, rng: Rng, token_range: TokenRange, *, block_tokens: int = MOONCAKE_BLOCK_TOKENS
    ) -> None:
        if block_tokens < 1:
            raise ConfigError("tokens of a prefix block: must be at least 1")
        self._rng = rng
        self._token_ids = range(token_range.token_id_min, token_range.token_id_max + 1)
        self._block_tokens = block_tokens

    def make(self, name: str, *, tokens: int, block_ids: Sequence[int] = ()) -> tuple[int, ...]:
        """Return exactly this many token ids.

        Two prompts whose block ids begin alike begin with the same tokens, for as long as the
        ids agree. What the blocks do not cover is the prompt's own.
        """
        token_ids: list[int] = []
        for block_id in block_ids:
            if len(token_ids) >= tokens:
                break
            token_ids += self._draw(f"block/{block_id}", self._block_tokens)
        if len(token_ids) < tokens:
            token_ids += self._draw(f"own/{name}", tokens - len(token_ids))
        return tuple(token_ids[:tokens])

    def _draw(self, name: str, count: int) -> list[int]:
        return self._rng.child(name).choices(self._token_ids, k=count)


def text_of(rng: Rng, *, tokens: int, count_tokens: Callable[[str], int]) -> str:
    """Return a text of words that the counter finds to be exactly this many tokens.

    Raises: ConfigError if no text of that length was found, which a count of 0 always does.
    """
    text = _words_up_to(rng, tokens=tokens, count_tokens=count_tokens)
    for _ in range(tokens):
        if text and count_tokens(text) == tokens:
            return text
        longer = _filled(text, tokens=tokens, count_tokens=count_tokens)
        if longer is None:
            break
        text = longer
    if text and count_tokens(text) == tokens:
        return text
    raise ConfigError(f"prompt: no text of exactly {tokens} tokens was found")


def _words_up_to(rng: Rng, *, tokens: int, count_tokens: Callable[[str], int]) -> str:
    """Return words of at most this many tokens, to which no further word could be added.

    Words come in batches that halve, because counting a long text for each word would be slow.
    """
    words: list[str] = []
    batch = max(1, tokens // 2)
    while batch and len(words) <= tokens:
        longer = [*words, *rng.choices(WORDS, k=batch)]
        if count_tokens(" ".join(longer)) <= tokens:
            words = longer
        else:
            batch //= 2
    return " ".join(words)


def _filled(text: str, *, tokens: int, count_tokens: Callable[[str], int]) -> str | None:
    before = count_tokens(text)
    for filler in FILLERS:
        if before < count_tokens(text + filler) <= tokens:
            return text + filler
    return None
