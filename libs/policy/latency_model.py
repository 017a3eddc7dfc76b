"""How long an engine step takes, from what it computes.

    T = a + b P + c sum(p (k + p/2)) + d K + e S

P rows in all, of which p belong to one prefill chunk that attends k tokens before it; K tokens of
context attended by decodes; S sequences, whose logits are computed. All coefficients are
non-negative, so more work never seems to take less time.
Source: ConServe, section on the SLO-aware scheduler (its polynomial in P and C, one term per kind
of work); departs from it in the term for S, which a small model on a CPU needs.
"""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What a step computes, as far as its time depends on it; grows entry by entry."""

    rows: int = 0
    """Tokens computed, of prefills and decodes."""
    pairs_prefilled: float = 0.0
    """Sum over prefill chunks of p tokens behind k others: p (k + p/2)."""
    tokens_attended: int = 0
    """Sum over decodes of the tokens before each."""
    sequences: int = 0

    def with_prefill(self, *, tokens: int, tokens_before: int) -> Self:
        """Add a chunk of a prompt."""
        return type(self)(
            rows=self.rows + tokens,
            pairs_prefilled=self.pairs_prefilled + tokens * (tokens_before + tokens / 2),
            tokens_attended=self.tokens_attended,
            sequences=self.sequences + 1,
        )

    def with_decode(self, *, tokens_before: int) -> Self:
        """Add one token of a sequence that is past its prompt."""
        return type(self)(
            rows=self.rows + 1,
            pairs_prefilled=self.pairs_prefilled,
            tokens_attended=self.tokens_attended + tokens_before,
            sequences=self.sequences + 1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyModel:
    """The coefficients for one model on one kind of hardware; see the head of this file."""

    step_ns: float
    """a: every step."""
    row_ns: float
    """b"""
    pair_prefilled_ns: float
    """c"""
    token_attended_ns: float
    """d"""
    sequence_ns: float
    """e"""

    def predict_ns(self, work: StepWork) -> int:
        """Return the time of a step, communication between workers included."""
        return round(
            self.step_ns
            + self.row_ns * work.rows
            + self.pair_prefilled_ns * work.pairs_prefilled
            + self.token_attended_ns * work.tokens_attended
            + self.sequence_ns * work.sequences
        )
