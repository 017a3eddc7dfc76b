"""How messages become bytes: tagged pydantic models as msgpack, or JSON where a client speaks JSON.

The first byte tells the two apart: a JSON object starts with `{`, which no msgpack map does. An
answer goes out in the encoding in which the request came in.

Evolution: a new field has a default and nobody may depend on it; a changed meaning is a new tag.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar

import msgpack
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from libs.kernel.errors import ContractViolation

SubjectToken = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{1,64}$")]
"""One token of a subject: an alias, a service id or a journal id."""

RequestId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""Chosen by the client; repeating it repeats the same request, never a second one."""

Tenant = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{0,64}$")]
"""On whose behalf; tenants share fairly what is harvested. Empty: nobody in particular."""

WIRE_INTEGER_MIN = -(2**63)
WIRE_INTEGER_MAX = 2**64 - 1
"""The integers that msgpack has."""


def _require_wire_integers(value: JsonValue) -> JsonValue:
    """Refuse integers that JSON can write and msgpack cannot."""
    unseen: list[JsonValue] = [value]
    while unseen:
        item = unseen.pop()
        if isinstance(item, dict):
            unseen.extend(item.values())
        elif isinstance(item, list):
            unseen.extend(item)
        elif isinstance(item, int) and not WIRE_INTEGER_MIN <= item <= WIRE_INTEGER_MAX:
            raise ValueError("an integer is outside -2**63 .. 2**64 - 1")
    return value


WireJson = Annotated[JsonValue, AfterValidator(_require_wire_integers)]
"""What a client writes in its own form, such as a tool's definition."""


class Encoding(StrEnum):
    """The two encodings of a control message."""

    MSGPACK = "msgpack"
    JSON = "json"


class Message(BaseModel):
    """Base of every control message: immutable, keyword-only, unknown fields ignored.

    Each subclass has a literal `type` tag and a docstring that says who sends it, who handles it,
    and what happens if it is lost, late or doubled.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


MessageT = TypeVar("MessageT", bound=Message)


def encoding_of(payload: bytes) -> Encoding:
    """Tell the encoding from the first byte that is not white space."""
    return Encoding.JSON if payload.lstrip()[:1] in (b"{", b"[") else Encoding.MSGPACK


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One message to publish, as bytes."""

    subject: str
    payload: bytes
    reply_to: str | None = None


def encode(message: Message, *, encoding: Encoding = Encoding.MSGPACK) -> bytes:
    """Serialise a message; fields that hold their default None are left out."""
    if encoding is Encoding.JSON:
        return message.model_dump_json(exclude_none=True).encode()
    packed: bytes = msgpack.packb(message.model_dump(mode="json", exclude_none=True))
    return packed


def unpack(payload: bytes) -> Any:
    """Decode msgpack without trusting it: bounded, strings as UTF-8, no extension types.

    Raises: ContractViolation on anything that is not one complete msgpack value.
    """
    try:
        return msgpack.unpackb(
            payload, raw=False, strict_map_key=True, ext_hook=_refuse_extension, timestamp=0
        )
    except RecursionError as error:
        raise ContractViolation("malformed msgpack: nested too deeply") from error
    except Exception as error:  # msgpack raises ValueError, TypeError and subclasses of its own
        raise ContractViolation(f"malformed msgpack: {error or type(error).__name__}") from error


def _refuse_extension(code: int, payload: bytes) -> Any:
    raise ContractViolation(f"malformed msgpack: extension type {code} is not allowed")


class Codec(Generic[MessageT]):
    """Decodes a closed union of messages by their `type` tag."""

    def __init__(self, union: Any) -> None:
        self._adapter: TypeAdapter[MessageT] = TypeAdapter(union)

    def decode(self, payload: bytes) -> MessageT:
        """Return the message in these bytes, in either encoding.

        Raises: ContractViolation naming the path of the first bad field.
        """
        try:
            if encoding_of(payload) is Encoding.JSON:
                return self._adapter.validate_json(payload)
            # JSON-mode rules (a list may become a tuple) apply to msgpack too.
            return self._adapter.validate_python(unpack(payload))
        except ValidationError as error:
            raise ContractViolation(describe(error)) from error
        except RecursionError as error:
            raise ContractViolation("malformed message: nested too deeply") from error


def describe(error: ValidationError) -> str:
    """Render the first validation error as `path: what is wrong`, without echoing the input."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # The first element of the path is the union's tag; a reader wants the field.
    path = ".".join(str(part) for part in first["loc"] if ".v" not in str(part))
    return f"{path}: {first['msg']}" if path else str(first["msg"])
