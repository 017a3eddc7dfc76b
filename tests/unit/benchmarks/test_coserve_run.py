"""A run of the co-serving benchmark that was cut goes on from what it has kept."""

from pathlib import Path

import pytest

from benchmarks.coserve_rows import Overheads, RequestTimes, SliceResult
from benchmarks.coserve_run import RunFolder
from libs.engine.scheduling.tally import CoserveTally
from libs.kernel.errors import ConfigError

RESULT = SliceResult(
    requests=(
        RequestTimes(arrival_ns=5, token_at_ns=[7, 11]),
        RequestTimes(arrival_ns=6, cut_off_at_ns=90),
    ),
    tally=CoserveTally(tokens_offline=3),
    duration_ns=100,
    overheads=Overheads(copying_ns=4),
)


def test_a_slice_that_was_measured_is_found_as_it_was(tmp_path: Path) -> None:
    RunFolder(tmp_path).keep_result(1, "tideserve: + safepoints", RESULT)
    again = RunFolder(tmp_path)
    assert again.result(1, "tideserve: + safepoints") == RESULT
    assert again.result(2, "tideserve: + safepoints") is None
    assert again.result(1, "tideserve") is None


def test_a_calibration_holds_for_the_options_that_it_was_measured_with(tmp_path: Path) -> None:
    RunFolder(tmp_path).keep_calibration('{"capacity": 3.5}', options={"seed": 7})
    again = RunFolder(tmp_path)
    assert again.calibration(options={"seed": 7}) == '{"capacity": 3.5}'
    with pytest.raises(ConfigError, match="other options"):
        again.calibration(options={"seed": 8})


def test_without_a_folder_nothing_is_kept() -> None:
    nowhere = RunFolder(None)
    nowhere.keep_calibration("{}", options={})
    nowhere.keep_result(0, "tideserve", RESULT)
    assert nowhere.calibration(options={}) is None
    assert nowhere.result(0, "tideserve") is None
