"""Where measured profiles are kept for the user, and how they are found again.

    $XDG_CACHE_HOME/tideserve/profiles/<model>-<hardware>.json      else ~/.cache/...

One file per model and hardware; measuring again replaces it. What cannot be read is passed over
with a line in the log: a cache may be emptied or damaged without harm.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from libs.engine.model_size import model_digest
from libs.kernel.errors import ConfigError
from libs.policy.measured_profile import (
    Device,
    Hardware,
    MeasuredProfile,
    json_of_measured_profile,
    measured_profile_of_json,
)
from libs.runtime.whole_file import write_whole_file

CACHE_VARIABLE: Final = "XDG_CACHE_HOME"
AUTO: Final = "auto"
"""As a setting: whatever the cache has."""
CPU_LIST: Final = Path("/proc/cpuinfo")

_log = structlog.get_logger(__name__)


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of this user's profiles; it need not exist."""
    given = environment.get(CACHE_VARIABLE, "")
    # The specification has relative paths ignored.
    root = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    return root / "tideserve" / "profiles"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProfile:
    """A profile with the file that it lies in."""

    file: Path
    profile: MeasuredProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileCache:
    """The profiles in one folder."""

    folder: Path

    def write(self, profile: MeasuredProfile) -> Path:
        """Keep a profile in place of an earlier one of the same model and hardware."""
        self.folder.mkdir(parents=True, exist_ok=True)
        hardware = hashlib.blake2b(repr(profile.hardware).encode(), digest_size=4).hexdigest()
        file = self.folder / f"{profile.model_digest}-{hardware}.json"
        write_whole_file(file, json_of_measured_profile(profile))
        return file

    def find(self, model_digest: str, hardware: Hardware) -> StoredProfile | None:
        """Return what was measured of this model on exactly this hardware."""
        found = (stored for stored in self._of(model_digest) if stored.profile.hardware == hardware)
        return next(found, None)

    def find_latest(
        self, model_digest: str, *, device: Device, threads: int | None = None
    ) -> StoredProfile | None:
        """Return the latest of this model on any hardware of this kind, rather with so many
        threads: for planning, which is done elsewhere than computing."""
        found = [s for s in self._of(model_digest) if s.profile.hardware.device == device]

        def preference(stored: StoredProfile) -> tuple[bool, str]:
            return (stored.profile.hardware.threads == threads, stored.profile.measured_at)

        return max(found, key=preference, default=None)

    def _of(self, model_digest: str) -> list[StoredProfile]:
        stored = []
        for file in sorted(self.folder.glob(f"{model_digest}-*.json")):
            try:
                profile = measured_profile_of_json(file.read_text(encoding="utf-8"))
            except (ConfigError, OSError, UnicodeDecodeError) as error:
                _log.warning("profile_unreadable", file=str(file), reason=str(error))
                continue
            stored.append(StoredProfile(file=file, profile=profile))
        return stored


def profile_file(
    given: str,
    *,
    model: Path,
    device: Device,
    threads: int | None = None,
    cache: ProfileCache | None = None,
) -> Path | None:
    """Return the file that a setting names; of AUTO what `find_latest` finds, or None if nobody has
    measured the model or its folder is not on this machine."""
    if given != AUTO:
        return Path(given).expanduser()
    try:
        digest = model_digest(model)
    except OSError:
        return None
    cache = cache or ProfileCache(folder=cache_folder())
    stored = cache.find_latest(digest, device=device, threads=threads)
    return None if stored is None else stored.file


def read_measured(file: Path) -> MeasuredProfile:
    """Read a file that `tideserve profile` wrote. Raises: ConfigError that names it."""
    try:
        return measured_profile_of_json(file.read_text(encoding="utf-8"))
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None


def processor_name() -> str:
    """Return what the CPU of this machine calls itself."""
    try:
        lines = CPU_LIST.read_text(encoding="utf-8").splitlines()
    except OSError:
        return os.uname().machine
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, os.uname().machine)
