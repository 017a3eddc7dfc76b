"""How long prompts and answers are, in tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng

TOKENS_MAX: Final = 2**24
"""No context is that long; what a trace says beyond is another kind of number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The tokens of one prompt and of its answer. A trace may hold 0 for a request that failed."""

    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if not (0 <= self.prompt_tokens <= TOKENS_MAX and 0 <= self.output_tokens <= TOKENS_MAX):
            raise ConfigError(f"lengths: must be between 0 and {TOKENS_MAX} tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthLimits:
    """Fits lengths of a large model's trace to a smaller one."""

    divisor: int = 1
    """Both lengths are divided by this, rounded up, before the limits apply."""
    prompt_tokens_max: int | None = None
    output_tokens_max: int | None = None

    def __post_init__(self) -> None:
        for name in ("divisor", "prompt_tokens_max", "output_tokens_max"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be at least 1")

    def fit(self, lengths: Lengths) -> Lengths:
        """Return the lengths to use; 0 stays 0."""
        prompt_tokens = -(-lengths.prompt_tokens // self.divisor)
        output_tokens = -(-lengths.output_tokens // self.divisor)
        return Lengths(
            prompt_tokens=_at_most(prompt_tokens, self.prompt_tokens_max),
            output_tokens=_at_most(output_tokens, self.output_tokens_max),
        )


def fixed(lengths: Lengths) -> Iterator[Lengths]:
    """Yield the same lengths for ever."""
    return repeat(lengths)


def uniform(rng: Rng, *, least: Lengths, most: Lengths) -> Iterator[Lengths]:
    """Yield lengths drawn evenly between the two, both ends included, for ever."""
    if least.prompt_tokens > most.prompt_tokens or least.output_tokens > most.output_tokens:
        raise ConfigError("lengths: the least is above the most")
    while True:
        yield Lengths(
            prompt_tokens=rng.randint(least.prompt_tokens, most.prompt_tokens),
            output_tokens=rng.randint(least.output_tokens, most.output_tokens),
        )


def drawn_from(rng: Rng, table: Sequence[Lengths]) -> Iterator[Lengths]:
    """Yield rows of a table, each as likely as any other and prompt with its answer, for ever."""
    if not table:
        raise ConfigError("lengths: the table is empty")
    while True:
        yield rng.choice(table)


def _at_most(tokens: int, tokens_max: int | None) -> int:
    return tokens if tokens_max is None else min(tokens, tokens_max)
