"""What the shell offers behind Tab: nodes and processes of the fleet that runs from the folder."""

from pathlib import Path

import typer

from services.launcher.state_file import DEFAULT_DATA_FOLDER, FleetState


def node_ids(context: typer.Context, incomplete: str) -> list[str]:
    """Return the nodes of the running fleet that begin so; none if there is no fleet."""
    state = _state(context)
    return [] if state is None else _beginning(state.node_ids, incomplete)


def entity_ids(context: typer.Context, incomplete: str) -> list[str]:
    """Return nodes and processes alike."""
    state = _state(context)
    names = [] if state is None else [*state.node_ids, *sorted(state.process_ids)]
    return _beginning(names, incomplete)


def _state(context: typer.Context) -> FleetState | None:
    folder = context.params.get("data_folder") or DEFAULT_DATA_FOLDER
    return FleetState.read(Path(folder))


def _beginning(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
