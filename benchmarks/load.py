"""`tideserve bench load`: the load generator, aimed at the fleet that runs here."""

from collections.abc import Sequence

from loadgen.command import run


def main(arguments: Sequence[str]) -> int:
    """Run `python -m loadgen run` with these arguments and return its exit code."""
    return run(["run", *arguments])
