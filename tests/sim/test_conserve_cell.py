"""A cell of the simulated comparison with ConServe: the load that it finds."""

from benchmarks.conserve_cell import BUSY_SHARE_ERROR_MAX, CellOptions, measure_cell
from benchmarks.conserve_load import ConserveLoad
from services.simulator.coserve.h100 import MODELS


def test_online_work_alone_keeps_the_engine_as_busy_as_was_asked() -> None:
    # Decodes of few sequences at a time: far from the full steps that the search begins with.
    load = ConserveLoad(workload="mooncake", requests=6)
    options = CellOptions(model=MODELS["llama-2-7b"], load=load, policies=(), busy_share=0.5)
    (alone,) = measure_cell(options, report=lambda _: None).results
    assert abs(0.5 / alone.outcome.busy_share - 1) <= BUSY_SHARE_ERROR_MAX
