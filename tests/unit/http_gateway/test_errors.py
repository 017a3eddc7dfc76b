"""What goes wrong, as an HTTP client is told; and settings that cannot work."""

import pytest

from libs.client.errors import RequestFailedError, RequestRefused
from libs.contracts.online import FailReason, RejectReason
from libs.kernel.errors import ConfigError, Unavailable
from libs.kernel.units import NS_PER_MS
from libs.openai_api.errors import FAILURE_STATUS, REJECTION_STATUS, from_exception
from services.http_gateway.config import GatewayConfig


def test_every_reason_there_is_has_a_status() -> None:
    assert set(REJECTION_STATUS) == set(RejectReason)
    assert set(FAILURE_STATUS) == set(FailReason)


def test_a_refusal_that_may_pass_says_when_to_try_again_in_both_forms() -> None:
    refused = RequestRefused("full", reason=RejectReason.OVERLOADED, retry_after_ns=300 * NS_PER_MS)
    answer = from_exception(refused, prompt_parameter="prompt")
    assert answer.headers() == {"retry-after": "1", "retry-after-ms": "300"}
    assert answer.type == "rate_limit_error"


def test_a_refusal_for_good_says_nothing_of_trying_again() -> None:
    refused = RequestRefused("no", reason=RejectReason.INVALID, parameter="prompt_token_ids")
    answer = from_exception(refused, prompt_parameter="prompt")
    assert answer.headers() == {}
    assert answer.parameter == "prompt", "fields are named as the caller knows them"


def test_failures_and_outages_are_server_errors() -> None:
    failed = RequestFailedError("died", reason=FailReason.WORKERS_DIED)
    away = Unavailable("nobody there", retry_after_ns=1)
    for error in (failed, away):
        answer = from_exception(error, prompt_parameter="prompt")
        assert answer.status >= 500
        assert answer.type == "server_error"


@pytest.mark.parametrize(
    "setting",
    [
        {"port": -1},
        {"port": 65_536},
        {"body_bytes_max": 0},
        {"request_timeout_s": 0.0},
        {"request_timeout_s": 100_000.0},
        {"shutdown_wait_s": 0},
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(setting: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        GatewayConfig(**setting)
