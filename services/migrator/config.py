"""Settings of one migrator process (`MIGRATOR__FIELD` in the environment)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from libs.contracts.subjects import alias_of
from libs.kernel.errors import ConfigError
from libs.runtime.config import require_at_least
from libs.runtime.service import StoringConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class MigratorConfig(StoringConfig):
    """What an operator sets; everything else is in MigratorOptions, with its reason."""

    migrator_id: str = "migrator"
    """Prefix of this process's id; a random suffix makes it unique per start."""
    model: str = ""
    """Folder of the model that the fleet serves. Its config says how many bytes there are to move;
    where the folder is not on this machine, only its name is used, as the alias."""
    alias: str = ""
    """What clients call the model; empty takes the folder's name."""
    profile: str | None = None
    """File that `tideserve profile` wrote; auto looks for the latest of this model on such a device
    in the user's cache; none takes sizes from the model's folder and speeds from the fields below.
    """
    device: Literal["cpu", "cuda"] = "cpu"
    """What the workers compute on, for a model without a measured profile."""
    link_mib_per_s: int = 1024
    """Assumed of a link that nobody has measured yet, in MiB/s."""
    prefill_tokens_per_s: int = 5_000
    """Assumed speed of computing KV anew, where no profile tells; under spotserve KV moves only
    where that is faster."""
    load_buffer_mib: int = 64
    """Memory beyond its weights that a worker may use while it loads."""

    def __post_init__(self) -> None:
        StoringConfig.__post_init__(self)  # a class with slots has no super() without arguments
        if not self.model and not self.alias:
            raise ConfigError("model: name the model whose fleet to look after, or its alias")
        require_at_least(1, self, "link_mib_per_s", "prefill_tokens_per_s", "load_buffer_mib")

    @property
    def alias_served(self) -> str:
        """The alias, as a subject token."""
        return alias_of(self.alias or Path(self.model).expanduser().resolve().name)
