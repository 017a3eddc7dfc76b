"""Compares a disturbed run with the undisturbed one, token for token."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from libs.kernel.ranks import nearest_rank
from libs.kernel.units import NS_PER_S, milliseconds
from services.launcher.demo_load import StreamRecord
from services.launcher.demo_requests import Protocol
from services.launcher.demo_strikes import STRIKES, Happening, StrikeKind, count


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamVerdict:
    """How one answer of the disturbed run compares with its undisturbed twin."""

    is_lost: bool
    duplicated_tokens: int
    changed_tokens: int

    @property
    def is_equal(self) -> bool:
        """Whether the client could not tell the runs apart."""
        return not (self.is_lost or self.duplicated_tokens or self.changed_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """demo_report/summary.json. What this version does not do yet is counted as 0."""

    ok: bool
    requests_online: int
    requests_offline: int
    lost: int
    duplicated_tokens: int
    changed_tokens: int
    preemptions_with_notice: int
    kills_without_notice: int
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float

    def as_dictionary(self) -> dict[str, Any]:
        """Return the fields in their order."""
        return asdict(self)


def compare(disturbed: StreamRecord, undisturbed: StreamRecord) -> StreamVerdict:
    """Compare ids over NATS and text over HTTP, which carries no ids."""
    if not disturbed.is_finished or disturbed.error is not None:
        return StreamVerdict(is_lost=True, duplicated_tokens=0, changed_tokens=0)
    if disturbed.request.protocol is Protocol.HTTP:
        return _compare_texts(disturbed, undisturbed)
    duplicated = len(disturbed.indices) - len(set(disturbed.indices))
    return StreamVerdict(
        is_lost=False,
        duplicated_tokens=duplicated,
        changed_tokens=_differences(disturbed.token_ids, undisturbed.token_ids),
    )


def summarise(
    disturbed: Sequence[StreamRecord],
    undisturbed: Sequence[StreamRecord],
    happenings: Sequence[Happening],
) -> Summary:
    """Count over all streams.

    `ok` means that nothing was lost, doubled or changed, although every strike took place: a run
    in which no victim with sessions could be found proves nothing.
    """
    assert len(disturbed) == len(undisturbed)
    verdicts = [compare(*pair) for pair in zip(disturbed, undisturbed, strict=True)]
    ttfts = sorted(record.ttft_ns for record in disturbed if record.ttft_ns is not None)
    return Summary(
        ok=len(happenings) == len(STRIKES) and all(verdict.is_equal for verdict in verdicts),
        requests_online=len(disturbed),
        requests_offline=0,
        lost=sum(verdict.is_lost for verdict in verdicts),
        duplicated_tokens=sum(verdict.duplicated_tokens for verdict in verdicts),
        changed_tokens=sum(verdict.changed_tokens for verdict in verdicts),
        preemptions_with_notice=count(happenings, StrikeKind.PREEMPT_NODE),
        kills_without_notice=count(happenings, StrikeKind.KILL_NODE, StrikeKind.KILL_ROUTER),
        tokens_per_s=round(tokens_per_s(disturbed), 1),
        ttft_p50_ms=round(milliseconds(quantile(ttfts, 0.50)), 1),
        ttft_p99_ms=round(milliseconds(quantile(ttfts, 0.99)), 1),
    )


def tokens_per_s(records: Sequence[StreamRecord]) -> float:
    """Tokens over the time from the first request to the last token."""
    ends = [record.token_at_ns[-1] for record in records if record.token_at_ns]
    if not ends:
        return 0.0
    span_ns = max(ends) - min(record.started_at_ns for record in records)
    tokens = sum(record.tokens_reported or len(record.token_at_ns) for record in records)
    return tokens * NS_PER_S / max(1, span_ns)


def quantile(ordered: Sequence[int], fraction: float) -> int:
    """Return the smallest value that at least this fraction of them does not exceed; 0 if none."""
    if not ordered:
        return 0
    return ordered[nearest_rank(fraction, count=len(ordered))]


def _compare_texts(disturbed: StreamRecord, undisturbed: StreamRecord) -> StreamVerdict:
    expected = undisturbed.tokens_reported or 0
    surplus = max(0, (disturbed.tokens_reported or 0) - expected)
    is_equal = disturbed.text == undisturbed.text and disturbed.tokens_reported == expected
    # A piece of text may stand for several tokens: the pieces that differ are a lower bound.
    differing = max(1, _differences(disturbed.texts, undisturbed.texts))
    return StreamVerdict(
        is_lost=False, duplicated_tokens=surplus, changed_tokens=0 if is_equal else differing
    )


def _differences(left: Sequence[object], right: Sequence[object]) -> int:
    """Positions at which the two differ; what only one of them has differs."""
    shared = sum(a != b for a, b in zip(left, right, strict=False))
    return shared + abs(len(left) - len(right))
