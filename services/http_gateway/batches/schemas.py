"""What callers send about files and batches; unknown fields are ignored, as OpenAI's are."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from libs.client.records import PageRequest
from libs.contracts.batches import ENDPOINTS, FilePurpose, Metadata
from libs.openai_api.errors import from_validation

FILES_LISTED_MAX: Final = 10_000
BATCHES_LISTED_MAX: Final = 100
BATCHES_LISTED_DEFAULT: Final = 20
EXPIRY_S_MIN: Final = 3600
EXPIRY_S_MAX: Final = 30 * 86_400


def _served(endpoint: str) -> str:
    if endpoint not in ENDPOINTS:
        raise ValueError(f"must be one of {', '.join(ENDPOINTS)}")
    return endpoint


Endpoint = Annotated[
    str, AfterValidator(_served), Field(json_schema_extra={"enum": list(ENDPOINTS)})
]
CompletionWindow = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,6}[smhd]$")]
"""OpenAI has "24h"; here any number of seconds, minutes, hours or days; the queue has bounds."""


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True)


class ExpiresAfter(_Sent):
    """When a file goes away by itself."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=EXPIRY_S_MIN, le=EXPIRY_S_MAX)


class FileForm(_Sent):
    """The fields beside the file in POST /v1/files."""

    purpose: Literal[FilePurpose.BATCH]
    expires_after: ExpiresAfter | None = None


class CreateBatch(_Sent):
    """POST /v1/batches."""

    input_file_id: str = Field(min_length=1, max_length=64)
    endpoint: Endpoint
    completion_window: CompletionWindow
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class ListFiles(_Sent):
    """The query of GET /v1/files."""

    purpose: str | None = None
    limit: int = Field(default=FILES_LISTED_MAX, ge=1, le=FILES_LISTED_MAX)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None

    def page(self) -> PageRequest:
        """Return which files that asks for."""
        return PageRequest(limit=self.limit, after=self.after, is_newest_first=self.order == "desc")


class ListBatches(_Sent):
    """The query of GET /v1/batches; the newest come first."""

    limit: int = Field(default=BATCHES_LISTED_DEFAULT, ge=1, le=BATCHES_LISTED_MAX)
    after: str | None = None

    def page(self) -> PageRequest:
        """Return which batches that asks for."""
        return PageRequest(limit=self.limit, after=self.after)


SentT = TypeVar("SentT", FileForm, ListFiles, ListBatches)


def parse_batch(body: bytes) -> CreateBatch:
    """Return the request in this body. Raises: ApiError that names the field."""
    try:
        return CreateBatch.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None


def parse_fields(shape: type[SentT], fields: Mapping[str, str]) -> SentT:
    """Return what these fields of a form or query say; `a[b]` is member b of a.

    Raises: ApiError that names the field.
    """
    nested: dict[str, object] = {}
    for name, value in fields.items():
        outer, bracket, inner = name.removesuffix("]").partition("[")
        if not bracket:
            nested[name] = value
            continue
        members = nested.setdefault(outer, {})
        if isinstance(members, dict):
            members[inner] = value
    try:
        return shape.model_validate(nested)
    except ValidationError as error:
        raise from_validation(error) from None
