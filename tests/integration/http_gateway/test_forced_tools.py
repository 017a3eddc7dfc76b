"""The official client against the gateway where it forces a tool: the answer is a call."""

import json

import pytest

from libs.contracts.online import FinishReason, SubmitRequest
from tests.scripted_router import Script

HELLO = [{"role": "user", "content": "which tide?"}]
TABLE = {
    "type": "function",
    "function": {
        "name": "tide_table",
        "parameters": {
            "type": "object",
            "properties": {"port": {"$ref": "#/$defs/port"}},
            "$defs": {"port": {"type": "string"}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ARGUMENTS = ('{"port":', ' "Brest"}')
NAMED = {"type": "function", "function": {"name": "tide_table"}}


@pytest.mark.parametrize(("tools", "choice"), [([TABLE, CLOCK], NAMED), ([TABLE], "required")])
async def test_the_arguments_of_the_one_tool_come_as_they_are_made(a_stack, tools, choice) -> None:
    seen: list[SubmitRequest] = []

    def script_of(submission: SubmitRequest) -> Script:
        seen.append(submission)
        return Script(texts=ARGUMENTS, pace_ns=3_000_000)

    async with a_stack(script_of) as stack:
        asked = {"model": "tide-tiny", "messages": HELLO, "tools": tools, "tool_choice": choice}
        answer = await stack.openai.chat.completions.create(**asked)
        [choice_shown] = answer.choices
        assert choice_shown.finish_reason == "tool_calls"
        assert choice_shown.message.content is None
        [call] = choice_shown.message.tool_calls
        assert call.function.name == "tide_table"
        assert json.loads(call.function.arguments) == {"port": "Brest"}
        assert json.loads(str(seen[0].answer_schema)) == TABLE["function"]["parameters"]
        names, arguments, reasons = [], "", []
        async for chunk in await stack.openai.chat.completions.create(**asked, stream=True):
            for part in chunk.choices[0].delta.tool_calls or ():
                names += [part.function.name] if part.function.name else []
                arguments += part.function.arguments or ""
            reasons.append(chunk.choices[0].finish_reason)
        assert names == ["tide_table"]
        assert arguments == "".join(ARGUMENTS)
        assert [reason for reason in reasons if reason] == ["tool_calls"]


async def test_of_several_tools_the_answer_names_one(a_stack) -> None:
    seen: list[SubmitRequest] = []

    def script_of(submission: SubmitRequest) -> Script:
        seen.append(submission)
        return Script(texts=('{"name": "clock", ', '"arguments": {"zone": 1}}'))

    async with a_stack(script_of) as stack:
        asked = {"tools": [TABLE, CLOCK], "tool_choice": "required", "n": 2}
        asked |= {"model": "tide-tiny", "messages": HELLO}
        answer = await stack.openai.chat.completions.create(**asked)
        for choice in answer.choices:
            [call] = choice.message.tool_calls
            assert (call.function.name, call.function.arguments) == ("clock", '{"zone": 1}')
        assert len({choice.message.tool_calls[0].id for choice in answer.choices}) == 2
        calls = {}
        async for chunk in await stack.openai.chat.completions.create(**asked, stream=True):
            for part in chunk.choices[0].delta.tool_calls or ():
                calls[chunk.choices[0].index] = (part.function.name, part.function.arguments)
        assert calls == {0: ("clock", '{"zone": 1}'), 1: ("clock", '{"zone": 1}')}
        schema = json.loads(str(seen[0].answer_schema))
        moved = schema["anyOf"][0]["properties"]["arguments"]["properties"]["port"]["$ref"]
        assert moved == "#/anyOf/0/properties/arguments/$defs/port"


async def test_a_call_that_was_cut_off_says_so(a_stack) -> None:
    script = Script(texts=('{"name": "clo',), finish_reason=FinishReason.LENGTH)
    async with a_stack(script) as stack:
        asked = {"tools": [TABLE, CLOCK], "tool_choice": "required"}
        answer = await stack.openai.chat.completions.create(
            model="tide-tiny", messages=HELLO, **asked
        )
        assert answer.choices[0].finish_reason == "length"
        assert answer.choices[0].message.content == '{"name": "clo'
        assert not answer.choices[0].message.tool_calls


async def test_an_earlier_call_and_its_result_reach_the_router(a_stack) -> None:
    seen: list[SubmitRequest] = []

    def script_of(submission: SubmitRequest) -> Script:
        seen.append(submission)
        return Script(texts=("High at noon.",))

    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "tide_table", "arguments": '{"port": "Brest"}'},
    }
    history = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
    ]
    async with a_stack(script_of) as stack:
        await stack.openai.chat.completions.create(model="tide-tiny", messages=history)
        _, assistant, result = seen[0].messages or ()
        assert assistant.tool_calls == (call,)
        assert (result.tool_call_id, result.content) == ("call_1", "12:00")
