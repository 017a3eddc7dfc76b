"""Verdicts on an answer that both protocols share."""

from libs.contracts.online import FinishReason
from loadgen.records import Ending, Outcome

EXPLANATION_CHARACTERS_MAX = 300


def failed(reason: str, explanation: str) -> Ending:
    """The server said no, or nothing."""
    return Ending(
        outcome=Outcome.FAILED,
        reason=reason,
        explanation=explanation[:EXPLANATION_CHARACTERS_MAX],
    )


def rejected(reason: str, explanation: str) -> Ending:
    """The server refused before it began."""
    return Ending(
        outcome=Outcome.REJECTED,
        reason=reason,
        explanation=explanation[:EXPLANATION_CHARACTERS_MAX],
    )


def broken(reason: str, explanation: str) -> Ending:
    """What came is no answer, whatever it looks like."""
    return Ending(
        outcome=Outcome.BROKEN,
        reason=reason,
        explanation=explanation[:EXPLANATION_CHARACTERS_MAX],
    )


def judge_length(
    *, finish_reason: str, output_tokens: int, output_tokens_max: int, is_length_exact: bool
) -> Ending:
    """Decide on an answer that is whole in itself: has it the length that was asked for?

    "length" means that the limit was reached, so that the count must be the limit; an answer cut
    short by the model's context is told as too short, because the load asked for more.
    """
    if output_tokens > output_tokens_max:
        return broken(
            "too_many_tokens", f"{output_tokens} tokens where at most {output_tokens_max} were due"
        )
    if finish_reason not in tuple(FinishReason):
        return broken("finish_reason", f"the finish reason {finish_reason!r} is unknown")
    is_full = output_tokens == output_tokens_max
    if (finish_reason == FinishReason.LENGTH or is_length_exact) and not is_full:
        return broken(
            "too_few_tokens",
            f"{output_tokens} of {output_tokens_max} tokens, finish reason {finish_reason}",
        )
    return Ending(outcome=Outcome.OK, finish_reason=finish_reason)


def judge_prompt(*, prompt_tokens: int, token_ids_sent: int | None) -> Ending | None:
    """Object if the server read another prompt than the token ids that it was sent."""
    if token_ids_sent is None or prompt_tokens == token_ids_sent:
        return None
    explanation = f"the server counts {prompt_tokens} prompt tokens of {token_ids_sent} sent"
    return broken("prompt_tokens", explanation)
