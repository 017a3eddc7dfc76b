"""The command against a real fleet: both protocols, both loops, and exact token counts."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from loadgen.command import run

MODEL_FOLDER = Path(__file__).resolve().parents[3] / "models/tide-tiny"
REQUESTS = 12
LENGTHS = ("--requests", str(REQUESTS), "--prompt-tokens", "40", "--output-tokens", "16")


def assert_whole(report: dict[str, Any]) -> None:
    assert report["ok"] is True, report["reasons"]
    assert report["requests"]["ok"] == report["requests"]["offered"] == REQUESTS
    assert report["output_tokens"] == REQUESTS * 16
    assert report["prompt_tokens"] == REQUESTS * 40
    assert report["ttft_ms"]["count"] == REQUESTS
    assert report["ttft_ms"]["p50"] > 0
    # One gap less than tokens, if every token was seen as one.
    assert report["tbt_ms"]["count"] == REQUESTS * 15


def test_an_open_loop_over_nats_counts_every_token(small_fleet: Any) -> None:
    code, report = small_fleet.load(
        *("--nats", small_fleet.nats_url, "--rate", "20", "--cv", "2", *LENGTHS)
    )
    assert_whole(report)
    assert code == 0
    assert report["generator_lateness_ms"]["count"] == REQUESTS


def test_a_closed_loop_over_http_counts_every_token_and_draws_it(
    small_fleet: Any, tmp_path: Path
) -> None:
    plot = tmp_path / "load.svg"
    code, report = small_fleet.load(
        *("--http", small_fleet.http_url, "--users", "3", *LENGTHS, "--plot", str(plot)),
        *("--ttft-slo-ms", "60000", "--end-to-end-slo-ms", "60000"),
    )
    assert_whole(report)
    assert code == 0
    assert report["streams_open_most"] <= 3
    assert report["slo"]["attainment"] == 1.0
    assert ElementTree.fromstring(plot.read_text()).tag.endswith("svg")


def test_chat_is_sent_as_text_of_an_exact_length(small_fleet: Any) -> None:
    code, report = small_fleet.load(
        *("--http", small_fleet.http_url, "--endpoint", "chat", "--users", "2"),
        *("--tokenizer", str(MODEL_FOLDER), "--requests", "3", "--output-tokens", "8"),
    )
    assert code == 0, report["reasons"]
    assert report["output_tokens"] == 24


@pytest.mark.parametrize("protocol", ["nats", "http"])
def test_what_is_refused_fails_the_load_unless_it_was_allowed(
    small_fleet: Any, protocol: str
) -> None:
    url = small_fleet.nats_url if protocol == "nats" else small_fleet.http_url
    too_long = (f"--{protocol}", url, "--users", "1", "--requests", "2", "--prompt-tokens", "5000")
    code, report = small_fleet.load(*too_long)
    assert code == 1
    assert [reason["reason"] for reason in report["reasons"]] == ["context_length_exceeded"]
    code, report = small_fleet.load(*too_long, "--allow-rejected", "context_length_exceeded")
    assert code == 0
    assert report["requests"]["rejected"] == 2


def test_nobody_at_the_address_is_exit_code_69(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "--rate", "5", "--nats", "nats://127.0.0.1:1"]) == 69
    assert capsys.readouterr().err.startswith("loadgen: ")
