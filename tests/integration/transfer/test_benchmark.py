"""The benchmark measures what it says, between real processes."""

from benchmarks.transfer import BenchmarkOptions, measure
from libs.kernel.units import MIB


def test_each_path_over_each_transport_has_a_row_with_its_ratio() -> None:
    options = BenchmarkOptions(transports=("tcp", "loopback"), sizes=(4 * MIB,), turns=1)
    shown: list[str] = []
    record = measure(options, report=shown.append)
    rows = record["rows"]
    assert isinstance(rows, list)
    assert [(row["transport"], row["path"], row["messages"]) for row in rows] == [
        ("tcp", "socket", 1),
        ("tcp", "reference", 1),
        ("tcp", "transfer", 1),
        ("tcp", "block_pieces", 1),
        ("loopback", "reference", 1),
        ("loopback", "transfer", 1),
        ("loopback", "block_pieces", 1),
    ]
    assert all(row["gb_s"] > 0 for row in rows)
    assert [row["ratio_to_reference"] is None for row in rows if row["path"] == "reference"]
    assert all(row["ratio_to_reference"] > 0 for row in rows if row["path"] == "transfer")
    assert len(shown) == 2
    assert record["commit"]
