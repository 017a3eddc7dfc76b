"""A gateway with keys answers nobody who has none, on no path, and knows tenants by their keys."""

import asyncio
import sys
from http import HTTPStatus
from pathlib import Path

import openai
import pytest

from libs.kernel.errors import ConfigError
from services.http_gateway.api_keys import OPEN_PATHS
from services.http_gateway.openapi import openapi_document
from tests.integration.http_gateway.conftest import Stacks
from tests.scripted_queue import QueueScript

KEY_OF_ANYBODY = "sk-of-anybody-0123456789"
KEY_OF_SEARCH = "sk-of-search-0123456789"
KEY_OF_MAIL = "sk-of-mail-0123456789"


@pytest.fixture
def keys_file(tmp_path: Path) -> str:
    file = tmp_path / "keys"
    file.write_text(f"{KEY_OF_ANYBODY}\n{KEY_OF_SEARCH} search\n{KEY_OF_MAIL} mail\n")
    return str(file)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_no_path_but_those_of_probes_answers_without_a_key(
    a_stack: Stacks, keys_file: str
) -> None:
    document = openapi_document(version="1", has_keys=True)
    asked = [(method, path) for path, methods in document["paths"].items() for method in methods]
    asked += [("get", path) for path in ("/dashboard", "/dashboard/events", "/", "/nothing")]
    async with a_stack(queue=QueueScript(), api_keys_file=keys_file) as stack:
        for method, path in asked:
            for headers in ({}, bearer("sk-of-nobody-0123456789")):
                answer = await stack.http.request(method, path, headers=headers)
                if path in OPEN_PATHS:
                    assert answer.status_code == HTTPStatus.OK, path
                    continue
                assert answer.status_code == HTTPStatus.UNAUTHORIZED, path
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.headers["x-request-id"]


async def test_clients_with_a_key_are_served_and_others_get_their_own_error(
    a_stack: Stacks, keys_file: str
) -> None:
    question = [{"role": "user", "content": "Hello?"}]
    async with a_stack(api_keys_file=keys_file) as stack:
        client = stack.openai.with_options(api_key=KEY_OF_ANYBODY)
        stream = await client.chat.completions.create(  # type: ignore[call-overload]
            model="tide-tiny", messages=question, stream=True
        )
        assert [chunk async for chunk in stream]
        with pytest.raises(openai.AuthenticationError, match="API key"):
            await stack.openai.chat.completions.create(
                model="tide-tiny",
                messages=question,  # type: ignore[arg-type]
            )
        page = await stack.http.get("/dashboard", auth=("anybody", KEY_OF_ANYBODY))
        assert page.status_code == HTTPStatus.OK


async def test_a_key_proves_its_tenant_and_no_other(a_stack: Stacks, keys_file: str) -> None:
    line = b'{"custom_id": "a"}\n'
    async with a_stack(queue=QueueScript(), api_keys_file=keys_file) as stack:
        upload = {"files": {"file": ("a.jsonl", line)}, "data": {"purpose": "batch"}}
        made = await stack.http.post("/v1/files", headers=bearer(KEY_OF_SEARCH), **upload)  # type: ignore[arg-type]
        path = f"/v1/files/{made.json()['id']}"
        for headers, status in (
            (bearer(KEY_OF_SEARCH), HTTPStatus.OK),
            ({**bearer(KEY_OF_SEARCH), "x-tenant": "search"}, HTTPStatus.OK),
            ({**bearer(KEY_OF_ANYBODY), "x-tenant": "search"}, HTTPStatus.OK),
            (bearer(KEY_OF_MAIL), HTTPStatus.NOT_FOUND),
            (bearer(KEY_OF_ANYBODY), HTTPStatus.NOT_FOUND),
            ({**bearer(KEY_OF_MAIL), "x-tenant": "search"}, HTTPStatus.FORBIDDEN),
        ):
            answer = await stack.http.get(path, headers=headers)
            assert answer.status_code == status, headers


async def test_a_load_runs_against_a_gateway_with_keys(
    a_stack: Stacks, keys_file: str, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    async with a_stack(api_keys_file=keys_file) as stack:
        load = ["run", "--http", stack.gateway.http_url, "--requests", "1", "--users", "1"]
        load += ["--stop-at-end-token", "--quiet", "--api-key-file", str(own)]
        for key, reason in ((KEY_OF_ANYBODY, "ok"), ("sk-of-nobody-0123456789", "invalid_api_key")):
            own.write_text(key + "\n")
            generator = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "loadgen", *load), stdout=asyncio.subprocess.PIPE
            )
            printed, _ = await generator.communicate()
            assert reason in printed.decode()


async def test_the_description_tells_of_keys_where_there_are_some(
    a_stack: Stacks, keys_file: str
) -> None:
    async with a_stack(api_keys_file=keys_file) as stack:
        closed = (await stack.http.get("/openapi.json", headers=bearer(KEY_OF_ANYBODY))).json()
        assert closed["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        assert "401" in closed["paths"]["/v1/models"]["get"]["responses"]
        assert "security" not in closed["paths"]["/health"]["get"]
    async with a_stack() as stack:
        opened = (await stack.http.get("/openapi.json")).json()
        assert "401" not in opened["paths"]["/v1/models"]["get"]["responses"]


async def test_a_gateway_whose_keys_cannot_be_read_does_not_start(
    a_stack: Stacks, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        async with a_stack(api_keys_file=str(tmp_path / "nothing")):
            pass
