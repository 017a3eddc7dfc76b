"""What the gateway counts and shows at /metrics."""

from functools import partial

from libs.contracts.online import FinishReason
from libs.contracts.reports import Market
from libs.runtime.metrics import Metrics
from services.http_gateway.dashboard.cost import CostMeter


class Measures:
    """The gateway's metrics, with labels of bounded variety only: routes, never paths."""

    def __init__(self) -> None:
        self.metrics = Metrics(service="http_gateway")
        self.streams_open = self.metrics.gauge("streams_open", "Requests being answered")
        self.streams_broken = self.metrics.counter(
            "streams_broken", "Streams cut off after their first byte"
        )
        self.clients_gone = self.metrics.counter(
            "clients_gone", "Requests cancelled because their client went away"
        )
        self.tokens = self.metrics.counter("tokens", "Tokens received for clients")
        self.submissions_repeated = self.metrics.counter(
            "submissions_repeated", "Submissions published again because something was lost"
        )
        self.first_token_seconds = self.metrics.histogram(
            "first_token_seconds", "From the request's arrival to its first token"
        )
        self.uploads_open = self.metrics.gauge("uploads_open", "Files being uploaded")
        self.uploaded_bytes = self.metrics.counter("uploaded_bytes", "Bytes of files uploaded")
        self.is_bus_connected = self.metrics.gauge("bus_connected", "1 while the bus is there")
        self._finished = {
            reason: self.metrics.counter(
                "answers_finished", "Answers that ended well", {"reason": str(reason)}
            )
            for reason in FinishReason
        }

    def show_costs(self, costs: CostMeter) -> None:
        """Show what the dashboard reckons; every gateway reckons by itself."""
        show = self.metrics.show_gauge
        show("fleet_usd_per_hour", "the GPUs heard of, at their price", lambda: costs.usd_per_hour)
        show(
            "fleet_on_demand_usd_per_hour",
            "the same GPUs, all on demand",
            lambda: costs.on_demand_usd_per_hour,
        )
        for market in Market:
            labels = {"market": market.value}
            show("fleet_gpus", "GPUs heard of", partial(_gpus_of, costs, market), labels)
        self.metrics.show_counter("fleet_usd", "spent since the start", lambda: costs.usd)
        self.metrics.show_counter(
            "fleet_on_demand_usd", "the same, all on demand", lambda: costs.on_demand_usd
        )

    def answered(self, *, route: str, status: int) -> None:
        """Count an HTTP response."""
        labels = {"route": route, "status": str(status)}
        self.metrics.counter("responses", "HTTP responses begun", labels).inc()

    def finished(self, reason: FinishReason) -> None:
        """Count an answer that ended well."""
        self._finished[reason].inc()


def _gpus_of(costs: CostMeter, market: Market) -> float:
    return costs.gpus.get(market, 0)
