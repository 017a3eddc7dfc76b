"""What the fleet costs: price by market times the GPUs heard of, summed over time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from libs.contracts.reports import Market
from libs.kernel.units import NS_PER_S

NS_PER_HOUR: Final = 3_600 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars for one GPU and hour."""

    spot_usd: float
    on_demand_usd: float

    def usd_per_hour(self, gpus: Mapping[Market, int]) -> float:
        """What these GPUs cost in an hour."""
        spot = gpus.get(Market.SPOT, 0)
        return spot * self.spot_usd + gpus.get(Market.ON_DEMAND, 0) * self.on_demand_usd


class CostMeter:
    """Adds up since its start. While nobody is heard the last known GPUs go on to cost."""

    def __init__(self, prices: Prices) -> None:
        self.usd = 0.0
        self.on_demand_usd = 0.0
        self.usd_per_hour = 0.0
        self.on_demand_usd_per_hour = 0.0
        self.elapsed_ns = 0
        self.gpus: Mapping[Market, int] = {}
        """Heard of at the last look."""
        self._prices = prices
        self._advanced_at_ns: int | None = None

    def advance(self, gpus: Mapping[Market, int], *, now_ns: int) -> None:
        """Charge the time since the last call at the rates of then; take the rates of now."""
        if self._advanced_at_ns is not None:
            passed_ns = now_ns - self._advanced_at_ns
            hours = passed_ns / NS_PER_HOUR
            self.usd += self.usd_per_hour * hours
            self.on_demand_usd += self.on_demand_usd_per_hour * hours
            self.elapsed_ns += passed_ns
        self._advanced_at_ns = now_ns
        self.gpus = gpus
        self.usd_per_hour = self._prices.usd_per_hour(gpus)
        self.on_demand_usd_per_hour = sum(gpus.values()) * self._prices.on_demand_usd

    @property
    def saved_percent(self) -> float | None:
        """Of what the same GPUs would have cost on demand; None before anything did."""
        if self.on_demand_usd == 0.0:
            return None
        return 100 * (1 - self.usd / self.on_demand_usd)
