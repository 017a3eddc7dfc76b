"""The official npm client against the gateway: 43 checks in npm_checks.mjs."""

from pathlib import Path

import pytest

from tests.installed_clients import CLIENTS, node_folder, output_of

CHECKS = Path(__file__).with_name("npm_checks.mjs")
EXAMPLE = CLIENTS / "openai_client.mjs"
CHECKS_LIMIT_S = 120
CHECKS_MIN = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and the scripts."""
    return node_folder(tmp_path_factory.mktemp("node"), CHECKS, EXAMPLE)


async def test_the_npm_client_passes_its_checks(a_stack, folder: Path) -> None:
    async with a_stack() as stack:
        command = ["node", CHECKS.name, stack.gateway.http_url]
        printed = await output_of(command, timeout_s=CHECKS_LIMIT_S, cwd=folder)
    assert sum(line.startswith("ok ") for line in printed.splitlines()) >= CHECKS_MIN


async def test_the_example_for_node_runs(a_stack, folder: Path) -> None:
    async with a_stack() as stack:
        command = ["node", EXAMPLE.name, f"{stack.gateway.http_url}/v1", "tide-tiny"]
        printed = await output_of(command, timeout_s=CHECKS_LIMIT_S, cwd=folder)
    assert printed == "The tide comes in.\n"
