"""Several answers to one request: each choice is a session of its own."""

from collections.abc import Sequence
from typing import Final

from libs.contracts.online import SubmitRequest
from libs.kernel.rng import Rng

SEED_RANGE: Final = 2**63


def choices_of(submissions: Sequence[SubmitRequest], *, answers: int) -> list[SubmitRequest]:
    """Return this many submissions for each, in the order of the choices' indices.

    Each has its own request id. A seed goes to the first answer of a prompt as it is, so that this
    one is what it would be alone; the others derive theirs. Without a seed, routers derive all.
    """
    if len(submissions) == answers == 1:
        return list(submissions)
    return [
        submission.model_copy(
            update={
                "request_id": f"{submission.request_id}-{number * answers + answer}",
                "sampling": submission.sampling.model_copy(
                    update={"seed": _derived_seed(submission.sampling.seed, answer)}
                ),
            }
        )
        for number, submission in enumerate(submissions)
        for answer in range(answers)
    ]


def _derived_seed(seed: int | None, answer: int) -> int | None:
    if seed is None or answer == 0:
        return seed
    return Rng(seed).child(f"choice-{answer}").seed_value % SEED_RANGE
