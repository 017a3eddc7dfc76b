"""`tideserve service NAME`: one service in this process, as containers run it."""

import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

import services
from libs.kernel.errors import ConfigError


def service(
    name: Annotated[str, typer.Argument(help="Such as gpu-worker, online-router, http-gateway.")],
) -> None:
    """Run one service until SIGTERM; its settings come from SERVICE__FIELD in the environment."""
    module = f"services.{name.replace('-', '_')}"
    if name.replace("-", "_") not in service_names():
        known = ", ".join(found.replace("_", "-") for found in service_names())
        raise ConfigError(f"no service is named {name}; there are {known}")
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def service_names() -> list[str]:
    """Return the services that can run by themselves, by folder name."""
    assert services.__file__ is not None
    folders = sorted(path.parent.name for path in _mains(Path(services.__file__).parent))
    return [name for name in folders if name not in ("launcher", "simulator")]


def _mains(root: Path) -> list[Path]:
    return [path for path in root.glob("*/__main__.py") if _is_package(path.parent.name)]


def _is_package(name: str) -> bool:
    return importlib.util.find_spec(f"services.{name}") is not None
