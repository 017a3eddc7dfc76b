"""The command tells mistakes in one line, and keeps a load on this machine."""

import json
from itertools import islice
from pathlib import Path

import pytest

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S
from loadgen.address import is_loopback, require_allowed
from loadgen.arguments import argument_parser, run_options
from loadgen.arrivals import measure_arrivals
from loadgen.clients.over_http import Endpoint
from loadgen.command import run
from loadgen.options import RunOptions
from loadgen.plan import planned
from loadgen.workload import LoadRequest

REPOSITORY = Path(__file__).resolve().parents[3]


def options_of(*arguments: str) -> RunOptions:
    return run_options(argument_parser().parse_args(["run", *arguments]))


def first(options: RunOptions, count: int) -> list[LoadRequest]:
    return list(islice(planned(options).requests, count))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_is_known_by_its_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1:8000",
        "http://example.test",
        "http://127.0.0.1.example.test",
        "http://localhost@10.0.0.1",
        "nats://127.0.0.1:4222,nats://10.0.0.1:4222",
        "http://[2001:db8::1]:80",
        "http://127.1:80",
    ],
)
def test_an_address_elsewhere_needs_an_explicit_word(url: str) -> None:
    with pytest.raises(ConfigError, match="--allow-remote"):
        require_allowed(url, option="--http", is_remote_allowed=False)
    require_allowed(url, option="--http", is_remote_allowed=True)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "http://", "http://[::1", ","])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--http"):
        require_allowed(url, option="--http", is_remote_allowed=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "open loop"),
        (["--rate", "0"], "rate"),
        (["--rate", "fast"], "--rate"),
        (["--rate", "5", "--users", "3"], "--users"),
        (["--rate", "5", "--rates", "f"], "--rates"),
        (["--burst-rate", "5", "--users", "1"], "--burst-rate"),
        (["--rate", "5", "--cv", "-1"], "cv"),
        (["--rate", "5", "--http", "http://127.0.0.1", "--nats", "nats://127.0.0.1"], "one of"),
        (["--rate", "5", "--http", "http://10.1.2.3"], "--allow-remote"),
        (["--rate", "5", "--endpoint", "chat"], "--endpoint chat"),
        (["--rate", "5", "--http", "http://127.0.0.1", "--endpoint", "chat"], "--tokenizer"),
        (["--rate", "5", "--tokenizer", "nowhere.json"], "--tokenizer"),
        (["--trace", "nowhere.csv"], "nowhere.csv"),
        (["--trace", "a", "--lengths", "b"], "--lengths"),
        (["--rate", "5", "--requests", "0"], "requests"),
        (["--rate", "5", "--ttft-slo-ms", "0"], "ttft slo"),
        (["--rate", "5", "--prompt-divisor", "0"], "divisor"),
        (["--rate", "5", "--speed", "0"], "speed"),
        (["--rate", "5", "--token-id-max", "3"], "token ids"),
        (["--rate", "5", "--nonsense"], "--nonsense"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_64(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", *arguments]) == 64
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_help_names_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert run(["run", "--help"]) == 0
    told = capsys.readouterr().out
    for words in ("64 a mistake", "--allow-rejected", "--plot", "--tpot-slo-ms"):
        assert words in told


def test_a_scenario_is_told_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "A_S", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["nodes_from_s"][:2] == [[0.0, 7], [240.0, 8]]
    assert told["node_hours"] == 3.25


def test_a_broken_trace_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.csv"
    path.write_text("0,add,a\n1,add,a\n")
    assert run(["trace", str(path)]) == 64
    assert "broken.csv:2: a is added but is there already" in capsys.readouterr().err


def test_options_given_and_defaults_of_the_command_are_those_of_the_value() -> None:
    assert options_of("--rate", "5") == RunOptions(rate=5.0)
    given = options_of("--rate", "5", "--allow-rejected", "overloaded", "--endpoint", "completions")
    assert given.allow_rejected == ("overloaded",)
    assert given.endpoint is Endpoint.COMPLETIONS
    assert json.dumps(given.as_object())


def test_a_cv_chooses_the_shape_of_the_arrivals() -> None:
    def cv_of(cv: str) -> float:
        made = first(options_of("--rate", "50", "--cv", cv, "--prompt-tokens", "1"), 1_500)
        return measure_arrivals([one.arrival_ns for one in made]).cv

    assert cv_of("0") < 1e-6
    assert cv_of("1") == pytest.approx(1.0, rel=0.1)
    assert cv_of("3") == pytest.approx(3.0, rel=0.25)


def test_arrivals_may_replace_those_of_a_trace_and_keep_its_lengths(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    row = '{"timestamp": %d, "input_length": %d, "output_length": 3, "hash_ids": [1]}\n'
    path.write_text("".join(row % (at * 1000, 10 + at) for at in range(5)))
    recorded = first(options_of("--trace", str(path), "--speed", "2"), 9)
    assert [one.arrival_ns for one in recorded] == [at * NS_PER_S // 2 for at in range(5)]
    replaced = first(options_of("--trace", str(path), "--rate", "10", "--cv", "0"), 9)
    assert [one.arrival_ns for one in replaced] == [(at + 1) * NS_PER_S // 10 for at in range(5)]
    assert [len(one.prompt) for one in replaced] == [10, 11, 12, 13, 14]
    assert replaced[0].prompt[:10] == replaced[1].prompt[:10]


def test_a_table_of_rates_ends_the_load_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("0.5,0,1.0\n")
    made = first(options_of("--rates", str(path), "--cv", "0"), 10**6)
    assert len(made) == 89
    assert made[-1].arrival_ns < 180 * NS_PER_S


def test_text_prompts_are_exact_for_the_bundled_tokenizer() -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="counts the tokens of the text")
    folder = REPOSITORY / "models/tide-tiny"
    made = first(options_of("--rate", "5", "--tokenizer", str(folder), "--prompt-tokens", "77"), 3)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    counts = [len(tokenizer.encode(one.prompt, add_special_tokens=False).ids) for one in made]
    assert counts == [77, 77, 77]
    assert made[0].prompt != made[1].prompt
