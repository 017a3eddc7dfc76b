"""Frameworks that speak OpenAI's API, where they are installed: they are no part of the setup."""

import asyncio

import pytest

from libs.client.scripted_router import Script
from libs.contracts.online import SubmitRequest
from libs.kernel.units import NS_PER_MS

TEXTS = ("The", " tide", " comes", " in")
WHOLE = "".join(TEXTS)
SCRIPT = Script(texts=TEXTS, pace_ns=20 * NS_PER_MS)

# What the frameworks deprecate, and the connections that they leave open, is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


async def test_langchain_answers_and_streams(a_stack) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    async with a_stack(SCRIPT) as stack:
        model = langchain.ChatOpenAI(
            model="tide-tiny",
            base_url=f"{stack.gateway.http_url}/v1",
            api_key="none",
            max_retries=0,
        )
        answer = await model.ainvoke("hello")
        assert answer.content == WHOLE
        assert answer.response_metadata["finish_reason"] == "stop"
        assert answer.usage_metadata["output_tokens"] == len(TEXTS)
        pieces = [piece.content async for piece in model.astream("hello")]
        assert "".join(pieces) == WHOLE
        assert len([piece for piece in pieces if piece]) > 1
        both = await model.abatch(["hello", "again"])
        assert [message.content for message in both] == [WHOLE, WHOLE]


async def test_langchain_reads_structured_answers(a_stack) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    schema = {
        "title": "Ship",
        "description": "A ship.",
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
        "additionalProperties": False,
    }
    seen: list[SubmitRequest] = []

    def script_of(submission: SubmitRequest) -> Script:
        seen.append(submission)
        return Script(texts=('{"name": ', '"Elbe"}'))

    async with a_stack(script_of) as stack:
        model = langchain.ChatOpenAI(
            model="tide-tiny", base_url=f"{stack.gateway.http_url}/v1", api_key="none"
        )
        structured = model.with_structured_output(schema, method="json_schema")
        assert await structured.ainvoke("a ship") == {"name": "Elbe"}
        assert '"name"' in str(seen[0].answer_schema)


async def test_litellm_answers_and_streams(a_stack) -> None:
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    async with a_stack(SCRIPT) as stack:
        asked = {
            "model": "openai/tide-tiny",
            "api_base": f"{stack.gateway.http_url}/v1",
            "api_key": "none",
            "messages": [{"role": "user", "content": "hello"}],
        }
        answer = await litellm.acompletion(**asked)
        assert answer.choices[0].message.content == WHOLE
        stream = await litellm.acompletion(**asked, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces) == WHOLE
        with pytest.raises(litellm.NotFoundError):
            await asyncio.wait_for(
                litellm.acompletion(**{**asked, "model": "openai/gpt-9"}, num_retries=0), 30
            )
