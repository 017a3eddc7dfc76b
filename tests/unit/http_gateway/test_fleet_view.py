"""Which models the gateway shows, as reports come, stop and come back."""

from libs.contracts.reports import GatewayReport, RouterReport, WorkerReport
from libs.kernel.units import NS_PER_S
from services.http_gateway.fleet_view import FleetView


class Listener:
    """A view and the reports that it hears, one second after another."""

    def __init__(self) -> None:
        self.view = FleetView(gateway_id="gateway-1")
        self.now_ns = 0

    def hear(self, *reports: WorkerReport | RouterReport | GatewayReport) -> None:
        for report in reports:
            self.view.take(report, now_ns=self.now_ns, now_unix_ns=self.now_ns + 7)

    def pass_seconds(self, count: int, *reports: WorkerReport | RouterReport) -> None:
        for _ in range(count):
            self.now_ns += NS_PER_S
            self.hear(*reports, own_report())

    @property
    def aliases(self) -> list[str]:
        return [model.alias for model in self.view.models()]


def own_report(gateway_id: str = "gateway-1") -> GatewayReport:
    return GatewayReport(
        gateway_id=gateway_id, beat=0, process_id=1, http_url="http://x", streams_open=0
    )


def a_router() -> RouterReport:
    return RouterReport(
        router_id="router-1",
        beat=0,
        journal_id="router-1-1",
        process_id=1,
        sessions_open=0,
        sessions_accepted=0,
    )


def a_worker(
    worker_id: str = "worker-1", *, alias: str = "tiny", context: int = 64
) -> WorkerReport:
    return WorkerReport(
        worker_id=worker_id,
        beat=0,
        alias=alias,
        process_id=1,
        context_tokens_max=context,
        vocabulary_size=10,
        block_tokens=16,
        blocks_total=4,
        blocks_free=4,
        sessions_running=0,
        sessions_waiting=0,
        tokens_waiting=0,
        tokens_generated=0,
        steps=0,
        step_ms_recent=0.0,
    )


def test_models_are_what_workers_report_with_the_longest_context() -> None:
    listener = Listener()
    listener.hear(a_worker("w1"), a_worker("w2", context=128), a_worker("w3", alias="big"))
    [big, tiny] = listener.view.models()
    assert (big.alias, tiny.alias) == ("big", "tiny")
    assert tiny.context_tokens_max == 128
    assert tiny.first_heard_at_unix_ns == 7


def test_a_worker_silent_for_five_seconds_no_longer_serves_its_model() -> None:
    listener = Listener()
    listener.hear(a_worker())
    listener.pass_seconds(4)
    assert listener.aliases == ["tiny"]
    listener.pass_seconds(1)
    assert listener.aliases == []
    listener.hear(a_worker())
    assert listener.aliases == ["tiny"]


def test_a_model_whose_workers_are_gone_is_still_known() -> None:
    listener = Listener()
    listener.hear(a_worker())
    listener.pass_seconds(60)
    assert listener.aliases == []
    assert listener.view.is_known("tiny")
    assert not listener.view.is_known("never-heard")


def test_while_the_broker_is_away_nobody_is_silent() -> None:
    listener = Listener()
    listener.hear(a_worker(), a_router())
    listener.pass_seconds(2, a_worker(), a_router())
    listener.now_ns += 60 * NS_PER_S
    assert listener.aliases == ["tiny"]
    listener.hear(own_report())
    assert listener.aliases == ["tiny"], "after an outage peers get time to come back"
    assert listener.view.has_router
    listener.pass_seconds(10)
    assert listener.aliases == []


def test_another_gateways_report_is_no_echo() -> None:
    listener = Listener()
    listener.hear(a_worker())
    for _ in range(20):
        listener.now_ns += NS_PER_S
        listener.hear(own_report("gateway-2"))
    assert listener.aliases == ["tiny"]


def test_a_router_that_falls_silent_is_no_longer_there() -> None:
    listener = Listener()
    assert not listener.view.has_router
    listener.hear(a_router())
    assert listener.view.has_router
    listener.pass_seconds(10)
    assert not listener.view.has_router
    assert not listener.view.has_heard_workers
