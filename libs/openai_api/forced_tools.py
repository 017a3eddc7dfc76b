"""A `tool_choice` that leaves the model no choice: the answer is held to what calls a tool.

Of one tool the answer is the arguments alone, so it can be streamed as such; of several it is
`{"name": .., "arguments": ..}`, and is shown once it is complete.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from libs.openai_api.errors import ApiError, invalid

ANY_ARGUMENTS: Final[dict[str, JsonValue]] = {"type": "object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """What the model calls."""

    name: str
    arguments: str
    """JSON, complete where the answer is."""

    def shown(self, call_id: str) -> dict[str, JsonValue]:
        """Return the call as OpenAI has it."""
        function: dict[str, JsonValue] = {"name": self.name, "arguments": self.arguments}
        return {"id": call_id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedTools:
    """The tools of which the answer calls one; never empty."""

    parameters_by_name: Mapping[str, dict[str, JsonValue]]

    @property
    def only_name(self) -> str | None:
        """The tool, if there is but one."""
        names = list(self.parameters_by_name)
        return names[0] if len(names) == 1 else None

    def schema(self) -> dict[str, JsonValue]:
        """Return what the answer is held to."""
        if self.only_name is not None:
            return self.parameters_by_name[self.only_name]
        calls: list[JsonValue] = []
        for number, (name, parameters) in enumerate(self.parameters_by_name.items()):
            root = f"#/anyOf/{number}/properties/arguments"
            call: dict[str, JsonValue] = {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": _moved(parameters, root)},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            calls.append(call)
        return {"anyOf": calls}

    def call(self, text: str) -> ToolCall | None:
        """Return the call that the answer is; None for one of several that was cut off."""
        if self.only_name is not None:
            return ToolCall(name=self.only_name, arguments=text)
        try:
            called = json.loads(text)
            return ToolCall(name=called["name"], arguments=json.dumps(called["arguments"]))
        except (ValueError, TypeError, LookupError):
            return None


def forced_tools(
    tools: Sequence[dict[str, JsonValue]] | None, choice: JsonValue
) -> ForcedTools | None:
    """Return what this choice forces; None if it forces nothing. Raises: ApiError."""
    if choice in (None, "none", "auto"):
        return None
    known = dict(_named(tool, index) for index, tool in enumerate(tools or ()))
    if choice != "required":
        match choice:
            case {"type": "function", "function": {"name": str(name)}} if name in known:
                known = {name: known[name]}
            case {"type": "function", "function": {"name": str()}}:
                raise invalid("tool_choice names no tool of the request", parameter="tool_choice")
            case _:
                message = "tool_choice must be none, auto, required, or name a function"
                raise invalid(message, parameter="tool_choice")
    if not known:
        raise invalid("tool_choice needs tools", parameter="tool_choice")
    return ForcedTools(parameters_by_name=known)


def _named(tool: dict[str, JsonValue], index: int) -> tuple[str, dict[str, JsonValue]]:
    function = tool.get("function")
    if tool.get("type") == "function" and isinstance(function, dict):
        name, parameters = function.get("name"), function.get("parameters")
        if isinstance(name, str) and isinstance(parameters, dict | None):
            return name, ANY_ARGUMENTS if parameters is None else parameters
    raise _malformed(index)


def _malformed(index: int) -> ApiError:
    message = f"tools[{index}]: a function with a name, and its parameters as a JSON schema"
    return invalid(message, parameter=f"tools[{index}]")


def _moved(value: JsonValue, root: str) -> JsonValue:
    """Return the schema with its references to itself as they are where it now stands."""
    match value:
        case dict():
            return {
                key: root + item[1:]
                if key == "$ref" and isinstance(item, str) and item.startswith("#")
                else _moved(item, root)
                for key, item in value.items()
            }
        case list():
            return [_moved(item, root) for item in value]
        case _:
            return value
