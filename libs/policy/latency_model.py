"""How long an engine step takes, from what it computes.

    T = a + b P + b' max(0, P - P') + c sum(p (k + p/2)) + d K + e S + comm(P)

P rows in all, of which p belong to one prefill chunk that attends k tokens before it; K tokens of
context attended by decodes; S sequences, whose logits are computed. All coefficients are
non-negative, so more work never seems to take less time.

Below the knee P' a step is bound by reading the weights, above it by multiplying with them; on a
CPU the two hardly differ, on a GPU b is nearly 0 up to some hundred rows. comm(P) is what the
shards of a stage spend on all-reduces; being linear in P it is part of a and b.

Source: ConServe, section on the SLO-aware scheduler (its polynomial in P and C, one term per kind
of work); departs from it in the term for S, which a small model on a CPU needs, and in the knee,
which QoServe's two fitted strata stand for.
"""

from dataclasses import dataclass, replace
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
class Communication:
    """What the workers of a replica add to a step by talking to one another."""

    step_ns: float = 0.0
    """Latency of all all-reduces and hops of a step, however few its rows."""
    row_ns: float = 0.0
    """What each row adds to them."""


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
    row_past_knee_ns: float = 0.0
    """b': of each row past the knee, on top of b."""
    knee_rows: int = 0
    """P'"""

    def predict_ns(self, work: StepWork) -> int:
        """Return the time of a step, communication between workers included."""
        return round(
            self.step_ns
            + self.row_ns * work.rows
            + self.row_past_knee_ns * max(0, work.rows - self.knee_rows)
            + self.pair_prefilled_ns * work.pairs_prefilled
            + self.token_attended_ns * work.tokens_attended
            + self.sequence_ns * work.sequences
        )

    def times(self, factor: float) -> Self:
        """Return the model of hardware that takes so many times as long for everything."""
        return replace(
            self,
            step_ns=self.step_ns * factor,
            row_ns=self.row_ns * factor,
            pair_prefilled_ns=self.pair_prefilled_ns * factor,
            token_attended_ns=self.token_attended_ns * factor,
            sequence_ns=self.sequence_ns * factor,
            row_past_knee_ns=self.row_past_knee_ns * factor,
        )

    def cut(self, *, shards: int, communication: Communication) -> Self:
        """Return the model of a replica whose workers each hold one shard of what was measured.

        Every term but communication is divided evenly, which is what tensor parallelism does to
        linears and attention; a step's fixed cost on the host is not, so this is a lower bound
        until the shape itself is measured.
        """
        part = self.times(1 / shards)
        return replace(
            part,
            step_ns=part.step_ns + communication.step_ns,
            row_ns=part.row_ns + communication.row_ns,
        )
