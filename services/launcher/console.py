"""How the command speaks: results on stdout, progress on stderr, JSON where asked for."""

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from rich.console import Console

PIPE_COLUMNS: Final = 200
"""Tables that go into a pipe or a file are not squeezed to a terminal's 80 columns."""
RESULTS: Final = Console(
    highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_COLUMNS
)
PROGRESS: Final = Console(stderr=True, highlight=False, soft_wrap=True)


def working(text: str) -> AbstractContextManager[object]:
    """Show a person that something long is under way, until the block is left."""
    return PROGRESS.status(_plain(text)) if PROGRESS.is_terminal else nullcontext()


def say(line: str) -> None:
    """Tell a person what happens; never part of a result."""
    PROGRESS.print(f"[cyan]tide[/cyan]  {_plain(line)}")


def show_error(line: str) -> None:
    """Report a failure in one line."""
    PROGRESS.print(f"[red]tideserve:[/red] {_plain(line)}")


def show(text: str) -> None:
    """Print a part of the result as it is, in one or more lines."""
    RESULTS.print(text, markup=False)


def show_piece(text: str) -> None:
    """Print a piece of a running line at once."""
    RESULTS.file.write(text)
    RESULTS.file.flush()


def show_json(result: Mapping[str, Any]) -> None:
    """Print the result as one line of JSON."""
    RESULTS.file.write(json.dumps(result) + "\n")
    RESULTS.file.flush()


def _plain(line: str) -> str:
    """Keep square brackets as they are; rich would read them as markup."""
    return line.replace("[", "\\[")
