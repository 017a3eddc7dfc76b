"""Which model a fleet serves: the bundled one, a local folder, or an id of the Hugging Face hub."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import services
from libs.contracts.subjects import alias_of
from libs.engine.model_config import VariantNotSupported, read_model_config
from libs.kernel.errors import ConfigError

BUNDLED_MODEL: Final = "tide-tiny"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model folder on this machine and the alias under which clients ask for it."""

    folder: Path
    alias: str


def bundled_model() -> ModelSource:
    """Return the tiny model that comes with TideServe.

    `models/` lies beside the package `services` in a checkout and in an installed wheel alike.
    """
    assert services.__file__ is not None
    folder = Path(services.__file__).resolve().parents[1] / "models" / BUNDLED_MODEL
    return _checked(folder, alias=BUNDLED_MODEL)


def find_model(name: str | None) -> ModelSource:
    """Resolve what the user wrote after --model; an id of the hub is downloaded once, here.

    Raises: ConfigError for a folder that is missing, no model folder or of a family that is not
    served, or an unknown id.
    """
    if name is None or name == BUNDLED_MODEL:
        return bundled_model()
    folder = Path(name).expanduser()
    if folder.exists():
        return _checked(folder.resolve(), alias=alias_of(folder.resolve().name))
    if is_hub_id(name):
        return _checked(_download(name), alias=alias_of(name.rpartition("/")[2]))
    raise ConfigError(f"--model: there is no folder {name}, and it is no id of the form owner/name")


def is_hub_id(name: str) -> bool:
    """Whether this has the form owner/name."""
    return _HUB_ID.match(name) is not None


def _checked(folder: Path, *, alias: str) -> ModelSource:
    """Refuse here, at once, what every worker would refuse after loading its libraries."""
    try:
        read_model_config(folder)
    except VariantNotSupported as error:
        _refuse_fallback(folder, why=error)
    except ConfigError as error:
        raise ConfigError(f"--model: {error}") from error
    return ModelSource(folder=folder, alias=alias)


def _refuse_fallback(folder: Path, *, why: VariantNotSupported) -> None:
    """Refuse what no worker will run through transformers either, as far as its config tells."""
    # Imported here: it takes seconds, and most fleets serve what the compact decoder knows.
    from libs.engine.fallback import refuse_by_config

    try:
        refuse_by_config(folder)
    except ConfigError as error:
        raise ConfigError(f"--model: {why}; nor can transformers stand in: {error}") from error


def _download(hub_id: str) -> Path:
    # Imported here: it brings torch, which takes seconds, and most fleets need no download.
    from libs.engine.loading import resolve_model_folder

    return resolve_model_folder(hub_id)
