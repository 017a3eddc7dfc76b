"""Packs frozen dataclasses as arrays of their fields, checked against the types they declare.

Compiled once per class from its annotations: a field that is added is carried without a line here,
and one of a type that is not known here fails when the codec is compiled, never in silence. Both
ends must know the same fields; a different number of them is refused.

Known: int, float, str, bool, None, Literal of str, tuple[X, ...], tuple[X, Y], frozenset[X],
X | None and dataclasses of these.
"""

import dataclasses
import types
from collections.abc import Callable
from operator import attrgetter
from typing import (
    Any,
    Final,
    Generic,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgpack

from libs.contracts.wire import unpack
from libs.kernel.errors import ContractViolation

ONLY_INTEGERS: Final = frozenset({int})

ValueT = TypeVar("ValueT")
_Unpack = Callable[[Any], Any]
_Pack = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class _Converter:
    """How values of one declared type travel; `pack` is None where msgpack does it by itself."""

    pack: _Pack | None
    unpack: _Unpack


class ArrayCodec(Generic[ValueT]):
    """Packs and unpacks one dataclass under a tag."""

    def __init__(self, value_type: type[ValueT], *, tag: str) -> None:
        """Compile. Raises: TypeError naming the field whose type is not known."""
        self._tag = tag
        self._converter = _dataclass_converter(value_type)

    def pack(self, value: ValueT) -> bytes:
        """Return the value as bytes; the inverse of `unpack`."""
        packed: bytes = msgpack.packb((self._tag, _packed(self._converter, value)))
        return packed

    def unpack(self, payload: bytes | memoryview) -> ValueT:
        """Return the value in these bytes. Raises: ContractViolation for anything else."""
        match unpack(bytes(payload)):
            case [str(tag), fields] if tag == self._tag:
                value: ValueT = self._converter.unpack(fields)
                return value
            case _:
                raise ContractViolation(f"not a {self._tag}")


def _packed(converter: _Converter, value: Any) -> Any:
    return value if converter.pack is None else converter.pack(value)


def _dataclass_converter(value_type: type[Any]) -> _Converter:
    hints = get_type_hints(value_type)
    names = tuple(field.name for field in dataclasses.fields(value_type))
    converters = tuple(_converter(hints[name], f"{value_type.__name__}.{name}") for name in names)
    steps = tuple(zip(names, converters, strict=True))

    def pack(value: Any) -> list[Any]:
        return [_packed(converter, getattr(value, name)) for name, converter in steps]

    def unpack_fields(packed: Any) -> Any:
        if type(packed) is not list or len(packed) != len(steps):
            raise ContractViolation(f"not the fields of {value_type.__name__}")
        fields = zip(steps, packed, strict=True)
        return value_type(**{name: converter.unpack(item) for (name, converter), item in fields})

    is_plain = len(names) > 1 and all(converter.pack is None for converter in converters)
    # Of a plain class all fields are fetched in one call; msgpack takes their tuple as an array.
    return _Converter(attrgetter(*names) if is_plain else pack, unpack_fields)


def _converter(declared: Any, field: str) -> _Converter:
    origin, arguments = get_origin(declared), get_args(declared)
    if declared in (int, float, str, bool):
        return _scalar_converter(declared, field)
    if origin is Literal and all(type(choice) is str for choice in arguments):
        return _literal_converter(arguments, field)
    if origin in (Union, types.UnionType) and len(arguments) == 2 and arguments[1] is type(None):
        return _optional_converter(_converter(arguments[0], field))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _items_converter(tuple, arguments[0], field)
    if origin is tuple:
        return _row_converter(tuple(_converter(argument, field) for argument in arguments), field)
    if origin is frozenset:
        return _items_converter(frozenset, arguments[0], field)
    if isinstance(declared, type) and dataclasses.is_dataclass(declared):
        return _dataclass_converter(declared)
    raise TypeError(f"{field}: no way to pack {declared}")


def _scalar_converter(declared: type[Any], field: str) -> _Converter:
    # A float that is a whole number may have been given as an int.
    allowed = (float, int) if declared is float else (declared,)

    def unpack_scalar(packed: Any) -> Any:
        if type(packed) not in allowed:
            raise ContractViolation(f"{field}: not {declared.__name__}")
        return packed

    return _Converter(None, unpack_scalar)


def _literal_converter(choices: tuple[str, ...], field: str) -> _Converter:
    def unpack_literal(packed: Any) -> Any:
        if packed not in choices:
            raise ContractViolation(f"{field}: not one of {', '.join(choices)}")
        return packed

    return _Converter(None, unpack_literal)


def _optional_converter(inner: _Converter) -> _Converter:
    def pack(value: Any) -> Any:
        return None if value is None else _packed(inner, value)

    def unpack_optional(packed: Any) -> Any:
        return None if packed is None else inner.unpack(packed)

    return _Converter(None if inner.pack is None else pack, unpack_optional)


def _items_converter(container: type[Any], item_type: Any, field: str) -> _Converter:
    """Convert any number of items; of plain integers, as token and block ids are, all at once."""
    item = _converter(item_type, field)

    def pack(value: Any) -> list[Any]:
        # A set in a fixed order gives the same bytes in every process.
        items = sorted(value) if container is frozenset else value
        return list(items if item.pack is None else map(item.pack, items))

    def unpack_items(packed: Any) -> Any:
        if type(packed) is not list:
            raise ContractViolation(f"{field}: not a list")
        if item_type is int:
            if not ONLY_INTEGERS.issuperset(map(type, packed)):
                raise ContractViolation(f"{field}: not all int")
            return container(packed)
        return container(map(item.unpack, packed))

    is_plain = container is tuple and item.pack is None
    return _Converter(None if is_plain else pack, unpack_items)


def _row_converter(columns: tuple[_Converter, ...], field: str) -> _Converter:
    def pack(value: Any) -> list[Any]:
        return [_packed(column, item) for column, item in zip(columns, value, strict=True)]

    def unpack_row(packed: Any) -> Any:
        if type(packed) is not list or len(packed) != len(columns):
            raise ContractViolation(f"{field}: not {len(columns)} values")
        return tuple(column.unpack(item) for column, item in zip(columns, packed, strict=True))

    return _Converter(pack, unpack_row)
