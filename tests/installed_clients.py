"""Other people's clients, where they can be had: each is run as its user runs it, as a program."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = ROOT / "examples" / "clients"
ENVIRONMENT = ROOT / ".venv-clients"
INSTALL_LIMIT_S = 300


def program(name: str) -> str:
    """Return a program of the clients' environment; skips where `make clients` was not run."""
    path = ENVIRONMENT / "bin" / name
    if not path.exists():
        pytest.skip("`make clients`, which installs LangChain, LiteLLM and locust, was not run")
    return str(path)


def python_client(name: str) -> list[str]:
    """Return the command of one of examples/clients; our own environment has OpenAI's client."""
    python = sys.executable if name == "openai_client" else program("python")
    return [python, str(CLIENTS / f"{name}.py")]


def node_folder(folder: Path, *scripts: Path) -> Path:
    """Install OpenAI's npm client into the folder and copy the scripts there; skips without npm."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    shutil.copy(CLIENTS / "package.json", folder)
    install = ["npm", "install", "--no-audit", "--no-fund"]
    try:
        subprocess.run(
            install, cwd=folder, check=True, capture_output=True, timeout=INSTALL_LIMIT_S
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("npm cannot install the package openai here")
    for script in scripts:
        shutil.copy(script, folder)
    return folder


async def output_of(command: list[str], *, timeout_s: float, cwd: Path = ROOT) -> str:
    """Run a client to its end and return what it printed; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), timeout_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{output.decode()}\n{errors.decode()}"
    return output.decode()
