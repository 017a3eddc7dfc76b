"""Writes docs/MESSAGES.md from libs/contracts: run `python -m tools.document_messages`.

A test compares the file with `render()`, so that the document cannot fall behind the code.
"""

import inspect
import json
import re
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from pydantic.fields import FieldInfo

from libs.contracts import (
    batches,
    handover,
    handover_record,
    journal,
    local_cloud,
    online,
    peers,
    placement,
    preemption,
    reports,
    sessions,
    subjects,
    text,
    token_step,
    transfers,
    wire,
)
from libs.contracts.wire import Message

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "MESSAGES.md"
FAMILIES: tuple[tuple[str, ModuleType], ...] = (
    ("Online requests", online),
    ("Offline work", batches),
    ("Questions about text", text),
    ("Sessions", sessions),
    ("Preemption", preemption),
    ("Reports", reports),
    ("Placements", placement),
    ("Hand-overs", handover),
    ("The record of hand-overs", handover_record),
    ("The cloud on one machine", local_cloud),
    ("Transfers", transfers),
    ("Peers", peers),
)
ARRAY_MESSAGES: tuple[tuple[str, ModuleType, tuple[type, ...]], ...] = (
    ("Token steps", token_step, (token_step.TokenStep, token_step.SessionTokens)),
    ("The journal", journal, get_args(journal.JournalRecord)),
)
BOUNDS = (
    ("minimum", ">= {}"),
    ("exclusiveMinimum", "> {}"),
    ("maximum", "<= {}"),
    ("exclusiveMaximum", "< {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("maxItems", "at most {} items"),
    ("pattern", "matches `{}`"),
)


def messages_of(module: ModuleType) -> list[type[Message]]:
    """Return the message classes that this module defines, in the order of its source."""
    return [
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and issubclass(member, Message)
        and member.__module__ == module.__name__
    ]


def tag_of(message: type[Message]) -> str | None:
    """Return the literal tag of a message class, or None if it only occurs inside others."""
    field: FieldInfo | None = message.model_fields.get("type")
    return field.default if field is not None and isinstance(field.default, str) else None


def render() -> str:
    """Return the whole document."""
    parts = [_HEAD, _render_subjects()]
    for title, module in FAMILIES:
        parts += [f"## {title}", _prose(module.__doc__)]
        parts += [_render_message(message) for message in messages_of(module)]
        parts += [_render_enum(member) for member in _enums_of(module)]
    for title, module, types in ARRAY_MESSAGES:
        parts += [f"## {title}", f"Tag `{module.TAG}`. " + _prose(module.__doc__)]
        parts += [_render_record(record) for record in types]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


_HEAD = f"""# Messages

Generated from `libs/contracts` by `python -m tools.document_messages`; do not edit.

{inspect.cleandoc(wire.__doc__ or "")}

`request_id` matches `[A-Za-z0-9_-]{{1,64}}` and is chosen by the client."""


def _render_subjects() -> str:
    rows = ["## Subjects", "", "| built by | subject | what travels on it |", "| --- | --- | --- |"]
    for name, member in vars(subjects).items():
        if not inspect.isfunction(member) or name.startswith("_"):
            continue
        parameters = list(inspect.signature(member).parameters)
        subject = member(*("x" for _ in parameters))
        if subject.startswith(subjects.ROOT):
            shown = f"{subject.removesuffix('x')}<{parameters[0]}>"
            rows.append(f"| `{name}` | `{shown}` | {_first_line(member.__doc__)} |")
    rows += ["", f"Streams and buckets: `{subjects.JOURNAL_STREAM}`, `{subjects.CLAIM_BUCKET}`."]
    return "\n".join(rows)


def _render_message(message: type[Message]) -> str:
    schema = message.model_json_schema()
    tag = tag_of(message)
    rows = [f"### {message.__name__}" + (f" · `{tag}`" if tag else ""), "", _prose(message.__doc__)]
    properties: dict[str, dict[str, Any]] = schema.get("properties", {})
    fields = {name: shape for name, shape in properties.items() if name != "type" or not tag}
    if not fields:
        return "\n".join(rows)
    required = set(schema.get("required", []))
    rows += ["", "| field | type | default | meaning and bounds |", "| --- | --- | --- | --- |"]
    for name, shape in fields.items():
        default = "required" if name in required else f"`{_default(shape)}`"
        notes = "; ".join(filter(None, [shape.get("description"), _bounds(shape)]))
        rows.append(f"| `{name}` | {_type(shape)} | {default} | {notes} |")
    return "\n".join(rows)


def _render_record(record: type) -> str:
    rows = [f"### {record.__name__}", "", _prose(record.__doc__), ""]
    rows += ["| field | type |", "| --- | --- |"]
    for name, annotation in inspect.get_annotations(record).items():
        shown = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
        text = shown if shown and "[" not in str(annotation) else str(annotation)
        rows.append(f"| `{name}` | {_short_type(text)} |")
    return "\n".join(rows)


def _render_enum(enum: type) -> str:
    values = ", ".join(f"`{member.value}`" for member in enum)  # type: ignore[attr-defined]
    return f"**{enum.__name__}**: {_prose(enum.__doc__)} {values}"


def _enums_of(module: ModuleType) -> list[type]:
    return [
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and issubclass(member, StrEnum)
        and member.__module__ == module.__name__
    ]


def _type(shape: dict[str, Any]) -> str:
    if "$ref" in shape:
        return str(shape["$ref"]).rpartition("/")[2]
    if "anyOf" in shape:
        return " or ".join(_type(option) for option in shape["anyOf"])
    if shape.get("type") == "array":
        return f"array of {_type(shape.get('items', {}))}"
    if "enum" in shape:
        return " or ".join(f"`{value}`" for value in shape["enum"])
    if "const" in shape:
        return f"`{shape['const']}`"
    return str(shape.get("type", "any"))


def _bounds(shape: dict[str, Any]) -> str:
    options = [shape, *shape.get("anyOf", []), shape.get("items", {})]
    found = [text.format(o[key]) for o in options for key, text in BOUNDS if key in o]
    return ", ".join(found).replace("|", "\\|")


def _default(shape: dict[str, Any]) -> str:
    default = shape.get("default")
    if isinstance(default, dict):
        return "its own defaults"
    return "none" if default is None else json.dumps(default)


def _short_type(text: str) -> str:
    return re.sub(r"\b(?:libs|enum)\.[a-z_.]+\.", "", text).replace("|", "or")


def _first_line(docstring: str | None) -> str:
    return inspect.cleandoc(docstring or "").splitlines()[0]


def _prose(docstring: str | None) -> str:
    return inspect.cleandoc(docstring or "")


def main() -> None:
    """Write the document."""
    DOCUMENT.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
