"""The description at /openapi.json is true: generated requests meet no other status or shape."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

from services.http_gateway.operations import OPERATIONS
from tests.scripted_queue import QueueScript

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance"
)
# Most generated names are of models that nobody serves; three of four become one that is.
HOOKS = """
import schemathesis

@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        if len(body["model"]) % 4 != 3:
            return {**body, "model": "tide-tiny"}
    return body
"""
START_S = 60
CASES_PER_S = 2
"""On a slow machine."""


def schemathesis() -> str:
    beside = Path(sys.executable).parent
    found = shutil.which("st", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    assert found is not None, "schemathesis is missing: make setup"
    return found


async def test_the_document_names_every_route_and_every_route_is_in_it(a_stack) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        document = (await stack.http.get("/openapi.json")).json()
        described = {
            (path, method) for path, methods in document["paths"].items() for method in methods
        }
        assert described == {(operation.path, operation.method) for operation in OPERATIONS}
        for path, method in sorted(described):
            response = await stack.http.request(method, path.replace("{name}", "tide-tiny"))
            assert response.status_code in (200, 400, 404), path
            assert response.text.find("no such path") == -1, path
            responses = document["paths"][path][method]["responses"]
            assert str(response.status_code) in responses, path


async def test_every_reference_in_the_document_leads_somewhere(a_stack) -> None:
    async with a_stack() as stack:
        text = (await stack.http.get("/openapi.json")).text
        schemas = json.loads(text)["components"]["schemas"]
        named = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
        assert named <= set(schemas)


async def test_generated_requests_meet_no_server_error_and_nothing_undocumented(
    a_stack, tmp_path, request
) -> None:
    command = schemathesis()
    (tmp_path / "hooks.py").write_text(HOOKS)
    cases = request.config.getoption("--api-cases", default=8)
    async with a_stack(queue=QueueScript()) as stack:
        process = await asyncio.create_subprocess_exec(
            command,
            "run",
            f"{stack.gateway.http_url}/openapi.json",
            *("--checks", CHECKS),
            *("--phases", "fuzzing"),
            *("--max-examples", str(cases)),
            *("--seed", "1"),
            "--no-color",
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            limit_s = START_S + cases * len(OPERATIONS) / CASES_PER_S
            output, _ = await asyncio.wait_for(process.communicate(), limit_s)
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, output.decode()
