"""The official npm client against the gateway: 43 checks in npm_checks.mjs."""

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("npm_checks.mjs")
INSTALL_LIMIT_S = 120
CHECKS_LIMIT_S = 120
CHECKS_MIN = 40


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and the checks."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    try:
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "openai"],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=INSTALL_LIMIT_S,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("npm cannot install the package openai here")
    shutil.copy(CHECKS, folder)
    return folder


async def test_the_npm_client_passes_its_checks(a_stack, node_folder) -> None:
    async with a_stack() as stack:
        process = await asyncio.create_subprocess_exec(
            "node",
            CHECKS.name,
            stack.gateway.http_url,
            cwd=node_folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), CHECKS_LIMIT_S)
        finally:
            if process.returncode is None:
                process.kill()
        lines = output.decode().splitlines()
        assert process.returncode == 0, output.decode()
        assert sum(line.startswith("ok ") for line in lines) >= CHECKS_MIN
