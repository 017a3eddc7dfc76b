"""Log probabilities in the two shapes of OpenAI's API."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from libs.client.answers import Token
from libs.contracts.online import ScoredToken, TokenLogprobs

LOGPROB_MIN: Final = -9999.0
"""Stands for a probability of zero: JSON has no infinity."""
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def chat_logprobs(tokens: Sequence[Token]) -> JsonValue:
    """Return the object of a chat choice: one entry per token."""
    content: list[JsonValue] = [
        {
            **_scored(token.logprobs.chosen),
            "top_logprobs": [_scored(best) for best in token.logprobs.best],
        }
        for token in tokens
        if token.logprobs is not None
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokens: Sequence[Token], *, text_offset: int, shows_answer: bool = True
) -> JsonValue:
    """Return the object of a completion's choice; offsets count characters of its text.

    A prompt whose scores came with the first token precedes it, up to `text_offset`.
    """
    rows = [row for token in tokens for row in _prompt_rows(token, characters=text_offset)]
    for token in tokens:
        if token.logprobs is not None and shows_answer:
            rows.append(_Row(scores=token.logprobs, text_offset=text_offset))
        text_offset += len(token.text)
    return {
        "tokens": [row.scores.chosen.text for row in rows],
        "token_logprobs": [row.logprob for row in rows],
        "top_logprobs": [row.best for row in rows],
        "text_offset": [row.text_offset for row in rows],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    scores: TokenLogprobs
    text_offset: int
    is_given: bool = False
    """The prompt's first token, which nothing precedes, has no probability."""

    @property
    def logprob(self) -> float | None:
        return None if self.is_given else _finite(self.scores.chosen.logprob)

    @property
    def best(self) -> dict[str, JsonValue] | None:
        if self.is_given:
            return None
        # The chosen token is always among them, as OpenAI has it.
        known = (*self.scores.best, self.scores.chosen)
        return {item.text: _finite(item.logprob) for item in known}


def _prompt_rows(token: Token, *, characters: int) -> Iterator[_Row]:
    """Yield the prompt that came with this token, within so many characters of text."""
    offset = 0
    for number, scores in enumerate(token.logprobs.prompt if token.logprobs is not None else ()):
        yield _Row(scores=scores, text_offset=min(offset, characters), is_given=number == 0)
        offset += len(scores.chosen.text)


def _scored(token: ScoredToken) -> dict[str, JsonValue]:
    # A token that is part of a character has bytes, but its text does not tell them.
    is_whole = REPLACEMENT not in token.text
    return {
        "token": token.text,
        "logprob": _finite(token.logprob),
        "bytes": list(token.text.encode()) if is_whole else None,
    }


def _finite(logprob: float) -> float:
    return max(logprob, LOGPROB_MIN)
