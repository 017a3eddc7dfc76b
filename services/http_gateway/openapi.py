"""The gateway's own description at /openapi.json: requests, statuses, and the error envelope.

Written from the request models, because the routes read bodies themselves: with a bound, and with
errors in OpenAI's envelope.
"""

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from services.http_gateway.api_keys import OPEN_PATHS
from services.http_gateway.batches.schemas import FileForm
from services.http_gateway.operations import JSON, OPERATIONS, Operation
from services.http_gateway.tenants import TENANT_HEADER, TENANT_PATTERN

_REF: Final = "#/components/schemas/{model}"
_EVERYWHERE: Final = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
)
_UNPROVEN: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_SCHEMES: Final = {"key": {"type": "http", "scheme": "bearer"}}


def openapi_document(*, version: str, has_keys: bool = False) -> dict[str, Any]:
    """Return the whole document, of a gateway that asks for API keys or of one that does not."""
    schemas: dict[str, Any] = {"Error": _ERROR}
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        is_closed = has_keys and operation.path not in OPEN_PATHS
        described = _operation(operation, statuses=_UNPROVEN if is_closed else ())
        if is_closed:
            described["security"] = [{"key": []}]
        paths.setdefault(operation.path, {})[operation.method] = described
        if operation.body is not None:
            schema = operation.body.model_json_schema(ref_template=_REF)
            schemas |= schema.pop("$defs", {})
            schemas[operation.body.__name__] = schema
    return {
        "openapi": "3.1.0",
        "info": {"title": "TideServe", "version": version},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _SCHEMES if has_keys else {}},
    }


def _operation(operation: Operation, *, statuses: Sequence[HTTPStatus]) -> dict[str, Any]:
    content = {
        media_type: {"schema": {"type": "object", "required": list(fields)} if fields else {}}
        for media_type, fields in operation.answers.items()
    }
    described: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": {"200": {"description": HTTPStatus.OK.phrase, "content": content}},
    }
    for status in sorted({*_EVERYWHERE, *statuses, *operation.errors}):
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
    if operation.has_form:
        form = {"multipart/form-data": {"schema": _form_schema()}}
        described["requestBody"] = {"required": True, "content": form}
    return described


def _parameters(operation: Operation) -> Sequence[dict[str, Any]]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    if operation.query is not None:
        fields = operation.query.model_json_schema()["properties"]
        parameters += [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in fields.items()
        ]
    if operation.has_tenant:
        schema = {"type": "string", "pattern": f"^{TENANT_PATTERN}$"}
        parameters.append(
            {"name": TENANT_HEADER, "in": "header", "required": False, "schema": schema}
        )
    return parameters


def _form_schema() -> dict[str, Any]:
    """Return the form of an upload; members of a field are fields `outer[inner]` of their own."""
    schema = FileForm.model_json_schema()
    lifetime = schema["$defs"]["ExpiresAfter"]["properties"]
    return {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": schema["properties"]["purpose"],
            **{f"expires_after[{name}]": member for name, member in lifetime.items()},
        },
    }


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
