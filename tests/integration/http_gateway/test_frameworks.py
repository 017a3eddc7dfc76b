"""Frameworks that speak OpenAI's API against a scripted gateway; `make clients` installs them."""

import pytest

from libs.contracts.online import SubmitRequest
from libs.kernel.units import NS_PER_MS
from tests.installed_clients import output_of, python_client
from tests.scripted_router import Script

TEXTS = ("The", " tide", " comes", " in")
WHOLE = "".join(TEXTS)
SCRIPT = Script(texts=TEXTS, pace_ns=20 * NS_PER_MS)
CLIENT_LIMIT_S = 120


@pytest.mark.parametrize("name", ["openai_client", "langchain_client", "litellm_client"])
async def test_a_framework_gets_one_answer_whole_and_streamed(a_stack, name: str) -> None:
    seen: list[SubmitRequest] = []

    def script_of(submission: SubmitRequest) -> Script:
        seen.append(submission)
        return Script(texts=('{"name": ', '"Elbe"}')) if submission.answer_schema else SCRIPT

    command = python_client(name)
    async with a_stack(script_of) as stack:
        url = f"{stack.gateway.http_url}/v1"
        printed = await output_of([*command, url, "tide-tiny"], timeout_s=CLIENT_LIMIT_S)
    assert printed.startswith(WHOLE)
    assert any(submission.answer_schema for submission in seen) == (name == "langchain_client")


@pytest.mark.parametrize("name", ["openai_client", "langchain_client", "litellm_client"])
async def test_the_examples_notice_a_stream_that_differs(a_stack, name: str) -> None:
    asked = 0

    def script_of(_: SubmitRequest) -> Script:
        nonlocal asked
        asked += 1
        return Script(texts=(f"answer {asked}",))

    command = python_client(name)
    async with a_stack(script_of) as stack:
        url = f"{stack.gateway.http_url}/v1"
        with pytest.raises(AssertionError, match="differ"):
            await output_of([*command, url, "tide-tiny"], timeout_s=CLIENT_LIMIT_S)
