"""What a person asks about: so many GPUs, so many requests a day, in such a market.

The fleet is cut into cells, as fleets of that size are run: each has its own planner, migrator and
router, its part of the nodes and of the requests, and knows nothing of the others. What all share
are the zones: when one runs short of spot capacity, every cell of its region loses nodes at once.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S
from libs.policy.model_profile import ModelProfile
from libs.policy.paper_profiles import PAPER_PROFILES
from services.simulator.spot.hardware import Hardware, hardware_of

HOUR_NS = 3_600 * NS_PER_S
GPUS_MAX = 1_000_000
REQUESTS_PER_DAY_MAX = 1e9


class Buying(StrEnum):
    """Which market the nodes come from."""

    SPOT = "spot"
    """Spot while there is some; on-demand fills in."""
    ON_DEMAND = "on-demand"
    """Nothing is ever taken away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One question; equal ones have equal answers. Raises: ConfigError naming the argument."""

    gpus: int
    """That may be rented at a time, of both markets, over all cells."""
    requests_per_day: float
    hours: float = 24.0
    peak: float = 1.5
    """Demand at its height over its mean; it follows the day."""
    cell_gpus: int = 100
    """Of one cell at most."""
    model: str = "gpt-20b"
    hardware: str = "g4dn.12xlarge"
    regions: int = 2
    zones_per_region: int = 3
    shortages_per_day: float = 24.0
    """Of spot capacity, that begin in one region in a day."""
    slo_s: float | None = None
    """From arrival to last token; None: twice what a lone typical request takes."""
    seed: int = 1

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("gpus", self.gpus, 1, GPUS_MAX),
            ("requests per day", self.requests_per_day, 1, REQUESTS_PER_DAY_MAX),
            ("hours", self.hours, 0.01, 24 * 31),
            ("peak", self.peak, 1, 2),
            ("cell GPUs", self.cell_gpus, 1, 1_024),
            ("regions", self.regions, 1, 64),
            ("zones", self.zones_per_region, 1, 16),
            ("shortages", self.shortages_per_day, 0, 1_000),
            ("SLO seconds", 1 if self.slo_s is None else self.slo_s, 0.001, 86_400),
        ):
            if not least <= value <= most:
                raise ConfigError(f"{name}: must be between {least:g} and {most:g}")
        if self.model not in PAPER_PROFILES:
            raise ConfigError(f"model: no {self.model!r}; there are {', '.join(PAPER_PROFILES)}")
        if self.nodes_per_cell * self.node.gpus_per_node < self.profile.replica_workers_min:
            raise ConfigError(
                f"gpus: {self.model} needs at least {self.profile.replica_workers_min} in each of "
                f"{self.cells} cells"
            )

    @property
    def profile(self) -> ModelProfile:
        """Of the model; its prompts come one by one."""
        return replace(PAPER_PROFILES[self.model], is_prefill_amortised=False)

    @property
    def node(self) -> Hardware:
        """What is rented."""
        return hardware_of(self.hardware)

    @property
    def cells(self) -> int:
        """Of equal size, as few as hold all GPUs."""
        return math.ceil(self.gpus / self.cell_gpus)

    @property
    def nodes_per_cell(self) -> int:
        """That one cell may rent at a time."""
        return self.gpus // self.cells // self.node.gpus_per_node

    @property
    def end_at_ns(self) -> int:
        """When the last request has come."""
        return round(self.hours * HOUR_NS)

    @property
    def requests_per_s_of_cell(self) -> float:
        """Mean over a day."""
        return self.requests_per_day / 86_400 / self.cells
