"""Log probabilities in the two shapes of OpenAI's API."""

from collections.abc import Sequence
from typing import Final

from pydantic import JsonValue

from libs.client.conversation import Token
from libs.contracts.online import ScoredToken

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


def completion_logprobs(tokens: Sequence[Token], *, text_offset: int) -> JsonValue:
    """Return the object of a completion's choice; offsets count characters of its text."""
    texts: list[JsonValue] = []
    logprobs: list[JsonValue] = []
    best: list[JsonValue] = []
    offsets: list[JsonValue] = []
    for token in tokens:
        if token.logprobs is not None:
            chosen = token.logprobs.chosen
            texts.append(chosen.text)
            logprobs.append(_finite(chosen.logprob))
            # The chosen token is always among them, as OpenAI has it.
            known = (*token.logprobs.best, chosen)
            best.append({item.text: _finite(item.logprob) for item in known})
            offsets.append(text_offset)
        text_offset += len(token.text)
    return {
        "tokens": texts,
        "token_logprobs": logprobs,
        "top_logprobs": best,
        "text_offset": offsets,
    }


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
