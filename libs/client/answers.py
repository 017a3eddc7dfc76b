"""What an answer consists of; pure."""

from dataclasses import dataclass

from libs.contracts.online import TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token of an answer and the text that it adds, which may be empty."""

    index: int
    token_id: int
    text: str
    logprobs: TokenLogprobs | None = None
    """Its log probability and the best ones at its place, where the request asked for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an answer took, in tokens."""

    prompt_tokens: int
    completion_tokens: int
