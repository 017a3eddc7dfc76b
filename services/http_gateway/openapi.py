"""The gateway's own description at /openapi.json: requests, statuses, and the error envelope.

Written from the request models, because the routes read bodies themselves: with a bound, and with
errors in OpenAI's envelope.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel

from libs.openai_api.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

JSON: Final = "application/json"
_REF: Final = "#/components/schemas/{model}"
_WRONG: Final = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
)
_FLEET: Final = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_EVERYWHERE: Final = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One path with its one method."""

    path: str
    method: str
    summary: str
    body: type[BaseModel] | None = None
    answers: Mapping[str, Sequence[str]]
    """By media type: the fields that a successful answer always has."""
    errors: Sequence[HTTPStatus] = ()


_STREAM: Final[Mapping[str, Sequence[str]]] = {"text/event-stream": ()}
_ANSWER_FIELDS: Final = ("id", "object", "created", "model", "choices", "usage")

OPERATIONS: Final = (
    Operation(
        path="/v1/chat/completions",
        method="post",
        summary="Answer a conversation, whole or as a stream",
        body=ChatRequest,
        answers={JSON: _ANSWER_FIELDS, **_STREAM},
        errors=_WRONG + _FLEET,
    ),
    Operation(
        path="/v1/completions",
        method="post",
        summary="Continue prompts, whole or as a stream",
        body=CompletionRequest,
        answers={JSON: _ANSWER_FIELDS, **_STREAM},
        errors=_WRONG + _FLEET,
    ),
    Operation(
        path="/tokenize",
        method="post",
        summary="Return the token ids of a prompt or a conversation",
        body=TokenizeRequest,
        answers={JSON: ("count", "max_model_len", "tokens", "token_strs")},
        errors=_WRONG + _FLEET,
    ),
    Operation(
        path="/detokenize",
        method="post",
        summary="Return the text of token ids",
        body=DetokenizeRequest,
        answers={JSON: ("prompt",)},
        errors=_WRONG + _FLEET,
    ),
    Operation(
        path="/v1/models",
        method="get",
        summary="List the models that living workers serve",
        answers={JSON: ("object", "data")},
    ),
    Operation(
        path="/v1/models/{name}",
        method="get",
        summary="Return one model",
        answers={JSON: ("id", "object", "created", "owned_by")},
        errors=(HTTPStatus.NOT_FOUND,),
    ),
    Operation(
        path="/health",
        method="get",
        summary="Tell whether requests can be served",
        answers={JSON: ("status",)},
    ),
    Operation(path="/live", method="get", summary="Tell that the process runs", answers={JSON: ()}),
    Operation(
        path="/metrics",
        method="get",
        summary="Return the metrics in Prometheus' format",
        answers={"text/plain": ()},
    ),
)


def openapi_document(*, version: str) -> dict[str, Any]:
    """Return the whole document."""
    schemas: dict[str, Any] = {"Error": _ERROR}
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths[operation.path] = {operation.method: _operation(operation)}
        if operation.body is not None:
            schema = operation.body.model_json_schema(ref_template=_REF)
            schemas |= schema.pop("$defs", {})
            schemas[operation.body.__name__] = schema
    return {
        "openapi": "3.1.0",
        "info": {"title": "TideServe", "version": version},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(operation: Operation) -> dict[str, Any]:
    content = {
        media_type: {"schema": {"type": "object", "required": list(fields)} if fields else {}}
        for media_type, fields in operation.answers.items()
    }
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {"200": {"description": HTTPStatus.OK.phrase, "content": content}},
    }
    for status in sorted({*_EVERYWHERE, *operation.errors}):
        described["responses"][str(status.value)] = {
            "description": status.phrase,
            "content": {JSON: {"schema": {"$ref": _REF.format(model="Error")}}},
        }
    if operation.path == "/health":
        unready = {"description": "Requests cannot be served now", "content": content}
        described["responses"]["503"] = unready
    if operation.body is not None:
        reference = {"$ref": _REF.format(model=operation.body.__name__)}
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": reference}}}
    if "{name}" in operation.path:
        described["parameters"] = [
            {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return described


_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
