"""What every verb of `tideserve batch` takes: which gateway it asks, for whom, printed how."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from services.launcher.batch_api import BatchApi
from services.launcher.options import AsJson, DataFolder
from services.launcher.state_file import DEFAULT_DATA_FOLDER, find_http_url

OwnP = ParamSpec("OwnP")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The gateway that a verb asks, and how it prints what it is told."""

    url: Annotated[
        str | None, typer.Option("--url", help="Gateway; else $TIDESERVE_HTTP_URL or the fleet's.")
    ] = None
    tenant: Annotated[str, typer.Option(help="On whose behalf; sees that one's batches only.")] = ""
    api_key: Annotated[
        str, typer.Option(envvar="TIDESERVE_API_KEY", help="If the gateway asks for one.")
    ] = ""
    data_folder: DataFolder = DEFAULT_DATA_FOLDER
    is_json: AsJson = False

    def api(self) -> BatchApi:
        """Return its API. Raises: ConfigError."""
        url = find_http_url(self.url, self.data_folder)
        return BatchApi(url, tenant=self.tenant, api_key=self.api_key)


SHARED = tuple(inspect.signature(Gateway).parameters.values())


def takes_gateway(command: Callable[Concatenate[Gateway, OwnP], None]) -> Callable[..., None]:
    """Put the shared options in the place of the command's first parameter, the gateway."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        gateway = Gateway(**{shared.name: arguments.pop(shared.name) for shared in SHARED})
        command(gateway, **arguments)  # type: ignore[call-arg]

    _, *own = inspect.signature(command).parameters.values()
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    # What typer reads; wraps() alone would show it the gateway.
    run.__signature__ = inspect.Signature([*parameters, *SHARED])  # type: ignore[attr-defined]
    return run
