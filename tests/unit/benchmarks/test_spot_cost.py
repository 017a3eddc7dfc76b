"""A fleet on demand is judged by the same SLO as the spot fleet, and paid for whole."""

from dataclasses import replace
from pathlib import Path

from benchmarks.provenance import provenance
from benchmarks.spot_cost import FleetFigures, Row, figures_of, keep, rows_kept, slo_of
from libs.kernel.units import NS_PER_S
from services.simulator.spot.run import run_spot
from services.simulator.spot.setting import PolicyName, Setting, run_options


def test_the_slo_is_twice_what_table_1_gives_for_one_request() -> None:
    expected = {"opt-6.7b": 5.447, "gpt-20b": 14.373, "llama-30b": 17.540}
    for model, alone_s in expected.items():
        assert abs(slo_of(model) / NS_PER_S - 2 * alone_s) < 0.002


def test_an_on_demand_fleet_is_paid_for_from_beginning_to_end() -> None:
    setting = Setting(policy=PolicyName.TIDESERVE, model="opt-6.7b", on_demand_nodes=3)
    options = run_options(setting)
    trace = replace(options.trace, end_at_ns=60 * NS_PER_S, on_demand_node_ns=3 * 60 * NS_PER_S)
    run = run_spot(replace(options, trace=trace, arrivals=options.arrivals[:20]))
    figures = figures_of(run, slo_ns=slo_of("opt-6.7b"))
    assert (figures.nodes, figures.nodes_on_demand, figures.failed) == (3, 3, 0)
    tokens = figures.requests * 640
    assert abs(figures.usd_per_1k_tokens * tokens / 1_000 - 3 * 3.912 * 60 / 3_600) < 1e-6
    assert figures_of(run, slo_ns=1).attainment == 0.0


def test_a_cut_run_goes_on_from_its_record_and_never_from_another_commits(tmp_path: Path) -> None:
    fleet = FleetFigures(
        nodes=6, nodes_on_demand=0, requests=400, failed=0, attainment=1, usd_per_1k_tokens=0.03
    )
    row = Row(
        model="gpt-20b", trace="A_S", arrivals="poisson", requests_per_s=0.35, nodes_extra=0,
        seed=1, slo_s=28.75, spot=replace(fleet, usd_per_1k_tokens=0.015), on_demand=fleet,
        on_demand_one_less=None,
    )  # fmt: skip
    record = tmp_path / "record.json"
    assert rows_kept(record, commit="abc") == {}
    keep([row], record)
    here = str(provenance("")["commit"])
    text = record.read_text().replace(f'"{here}"', '"abc"')
    record.write_text(text)
    assert rows_kept(record, commit="abc") == {("gpt-20b", "A_S", 0.35, 0, 1): row}
    assert rows_kept(record, commit="abcd") == {}
    record.write_text(text.replace('"abc"', '"abc-dirty"'))
    assert rows_kept(record, commit="abc-dirty") == {}
