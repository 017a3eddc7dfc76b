"""Options that several commands take, each said once."""

from pathlib import Path
from typing import Annotated

import typer

NatsUrl = Annotated[
    str | None, typer.Option("--nats", help="Broker; else $TIDESERVE_NATS_URL or the fleet's.")
]
DataFolder = Annotated[Path, typer.Option("--data-dir", help="The fleet's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
