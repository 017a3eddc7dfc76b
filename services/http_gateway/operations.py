"""What the gateway serves, as data: every path with its methods, what it takes and answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from pydantic import BaseModel

from libs.openai_api.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from services.http_gateway.batches.objects import BATCH_FIELDS, FILE_FIELDS, LIST_FIELDS
from services.http_gateway.batches.schemas import CreateBatch, ListBatches, ListFiles

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"
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
_STORE: Final = (
    HTTPStatus.NOT_FOUND,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
_QUEUE: Final = (*_STORE, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One path with one method."""

    path: str
    method: str
    summary: str
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    has_form: bool = False
    """Whether the body is a form with a file."""
    has_tenant: bool = False
    """Whether it is done on behalf of a tenant."""
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
        has_tenant=True,
    ),
    Operation(
        path="/v1/completions",
        method="post",
        summary="Continue prompts, whole or as a stream",
        body=CompletionRequest,
        answers={JSON: _ANSWER_FIELDS, **_STREAM},
        errors=_WRONG + _FLEET,
        has_tenant=True,
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
        path="/v1/files",
        method="post",
        summary="Upload the file of a batch",
        has_form=True,
        answers={JSON: FILE_FIELDS},
        errors=_WRONG + _QUEUE,
        has_tenant=True,
    ),
    Operation(
        path="/v1/files",
        method="get",
        summary="List files",
        query=ListFiles,
        answers={JSON: LIST_FIELDS},
        errors=_STORE,
        has_tenant=True,
    ),
    Operation(
        path="/v1/files/{file_id}",
        method="get",
        summary="Return what is known of a file",
        answers={JSON: FILE_FIELDS},
        errors=_STORE,
        has_tenant=True,
    ),
    Operation(
        path="/v1/files/{file_id}",
        method="delete",
        summary="Delete a file that no open batch reads",
        answers={JSON: ("id", "object", "deleted")},
        errors=_QUEUE,
        has_tenant=True,
    ),
    Operation(
        path="/v1/files/{file_id}/content",
        method="get",
        summary="Return the bytes of a file",
        answers={BYTES: ()},
        errors=_STORE,
        has_tenant=True,
    ),
    Operation(
        path="/v1/batches",
        method="post",
        summary="Have every line of a file answered by a deadline",
        body=CreateBatch,
        answers={JSON: BATCH_FIELDS},
        errors=_WRONG + _QUEUE,
        has_tenant=True,
    ),
    Operation(
        path="/v1/batches",
        method="get",
        summary="List batches, the newest first",
        query=ListBatches,
        answers={JSON: LIST_FIELDS},
        errors=_STORE,
        has_tenant=True,
    ),
    Operation(
        path="/v1/batches/{batch_id}",
        method="get",
        summary="Return a batch",
        answers={JSON: BATCH_FIELDS},
        errors=_STORE,
        has_tenant=True,
    ),
    *(
        Operation(
            path=f"/v1/batches/{{batch_id}}/{verb}",
            method="post",
            summary=summary,
            answers={JSON: BATCH_FIELDS},
            errors=_QUEUE,
            has_tenant=True,
        )
        for verb, summary in (
            ("cancel", "End a batch; what is answered stays"),
            ("pause", "Take up no further line of a batch"),
            ("resume", "Go on with a paused batch"),
        )
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
