"""The demo's requests and the files that it leaves."""

import json
from pathlib import Path
from xml.etree import ElementTree

from libs.kernel.units import NS_PER_S
from services.launcher.demo_load import StreamRecord
from services.launcher.demo_report import DemoOutcome, interrupted_answer, write_report
from services.launcher.demo_requests import DemoRequest, Protocol, demo_requests
from services.launcher.demo_strikes import STRIKES, Happening
from services.launcher.demo_timeline import HandoverSeen, ShapeSeen
from services.launcher.demo_verdict import summarise

HAPPENINGS = [
    Happening(kind=strike.kind, name="node-<1>", at_ns=2 * NS_PER_S, sessions=3)
    for strike in STRIKES
]


def records_of(requests: list[DemoRequest], *, pause_ns: int) -> list[StreamRecord]:
    return [
        StreamRecord(
            request=request,
            started_at_ns=request.arrival_ns,
            indices=[0, 1],
            token_ids=[1, 2],
            texts=["flood ", "& <tide>"],
            token_at_ns=[request.arrival_ns + 1000, request.arrival_ns + 1000 + pause_ns],
            tokens_reported=2,
            is_finished=True,
        )
        for request in requests
    ]


def an_outcome() -> DemoOutcome:
    requests = demo_requests(8, seed=1, duration_ns=4 * NS_PER_S)
    undisturbed = records_of(requests, pause_ns=1000)
    disturbed = records_of(requests, pause_ns=NS_PER_S)
    return DemoOutcome(
        summary=summarise(disturbed, undisturbed, HAPPENINGS),
        disturbed=disturbed,
        undisturbed=undisturbed,
        happenings=HAPPENINGS,
        shapes=[ShapeSeen(at_ns=NS_PER_S, shape="2 x (P2 M1)")],
        handovers=[
            HandoverSeen(at_ns=2 * NS_PER_S, weight_bytes=2**20, kv_bytes=2**21, stall_ms=4.0)
        ],
        setting="Two cores.",
    )


def test_equal_seeds_give_equal_requests_and_both_kinds_over_both_protocols() -> None:
    requests = demo_requests(48, seed=7, duration_ns=NS_PER_S)
    assert requests == demo_requests(48, seed=7, duration_ns=NS_PER_S)
    assert requests != demo_requests(48, seed=8, duration_ns=NS_PER_S)
    assert {(request.protocol, request.kind) for request in requests} == {
        (protocol, kind) for protocol in Protocol for kind in ("greedy", "seeded")
    }
    arrivals = [request.arrival_ns for request in requests]
    assert arrivals == sorted(arrivals)
    assert max(arrivals) <= NS_PER_S


def test_the_report_has_all_streams_strikes_shapes_and_numbers(tmp_path: Path) -> None:
    outcome = an_outcome()
    write_report(outcome, tmp_path / "report")
    summary = json.loads((tmp_path / "report/summary.json").read_text())
    assert summary == outcome.summary.as_dictionary()
    report = (tmp_path / "report/report.md").read_text()
    assert "Nothing was lost" in report
    assert "**node-<1> told that it ends in 30 s**" in report
    assert "serving as 2 x (P2 M1)" in report
    assert "1.0 MiB of weights and 2.0 MiB of KV moved, 4 ms of stall" in report
    assert report.count("| yes |") == 8


def test_the_plot_is_well_formed_and_marks_strikes_and_shapes(tmp_path: Path) -> None:
    write_report(an_outcome(), tmp_path)
    root = ElementTree.parse(tmp_path / "throughput.svg").getroot()
    texts = [element.text for element in root.iter() if element.text]
    assert "node-<1> killed with 3 sessions" in texts
    assert "2 x (P2 M1)" in texts


def test_the_interrupted_answer_marks_its_pause() -> None:
    shown = interrupted_answer(an_outcome())
    assert "flood  ⟂ & <tide>" in shown
    assert "a pause of 1000 ms" in shown
