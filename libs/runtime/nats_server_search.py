"""Where a nats-server comes from when nobody runs one: the search, in a fixed order.

1. the file named by $TIDESERVE_NATS_SERVER; 2. `nats-server` on PATH; 3. the project's cache
folder; 4. Debian's or Ubuntu's own package, fetched with apt-get and unpacked into the cache folder
(nothing is installed into the system and no service is started); 5. docker. Otherwise one
ConfigError that says how to get one.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import structlog

from libs.kernel.errors import ConfigError

ENVIRONMENT_NAME: Final = "TIDESERVE_NATS_SERVER"
VERSION_MIN: Final = (2, 9, 0)
DOCKER_IMAGE: Final = "nats:2.10-alpine"
DOCKER_VERSION: Final = (2, 10, 0)
APT_TIMEOUT_S: Final = 300
PROBE_TIMEOUT_S: Final = 20
HOW_TO_GET_ONE: Final = (
    "no nats-server found: install it (`apt install nats-server`, `brew install nats-server`), "
    f"or set {ENVIRONMENT_NAME} to its path, or use a running one with --nats URL"
)

SourceName: TypeAlias = Literal["environment", "path", "cache", "apt", "docker"]
Version: TypeAlias = tuple[int, int, int]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProgram:
    """A nats-server that can be started."""

    source: SourceName
    binary: Path
    """The server itself, or the docker command."""
    version: Version
    """For docker that of the image's tag."""


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that holds programs the project has fetched for itself."""
    home = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "tideserve" / "bin"


def find_nats_server(
    *, environment: Mapping[str, str] = os.environ, may_fetch: bool = True
) -> ServerProgram:
    """Return the first nats-server of the search order; `may_fetch` allows apt and docker.

    Raises: ConfigError if there is none, or if the one named explicitly cannot be used.
    """
    named = environment.get(ENVIRONMENT_NAME)
    if named:
        return _named(named)
    folder = cache_folder(environment)
    candidates: list[Callable[[], ServerProgram | None]] = [
        lambda: _on_path(environment),
        lambda: _cached(folder),
    ]
    if may_fetch:
        candidates += [lambda: _from_apt(folder, environment), lambda: _from_docker(environment)]
    passed_over = []
    for candidate in candidates:
        try:
            program = candidate()
        except ConfigError as error:
            _log.warning("nats_server_passed_over", reason=str(error))
            passed_over.append(str(error))
            continue
        if program is not None:
            return program
    raise ConfigError("; ".join([*passed_over, HOW_TO_GET_ONE]))


def server_version(binary: Path) -> Version:
    """Ask the program for its version. Raises: ConfigError if it does not say one."""
    try:
        result = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{binary} cannot be run: {error}") from None
    return parse_version(result.stdout + result.stderr, where=str(binary))


def parse_version(text: str, *, where: str) -> Version:
    """Find a version such as 2.9.10 in the text. Raises: ConfigError if there is none."""
    match = re.search(r"v?(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise ConfigError(f"{where} is no nats-server: it does not say its version")
    return int(match[1]), int(match[2]), int(match[3])


def require_version(version: Version, *, where: str) -> None:
    """Raise ConfigError if the server is older than what the project relies on."""
    if version < VERSION_MIN:
        raise ConfigError(
            f"{where}: nats-server {_dotted(version)} is too old, {_dotted(VERSION_MIN)} is needed"
        )


def _dotted(version: Version) -> str:
    return ".".join(str(part) for part in version)


def _named(path: str) -> ServerProgram:
    binary = Path(path).expanduser()
    if not os.access(binary, os.X_OK) or binary.is_dir():
        raise ConfigError(f"{ENVIRONMENT_NAME}: {path} is no program")
    version = server_version(binary)
    require_version(version, where=ENVIRONMENT_NAME)
    return ServerProgram(source="environment", binary=binary, version=version)


def _usable(source: SourceName, binary: Path) -> ServerProgram:
    """Return the program. Raises: ConfigError if it is broken or too old."""
    version = server_version(binary)
    require_version(version, where=str(binary))
    return ServerProgram(source=source, binary=binary, version=version)


def _on_path(environment: Mapping[str, str]) -> ServerProgram | None:
    # Debian puts it into /usr/sbin, which is not on everybody's PATH.
    search_path = os.pathsep.join([environment.get("PATH", ""), "/usr/local/sbin", "/usr/sbin"])
    found = shutil.which("nats-server", path=search_path)
    return None if found is None else _usable("path", Path(found))


def _cached(folder: Path) -> ServerProgram | None:
    binary = folder / "nats-server"
    return _usable("cache", binary) if binary.is_file() else None


def _from_apt(folder: Path, environment: Mapping[str, str]) -> ServerProgram | None:
    path = environment.get("PATH", "")
    if shutil.which("apt-get", path=path) is None or shutil.which("dpkg-deb", path=path) is None:
        return None
    _log.info("nats_server_fetch", how="apt-get download nats-server", into=str(folder))
    with tempfile.TemporaryDirectory() as scratch:
        if not _apt_download(Path(scratch)) and not _apt_update_and_download(Path(scratch)):
            return None
        packages = sorted(Path(scratch).glob("nats-server_*.deb"))
        unpacked = Path(scratch) / "unpacked"
        if not packages or not _run(["dpkg-deb", "-x", str(packages[0]), str(unpacked)]):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        # Copied beside its place and renamed into it: another process may be doing the same.
        staged = folder / f"nats-server.{os.getpid()}"
        shutil.copy2(unpacked / "usr" / "sbin" / "nats-server", staged)
        staged.replace(folder / "nats-server")
    return _usable("apt", folder / "nats-server")


def _apt_download(folder: Path) -> bool:
    return _run(["apt-get", "download", "-qq", "nats-server"], folder=folder)


def _apt_update_and_download(folder: Path) -> bool:
    """A fresh image has no package lists; only root may fetch them."""
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if prefix and shutil.which("sudo") is None:
        return False
    return _run([*prefix, "apt-get", "update", "-qq"]) and _apt_download(folder)


def _from_docker(environment: Mapping[str, str]) -> ServerProgram | None:
    found = shutil.which("docker", path=environment.get("PATH", ""))
    if found is None or not _run([found, "version"]):
        return None
    if not _run([found, "image", "inspect", DOCKER_IMAGE]) and not _run(
        [found, "pull", "--quiet", DOCKER_IMAGE]
    ):
        return None
    return ServerProgram(source="docker", binary=Path(found), version=DOCKER_VERSION)


def _run(command: list[str], *, folder: Path | None = None) -> bool:
    """Run quietly; return whether it succeeded."""
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=APT_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0
