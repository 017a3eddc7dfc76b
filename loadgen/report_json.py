"""The report as JSON. Field names end in their unit; the head says how percentiles are taken."""

from collections.abc import Mapping
from typing import Final, TypeAlias

from libs.kernel.units import milliseconds, seconds
from loadgen.records import Outcome
from loadgen.report import Distribution, Report

JsonObject: TypeAlias = dict[str, object]
REPORT_TYPE: Final = "loadgen_report.v1"
DECIMALS: Final = 3


def report_object(
    report: Report, *, options: Mapping[str, object], started_at_unix_ns: int, is_ok: bool
) -> JsonObject:
    """Return the report with the options that made it, ready for `json.dumps`."""
    return {
        "type": REPORT_TYPE,
        "ok": is_ok,
        "started_at_unix_ns": started_at_unix_ns,
        "options": dict(options),
        "percentile_method": "nearest_rank",
        "latencies_of": "requests that ended ok",
        "duration_s": round(seconds(report.duration_ns), DECIMALS),
        "interrupted": report.is_interrupted,
        "requests": {
            "offered": report.requests_offered,
            "sent": report.requests_sent,
            "unsent": report.requests_unsent,
            **{outcome.value: report.requests[outcome] for outcome in Outcome},
        },
        "reasons": [
            {
                "outcome": reason.outcome.value,
                "reason": reason.reason,
                "count": reason.count,
                "example": reason.example,
                "example_request_id": reason.request_id,
            }
            for reason in report.reasons
        ],
        "prompt_tokens": report.prompt_tokens,
        "output_tokens": report.output_tokens,
        "ok_requests_per_s": _rate(report, report.requests[Outcome.OK]),
        "output_tokens_per_s": _rate(report, report.output_tokens),
        "ttft_ms": distribution_object(report.ttft),
        "tbt_ms": distribution_object(report.tbt),
        "tpot_ms": distribution_object(report.tpot),
        "end_to_end_ms": distribution_object(report.end_to_end),
        "generator_lateness_ms": distribution_object(report.lateness),
        "streams_open_most": report.streams_open_most,
        "slo": _slo_object(report),
    }


def distribution_object(values: Distribution) -> JsonObject:
    """Return a distribution in milliseconds; without any value, only its count of 0."""
    if not values.count:
        return {"count": 0}
    return {
        "count": values.count,
        "mean": _ms(values.mean_ns),
        "p50": _ms(values.p50_ns),
        "p90": _ms(values.p90_ns),
        "p95": _ms(values.p95_ns),
        "p99": _ms(values.p99_ns),
        "max": _ms(values.max_ns),
    }


def _slo_object(report: Report) -> JsonObject:
    slo = report.slo
    limits = {
        "ttft_ms": slo.ttft_ns,
        "tpot_ms": slo.tpot_ns,
        "tbt_ms": slo.tbt_ns,
        "end_to_end_ms": slo.end_to_end_ns,
    }
    return {
        **{name: None if limit is None else _ms(limit) for name, limit in limits.items()},
        "requests_in_slo": report.requests_in_slo,
        "attainment": round(report.attainment, 6),
        "goodput_requests_per_s": _rate(report, report.requests_in_slo),
        "goodput_tokens_per_s": _rate(report, report.output_tokens_in_slo),
    }


def _ms(value_ns: int) -> float:
    return round(milliseconds(value_ns), DECIMALS)


def _rate(report: Report, count: int) -> float:
    return round(report.per_s(count), DECIMALS)
