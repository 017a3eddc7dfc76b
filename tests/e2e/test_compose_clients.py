"""Clients of other people against the containers: each is run as its own users run it."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from examples.batch_answers import BatchFailed, answers_of, text_of
from tests.e2e.compose_project import ALIAS, ComposeProject, connected
from tests.installed_clients import CLIENTS, node_folder, output_of, program, python_client

pytestmark = pytest.mark.timeout(3600)

CLIENT_LIMIT_S = 600
LOCUST_USERS = 4
LOCUST_S = 10
QUESTIONS = ("What does str.split do?", "What is a dictionary?", "What is NATS?")


@pytest.fixture(scope="module")
def base_url(compose_project: ComposeProject) -> str:
    """Where OpenAI's API is, once somebody serves the model."""

    async def until_served() -> None:
        async with connected(compose_project) as fleet:
            await fleet.until_workers(2)
            await fleet.until(lambda: bool(fleet.view.offline_queues()))

    compose_project.compose("up", "--detach")
    asyncio.run(until_served())
    return f"{compose_project.http_url}/v1"


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="none", timeout=CLIENT_LIMIT_S) as client:
        yield client


@pytest.mark.parametrize("name", ["openai_client", "langchain_client", "litellm_client"])
def test_a_client_for_python_gets_one_answer_whole_and_streamed(base_url: str, name: str) -> None:
    command = [*python_client(name), base_url, ALIAS]
    assert asyncio.run(output_of(command, timeout_s=CLIENT_LIMIT_S)).strip()


def test_the_client_for_node_gets_one_answer_whole_and_streamed(
    base_url: str, tmp_path: Path
) -> None:
    folder = node_folder(tmp_path, CLIENTS / "openai_client.mjs")
    command = ["node", "openai_client.mjs", base_url, ALIAS]
    assert asyncio.run(output_of(command, timeout_s=CLIENT_LIMIT_S, cwd=folder)).strip()


@pytest.mark.usefixtures("base_url")
def test_no_stream_of_locusts_users_breaks_off(compose_project: ComposeProject) -> None:
    command = [
        program("locust"),
        *("--locustfile", str(CLIENTS / "locustfile.py"), "--host", compose_project.http_url),
        *("--headless", "--users", str(LOCUST_USERS), "--spawn-rate", str(LOCUST_USERS)),
        *("--run-time", f"{LOCUST_S}s", "--stop-timeout", "300", "--json"),
    ]
    printed = asyncio.run(output_of(command, timeout_s=CLIENT_LIMIT_S))
    rows = {row["method"]: row for row in json.loads(printed) if "streamed" in row["name"]}
    assert rows["POST"]["num_requests"] >= LOCUST_USERS
    assert rows["POST"]["num_failures"] == 0
    assert rows["TTFT"]["num_requests"] == rows["POST"]["num_requests"]


def test_each_line_of_a_batch_is_answered_once_and_as_online(client: openai.OpenAI) -> None:
    bodies = {
        question: {
            "model": ALIAS,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 40,
        }
        for question in QUESTIONS
    }
    came = answers_of(client, bodies)
    assert not came.failed
    assert set(came.answered) == set(bodies)
    for question, body in bodies.items():
        online = client.chat.completions.create(**body)  # type: ignore[call-overload]
        assert text_of(came.answered[question]) == online.choices[0].message.content


def test_a_batch_with_a_wrong_line_is_refused_with_the_reason(client: openai.OpenAI) -> None:
    with pytest.raises(BatchFailed, match="messages"):
        answers_of(client, {"wrong": {"model": ALIAS, "messages": []}})
