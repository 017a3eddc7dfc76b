"""The command line of loadgen: its options, grouped as `--help` shows them."""

import argparse
from pathlib import Path
from typing import NoReturn

from libs.kernel.errors import ConfigError
from loadgen.clients.over_http import Endpoint
from loadgen.options import DEFAULT_NATS, RunOptions
from loadgen.traces.scenarios import SCENARIOS

EPILOG = """\
Exit codes: 0 every request ended ok or was rejected as allowed; 1 one did not; 64 a mistake in the
options or a file; 69 nobody answers at the address; 70 a bug of ours; 130 interrupted.

examples:
  python -m loadgen run --rate 5 --requests 200 --ttft-slo-ms 500
  python -m loadgen run --http http://127.0.0.1:8000 --users 8 --duration-s 60 --plot load.svg
  python -m loadgen run --trace trace.jsonl --prompt-divisor 32 --speed 4 --json -
  python -m loadgen trace A_S
"""
OUTPUT_OPTIONS = ("command", "json", "plot", "quiet")


class ArgumentParser(argparse.ArgumentParser):
    """Tells a mistake as a ConfigError, which the process ends with as all others do."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(message)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = ArgumentParser(
        prog="python -m loadgen",
        description="Sends load to a fleet over NATS or HTTP, and checks every answer.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="send requests and report",
        description="Send requests in an open loop, or a closed one with --users, and report.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for add in (_add_target, _add_arrivals, _add_lengths, _add_bounds, _add_verdict, _add_output):
        add(run)
    trace = commands.add_parser("trace", help="tell what a trace file or a scenario holds")
    names = ", ".join(SCENARIOS)
    trace.add_argument("trace", metavar="FILE", help=f"a trace, or one of {names}")
    trace.add_argument("--seed", type=int, default=0, help="chooses nodes that no trace names")
    trace.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser


def run_options(arguments: argparse.Namespace) -> RunOptions:
    """Return the options of `run`. Raises: ConfigError."""
    given = {name: value for name, value in vars(arguments).items() if name not in OUTPUT_OPTIONS}
    return RunOptions(**{**given, "allow_rejected": tuple(arguments.allow_rejected)})


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where to")
    group.add_argument("--nats", metavar="URL", help=f"send over NATS; {DEFAULT_NATS} if no --http")
    group.add_argument("--http", metavar="URL", help="send to this OpenAI-compatible server")
    group.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="with --http: the key that it asks for"
    )
    group.add_argument("--model", default="tide-tiny", help="name or alias")
    group.add_argument(
        "--endpoint",
        type=Endpoint,
        choices=list(Endpoint),
        default=Endpoint.COMPLETIONS,
        help="API over HTTP; chat takes text alone",
    )
    group.add_argument(
        "--allow-remote", action="store_true", help="permit an address other than this machine's"
    )


def _add_arrivals(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("when")
    group.add_argument("--rate", type=float, metavar="PER_S", help="mean requests per second")
    group.add_argument(
        "--cv", type=float, default=1.0, help="of the gaps: 0 even, 1 Poisson, else gamma"
    )
    group.add_argument(
        "--burst-rate", type=float, metavar="PER_S", help="rate within bursts; --rate between them"
    )
    group.add_argument("--burst-s", type=float, default=5.0, help="length of a burst")
    group.add_argument("--quiet-s", type=float, default=20.0, help="time between bursts")
    group.add_argument("--rates", type=Path, metavar="FILE", help="a table of rates, a minute each")
    group.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="recorded requests; with --rate or --rates only their lengths and prefixes",
    )
    group.add_argument("--speed", type=float, default=1.0, help="replays this many times as fast")
    group.add_argument("--users", type=int, metavar="N", help="a closed loop of N users instead")
    group.add_argument("--think-ms", type=float, default=0.0, help="a user's pause after an answer")


def _add_lengths(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what")
    group.add_argument("--lengths", type=Path, metavar="FILE", help="draw lengths from this table")
    group.add_argument("--prompt-tokens", type=int, default=64, help="of every prompt, else")
    group.add_argument("--output-tokens", type=int, default=32, help="of every answer, else")
    group.add_argument("--prompt-divisor", type=int, default=1, help="shrinks prompts and prefixes")
    group.add_argument("--output-divisor", type=int, default=1, help="shrinks answers")
    group.add_argument("--prompt-tokens-max", type=int, metavar="N", help="cuts longer prompts")
    group.add_argument("--output-tokens-max", type=int, metavar="N", help="cuts longer answers")
    group.add_argument("--token-id-min", type=int, default=16, help="prompts use ids from this")
    group.add_argument("--token-id-max", type=int, default=2047, help="to this")
    group.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="send text: a tokenizer.json or its folder"
    )
    group.add_argument("--temperature", type=float, default=0.0, help="of the sampling")
    group.add_argument(
        "--stop-at-end-token", action="store_true", help="answers may be shorter than asked for"
    )


def _add_bounds(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how much")
    group.add_argument("--requests", type=int, default=100, help="send no more than this")
    group.add_argument("--duration-s", type=float, metavar="S", help="send nothing after this long")
    group.add_argument(
        "--streams-open-max", type=int, default=1000, help="arrivals beyond are counted as unsent"
    )
    group.add_argument(
        "--request-timeout-s", type=float, default=120.0, help="then a request has failed"
    )
    group.add_argument("--seed", type=int, default=0, help="of arrivals, lengths and prompts")


def _add_verdict(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is good")
    group.add_argument("--ttft-slo-ms", type=float, metavar="MS", help="time to first token")
    group.add_argument("--tpot-slo-ms", type=float, metavar="MS", help="mean time per later token")
    group.add_argument("--tbt-slo-ms", type=float, metavar="MS", help="longest gap between tokens")
    group.add_argument("--end-to-end-slo-ms", type=float, metavar="MS", help="whole answer")
    group.add_argument(
        "--allow-rejected",
        action="append",
        default=[],
        metavar="REASON",
        help="a rejection that is no failure, e.g. overloaded; may be repeated",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report")
    group.add_argument("--json", metavar="FILE", help="write it as JSON; - prints it, and no table")
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw it as SVG")
    group.add_argument("--quiet", action="store_true", help="show no progress")
